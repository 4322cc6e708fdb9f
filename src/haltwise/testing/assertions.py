"""The few assertions of which the checks of this package are made."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import linear

from haltwise._core.errors import InputError
from haltwise._core.settings import got, shown
from haltwise._core.tensors import require_like

__all__ = [
    "close",
    "expect",
    "expect_alike",
    "expect_instance",
    "expect_items",
    "expect_kinds",
    "expect_shape",
    "global_randomness_untouched",
    "normal",
    "rounding_among_others",
    "seeded",
    "tensors",
    "unchanged",
]


def seeded(seed: int) -> torch.Generator:
    """Make a generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def normal(seed: int, *shape: int) -> Tensor:
    """Draw from N(0, 1) in float64."""
    return torch.randn(shape, generator=seeded(seed), dtype=torch.float64)


def tensors(record: Any) -> dict[str, Tensor]:
    """Name the tensors of a mapping, dataclass or named tuple, and of the mappings in it."""
    content: Mapping[str, Any]
    if is_dataclass(record):
        content = {field.name: getattr(record, field.name) for field in fields(record)}
    else:
        content = record if isinstance(record, Mapping) else record._asdict()
    found = {}
    for name, value in content.items():
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, Mapping):
            found |= {f"{name}[{key!r}]": entry for key, entry in tensors(value).items()}
    return found


def close(found: Tensor, expected: Tensor, tolerance: float = 0.0, scale: Any = 0.0) -> bool:
    """Whether numbers agree to a share of their item's largest plus `scale`; NaN equals NaN.

    Without tolerance they must be the same bit for bit.
    """
    if found.shape != expected.shape or (tolerance == 0 and found.dtype != expected.dtype):
        return False
    same = (found == expected) | (found.isnan() & expected.isnan())
    if tolerance > 0 and expected.numel() > 0:
        found, expected = found.detach().double(), expected.detach().double()
        largest = expected.abs().amax(tuple(range(1, expected.ndim)), keepdim=True)
        same |= (found - expected).abs() <= tolerance * (largest + scale)
    return bool(same.all())


def rounding_among_others() -> float:
    """How far, relatively, a row of a float64 product may be from the same row in other company.

    0 where PyTorch's products round a row alike wherever it stands and whatever stands beside it:
    they do with AVX-512, from 8 rows on, and do not with AVX2.
    """
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    rows = randn(24, 17)
    keep = all(
        torch.equal(linear(rows[:num].flip(0), weight).flip(0), linear(rows, weight)[:num])
        for weight in (randn(3, 17), randn(8, 17), randn(96, 17))
        for num in range(8, 25)
    )
    return 0.0 if keep else 1e-12


def expect(condition: bool | Tensor, message: str) -> None:
    """Raise `AssertionError(message)` unless `condition` holds, also under `python -O`."""
    if not bool(condition):
        raise AssertionError(message)


def expect_instance(value: object, kind: type, name: str) -> None:
    """Refuse anything but an instance of a class."""
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    is_large = isinstance(value, tuple | Mapping | Tensor)
    what = f"got {type(value).__name__}" if is_large else got(value)
    expect(isinstance(value, kind), f"{name} must be {article} {kind.__name__}, {what}")


def expect_shape(value: Tensor, shape: Sequence[int], name: str) -> None:
    """Refuse a tensor of another shape, and what is no tensor."""
    found = list(value.shape) if isinstance(value, Tensor) else shown(value)
    expect(found == list(shape), f"{name} must have shape {list(shape)}, got {found}")


def expect_items(state: Mapping[str, Tensor], num_items: int, whose: str) -> None:
    """Refuse a state that is no dictionary of tensors with the items along dimension 0."""
    expect(isinstance(state, Mapping), f"{whose} must be a dictionary of tensors, {got(state)}")
    for name, value in state.items():
        shape = f"shape {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
        expect(
            isinstance(value, Tensor) and value.ndim > 0 and len(value) == num_items,
            f"{name} of {whose} must be a tensor with the {num_items} items along dimension 0, "
            f"got {shape}",
        )


def expect_kinds(state: Mapping[str, Tensor], first: Mapping[str, Tensor], whose: str) -> None:
    """Refuse a state whose tensors are not of the names, dtypes and shapes of the first."""
    for value in (state, *(state.values() if isinstance(state, Mapping) else ())):
        kind = Mapping if value is state else Tensor
        expect(isinstance(value, kind), f"{whose} must be a dictionary of tensors, {got(value)}")
    try:
        require_like(state, first)
    except InputError as error:
        raise AssertionError(f"{whose} must keep its names, dtypes and shapes: {error}") from None


def expect_alike(
    found: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    message: str,
    tolerance: float = 0.0,
    scale: Any = 0.0,
) -> None:
    """Refuse tensors that are not `close` to those expected; {} in the message is a name."""
    for name in {**expected, **found}:
        both = name in found and name in expected
        same = both and close(found[name], expected[name], tolerance, scale)
        expect(same, message.replace("{}", name))


@contextmanager
def unchanged(message: str, record: Any) -> Iterator[None]:
    """Refuse a block that writes to the tensors of `record`."""
    before = {name: value.clone() for name, value in tensors(record).items()}
    yield
    expect_alike(tensors(record), before, message)


@contextmanager
def global_randomness_untouched() -> Iterator[None]:
    """Refuse a block, or a decorated check, that draws from a global generator or seeds one."""
    before = _global_randomness()
    yield
    for name, state in _global_randomness().items():
        expect(
            state == before[name],
            f"the global generator of {name} is drawn from or seeded, which changes the user's "
            "other random numbers; take what is random from a torch.Generator that is passed in",
        )


def _global_randomness() -> dict[str, object]:
    """States by name; not that of `random`, which some packages draw from when imported."""
    _, keys, place, *cached = np.random.get_state(legacy=True)  # noqa: NPY002
    return {
        "PyTorch": torch.get_rng_state().numpy().tobytes(),
        "NumPy": (np.asarray(keys).tobytes(), place, *cached),
    }
