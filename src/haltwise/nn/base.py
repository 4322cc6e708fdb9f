"""The contract of an adaptive process: a part of a network whose items may end early."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.settings import whole_number

__all__ = ["AdaptiveProcess", "ItemStep", "State"]

State = dict[str, Tensor]
"""What rows carry from step to step; every tensor has them along dimension 0."""


class ItemStep(NamedTuple):
    """What a process makes of one step of n rows, each of one item or of items of shape `items...`.

    Attributes:
        output: What an item returns if it ends here, shape [n, items..., ...].
        features: What a halting head reads of it, shape [n, items..., F].
        state: What the next step goes on from.
    """

    output: Tensor
    features: Tensor
    state: State


class AdaptiveProcess(nn.Module, ABC):
    """Rows of items that advance side by side and may end at exits 0..T.

    A *row* is what leaves the batch: a problem, a sequence, an image. An *item* is what halts: the
    row itself, or each token or position in it. Step t = 0..T makes the output of exit t, so an
    item that ends at exit t has taken t + 1 steps. Rows never influence each other.

    Args:
        num_exits: T + 1, at least 2.
        costs: Of ending at each exit, rising; the steps taken, 1, 2, ..., if None.

    Raises:
        InputError: There are fewer than 2 exits, or costs do not fit or do not rise.

    Examples:
        Newton's iteration for square roots; its last change is what a head may read:

        >>> class Roots(AdaptiveProcess):
        ...     num_features = 1
        ...     steps_alike = True
        ...     def init(self, inputs):
        ...         return {"number": inputs, "root": torch.ones_like(inputs)}
        ...     def step(self, step, state, active=None):
        ...         root = (state["root"] + state["number"] / state["root"]) / 2
        ...         change = (root - state["root"]).abs().log1p().unsqueeze(1)
        ...         return ItemStep(root, change, {**state, "root": root})
        >>> Roots(num_exits=6).exit_costs
        tensor([1., 2., 3., 4., 5., 6.])
    """

    num_features: int
    """F, the numbers that a halting head reads of an item."""
    steps_alike: ClassVar[bool] = False
    """Whether every step is the same function, so that rows at different steps advance together;
    `step` is then given the step of each row, int64 [n]."""
    items_interact: bool = False
    """Whether the items of a row see each other, so that `step` must know which still run."""

    exit_costs: Tensor
    """What ending at each exit costs, shape [T+1]; the unit is that of the price."""

    def __init__(self, num_exits: int, costs: Sequence[float] | None = None) -> None:
        super().__init__()
        self.num_exits = whole_number("num_exits", num_exits, least=2)
        values = [*range(1, self.num_exits + 1)] if costs is None else [*costs]
        require(
            len(values) == self.num_exits
            and all(low < high for low, high in itertools.pairwise(values)),
            f"costs must rise over {self.num_exits} exits, got {values}",
        )
        self.register_buffer("exit_costs", torch.tensor(values, dtype=torch.get_default_dtype()))

    @abstractmethod
    def init(self, inputs: Tensor) -> State:
        """The state before step 0 of inputs [n, ...], with all that steps read of them."""

    @abstractmethod
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        """Take step t.

        Args:
            step: t; of each row, int64 [n], where steps are alike.
            state: Of n rows.
            active: Which items still run, bool [n, items...], where they interact; all if None.
                Those that do not must return what they returned.
        """
