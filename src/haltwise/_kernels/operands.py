"""What a tensor must be to enter the LSTM, and the sentences that refuse all others."""

import torch
from torch import Tensor, nn

from haltwise._core.errors import InputError

__all__ = ["CPU", "require_dims", "require_operand"]

CPU = torch.device("cpu")
_PLAIN_TYPES = (Tensor, nn.Parameter)
_STRIDED = torch.strided


def require_operand(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> None:
    """Refuse anything but a plain dense tensor of this shape, dtype and device.

    Tensor subclasses (`DTensor`, `FakeTensor` and others) need not have the memory that their
    shape announces.

    Raises:
        InputError: The first requirement that is not met.
    """
    if (
        type(tensor) in _PLAIN_TYPES
        and tensor.shape == shape
        and tensor.dtype is dtype
        and tensor.layout is _STRIDED
        and (tensor.is_cpu if device is CPU else tensor.device == device)
    ):
        return
    raise InputError(_complaint(name, tensor, shape, dtype, device))


def require_dims(name: str, tensor: Tensor, meaning: str) -> tuple[int, ...]:
    """The tensor's shape, which must have one dimension for each letter of `meaning`.

    Raises:
        InputError: It has more or fewer.
    """
    if tensor.ndim != len(meaning):
        raise InputError(
            f"{name} must have the dimensions [{', '.join(meaning)}], got the shape "
            f"{list(tensor.shape)}"
        )
    return tensor.shape


def _complaint(
    name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> str:
    if type(tensor) not in _PLAIN_TYPES:
        return (
            f"{name} is a {type(tensor).__name__}, which an LSTM rule or halter cannot read; pass "
            "a plain torch.Tensor (of a DTensor, its local part: `to_local()`)"
        )
    if tensor.shape != shape:
        return (
            f"{name} has the shape {list(tensor.shape)}, expected {list(shape)}; gradient, state "
            "and weights must belong to the same problems: begin with a new state from `init`"
        )
    if tensor.dtype is not dtype:
        return f"{name} is {tensor.dtype}, but the weights are {dtype}; convert one by `to()`"
    if tensor.layout is not _STRIDED:
        return f"{name} has the layout {tensor.layout}; make it dense by `to_dense()`"
    return f"{name} is on {tensor.device}, but the weights are on {device}; move one by `to()`"
