"""What the checks of this package have in common."""

from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["equal", "expect", "expect_items", "expect_unchanged", "seeded", "snapshot"]


def seeded(seed: int) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def expect(condition: bool, message: str) -> None:
    """Raise `AssertionError(message)` unless `condition` holds, also under `python -O`."""
    if not condition:
        raise AssertionError(message)


def expect_items(state: Mapping[str, Tensor], num_items: int, whose: str) -> None:
    """Refuse a state that is no dictionary of tensors with the items along dimension 0."""
    for name, value in state.items():
        shape = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        expect(
            isinstance(value, Tensor) and value.ndim > 0 and len(value) == num_items,
            f"{whose}[{name!r}] must be a tensor with the {num_items} items along dimension 0, "
            f"got {shape}",
        )


def expect_unchanged(
    state: Mapping[str, Tensor], before: Mapping[str, Tensor], message: str
) -> None:
    """Refuse a state that is no longer what its `snapshot` was."""
    same = state.keys() == before.keys() and all(
        equal(value, before[name]) for name, value in state.items()
    )
    expect(same, message)


def snapshot(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy that later steps cannot reach."""
    return {name: value.clone() for name, value in state.items()}


def equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are the same bit for bit, NaN being equal to NaN."""
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
