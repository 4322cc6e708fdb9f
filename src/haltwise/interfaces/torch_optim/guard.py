"""What keeps a learned optimizer from harm: when to distrust it, and Adam, which then goes on.

It reads the losses that steps come with. A smoothed loss that has risen far above its lowest, or
has found no new lowest for long, shows that the weights do not fit the module (loss-guarded learned
optimization, Prémont-Schwarz et al. 2022, without their second evaluation a step: minibatch losses
are too noisy to compare single steps by). After the trained horizon nothing is known of the weights
at all, and Adam takes over; where they have failed, from the parameters at which the smoothed loss
was lowest. Its steps are as large as the learned ones were there, and annealed from then on: soon
where the weights have left little of the loss, slowly where there is more to do.

A loss that is lowest by no more than noise has gained nothing: parameters there may be worse than
they look, as a network's whose ReLUs have all died. Adam then begins at the start, at a rate that
is no larger than such networks bear, and what is known of the losses begins there, too: the first
of them may have been a lucky one, above which all others lie.

Where the loss is as high again right after going back, at the parameters at which it was lowest, no
step has done harm: the data have changed, or an adversary has learned. What is known of the losses
then begins there, and Adam's rate, too.

Noise must not be taken for harm, or a module would go back for ever: how far losses lie above the
smoothed one is measured from all of them, a loss far above it counts as a limited one, and the
lowest is trusted as far as it is the mean of many.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.tensors import widest

__all__ = ["FAILURES", "FRESH", "Action", "Guard", "adam_", "init_tensors", "why_adam"]

SMOOTHING = 0.8  # of the loss: some five steps
FEW = 10  # steps from a beginning, in which learned rules are bold
BOLD, LONG = 0.5, 3  # of the first loss, above it: too much for so many of these steps in a row
RISE = 0.15  # of the whole fall of the loss, above the lowest: too much
LITTLE = 0.1  # of the first loss: a fall that is no progress yet, or what is hardly worth more
ROUNDING = 1e-6  # of the first loss: a fall or rise that a loss which never changes may show
NOISE = 3.0  # times the mean deviation from the smoothed loss: no mere noise
MEMORY = 0.05  # of the noise: some twenty steps
FAR = 2.0  # times what is too much, or the noise: as far above as a single loss counts
WAIT = 0.5  # of the horizon, without a new lowest smoothed loss
ANNEAL = 0.5  # of the horizon, after which Adam's rate has halved
SLOWLY = 2.0  # the same where more than a little is left, and Adam has it to do
CUT = 0.3  # of Adam's rate, where the loss rises under Adam, too
LEAST = 0.1  # of `FRESH_RATE`, at most: a smaller one is no cure, and noise must not lead to it
FAILURES = 3  # steps in a row at which something is not finite
WINDOW = 10  # steps of Adam that must together earn their price
EPS = 1e-4  # of the root mean square
TINY, HUGE = 1e-19, 1e15  # of a gradient whose square is a float32
USUAL_RATE = 1e-3  # of Adam, where no learned step has shown its size
FRESH_RATE = 3e-3  # of Adam from the start at most, where learned steps have gained nothing
BETAS = (0.9, 0.99)

FRESH = {
    "begun": 0,  # step of the first beginning or the last going back
    "adam": -1,  # steps of Adam; -1 before it has taken over
    "failures": 0,  # steps in a row at which something was not finite
    "losses": 0,  # seen since the start, or since going back to it
    "lowest_at": 0,
    "smooth": 0.0,  # not corrected for its start at 0, as in Adam
    "noise": 0.0,  # mean deviation from the smoothed loss: twice that of losses above it
    "first": 0.0,
    "lowest": math.inf,
    "lowest_of": 0,  # losses seen by then
    "high": 0,  # steps in a row of a loss that is far above the first
    "size": 0.0,  # mean square of the learned update at lr 1, smoothed alike
    "weight": 0.0,  # by which it is corrected
    "size_there": 0.0,  # its root, corrected
    "rate": 0.0,  # Adam's, to begin with
    "anneal": 0.0,  # steps of Adam after which it has halved
    "window": math.inf,  # the smoothed loss when the last window ended
    "gained": 0,  # 1 once a lowest loss was more than noise, and is what the copy is of
    "astray": 0,  # 1 since going back to it, while all losses have been as high as before
}
_WHY = {
    "rises": "at step {step}, as the loss has risen above its lowest",
    "waits": "at step {step}, as the loss has not fallen for {waited} steps",
    "ended": "after the {horizon} steps that they were trained for",
    "fails": "at step {step}, as steps are not finite",
}
_SIGNED = ("smooth", "first", "lowest", "window")  # numbers that may be below 0

State = dict[str, Any]


def why_adam(kind: str, *, step: int = 0, waited: int = 0, horizon: int = 0) -> str:
    """Why Adam takes over, in words, by the kind of reason."""
    return _WHY[kind].format(step=step, waited=waited, horizon=horizon)


class Action(NamedTuple):
    """What is to be done with a group's parameters before a step.

    Attributes:
        remember: Keep a copy of them, in place of that of the start: the smoothed loss is at its
            lowest, and has fallen by more than noise.
        go_back: Return to the copy; the gradient in hand is not that of the parameters then.
        takes_over: Why Adam takes over at this step, in words; empty if it does not.
    """

    remember: bool = False
    go_back: bool = False
    takes_over: str = ""


@final
class Guard:
    """The guard of one group.

    Args:
        state: What it remembers, empty before the first step and changed in place, so that it can
            be saved: numbers alone.
        step: t, updates applied so far.
        horizon: T, steps that the weights were trained for.
        price: c, what a step must gain.
    """

    def __init__(self, state: State, step: int, horizon: int, price: float) -> None:
        self._state, self._step, self._horizon, self._price = state, step, horizon, price
        if not state:
            state |= {**FRESH, "begun": step, "lowest_at": step}

    @staticmethod
    def check(state: object, step: int) -> None:
        """Refuse what no guard can have remembered after `step` updates."""
        fits = (
            isinstance(state, dict)
            and state.keys() == FRESH.keys()
            and all(type(state[name]) is type(value) for name, value in FRESH.items())
            and all(
                state[name] >= min(value, 0) or name in _SIGNED for name, value in FRESH.items()
            )
            and max(state["begun"], state["lowest_at"], state["adam"]) <= step
            and all(
                math.isfinite(state[name]) or state[name] == value for name, value in FRESH.items()
            )
            and math.isfinite(state["lowest"]) == (state["losses"] > 0)
            and min(state["losses"], 1) <= state["lowest_of"] <= state["losses"]
            and (state["anneal"] > 0 or state["adam"] < 0)
        )
        require(fits, f"the guard's state is impossible after {step} steps: {state!r:.400}")

    @property
    def has_taken_over(self) -> bool:
        """Whether Adam moves the parameters."""
        return bool(self._state["adam"] >= 0)

    @property
    def num_adam_steps(self) -> int:
        """Steps of Adam before this one."""
        return int(self._state["adam"])

    @property
    def rate(self) -> float:
        """Adam's learning rate at this step."""
        return float(self._state["rate"] / (1 + self.num_adam_steps / self._state["anneal"]))

    @property
    def highest_expected(self) -> float:
        """The loss that the last steps have led to at most, beyond doubt; inf if too few came."""
        state = self._state
        is_known = state["losses"] > FEW
        return state["smooth"] / self._weight() + self._too_much() if is_known else math.inf

    def observe(self, loss: float | None) -> Action:
        """Begin a step with the loss at the parameters, where it is known."""
        state = self._state
        has_losses = loss is not None or state["losses"] > 0
        was_gained = bool(state["gained"])
        action = Action() if loss is None else self._judge(loss)
        if self.has_taken_over:
            if action.go_back and was_gained and not state["gained"]:
                self._renew()
            elif action.go_back:
                self._cut()
            return action._replace(takes_over="")
        why, nothing_gained = action.takes_over, has_losses and not state["gained"]
        ends = self._step >= self._horizon
        if ends:
            why = why_adam("ended", horizon=self._horizon)
            if nothing_gained and not action.go_back:
                self._begin_again()
                action = Action(go_back=True)
        if why:
            fall, unit = state["first"] - state["lowest"], abs(state["first"])
            is_done = ends and not nothing_gained and fall >= (1 - LITTLE) * unit
            self._take_over(nothing_gained=nothing_gained, is_done=is_done)
        return action._replace(takes_over=why)

    def fail(self) -> Action:
        """Note that something is not finite at this step.

        One bad minibatch does no harm. Several in a row are a divergence.
        """
        state = self._state
        state["failures"] += 1
        if state["failures"] < FAILURES or self._step == 0:
            return Action()
        state["failures"] = 0
        has_moved = self._step > state["begun"]
        state["begun"] = self._step
        go_back = state["losses"] > 0  # else the copy is that of the start
        nothing_gained = go_back and not state["gained"]
        if go_back:
            self._begin_again()
        if self.has_taken_over:
            if has_moved:  # else no step has led here, and a smaller one would not help
                self._cut()
            return Action(go_back=go_back)
        self._take_over(nothing_gained=nothing_gained, is_done=False)
        return Action(go_back=go_back, takes_over=why_adam("fails", step=self._step))

    def note_learned_step(self, mean_square: float | None) -> None:
        """Note a step that was applied, and the mean square of its update at lr 1 if known."""
        state = self._state
        state["failures"] = 0
        if mean_square is None:
            return
        state["size"] += (1 - SMOOTHING) * (mean_square - state["size"])
        state["weight"] += (1 - SMOOTHING) * (1 - state["weight"])
        if state["lowest_at"] == self._step or not (state["losses"] and state["size_there"]):
            state["size_there"] = math.sqrt(state["size"] / state["weight"])

    def note_adam_step(self, *, has_loss: bool) -> bool:
        """Note a step of Adam; whether the last of them together have not earned their price."""
        state = self._state
        state["failures"] = 0
        state["adam"] += 1
        if not has_loss or (state["adam"] - 1) % WINDOW:
            return False
        smooth = state["smooth"] / self._weight()
        gained = state["window"] - smooth
        state["window"] = smooth
        return bool(gained < WINDOW * self._price)

    def _weight(self) -> float:
        """By which the smoothed loss is corrected for its start at 0."""
        return float(1 - SMOOTHING ** self._state["losses"])

    def _judge(self, loss: float) -> Action:
        state, step = self._state, self._step
        if not state["losses"]:
            state["first"] = loss
        is_high = loss - state["first"] > BOLD * abs(state["first"])
        state["high"] = state["high"] + 1 if is_high else 0
        if state["losses"]:
            if loss - state["lowest"] <= self._too_much():
                state["astray"] = 0
            loss = self._take_in(loss)
        state["losses"] += 1
        state["smooth"] += (1 - SMOOTHING) * (loss - state["smooth"])
        smooth, is_known = state["smooth"] / self._weight(), state["losses"] > FEW
        if smooth <= state["lowest"]:
            state["lowest"], state["lowest_at"] = smooth, step
            state["lowest_of"] = state["losses"]
            unit = abs(state["first"])
            noise = NOISE * state["noise"] if is_known else math.inf
            if state["first"] - smooth > max(min(LITTLE * unit, noise), ROUNDING * unit):
                state["gained"] = 1
            return Action(remember=bool(state["gained"]))
        rises = is_known and smooth - state["lowest"] > self._too_much()
        rises |= state["high"] >= LONG and state["losses"] <= FEW + LONG
        waits = not self.has_taken_over and step - state["lowest_at"] > WAIT * self._horizon
        if not (rises or waits):
            return Action()
        waited = step - state["lowest_at"]
        if rises and state["astray"]:  # to go back has not helped: the loss is another one by now
            state["gained"] = 0
        self._begin_again()
        why = why_adam("rises" if rises else "waits", step=step, waited=waited)
        return Action(go_back=True, takes_over=why)

    def _take_in(self, loss: float) -> float:
        """Learn the noise from a loss; how much of it counts."""
        state = self._state
        smooth = state["smooth"] / self._weight()
        deviation = loss - smooth
        is_known = state["losses"] > FEW
        if is_known:
            deviation = min(deviation, FAR * self._too_much())
        # Those above alone: a loss that falls lies below its smoothed past without any noise.
        above = max(deviation, 0.0)
        if is_known and state["noise"]:  # a rise is not to be learned as noise while it is judged
            above = min(above, FAR * state["noise"])
        state["noise"] += max(1 / state["losses"], MEMORY) * (2 * above - state["noise"])
        return float(smooth + deviation)

    def _too_much(self) -> float:
        """How far above its lowest the smoothed loss is beyond doubt.

        Smoothed from k losses it has (1 + b^k) / (1 - b^k) times the variance that it has of many,
        b the smoothing. The difference of one of many and the lowest, of k, so has 1 / (1 - b^k)
        times the variance of two of many.
        """
        state = self._state
        fall = max(state["first"] - state["lowest"], 0.0)
        noise = NOISE * state["noise"] / math.sqrt(1 - SMOOTHING ** state["lowest_of"])
        return float(max(RISE * fall, noise, ROUNDING * abs(state["first"])))

    def _begin_again(self) -> None:
        """Go on from the copy: from where the smoothed loss was lowest, or from the start."""
        state = self._state
        if state["gained"]:
            state["smooth"] = state["lowest"] * self._weight()
        else:  # nothing is known but what is seen from there on
            names = ("losses", "smooth", "noise", "first", "lowest", "lowest_of")
            state |= {name: FRESH[name] for name in names}
        state["lowest_at"] = state["begun"] = self._step
        state["high"], state["astray"] = 0, state["gained"]

    def _take_over(self, *, nothing_gained: bool, is_done: bool) -> None:
        rate = self._state["size_there"] or USUAL_RATE
        self._state["anneal"] = (ANNEAL if is_done else SLOWLY) * self._horizon
        self._state["rate"] = min(rate, FRESH_RATE) if nothing_gained else rate
        self._state["adam"] = 0

    def _renew(self) -> None:
        """Let Adam go on as from a start, for there is another loss to lower."""
        state = self._state
        state["rate"] = min(max(state["size_there"], USUAL_RATE), FRESH_RATE)
        state["anneal"] = SLOWLY * self._horizon + state["adam"]

    def _cut(self) -> None:
        """Let Adam take smaller steps."""
        state = self._state
        least = LEAST * min(state["size_there"] or USUAL_RATE, FRESH_RATE)
        state["rate"] = max(CUT * state["rate"], min(least, state["rate"]))


def init_tensors(param: Tensor, like: Tensor) -> dict[str, Tensor]:
    """What is remembered of a tensor of N entries: its copy, and Adam's moments as `like`, [N]."""
    copy = param.detach().clone(memory_format=torch.contiguous_format)
    return {
        "guard.params": copy,
        "guard.mean": torch.zeros_like(like, memory_format=torch.contiguous_format),
        "guard.square": torch.zeros_like(like, memory_format=torch.contiguous_format),
    }


@torch.no_grad()
def adam_(
    states: Sequence[dict[str, Tensor]], grads: Sequence[Tensor], step: int, rate: float
) -> list[Tensor]:
    """Adam's updates (Kingma & Ba 2015) of tensors on one device and of one dtype, each [N].

    Args:
        states: See `init_tensors`; changed in place.
        grads: Each of shape [N].
        step: Steps that Adam has taken.
        rate: Its learning rate.
    """
    first, second = BETAS
    held = [grad.clamp(-HUGE, HUGE) for grad in grads]
    means, squares = ([state[f"guard.{name}"] for state in states] for name in ("mean", "square"))
    torch._foreach_lerp_(means, held, 1 - first)
    torch._foreach_lerp_(squares, torch._foreach_mul(held, held), 1 - second)
    # Both are corrected for their start at 0: the means by the rate, the roots by their unit.
    unit = math.sqrt(1 - second ** (step + 1))
    # Roots of subnormal numbers take some processors eighty times as long.
    roots = torch._foreach_clamp_min(squares, torch.finfo(squares[0].dtype).tiny)
    torch._foreach_sqrt_(roots)
    # What is added is in units of the gradient itself, which may have any size.
    norms = torch._foreach_norm(roots, dtype=widest(roots[0].device))
    least = torch._foreach_mul(norms, [EPS / math.sqrt(root.numel()) for root in roots])
    torch._foreach_add_(roots, torch._foreach_add(least, unit * TINY))
    updates = torch._foreach_div(means, roots)
    torch._foreach_mul_(updates, -rate * unit / (1 - first ** (step + 1)))
    return [*updates]
