"""Small helpers for tensors and dataclasses of them."""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from torch.nn.parameter import is_lazy

from haltwise._core.arrays import require_unmasked
from haltwise._core.errors import InputError, require
from haltwise._core.settings import shown

__all__ = [
    "ZERO",
    "along",
    "are_finite",
    "constants",
    "copied_array",
    "default_device",
    "floating_dtype",
    "flush_negligible",
    "is_exporting",
    "is_plain",
    "kind_of",
    "log_rms",
    "map_tensors",
    "nested_state",
    "probability",
    "quantiles",
    "require_dtype",
    "require_items",
    "require_like",
    "select_state",
    "sub_state",
    "tensors_of",
    "to_device",
    "undisturbed",
    "usable_device",
    "widened",
    "widest",
]

Record = TypeVar("Record")

_NARROW = frozenset(("mps",))
"""Kinds of devices without float64."""


def map_tensors(record: Record, function: Callable[[Tensor], Tensor]) -> Record:
    """Copy the dataclass `record` with `function` applied to its tensors.

    Those are the fields that are tensors, and the tensors in those that are dictionaries; anything
    else is shared with the copy.
    """
    anything: Any = record
    changed: dict[str, Any] = {}
    for name in (field.name for field in fields(anything)):
        value = getattr(record, name)
        if isinstance(value, Tensor):
            changed[name] = function(value)
        elif isinstance(value, dict) and any(isinstance(entry, Tensor) for entry in value.values()):
            changed[name] = {
                key: function(entry) if isinstance(entry, Tensor) else entry
                for key, entry in value.items()
            }
    copy: Record = replace(anything, **changed)
    return copy


def probability(log_odds: Tensor) -> Tensor:
    """sigmoid(log_odds), with the same bits wherever in a tensor an entry stands.

    With AVX2 PyTorch's own sigmoid rounds the last entries of a tensor otherwise than the first, so
    that an item would halt elsewhere in other company.
    """
    return torch.exp(logsigmoid(log_odds))


def tensors_of(record: Any) -> dict[str, Tensor]:
    """The tensors of a dataclass that `map_tensors` maps, by name."""
    found: dict[str, Tensor] = {}
    for name in (field.name for field in fields(record)):
        value = getattr(record, name)
        if isinstance(value, Tensor):
            found[name] = value
        elif isinstance(value, dict):
            tensors = {key: entry for key, entry in value.items() if isinstance(entry, Tensor)}
            found |= nested_state(tensors, f"{name}.")
    return found


def are_finite(value: Tensor) -> Tensor:
    """`value.isfinite()` in half as many operations."""
    return value.abs() < torch.inf


def constants(values: Sequence[float], like: Tensor) -> Tensor:
    """A vector of numbers in the dtype and on the device of `like`, without a copy to the device.

    `like.new_tensor(values)` waits for the device, and cannot be captured in a CUDA graph.
    """
    return torch.stack([like.new_full((), value) for value in values])


def along(value: Tensor, other: Tensor) -> Tensor:
    """A value of the first dimensions of `other` beside it, as [B] beside [B, D]."""
    return value.view(*value.shape, *[1] * (other.ndim - value.ndim))


def nested_state(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The same entries under names that begin with `prefix`, so that states share a dictionary."""
    return {f"{prefix}{name}": value for name, value in state.items()}


def sub_state(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The entries whose names begin with `prefix`, without it."""
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


ZERO = -103.0
"""What `log_rms` stays below of zeros, and of nothing else."""


def log_rms(value: Tensor) -> Tensor:
    """Natural logarithm of the root mean square over the last dimension, -103.6 if all are 0."""
    scale = value.abs().amax(-1).clamp_min(1e-30)  # 1e30 squared would overflow float32
    return (
        scale.log() + 0.5 * (value / scale.unsqueeze(-1)).square().mean(-1).clamp_min(1e-30).log()
    )


def flush_negligible(value: Tensor, *dims: int) -> Tensor:
    """Zeros for entries that a sum over `dims` cannot feel, below eps^2 of the largest there.

    What fades away ends among the subnormal numbers, with which some processors take a hundred
    times as long.
    """
    if value.numel() == 0:
        return value
    size = value.abs()
    least = size.amax(dims, keepdim=True) * torch.finfo(value.dtype).eps ** 2
    return value.masked_fill(size < least, 0)


def is_exporting() -> bool:
    """Whether a network is exported, so that there are no values yet.

    PyTorch 2.6 does not tell it from a network that is compiled.
    """
    return bool(getattr(torch.compiler, "is_exporting", torch.compiler.is_compiling)())


def is_plain(value: Tensor) -> bool:
    """Whether a tensor is an ordinary one, whole and in memory: not sharded, lazy or on `meta`."""
    return not (
        is_lazy(value)
        or value.is_nested
        or type(value.detach()) is not Tensor
        or getattr(value, "_fsdp_flattened", False)  # FSDP's mark on its shards
        or value.device.type == "meta"
    )


def default_device() -> torch.device:
    """Where tensors are made; PyTorch 2.6 itself does not tell within `with torch.device(...)`."""
    return torch.empty(0).device


@contextlib.contextmanager
def undisturbed(*, grad: bool = False, on_cpu: bool = False) -> Iterator[None]:
    """Compute as if the caller had set neither inference mode nor autocast nor a mode of gradients.

    Also a decorator. Tensors made in inference mode could not be changed in place outside of it.

    Args:
        grad: Whether gradients are recorded.
        on_cpu: Whether the default device is the CPU; no code of the user's may run that expects
            another.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.set_grad_enabled(grad))
        for device in ("cpu", "cuda", "mps", "xpu"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        if on_cpu and default_device().type != "cpu":  # it slows every operation
            stack.enter_context(torch.device("cpu"))
        yield


def copied_array(value: npt.NDArray[Any], name: str) -> Tensor:
    """The tensor of a NumPy array; it does not share its memory, which may be read-only.

    Raises:
        InputError: It holds no numbers, or some of them are masked.
    """
    require_unmasked(value, name)
    try:
        return torch.tensor(np.ascontiguousarray(value, value.dtype.newbyteorder("=")))
    except TypeError as error:
        raise InputError(
            f"{name} must hold numbers that PyTorch has, got an array of {value.dtype}"
            + ("; convert it by .astype(float)" if np.issubdtype(value.dtype, np.number) else "")
        ) from error


def floating_dtype(dtype: object) -> torch.dtype:
    """The float32 or float64 that is meant, by PyTorch's name, NumPy's or a text.

    Raises:
        InputError: It is another dtype, or none.

    Examples:
        >>> floating_dtype(np.float32), floating_dtype("float64")
        (torch.float32, torch.float64)
    """
    found: object = dtype
    if dtype is not None and not isinstance(dtype, torch.dtype):
        anything: Any = dtype
        try:
            name = np.dtype(anything).name
        except (TypeError, ValueError):
            name = ""
        found = {"float32": torch.float32, "float64": torch.float64}.get(name)
    if found is torch.float32 or found is torch.float64:
        assert isinstance(found, torch.dtype)
        return found
    raise InputError(
        "dtype must be torch.float32 or torch.float64, or NumPy's of these names, got "
        + shown(dtype)
    )


def usable_device(device: Any) -> torch.device:
    """A device that tensors can be made on.

    Raises:
        InputError: There is none of this name, or it cannot be used here.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (AssertionError, RuntimeError, TypeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(
            f"the device {shown(device)} cannot be used ({reason}); give the name of one that is "
            "there, as 'cpu' is"
        ) from error
    return found


def widest(device: torch.device | str) -> torch.dtype:
    """float64, or float32 where the device has no other."""
    return torch.float32 if torch.device(device).type in _NARROW else torch.float64


def to_device(value: Tensor, device: torch.device | str) -> Tensor:
    """Move to a device; float64 becomes float32 where it has no other."""
    return value.to(device, widest(device) if value.dtype == torch.float64 else value.dtype)


def widened(value: Tensor) -> Tensor:
    """Convert to the widest floating-point numbers that the device has."""
    return value.to(widest(value.device))


def quantiles(values: Tensor, *shares: float) -> list[float]:
    """Quantiles of values [n], at most 2^24, the limit of PyTorch.

    It ranks them in float64, so that they go to the CPU from a device that has none.
    """
    some = values if widest(values.device) == torch.float64 else values.cpu()
    found: list[float] = torch.quantile(some, some.new_tensor(shares)).tolist()
    return found


def require_dtype(device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Raise an `InputError` where the device has no numbers of the dtype."""
    require(
        dtype != torch.float64 or widest(device) == dtype,
        f"{device} has no {dtype}; compute in torch.float32 there, or on the CPU",
    )


def require_like(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Raise an `InputError` where tensors differ from `expected` in names, shapes or dtypes."""
    missing, surplus = expected.keys() - found.keys(), found.keys() - expected.keys()
    require(not missing, f"there is no tensor {min(missing, default='')}")
    require(not surplus, f"there is a tensor {min(surplus, default='')} too many")
    for name, value in expected.items():
        one, other = ((t.dtype, list(t.shape)) for t in (found[name], value))
        require(one == other, f"{name} is {one[0]} {one[1]} instead of {other[0]} {other[1]}")


def kind_of(found: object) -> str:
    """Words for what came where a tensor of another kind was expected.

    Examples:
        >>> kind_of(torch.zeros(3, 2)), kind_of(None)
        ('torch.float32 in shape [3, 2]', 'NoneType')
    """
    if isinstance(found, Tensor):
        return f"{found.dtype} in shape {list(found.shape)}"
    return type(found).__name__


def require_items(state: object, num_items: int, whose: str, what: str = "items") -> None:
    """Raise an `InputError` unless a state is a dictionary of tensors with the items first.

    Args:
        state: What a process, a rule or a stop rule of a user's own carries from step to step.
        num_items: B, the size of dimension 0.
        whose: Names the state in the message.
        what: What the items are called there.
    """
    if not isinstance(state, dict):
        raise InputError(f"{whose} must be a dictionary of tensors, got {type(state).__name__}")
    for name, value in state.items():
        if isinstance(value, Tensor) and value.ndim > 0 and value.shape[0] == num_items:
            continue
        raise InputError(
            f"{name} of {whose} must be a tensor with the {num_items} {what} along dimension 0, "
            f"got {kind_of(value)}; {what} leave one by one and take their entries with them, so "
            "give what is nested names of its own, and leave out what is None"
        )


def select_state(state: Mapping[str, Tensor], index: Tensor) -> dict[str, Tensor]:
    """The entries of a state that belong to the items at `index` (int64 [M])."""
    return {name: value.index_select(0, index) for name, value in state.items()}
