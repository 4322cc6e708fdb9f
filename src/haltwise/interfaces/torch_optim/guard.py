"""What keeps a learned optimizer from harm: when to distrust it, and Adam, which then goes on.

It reads the losses that steps come with. A smoothed loss that has risen far above its lowest, or
has found no new lowest for long, shows that the weights do not fit the module (loss-guarded learned
optimization, Prémont-Schwarz et al. 2022, without their second evaluation a step: minibatch losses
are too noisy to compare single steps by). After the trained horizon nothing is known of the weights
at all. In each case Adam takes over, from where the smoothed loss was lowest, at the size of step
that the learned optimizer had there, annealed from then on.
"""

import math
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require

__all__ = ["Action", "Guard", "adam_"]

_SMOOTHING = 0.8  # of the loss: some five steps
_FEW = 10  # steps from a beginning, in which the loss may rise by half its size
_RISE = 0.15  # of the whole fall of the loss, above the lowest: too much
_NOISE = 3.0  # times the mean deviation from the smoothed loss: no mere noise
_WAIT = 0.5  # of the horizon, without a new lowest smoothed loss
_ANNEAL = 0.5  # of the horizon, after which Adam's rate has halved
_CUT = 0.3  # of Adam's rate, where the loss rises under Adam, too
_FAILURES = 3  # steps in a row at which something is not finite
_WINDOW = 10  # steps of Adam that must together earn their price
_EPS = 1e-4  # of the root mean square
_BETAS = (0.9, 0.99)

_FRESH = {
    "step": 0,  # steps seen
    "begun": 0,  # step of the first beginning or the last going back
    "since": -1,  # first step of Adam
    "failures": 0,  # steps in a row at which something was not finite
    "lowest_at": 0,
    "smooth": 0.0,  # not corrected for its start at 0, as in Adam
    "noise": 0.0,
    "first": math.nan,
    "lowest": math.inf,
    "noise_there": 0.0,  # where the smoothed loss was lowest
    "size": 0.0,  # mean square of the learned update, smoothed alike
    "size_there": 0.0,  # its root, corrected
    "rate": 0.0,  # Adam's, to begin with
    "window": math.nan,  # the smoothed loss when the last window ended
}

State = dict[str, Any]


class Action(NamedTuple):
    """What is to be done with a group's parameters before a step.

    Attributes:
        remember: Keep a copy of them: the smoothed loss is at its lowest.
        go_back: Return to the copy; the gradient in hand is not that of the parameters then.
        begins: Whether Adam takes over at this step.
    """

    remember: bool = False
    go_back: bool = False
    begins: bool = False


@final
class Guard:
    """The guard of one group.

    Args:
        state: What it remembers, empty before the first step and changed in place, so that it can
            be saved: numbers alone.
        horizon: T, steps that the weights were trained for.
        price: c, what a step must gain.
    """

    def __init__(self, state: State, horizon: int, price: float) -> None:
        self._state, self._horizon, self._price = state, horizon, price
        if not state:
            state |= _FRESH

    @staticmethod
    def check(state: object) -> None:
        """Refuse what is not the state of a guard."""
        fits = isinstance(state, dict) and all(
            type(state.get(name)) is type(value) for name, value in _FRESH.items()
        )
        require(
            fits and len(state) == len(_FRESH),  # type: ignore[arg-type]
            f"the guard's state must hold the numbers {', '.join(_FRESH)}, got {state!r:.100}",
        )

    @property
    def has_taken_over(self) -> bool:
        """Whether Adam moves the parameters."""
        return bool(self._state["since"] >= 0)

    @property
    def num_adam_steps(self) -> int:
        """Steps of Adam before this one."""
        return int(self._state["step"] - 1 - self._state["since"])

    @property
    def rate(self) -> float:
        """Adam's learning rate at this step."""
        return float(self._state["rate"] / (1 + self.num_adam_steps / (_ANNEAL * self._horizon)))

    def observe(self, loss: float | None) -> Action:
        """Begin a step with the loss at the parameters, where it is known."""
        state = self._state
        step = state["step"]
        state["step"] += 1
        state["failures"] = 0
        action = Action() if loss is None else self._judge(loss, step)
        if not self.has_taken_over:
            if action.go_back or step >= self._horizon:
                self._take_over(step)
                return action._replace(begins=True)
        elif action.go_back:
            state["rate"] *= _CUT
        return action

    def fail(self) -> Action:
        """Note that something is not finite at this step.

        One bad minibatch does no harm. Several in a row are a divergence.
        """
        state = self._state
        state["failures"] += 1
        if state["failures"] < _FAILURES or state["step"] == 0:
            return Action()
        state["failures"] = 0
        if self.has_taken_over:
            state["rate"] *= _CUT
            return Action(go_back=True)
        self._take_over(state["step"])
        return Action(go_back=True, begins=True)

    def note_size(self, mean_square: float) -> None:
        """Note the mean square of the learned update of this step."""
        state = self._state
        state["size"] += (1 - _SMOOTHING) * (mean_square - state["size"])
        if state["lowest_at"] == state["step"] - 1:
            state["size_there"] = math.sqrt(state["size"] / (1 - _SMOOTHING ** state["step"]))

    def wants_to_stop(self) -> bool:
        """Whether the last steps of Adam have not earned their price, or the horizon has ended."""
        state = self._state
        if state["step"] > self._horizon:
            return True
        if self.num_adam_steps % _WINDOW:
            return False
        smooth = state["smooth"] / (1 - _SMOOTHING ** state["step"])
        gained = state["window"] - smooth
        state["window"] = smooth
        return bool(gained < _WINDOW * self._price)  # false for NaN, of the first

    def _judge(self, loss: float, step: int) -> Action:
        state = self._state
        weight = 1 - _SMOOTHING ** (step + 1)
        if math.isnan(state["first"]):
            state["first"] = loss
        if step:
            deviation = abs(loss - state["smooth"] / (1 - _SMOOTHING**step))
            state["noise"] += (1 - _SMOOTHING) * (deviation - state["noise"])
        state["smooth"] += (1 - _SMOOTHING) * (loss - state["smooth"])
        smooth = state["smooth"] / weight
        if smooth <= state["lowest"]:
            state["lowest"], state["lowest_at"] = smooth, step
            state["noise_there"] = state["noise"]
            return Action(remember=True)
        above, fall = smooth - state["lowest"], max(state["first"] - state["lowest"], 0.0)
        if step - state["begun"] < _FEW:
            rises = above > 0.5 * abs(state["first"])
        else:
            rises = above > max(_RISE * fall, _NOISE * state["noise_there"])
        waits = not self.has_taken_over and step - state["lowest_at"] > _WAIT * self._horizon
        if not (rises or waits):
            return Action()
        # Begin again at the lowest.
        state["smooth"], state["noise"] = state["lowest"] * weight, state["noise_there"]
        state["lowest_at"] = state["begun"] = step
        return Action(go_back=True)

    def _take_over(self, step: int) -> None:
        self._state["since"], self._state["rate"] = step, self._state["size_there"]


@torch.no_grad()
def adam_(state: dict[str, Tensor], grad: Tensor, step: int, rate: float) -> Tensor:
    """Adam's update (Kingma & Ba 2015) of a tensor, shape [N]; its moments lie in `state`.

    Args:
        state: Of the tensor; changed in place.
        grad: Shape [N].
        step: Steps that Adam has taken.
        rate: Its learning rate.
    """
    if "guard.mean" not in state:
        state["guard.mean"] = torch.zeros_like(grad)
        state["guard.square"] = torch.zeros_like(grad)
    first, second = _BETAS
    mean = state["guard.mean"].lerp_(grad, 1 - first)
    square = state["guard.square"].lerp_(grad.square(), 1 - second)
    root = (square / (1 - second ** (step + 1))).sqrt_()
    # In units of the gradient itself, which may have any size.
    root += _EPS * root.square().mean().sqrt() + torch.finfo(root.dtype).tiny
    return mean.div(root).mul_(-rate / (1 - first ** (step + 1)))
