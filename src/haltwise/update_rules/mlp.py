"""A small network on normalised momenta of the gradient, shared by all coordinates."""

import itertools
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.tensors import constants
from haltwise.update_rules.base import PooledGradient, State, UpdateRule, UpdateStep
from haltwise.update_rules.capabilities import SupportsChunks

__all__ = ["MLPRule"]

MOMENTA = (0.5, 0.9, 0.99)  # shares of the gradients' averages that are kept
SQUARES = (0.9, 0.99)  # of the squared gradients' averages; the last normalises
AGREEMENT = 0.8
PERIODS = (3.0, 10.0, 30.0, 100.0)  # steps in which the features of time decay
FEWEST = 1e-8  # of the root mean square over coordinates: what no gradient is divided by less than
BOUND = 4.0  # of features and of the logarithm of the step size
NUM_DIRECTIONS = 1 + len(MOMENTA)
NUM_FEATURES = 15 + len(PERIODS)


class _Seen(NamedTuple):
    """What a coordinate knows at a step.

    Attributes:
        directions: The gradient and its momenta, normalised, shape [B, D, 4].
        features: Shape [B, D, F].
        state: After the step.
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

    Normalised momenta are the inputs of RNNprop (Lv et al. 2017), momenta of several time scales
    and a network without memory of its own those of Metz et al. 2020, "Tasks, stability,
    architecture, and compute".

    Args:
        hidden_size: H, units of a hidden layer.
        output_scale: Size of the first updates.
        generator: Draws the initial weights.
    """

    def __init__(
        self,
        hidden_size: int = 32,
        *,
        output_scale: float = 0.01,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(hidden_size >= 1, f"hidden_size must be at least 1, got {hidden_size}")
        require(output_scale > 0, f"output_scale must be above 0, got {output_scale}")
        self.hidden_size, self.output_scale = hidden_size, output_scale
        sizes = (NUM_FEATURES, hidden_size, hidden_size, 1 + NUM_DIRECTIONS)
        layers = [
            nn.utils.skip_init(nn.Linear, inputs, outputs, dtype=torch.float32)
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

    def init(self, params: Tensor) -> State:
        of_problem = params.new_zeros(len(params), 1)
        return {
            "momenta": params.new_zeros(*params.shape, len(MOMENTA)),
            "squares": params.new_zeros(*params.shape, len(SQUARES)),
            "agreement": torch.zeros_like(params),
            "count": of_problem,  # gradients since the first that was not all zeros
            "log_unit": of_problem.clone(),  # the size of that one
            "sizes": of_problem.clone(),  # average of the mean squares, in its unit
        }

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        return self._update(grad, state, PooledGradient.of(grad))

    def update_chunk(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        return self._update(grad, state, pooled)

    def _update(self, grad: Tensor, state: State, pooled: PooledGradient) -> UpdateStep:
        seen = _look(grad, state, pooled.log_rms.unsqueeze(1))
        first, second, last = self.layers
        hidden = torch.relu(second(torch.relu(first(seen.features))))
        log_size, *weights = last(hidden).unbind(-1)
        weights[2] = weights[2] + 1  # that of Adam's usual momentum
        mixed = sum(
            2 * torch.tanh(weight / 2) * direction
            for weight, direction in zip(weights, seen.directions.unbind(-1), strict=True)
        )
        size = self.output_scale * torch.exp(BOUND * torch.tanh(log_size / BOUND))
        return UpdateStep(-size * mixed, hidden.mean(1), seen.state)


def _look(grad: Tensor, state: State, log_size: Tensor) -> _Seen:
    """Take in a gradient [B, D], the logarithm of whose root mean square is `log_size` [B, 1]."""
    begins = state["count"] == 0
    is_nothing = log_size < -80  # a gradient of all zeros, before which there is no scale
    count = state["count"] + ~(begins & is_nothing)
    log_unit = torch.where(begins, log_size.clamp_min(-80), state["log_unit"])
    # Normalised by the first gradient, squares do not overflow.
    grad = (grad * torch.exp(-log_unit)).clamp(-1e12, 1e12)
    now = torch.exp((log_size - log_unit).clamp(-30, 30)).square()

    def average(old: Tensor, new: Tensor, kept: Tensor | float) -> Tensor:
        return kept * old + (1 - kept) * new

    keeps, keeps_squares = constants(MOMENTA, grad), constants(SQUARES, grad)
    momenta = average(state["momenta"], grad.unsqueeze(-1), keeps)
    squares = average(state["squares"], grad.square().unsqueeze(-1), keeps_squares)
    sizes = average(state["sizes"], now, SQUARES[0])
    steps = count.clamp_min(1)
    size = (sizes / (1 - SQUARES[0] ** steps)).sqrt()
    roots = (squares / (1 - keeps_squares ** steps.unsqueeze(-1))).sqrt()
    root = roots[..., -1] + FEWEST * size + 1e-30
    unbiased = momenta / (1 - keeps ** steps.unsqueeze(-1))
    directions = torch.cat((grad.unsqueeze(-1), unbiased), -1) / root.unsqueeze(-1)
    directions = directions.clamp(-BOUND, BOUND)
    new, fast, middle, slow = directions.unbind(-1)
    agreement = average(state["agreement"], new * fast, AGREEMENT)

    def log(value: Tensor) -> Tensor:
        return value.clamp_min(1e-30).log()

    of_problem = [
        log_size - log_unit - log(size),
        log(size),
        *(torch.exp(-steps / period) for period in PERIODS),
    ]
    of_coordinate = [
        *(new * new, fast * fast, middle * middle, slow * slow),
        *(new * fast, new * middle, new * slow, fast * middle, fast * slow, middle * slow),
        agreement,
        (log(root) - log(size)) / 2,
        log(roots[..., 0]) - log(root),
    ]
    features = [*of_coordinate, *(value.expand_as(grad) for value in of_problem)]
    state = {
        "momenta": momenta,
        "squares": squares,
        "agreement": agreement,
        "count": count,
        "log_unit": log_unit,
        "sizes": sizes,
    }
    return _Seen(directions, torch.stack(features, -1).clamp(-BOUND, BOUND), state)


RULES = {"mlp": MLPRule}
