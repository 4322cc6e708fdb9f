"""The halter: a small network from halting features to the raw outputs of a halting method."""

import copy
import itertools
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from haltwise._core.discovery import lookup
from haltwise._core.errors import require
from haltwise._core.settings import require_types
from haltwise._core.tensors import nested_state, sub_state
from haltwise._kernels import Head, one_thread
from haltwise.halting.features import FeatureSet, feature_sets

__all__ = ["Halter", "HalterSettings"]

State = dict[str, Tensor]


@final
@dataclass(frozen=True)
class HalterSettings:
    """The shape of a halter."""

    width: int = 64
    """Units of the two hidden layers; 0 for a linear read-out, as in the thesis."""
    memory: int = 32
    """Units of the LSTM by which past steps are remembered; 0 judges every step by itself."""
    features: str = "optimization"
    """Kind of features read, a name in `haltwise.halting.features.feature_sets()`; "none" for the
    process' own read-out alone."""
    readout: bool = True
    """Whether the process' read-out, such as a rule's pooled hidden state, is read."""

    def __post_init__(self) -> None:
        require_types(type(self).__init__, vars(self))
        for name in ("width", "memory"):
            value = getattr(self, name)
            require(value >= 0, f"{name} must be at least 0, got {value}")
        require(
            self.features != "none" or self.readout,
            "the halter reads nothing: choose a kind of features, or let it read the read-out",
        )
        if self.features != "none":
            lookup(feature_sets(), self.features, "kind of features")


@final
class Halter(nn.Module):
    """A perceptron that reads a step, and an LSTM over the steps that remembers.

    Where the loss is noisy or swings, the past says more than any one step. Raw outputs are zero
    in a new halter, so that a method starts from its prior.

    Args:
        settings: Its shape.
        readout_size: R, what the process shows of its inner state.
        num_outputs: Raw outputs a step, O.
        generator: Draws the initial weights.
    """

    _prepared: Head | None = None

    def __init__(
        self,
        settings: HalterSettings,
        readout_size: int,
        num_outputs: int,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.settings, self.readout_size = settings, readout_size
        self.features: FeatureSet | None = feature_sets().get(settings.features)
        num_features = 0 if self.features is None else self.features.num_features
        num_inputs = num_features + readout_size * settings.readout
        require(num_inputs > 0, "the halter reads nothing: this process has no read-out")
        width, memory = settings.width, settings.memory
        self.memory_weights = nn.ParameterList()
        self.memory_biases = nn.ParameterList()
        if memory:
            self.memory_weights.append(_uniform(4 * memory, num_inputs + memory, generator))
            self.memory_biases.append(nn.Parameter(torch.zeros(4 * memory)))
        sizes = [num_inputs + memory, *([width, width] if width else []), num_outputs]
        self.weights = nn.ParameterList()
        self.biases = nn.ParameterList()
        for fan_in, fan_out in itertools.pairwise(sizes):
            self.weights.append(_uniform(fan_out, fan_in, generator))
            self.biases.append(nn.Parameter(torch.zeros(fan_out)))
        nn.init.zeros_(self.weights[-1])

    def init(self, num_items: int, like: Tensor) -> State:
        """The memory before the first step, in the dtype and device of `like`."""
        state: State = {}
        if self.features is not None:
            state |= nested_state(self.features.init(num_items, like), "features.")
        if self.settings.memory:
            zeros = like.new_zeros(num_items, 1, self.settings.memory)
            state |= {"hidden": zeros, "cell": zeros}
        return state

    def prepare(self) -> "Halter":
        """The same for many calls of `step`, between which the weights stay where they are.

        What these share is computed once. Drop the prepared halter when they are done.
        """
        twin = copy.copy(self)
        twin._prepared = self._head.prepare()
        return twin

    def initial(self, price: Tensor) -> Tensor:
        """Raw outputs before step 0, when only the price [B] is known, shape [B, O]."""
        features = price.new_zeros(len(price), 0)
        if self.features is not None:
            features = self.features.blank(price)
        readout = price.new_zeros(len(price), self.readout_size * self.settings.readout)
        remembered = price.new_zeros(len(price), self.settings.memory)
        return self._head.perceptron(torch.cat((features, readout, remembered), dim=-1))

    @torch.no_grad()
    @one_thread()
    def step(
        self, signals: Tensor, readout: Tensor, price: Tensor, state: State
    ) -> tuple[Tensor, State]:
        """Raw outputs of one step [B, O], without a graph, and the memory for the next.

        Signals are [B, S], the read-out [B, R], the price [B]; the state is from `init` or the
        step before.
        """
        features, after = self._extract(signals.unsqueeze(1), price, state)
        before = (state["hidden"], state["cell"]) if self.settings.memory else None
        raw, remembered = self._head.step(features.squeeze(1), self._used(readout), before)
        if remembered is not None:
            after |= dict(zip(("hidden", "cell"), remembered, strict=True))
        return raw, after

    def forward(self, signals: Tensor, readouts: Tensor, price: Tensor) -> Tensor:
        """Raw outputs of T steps from the first, differentiable, shape [B, T, O].

        Signals are [B, T, S], read-outs [B, T, R], the price [B]. The memory takes its inputs as
        data: gradients reach read-outs from the perceptron alone.
        """
        features, _ = self._extract(signals, price, self.init(len(signals), signals))
        return self._head.sequence(features, self._used(readouts))

    def _extract(self, signals: Tensor, price: Tensor, state: State) -> tuple[Tensor, State]:
        if self.features is None:
            return signals[..., :0], {}
        features, recent = self.features.extract(signals, price, sub_state(state, "features."))
        return features, nested_state(recent, "features.")

    def _used(self, readout: Tensor) -> Tensor:
        """The read-out, or nothing of it where it is not read.

        Raises:
            InputError: It has another size.
        """
        if not self.settings.readout:
            return readout[..., :0]
        require(
            readout.shape[-1] == self.readout_size,
            f"the halting model reads {self.readout_size} numbers of the inner state of a process, "
            f"its read-out, but this one shows {readout.shape[-1]}; give it a process such "
            "as it was trained on",
        )
        return readout

    @property
    def _head(self) -> Head:
        if self._prepared is not None:
            return self._prepared
        memory = None
        if self.settings.memory:
            memory = self.memory_weights[0], self.memory_biases[0]
        return Head(memory, [*self.weights], [*self.biases])


def _uniform(fan_out: int, fan_in: int, generator: torch.Generator | None) -> nn.Parameter:
    bound = fan_in**-0.5
    weight = torch.empty(fan_out, fan_in, dtype=torch.float32)
    return nn.Parameter(weight.uniform_(-bound, bound, generator=generator))
