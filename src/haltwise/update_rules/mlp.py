"""A small network on normalised momenta of the gradient, shared by all coordinates."""

import itertools
import math
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from haltwise._core.errors import require
from haltwise._core.tensors import constants, default_device
from haltwise._kernels import native, native_mlp
from haltwise.update_rules.base import PooledGradient, State, UpdateRule, UpdateStep
from haltwise.update_rules.capabilities import SupportsChunks

__all__ = ["MLPRule"]

MOMENTA = (0.5, 0.9, 0.99)  # shares of the gradients' averages that are kept
SQUARES = (0.9, 0.99)  # of the squared gradients' averages; the last normalises
AGREEMENT = 0.8
PERIODS = (3.0, 10.0, 30.0, 100.0)  # steps in which the features of time decay
FEWEST = 1e-8  # of the root mean square over coordinates: what no gradient is divided by less than
BOUND = 4.0  # of features and of the logarithm of the step size
DIRECTION = 1  # of the momenta: the one whose agreement with the next gradient sets the scale
USUAL = (-0.3, 0.05)  # cosines at which the scale stays as it is
RISE = 4.0  # how fast the scale rises, times as fast as it falls
SMALLEST, LARGEST = 0.25, 3.0  # scale
NUM_DIRECTIONS = 1 + len(MOMENTA)
NUM_OWN = 13  # features of a coordinate, before those that a problem's coordinates share
NUM_FEATURES = NUM_OWN + 2 + len(PERIODS)


class _Problem(NamedTuple):
    """What is known of a problem at a step.

    Attributes:
        state: Its own, after the step.
        steps: Gradients that averages hold, at least 1, shape [B, 1].
        size: Root mean square of the last gradients over coordinates, in the unit of the first,
            shape [B, 1].
        features: Shape [B, F - 13].
    """

    state: State
    steps: Tensor
    size: Tensor
    features: Tensor


class _Common(NamedTuple):
    """What all coordinates of a problem are moved by.

    Attributes:
        problem: What is known of it.
        size: Of its updates, shape [B, 1].
        level: What the first layer makes of its features, bias included, shape [B, H].
        maps: See `MLPRule.maps`.
    """

    problem: _Problem
    size: Tensor
    level: Tensor
    maps: list[Tensor]


class _Seen(NamedTuple):
    """What a coordinate knows at a step.

    Attributes:
        directions: The gradient and its momenta, normalised, shape [B, D, 4].
        features: Shape [B, D, 13].
        state: Of coordinates, after the step.
    """

    directions: Tensor
    features: Tensor
    state: State


@final
class MLPRule(nn.Module, UpdateRule, SupportsChunks):
    """Adam whose step size and momentum a small network chooses for each coordinate anew.

    The update of a coordinate is

        g_t = -output_scale * exp(b) * sum_j w_j u_j

    where u holds its gradient and the gradient's averages over some 2, 10 and 100 steps, corrected
    for their start at 0 as in Adam, each divided by the root mean square of its last gradients. A
    network with two hidden layers chooses b, |b| <= 4, and w, |w_j| <= 2, from products of the u,
    so that nothing depends on a gradient's sign; from the size of the coordinate's gradients beside
    that of all coordinates, how both have changed, and the number of steps. So an update is
    bounded, and the same in any unit of the loss. A new rule is Adam with the learning rate
    `output_scale`, slightly perturbed.

    What no coordinate can tell, but all together can, is whether steps are too short or too long. A
    problem's updates are multiplied by a scale s, 1 at first and between 1/4 and 3, which moves
    by the cosine a of the gradient and the momentum (of some 10 steps) before it,

        log s_t = log s_{t-1} + gain (4 max(a - .05, 0) - max(-.3 - a, 0)),

    so it rises while gradients still point the way that was gone, and falls where they point back,
    which is past the minimum along it. A little of that is usual where minibatches are noisy.

    Normalised momenta are the inputs of RNNprop (Lv et al. 2017), momenta of several time scales
    and a network without memory of its own those of Metz et al. 2020, "Tasks, stability,
    architecture, and compute". The scale is a hypergradient's descent by its sign and angle (Jacobs
    1988, "Increased rates of convergence through learning rate adaptation"; Baydin et al. 2018,
    "Online learning rate adaptation with hypergradient descent").

    Args:
        hidden_size: H, units of a hidden layer.
        output_scale: Size of the first updates.
        gain: How fast the scale moves; 0 leaves it at 1.
        generator: Draws the initial weights.
    """

    def __init__(
        self,
        hidden_size: int = 32,
        *,
        output_scale: float = 0.01,
        gain: float = 0.2,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(hidden_size >= 1, f"hidden_size must be at least 1, got {hidden_size}")
        require(output_scale > 0, f"output_scale must be above 0, got {output_scale}")
        require(gain >= 0, f"gain must be at least 0, got {gain}")
        self.hidden_size, self.output_scale, self.gain = hidden_size, output_scale, gain
        sizes = (NUM_FEATURES, hidden_size, hidden_size, 1 + NUM_DIRECTIONS)
        place: Any = {"device": default_device(), "dtype": torch.float32}
        layers = [
            nn.utils.skip_init(nn.Linear, inputs, outputs, **place)
            for inputs, outputs in itertools.pairwise(sizes)
        ]
        for layer, part in zip(layers, (1.0, 1.0, 0.1), strict=True):
            bound = part * layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            nn.init.zeros_(layer.bias)
        self.layers = nn.ModuleList(layers)

    @property
    def readout_size(self) -> int:
        return self.hidden_size

    @property
    def maps(self) -> list[Tensor]:
        """Weight and bias of each layer in turn, which may be computed from other parameters."""
        return [getattr(layer, name) for layer in self.layers for name in ("weight", "bias")]

    def init(self, params: Tensor) -> State:
        of_problem = params.new_zeros(len(params), 1)
        return {
            "momenta": params.new_zeros(*params.shape, len(MOMENTA)),
            "squares": params.new_zeros(*params.shape, len(SQUARES)),
            "agreement": torch.zeros_like(params),
            "count": of_problem,  # gradients since the first that was not all zeros
            "log_unit": of_problem.clone(),  # the size of that one
            "sizes": of_problem.clone(),  # average of the mean squares, in its unit
            "log_scale": of_problem.clone(),
        }

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        pooled = PooledGradient.of(grad)._replace(sums=self.sums(grad, state))
        return self._update(grad, state, pooled)

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self._update(grad, state, pooled, in_place=True)

    def sums(self, grad: Tensor, state: State) -> Tensor:
        """Products of gradient and momentum, [B, 3]: with each other, and each with itself."""
        grad, momentum = _in_unit(grad, state["log_unit"]), state["momenta"][..., DIRECTION]
        pairs = (grad * momentum, grad.square(), momentum.square())
        return torch.stack([pair.sum(1) for pair in pairs], 1)

    def _update(
        self, grad: Tensor, state: State, pooled: PooledGradient, *, in_place: bool = False
    ) -> UpdateStep:
        require(
            pooled.sums is not None,
            "the rule mlp needs its sums over all coordinates; add those of the chunks, which "
            "`sums` returns, and give them as PooledGradient.sums",
        )
        assert pooled.sums is not None
        log_scale = self._adapted(state["log_scale"], pooled.sums)
        problem = _look_at_problem(state, pooled.log_rms.unsqueeze(1))
        # What a problem's coordinates share is multiplied once for all of them.
        maps, size = self.maps, self.output_scale * torch.exp(log_scale)
        level = problem.features @ maps[0][:, NUM_OWN:].T + maps[1]
        common = _Common(problem, size, level, maps)
        if _is_native(grad, state, maps):
            step = _move_natively(grad, state, common, in_place=in_place)
        else:
            step = _move(grad, state, common)
        after = {**step.state, **problem.state, "log_scale": log_scale}
        return step._replace(state=after)

    def _adapted(self, log_scale: Tensor, sums: Tensor) -> Tensor:
        product, *squares = sums.unsqueeze(-1).unbind(1)
        cosine = product / squares[0].sqrt() / squares[1].sqrt()
        cosine = torch.where((squares[0] > 0) & (squares[1] > 0), cosine, 0)
        low, high = USUAL
        change = RISE * (cosine - high).clamp_min(0) - (low - cosine).clamp_min(0)
        return (log_scale + self.gain * change).clamp(math.log(SMALLEST), math.log(LARGEST))


def _in_unit(grad: Tensor, log_unit: Tensor) -> Tensor:
    """Gradients in the unit of the first, in which squares do not overflow."""
    return (grad * torch.exp(-log_unit)).clamp(-1e12, 1e12)


def _is_native(grad: Tensor, state: State, maps: list[Tensor]) -> bool:
    """Whether the compiled kernel moves these; it has no backward pass."""
    given = [grad, *state.values(), *maps]
    return (
        grad.shape[1] >= native_mlp.LEAST_DIM
        and native.serves_all(*given)
        and not (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in given))
    )


def _move_natively(grad: Tensor, state: State, common: _Common, *, in_place: bool) -> UpdateStep:
    """As `_move`, by the compiled kernel; `in_place` lets it take the memory of the state."""
    problem, size, level, (weight, _, *others) = common
    facts = [
        torch.exp(-problem.state["log_unit"]),
        FEWEST * problem.size + 1e-30,
        1 / problem.size.clamp_min(1e-30),
        1 / (1 - constants(MOMENTA, grad) ** problem.steps),
        1 / (1 - constants(SQUARES, grad) ** problem.steps),
        size,
    ]
    updates, readout, after = native_mlp.step(
        native_mlp.MLPConstants(MOMENTA, SQUARES, AGREEMENT, BOUND),
        grad,
        native_mlp.MLPStates(state["momenta"], state["squares"], state["agreement"]),
        torch.cat(facts, 1),
        level,
        [weight[:, :NUM_OWN], *others],
        in_place=in_place,
    )
    return UpdateStep(updates, readout, after._asdict())


def _move(grad: Tensor, state: State, common: _Common) -> UpdateStep:
    """The step for gradients [B, D], with the state of coordinates alone."""
    problem, size, level, (weight, _, *others) = common
    seen = _look(grad, state, problem)
    hidden = torch.relu(seen.features @ weight[:, :NUM_OWN].T + level.unsqueeze(1))
    hidden = torch.relu(linear(hidden, *others[:2]))
    log_size, *weights = linear(hidden, *others[2:]).unbind(-1)
    weights[2] = weights[2] + 1  # that of Adam's usual momentum
    mixed = sum(
        2 * torch.tanh(weight / 2) * direction
        for weight, direction in zip(weights, seen.directions.unbind(-1), strict=True)
    )
    size = size * torch.exp(BOUND * torch.tanh(log_size / BOUND))
    return UpdateStep(-size * mixed, hidden.mean(1), seen.state)


def _average(old: Tensor, new: Tensor, kept: Tensor | float) -> Tensor:
    return kept * old + (1 - kept) * new


def _log(value: Tensor) -> Tensor:
    return value.clamp_min(1e-30).log()


def _look_at_problem(state: State, log_size: Tensor) -> _Problem:
    """Take in the logarithm of the root mean square of a gradient, [B, 1]."""
    begins = state["count"] == 0
    is_nothing = log_size < -80  # a gradient of all zeros, before which there is no scale
    count = state["count"] + ~(begins & is_nothing)
    # Whose inverse is a normal number, too: the kernel takes others for 0.
    within = log_size.clamp(-80, -0.99 * math.log(torch.finfo(log_size.dtype).tiny))
    log_unit = torch.where(begins, within, state["log_unit"])
    now = torch.exp((log_size - log_unit).clamp(-30, 30)).square()
    sizes = _average(state["sizes"], now, SQUARES[0])
    steps = count.clamp_min(1)
    size = (sizes / (1 - SQUARES[0] ** steps)).sqrt()
    features = [
        log_size - log_unit - _log(size),
        _log(size),
        *(torch.exp(-steps / period) for period in PERIODS),
    ]
    after = {"count": count, "log_unit": log_unit, "sizes": sizes}
    return _Problem(after, steps, size, torch.cat(features, 1).clamp(-BOUND, BOUND))


def _look(grad: Tensor, state: State, problem: _Problem) -> _Seen:
    """Take in a gradient [B, D]."""
    grad, steps = _in_unit(grad, problem.state["log_unit"]), problem.steps.unsqueeze(-1)
    keeps, keeps_squares = constants(MOMENTA, grad), constants(SQUARES, grad)
    momenta = _average(state["momenta"], grad.unsqueeze(-1), keeps)
    squares = _average(state["squares"], grad.square().unsqueeze(-1), keeps_squares)
    roots = (squares / (1 - keeps_squares**steps)).sqrt()
    root = roots[..., -1] + FEWEST * problem.size + 1e-30
    unbiased = momenta / (1 - keeps**steps)
    directions = torch.cat((grad.unsqueeze(-1), unbiased), -1) / root.unsqueeze(-1)
    directions = directions.clamp(-BOUND, BOUND)
    new, fast, middle, slow = directions.unbind(-1)
    agreement = _average(state["agreement"], new * fast, AGREEMENT)
    features = [
        *(new * new, fast * fast, middle * middle, slow * slow),
        *(new * fast, new * middle, new * slow, fast * middle, fast * slow, middle * slow),
        agreement,
        (_log(root) - _log(problem.size)) / 2,
        _log(roots[..., 0]) - _log(root),
    ]
    after = {"momenta": momenta, "squares": squares, "agreement": agreement}
    return _Seen(directions, torch.stack(features, -1).clamp(-BOUND, BOUND), after)


RULES = {"mlp": MLPRule}
