"""The contract of a kind of halting features."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

__all__ = ["FeatureSet"]


class FeatureSet(ABC):
    """From the signals of steps to numbers of order one that a halter reads, at a price.

    Signals know nothing of the price (`haltwise.processes.signals`), features do: what can be
    gained is measured in prices, so that one halter serves every price.
    """

    has_units: ClassVar[bool] = True
    """Whether features change where losses and the price are multiplied by one number."""

    @property
    @abstractmethod
    def num_features(self) -> int:
        """F."""

    @abstractmethod
    def init(self, num_items: int, like: Tensor) -> dict[str, Tensor]:
        """The memory before the first step, in the dtype and device of `like`."""

    @abstractmethod
    def extract(
        self, signals: Tensor, price: Tensor, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Extract the features of T consecutive steps.

        Args:
            signals: Shape [B, T, S].
            price: c, in units of the loss, shape [B].
            memory: From `init` or the call before.

        Returns:
            Features [B, T, F] and the memory for the step after them.
        """

    @abstractmethod
    def blank(self, price: Tensor) -> Tensor:
        """Features before the first step, when only the price [B] is known, shape [B, F]."""
