"""The halting head: from what an item shows to the named outputs of a halting method."""

from typing import final

import torch
from torch import Tensor, nn

from haltwise.halting.methods import HaltingMethod

__all__ = ["HaltingHead"]

State = dict[str, Tensor]


@final
class HaltingHead(nn.Module):
    """A small perceptron that reads an item's features and the price.

    A new one puts out zeros, so that the method starts from its prior. It is what a
    `haltwise.halting.HaltingSession` asks for a model.

    Args:
        method: Whose outputs it makes.
        num_features: F.
        width: Units of its hidden layer; 0 for a linear read-out.
        price_input: Whether it reads the logarithm of the price, so that it serves many.
        generator: Draws the initial weights of the hidden layer.
    """

    def __init__(
        self,
        method: HaltingMethod,
        num_features: int,
        width: int,
        *,
        price_input: bool,
        generator: torch.Generator | None,
    ) -> None:
        super().__init__()
        self.method, self.num_features, self.price_input = method, num_features, price_input
        num_inputs = num_features + price_input
        self.hidden: nn.Linear | None = None
        if width:
            self.hidden = nn.Linear(num_inputs, width)
            bound = num_inputs**-0.5
            for weight in self.hidden.parameters():
                nn.init.uniform_(weight, -bound, bound, generator=generator)
        self.readout = nn.Linear(width or num_inputs, method.num_outputs)
        for weight in self.readout.parameters():
            nn.init.zeros_(weight)

    def forward(self, features: Tensor, price: Tensor) -> dict[str, Tensor]:
        """Outputs by name, shapes [B, ...], of features [B, F] at prices [B]."""
        inputs = features
        if self.price_input:
            inputs = torch.cat((features, price.log().to(features).unsqueeze(-1)), -1)
        if self.hidden is not None:
            inputs = nn.functional.gelu(self.hidden(inputs))
        return self.method.outputs(self.readout(inputs).to(price.dtype), price)

    @property
    def readout_size(self) -> int:
        """F."""
        return self.num_features

    def trained_price(self, price: Tensor) -> Tensor:
        """The price itself: a head has no card that says what it was trained for."""
        return price

    def init(self, num_items: int, like: Tensor) -> State:
        """The memory before the first step: none."""
        del num_items, like
        return {}

    def step(
        self, signals: Tensor | None, readout: Tensor | None, price: Tensor, state: State
    ) -> tuple[dict[str, Tensor], State]:
        """Outputs at one step by name, of the features as a read-out [B, F]."""
        del signals
        assert readout is not None
        return self(readout, price), state
