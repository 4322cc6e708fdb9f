"""The contract of an adaptive process: a part of a network whose items may end early."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from haltwise._core.errors import DataWarning, InputError, require, warn
from haltwise._core.settings import got, real_number, whole_number
from haltwise._core.tensors import default_device, is_plain, require_items
from haltwise.nn.inputs import Inputs, count_rows

__all__ = [
    "AdaptiveProcess",
    "ItemStep",
    "State",
    "begin",
    "lent",
    "mean_step_cost",
    "require_kept",
    "require_shape",
    "take_step",
    "version_of",
]

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
        InputError: There are fewer than 2 exits, or costs do not fit, are infinite or do not rise
            in the default precision.

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
        require(
            costs is None or (hasattr(costs, "__iter__") and not isinstance(costs, str)),
            f"costs must be a number for each of {self.num_exits} exits, {got(costs)}",
        )
        steps = range(1, self.num_exits + 1)
        values = [real_number("costs", cost) for cost in (steps if costs is None else costs)]
        stored = torch.tensor(values, dtype=torch.get_default_dtype(), device="cpu")
        require(
            len(values) == self.num_exits
            and bool(stored.isfinite().all())
            and all(low < high for low, high in itertools.pairwise(stored.tolist())),
            f"costs must be finite and rise over {self.num_exits} exits, also in {stored.dtype}, "
            f"got {values}",
        )
        self.register_buffer("exit_costs", stored.to(default_device()))

    @abstractmethod
    def init(self, inputs: Any) -> State:
        """The state before step 0 of n rows, with all that steps read of them.

        Args:
            inputs: As the layer is given them: a tensor [n, ...], or several by name.
        """

    @abstractmethod
    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        """Take step t.

        Args:
            step: t; of each row, int64 [n], where steps are alike.
            state: Of n rows.
            active: Which items still run, bool [n, items...], where they interact; all if None.
                Those that do not must return what they returned.
        """

    def present(self, state: State) -> Tensor | None:
        """Which items there are, bool [n, items...]; all if None. What is padding is none.

        Args:
            state: Of n rows, from `init`.
        """
        return None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Convert weights, but keep costs in single precision at least: half knows no 2,049."""
        costs = self.exit_costs
        module = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.exit_costs.dtype in (torch.float16, torch.bfloat16):
            self.exit_costs = costs.to(self.exit_costs.device, torch.float32)
        return module

    def _load_from_state_dict(self, state: dict[str, Any], prefix: str, *others: Any) -> None:
        """Load a state, whose costs replace those that were given: say so where they differ."""
        own, costs = self.exit_costs, state.get(f"{prefix}exit_costs", ())
        of_values = isinstance(costs, Tensor) and is_plain(costs) and is_plain(own)
        if (
            of_values
            and costs.shape == own.shape
            and not costs.to(own).allclose(own)
            and not own.equal(torch.arange(1, len(own) + 1).to(own))  # which nobody has given
        ):
            warn(
                f"the state of {type(self).__name__} has exits that cost {costs.tolist()}, which "
                f"replace those that it was built with, {own.tolist()}; set exit_costs after "
                "loading to keep these",
                DataWarning,
            )
        super()._load_from_state_dict(state, prefix, *others)


def mean_step_cost(exit_costs: Tensor) -> Tensor:
    """The mean cost of a step from the first exit on, [], of what exits cost, [T+1]."""
    return (exit_costs[-1] - exit_costs[0]) / (len(exit_costs) - 1)


def lent(module: nn.Module, value: Tensor) -> Tensor:
    """What a module of the caller's is given: a copy where a part is told to work in place."""
    in_place = any(getattr(part, "inplace", False) is True for part in module.modules())
    return value.clone() if in_place else value


def version_of(value: Tensor) -> int:
    """How often a tensor has been written over, where that is known."""
    return 0 if torch.compiler.is_compiling() or value.is_inference() else value._version


def require_kept(value: Tensor, version: int, whose: str) -> None:
    """Refuse what has been written over since it had this `version_of`, and is needed again."""
    if version_of(value) != version:
        raise InputError(
            f"{whose} in place; let it make a copy of its input first, as by inputs.clone()"
        )


def require_shape(found: object, like: Tensor, whose: str) -> Tensor:
    """Refuse what a module of the caller's returns in another shape, before it is broadcast."""
    if not (isinstance(found, Tensor) and found.shape == like.shape):
        kind = "" if isinstance(found, Tensor) else f" of type {type(found).__name__}"
        raise InputError(
            f"{whose} must return a tensor of the shape {list(like.shape)} of its input, "
            f"{got(found)}{kind}"
        )
    return found


def begin(process: AdaptiveProcess, inputs: Inputs) -> State:
    """The state before step 0.

    Raises:
        InputError: It is no dictionary of tensors with the rows along dimension 0.
    """
    state = process.init(inputs)
    require_items(state, count_rows(inputs), f"the state of {type(process).__name__}", "rows")
    return state


def take_step(
    process: AdaptiveProcess,
    step: int | Tensor,
    state: State,
    active: Tensor | None,
    num_rows: int,
    like: Tensor | None = None,
) -> ItemStep:
    """Take a step of `num_rows` rows.

    Args:
        process: Whose step it is.
        step: As the process takes it.
        state: Of the rows.
        active: Which of their items run.
        num_rows: n.
        like: An output of an exit before, [m, ...].

    Raises:
        InputError: What it returns is not what the contract says.
    """
    found = process.step(step, state, active)
    name = type(process).__name__
    if not isinstance(found, ItemStep):
        raise InputError(
            f"a step of {name} must return an ItemStep(output, features, state), {got(found)}"
        )
    require_items(found.state, num_rows, f"the state of {name}", "rows")
    features, output = found.features, found.output
    ends = num_rows, process.num_features
    if features.ndim < 2 or (features.shape[0], features.shape[-1]) != ends:
        raise InputError(
            f"the features of {name} must have shape [{num_rows}, ..., {process.num_features}], "
            f"got {list(features.shape)}; the last is the process' num_features"
        )
    items = features.shape[:-1]
    if output.shape[: len(items)] != items:
        raise InputError(
            f"the outputs of {name} must begin with the shape of its items, {list(items)}, got "
            f"{list(output.shape)}"
        )
    if like is not None and output.shape[1:] != like.shape[1:]:
        raise InputError(
            f"all exits of {name} must return outputs of one shape, got {list(like.shape[1:])} "
            f"and then {list(output.shape[1:])} of a row; bring them to one, such as by heads"
        )
    return found
