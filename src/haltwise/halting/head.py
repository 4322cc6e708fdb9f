"""The halting head: from what is known of a step to the increment of the halting logit."""

import itertools
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from haltwise.halting.signals import NUM_FEATURES, blank_features

__all__ = ["AFTER", "BEFORE", "HaltingHead", "HaltingOutput"]

AFTER, BEFORE = 0, 1
"""When a decision is made: with the gradient at theta_t in hand, or before it is paid for."""


class HaltingOutput(NamedTuple):
    """What a head says at step t, for both times of decision: index `AFTER` or `BEFORE`.

    `AFTER` is about theta_t; `BEFORE` is about theta_{t+1}, whose gradient is not known yet.

    Attributes:
        increments: delta, the increment of the logit of the softmax posterior over the prior's
            own increment, in units of the temperature, shape [..., 2] (thesis Eq. 9).
        hazard_logits: log-odds of stopping there, given that it was reached: the stick-breaking
            posterior, shape [..., 2]. Of h where the optimizer was trained by Graves' ACT.
    """

    increments: Tensor
    hazard_logits: Tensor


_FIRST_HAZARD = -2.0  # log-odds; a new head goes on for about 8 steps


@final
class HaltingHead(nn.Module):
    """A small network that reads a step and speaks for two posteriors over the halting step.

    Increments are relative to the prior: delta_t is log r + output with r = exp(-price / tau), so
    a new head, whose outputs are zero, reproduces the prior and starts at KL = 0. Hazards start
    at `_FIRST_HAZARD`.

    Args:
        readout_size: R, what the rule offers.
        width: Units of the two hidden layers; 0 makes the head the thesis' linear read-out.
        use_features: Whether the problem-level features are read.
        use_readout: Whether the rule's pooled hidden state is read.
        generator: Draws the initial weights.
    """

    def __init__(
        self,
        readout_size: int,
        *,
        width: int = 64,
        use_features: bool = True,
        use_readout: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.readout_size = readout_size
        self.use_features, self.use_readout = use_features, use_readout
        size = NUM_FEATURES * use_features + readout_size * use_readout
        sizes = [size, width, width, 4] if width else [size, 4]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            weight = torch.empty(fan_out, fan_in)
            weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            self.weights.append(nn.Parameter(weight))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))
        nn.init.zeros_(self.weights[-1])  # a new head says what the priors say

    def first(self, price: Tensor) -> Tensor:
        """The `BEFORE` increment for theta_0, when only the price [B] is known, shape [B]."""
        readout = price.new_zeros(len(price), self.readout_size)
        return self.forward(blank_features(price), readout).increments[:, BEFORE]

    def forward(self, features: Tensor, readout: Tensor) -> HaltingOutput:
        """What features [..., F] and pooled hidden state [..., R] say."""
        inputs = [features] * self.use_features + [readout] * self.use_readout
        value = torch.cat(inputs, dim=-1)
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            value = nn.functional.silu(nn.functional.linear(value, weight, bias))
        outputs = nn.functional.linear(value, *layers[-1])
        return HaltingOutput(outputs[..., :2], outputs[..., 2:] + _FIRST_HAZARD)
