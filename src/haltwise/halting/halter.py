"""The halting head: from what is known of a step to the increment of the halting logit."""

import itertools
from typing import NamedTuple, final

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._kernels import lstm_sequence, lstm_step
from haltwise._core.tensors import flush_negligible
from haltwise.processes.signals import NUM_FEATURES, blank_features

__all__ = ["AFTER", "BEFORE", "Halter", "HaltingOutput"]

AFTER, BEFORE = 0, 1
"""When a decision is made: with the gradient at theta_t in hand, or before it is paid for."""


class HaltingOutput(NamedTuple):
    """What a head says at step t, for both times of decision: index `AFTER` or `BEFORE`.

    `AFTER` is about theta_t; `BEFORE` is about theta_{t+1}, whose gradient is not known yet.

    Attributes:
        increments: delta, the increment of the logit of the softmax posterior over the prior's
            own increment, in units of the temperature, shape [..., 2] (thesis Eq. 9);
            docs/theory.md, Eq. (logits).
        hazard_logits: log-odds of stopping there, given that it was reached: the stick-breaking
            posterior, shape [..., 2]. Of h where the optimizer was trained by Graves' ACT.
        hold_logits: log-odds that theta_t is better than theta_{t+1}, for a stop at step t that
            has paid for gamma_t: above 0 it holds, otherwise it takes the update; shape [...].
    """

    increments: Tensor
    hazard_logits: Tensor
    hold_logits: Tensor


_NUM_OUTPUTS = 5
_FIRST_HAZARD = -2.0  # log-odds; a new head goes on for about 8 steps
_FIRST_HOLD = -2.0  # and takes the last update


@final
class Halter(nn.Module):
    """A small network that reads a step and speaks for two posteriors over the halting step.

    An LSTM over the steps remembers; a perceptron reads the step and that memory. Where the loss
    is noisy or swings, the past says more than any one step.

    Increments are relative to the prior: delta_t is log r + output with r = exp(-price / tau), so
    a new head, whose outputs are zero, reproduces the prior and starts at KL = 0. Hazards start
    at `_FIRST_HAZARD`, holding at `_FIRST_HOLD`.

    Args:
        readout_size: R, what the rule offers.
        width: Units of the two hidden layers; 0 makes the head the thesis' linear read-out.
        memory: Units of the LSTM; 0 makes every step be judged by itself.
        use_features: Whether the problem-level features are read.
        use_readout: Whether the rule's pooled hidden state is read.
        generator: Draws the initial weights.
    """

    def __init__(
        self,
        readout_size: int,
        *,
        width: int = 64,
        memory: int = 32,
        use_features: bool = True,
        use_readout: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.readout_size, self.memory = readout_size, memory
        self.use_features, self.use_readout = use_features, use_readout
        num_inputs = NUM_FEATURES * use_features + readout_size * use_readout
        require(num_inputs > 0, "the halting head reads nothing: this rule has no hidden state")
        self.memory_weights = nn.ParameterList()
        self.memory_biases = nn.ParameterList()
        if memory:
            self.memory_weights.append(_uniform(4 * memory, num_inputs + memory, generator))
            self.memory_biases.append(nn.Parameter(torch.zeros(4 * memory)))
        sizes = [num_inputs + memory, *([width, width] if width else []), _NUM_OUTPUTS]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            self.weights.append(_uniform(fan_out, fan_in, generator))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))
        nn.init.zeros_(self.weights[-1])  # a new head says what the priors say

    def init(self, num_problems: int, like: Tensor) -> dict[str, Tensor]:
        """The memory before the first step, in the dtype and device of `like`."""
        if not self.memory:
            return {}
        zeros = like.new_zeros(num_problems, 1, self.memory)
        return {"hidden": zeros, "cell": zeros}

    def first(self, price: Tensor) -> Tensor:
        """The `BEFORE` increment for theta_0, when only the price [B] is known, shape [B]."""
        features = blank_features(price)
        readout = price.new_zeros(len(price), self.readout_size)
        memory = price.new_zeros(len(price), self.memory)
        return self._speak(self._inputs(features, readout), memory).increments[:, BEFORE]

    def step(
        self, features: Tensor, readout: Tensor, state: dict[str, Tensor]
    ) -> tuple[HaltingOutput, dict[str, Tensor]]:
        """What features [B, F] and pooled hidden state [B, R] say, without a graph."""
        inputs = self._inputs(features, readout)
        if not self.memory:
            return self._speak(inputs, inputs[:, :0]), state
        hidden, cell = lstm_step(
            inputs, state["hidden"], state["cell"], [*self.memory_weights], [*self.memory_biases]
        )
        return self._speak(inputs, hidden[:, 0]), {"hidden": hidden, "cell": cell}

    def forward(self, features: Tensor, readouts: Tensor) -> HaltingOutput:
        """What T steps say, from the first: features [B, T, F], pooled hidden states [B, T, R].

        The memory takes the hidden states as data: gradients reach them from the perceptron alone.
        """
        # Steps first, as the memory wants them.
        inputs = self._inputs(features.transpose(0, 1), readouts.transpose(0, 1))
        remembered = inputs[..., :0]
        if self.memory:
            state = self.init(len(features), inputs)
            remembered, _, _ = lstm_sequence(
                inputs.detach(),
                state["hidden"],
                state["cell"],
                [*self.memory_weights],
                [*self.memory_biases],
            )
        said = self._speak(inputs, remembered)
        return HaltingOutput(*(value.transpose(0, 1) for value in said))

    def _inputs(self, features: Tensor, readout: Tensor) -> Tensor:
        used = [features] * self.use_features + [readout] * self.use_readout
        return torch.cat(used, dim=-1)

    def _speak(self, inputs: Tensor, remembered: Tensor) -> HaltingOutput:
        value = torch.cat((inputs, remembered), dim=-1)
        layers = list(zip(self.weights, self.biases, strict=True))
        for weight, bias in layers[:-1]:
            value = nn.functional.silu(nn.functional.linear(value, weight, bias))
        outputs = nn.functional.linear(value, *layers[-1])
        if outputs.requires_grad:
            # What is said long after the stop hardly counts.
            outputs.register_hook(lambda grad: flush_negligible(grad, *range(grad.ndim - 1)))
        return HaltingOutput(
            outputs[..., :2], outputs[..., 2:4] + _FIRST_HAZARD, outputs[..., 4] + _FIRST_HOLD
        )


def _uniform(fan_out: int, fan_in: int, generator: torch.Generator | None) -> nn.Parameter:
    bound = fan_in**-0.5
    return nn.Parameter(torch.empty(fan_out, fan_in).uniform_(-bound, bound, generator=generator))
