"""What rows are made of: one tensor or several by name, and tokens of which some are padding."""

from collections.abc import Mapping

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.settings import got
from haltwise._core.tensors import is_exporting, select_state

__all__ = [
    "Inputs",
    "count_rows",
    "device_of",
    "pool_tokens",
    "read_tokens",
    "require_tensor",
    "select_rows",
    "without_padding",
]

Inputs = Tensor | Mapping[str, Tensor]
"""Rows along dimension 0, of one tensor or of several by name."""

_TOKENS = {"tokens", "padding"}


def count_rows(inputs: object) -> int:
    """The number of rows of inputs.

    Raises:
        InputError: They are no tensor with the rows along dimension 0, nor several by name, which
            have as many rows each and lie on one device.
    """
    parts = {"inputs": inputs}
    if isinstance(inputs, Mapping):
        require(len(inputs) > 0, "inputs by name must be at least one tensor, got none")
        parts = {f"inputs[{name!r}]": value for name, value in inputs.items()}
    numbers, devices = [], set()
    for name, value in parts.items():
        if not (isinstance(value, Tensor) and value.ndim > 0):
            raise InputError(
                f"{name} must be a tensor with the rows along dimension 0, {got(value)}"
            )
        require(
            not value.is_nested,
            f"{name} must be no nested tensor; pad what has different lengths, and give the mask "
            "beside it",
        )
        numbers.append(value.shape[0])  # which may be any, where a network is exported
        devices.add(str(value.device))
    if any(number != numbers[0] for number in numbers):
        raise InputError(f"inputs by name must have as many rows each, got {sorted(set(numbers))}")
    require(
        len(devices) == 1,
        f"inputs by name must lie on one device, got {', '.join(sorted(devices))}",
    )
    return numbers[0]


def device_of(inputs: Inputs) -> torch.device:
    """Where inputs lie."""
    return (inputs if isinstance(inputs, Tensor) else next(iter(inputs.values()))).device


def select_rows(inputs: Inputs, index: Tensor) -> Inputs:
    """The rows at `index`, int64 [M]."""
    if isinstance(inputs, Tensor):
        return inputs[index]
    return select_state(inputs, index)


def require_tensor(inputs: Inputs, whose: str) -> Tensor:
    """Refuse several tensors where a process reads one."""
    if not isinstance(inputs, Tensor):
        raise InputError(f"{whose} reads one tensor, got several by name: {sorted(inputs)}")
    return inputs


def read_tokens(inputs: Inputs, whose: str) -> tuple[Tensor, Tensor | None]:
    """Tokens [B, L, ...], 0 where they are padding, and which of them are, bool [B, L], or None.

    Args:
        inputs: Tokens, or under the name "tokens" and, as PyTorch's layers take it, a mask that is
            True at padding, under "padding".
        whose: The process.

    Raises:
        InputError: There are other names, the mask is no such mask, or a row is all padding.
    """
    if isinstance(inputs, Tensor):
        return inputs, None
    names = {str(name) for name in inputs}
    require(
        names <= _TOKENS and "tokens" in names,
        f"inputs of {whose} are tokens, or by name 'tokens' and 'padding', got {sorted(names)}",
    )
    tokens, padding = inputs["tokens"], inputs.get("padding")
    if padding is None:
        return tokens, None
    require(
        padding.ndim == 2 and padding.dtype == torch.bool and padding.shape == tokens.shape[:2],
        f"padding of tokens {list(tokens.shape)} must be a mask [B, L], True where no token "
        f"is, {got(padding)} of {padding.dtype}",
    )
    if not is_exporting():
        empty = int(padding.all(1).sum())
        require(empty == 0, f"every row must have a token that is no padding; {empty} have none")
    return without_padding(tokens, padding), padding


def without_padding(tokens: Tensor, padding: Tensor | None) -> Tensor:
    """Tokens [B, L, ...], 0 where they are padding, bool [B, L]."""
    if padding is None:
        return tokens
    return tokens.masked_fill(padding.view(*padding.shape, *[1] * (tokens.ndim - 2)), 0)


def pool_tokens(tokens: Tensor, padding: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean and maximum over tokens [B, L, D] that are no padding, [B, D] each.

    Padding must be 0.
    """
    if padding is None:
        return tokens.mean(1), tokens.amax(1)
    number = (~padding).sum(1, keepdim=True)
    return tokens.sum(1) / number, tokens.masked_fill(padding.unsqueeze(-1), -torch.inf).amax(1)
