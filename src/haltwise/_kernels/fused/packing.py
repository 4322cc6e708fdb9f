"""Weights in the order in which the fused kernels read them."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["GATE_FACTORS", "Tiles", "is_resident", "pack", "pack_readout"]


GATE_FACTORS = (-math.log2(math.e), -math.log2(math.e), 2 * math.log2(math.e), -math.log2(math.e))
"""By which the arguments of gates are multiplied: the device's exponential is a power of 2."""

_SHARED = 100 * 1024
_NONE, _BIAS = -1, -2


class Tiles(NamedTuple):
    """How the units of a layer are cut: into UA and UB columns, powers of two."""

    first: int
    second: int

    @classmethod
    def of(cls, size: int) -> "Tiles":
        """For H = `size` units; 20 are 16 + 4."""
        whole = max(16, 1 << (size - 1).bit_length())
        first = max(16, whole // 2)
        rest = size - first
        second = 0 if rest <= 0 else max(4, 1 << (rest - 1).bit_length())
        return cls(whole, 0) if whole == 16 or second >= first else cls(first, second)


def pack(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Tensor:
    """All layers, one after the other, as `cell.advance` reads them, float16 [P].

    A weight is split into two: its nearest float16 and what that leaves. One beyond 22,000, where
    no trained weight is, overflows: its halves are infinite, and updates are NaN, which no step
    takes.

    Args:
        weights: L tensors [4H, fan_in + H], float32, where the first fan-in is 2 or 4.
        biases: L tensors [4H].
    """
    size = biases[0].numel() // 4
    num_inputs = weights[0].shape[1] - size
    index, is_low, factor = _order(size, num_inputs, len(weights), biases[0].device)
    flat = [each.detach().flatten() for pair in zip(weights, biases, strict=True) for each in pair]
    value = torch.cat([flat[0].new_zeros(1), *flat]).index_select(0, index) * factor
    high = value.half()
    return torch.where(is_low, (value - high).half(), high)


def is_resident(tiles: Tiles, num_layers: int) -> bool:
    """Whether the weights of so many layers, not the first, have room in shared memory."""
    rows = tiles.first * (3 if tiles.second else 2)
    return 3 * 2 * num_layers * rows * 4 * sum(tiles) <= _SHARED  # the high halves twice


def pack_readout(weight: Tensor, bias: Tensor) -> Tensor:
    """For every output its weights in tiles, and its bias, [O, UA + UB + 1]."""
    weight, bias = weight.detach(), bias.detach()
    columns, exist = _columns(weight.shape[1], weight.device)
    return torch.cat((weight.index_select(1, columns) * exist, bias.unsqueeze(1)), 1)


@functools.cache
def _order(
    size: int, num_inputs: int, num_layers: int, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Where each packed number lies among all parameters, of which the first is a zero, int64 [P].

    And whether what the high half leaves is packed, bool [P]; and by what it is multiplied before,
    float32 [P].
    """
    tiles = Tiles.of(size)
    index, is_low, factor = [], [], []
    factors = torch.tensor(GATE_FACTORS, device="cpu").repeat_interleave(size)
    begin, fan_in = 1, num_inputs
    for layer in range(num_layers):
        width = fan_in + size
        weight = begin + torch.arange(4 * size * width, device="cpu").view(4 * size, width)
        bias = begin + weight.numel() + torch.arange(4 * size, device="cpu")
        begin += weight.numel() + bias.numel()
        products = [_as_read(each) for each in _inputs(tiles, size, fan_in, is_first=layer == 0)]
        for units in reversed(_units(tiles, size)):  # the kernel computes the small tile first
            rows = _gate_columns(units, size)
            for columns in products:
                is_bias = (columns == _BIAS).unsqueeze(1)
                found = weight[rows.unsqueeze(0), columns.unsqueeze(1)]
                found = torch.where(is_bias, bias[rows].unsqueeze(0), found)
                real = (rows >= 0).unsqueeze(0) & ((columns >= 0).unsqueeze(1) | is_bias)
                found = torch.where(real, found, 0).flatten()
                index += [found, found]
                factor += 2 * [factors[rows].repeat(len(columns))]
                is_low += [torch.full_like(found, half) for half in (0, 1)]
            if not any((columns == _BIAS).any() for columns in products):
                index += 2 * [torch.where(rows >= 0, bias[rows], 0)]
                factor += 2 * [factors[rows]]
                is_low += [torch.full_like(rows, half) for half in (0, 1)]
        fan_in = size
    halves = torch.cat(is_low).to(device, torch.bool)
    return torch.cat(index).to(device), halves, torch.cat(factor).to(device)


def _units(tiles: Tiles, size: int) -> list[Tensor]:
    """Units of each tile in use in the kernel's order (`cell.unit_in_memory`), -1 for none.

    Of 16 columns that matrix units write a thread has every fourth, of memory it reads four behind
    each other: so many columns of the first tile are counted by fours.
    """
    every = torch.arange(sum(tiles), device="cpu")
    every = torch.where(every < size, every, -1)
    first, second = every.split(tuple(tiles))
    if tiles.first == 16:
        first = first.view(4, 4).T.flatten()
    return [units for units in (first, second) if len(units)]


@functools.cache
def _columns(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Units of all tiles in the kernel's order, and whether each exists."""
    units = torch.cat(_units(Tiles.of(size), size))
    return units.clamp_min(0).to(device), (units >= 0).to(device)


def _gate_columns(units: Tensor, size: int) -> Tensor:
    """Rows of a weight in the order [high bit of the gate, unit, low bit], -1 for none."""
    gate = torch.tensor([[0, 1], [2, 3]], device="cpu").unsqueeze(1)
    units = units.view(1, -1, 1)
    return torch.where(units >= 0, gate * size + units, -1).flatten()


def _inputs(tiles: Tiles, size: int, fan_in: int, *, is_first: bool) -> list[Tensor]:
    """Columns of a weight in the order of what each product reads; or none, or the bias."""
    own = [torch.where(units >= 0, units + fan_in, _NONE) for units in _units(tiles, size)]
    if is_first:
        features = torch.arange(4, device="cpu")
        rest = torch.where(features < fan_in, features, _NONE)
        if tiles.second:
            rest = torch.cat((own[1], _padded(rest, tiles.second)))
        return [torch.cat((own[0], _padded(rest, tiles.first)))]
    below = _units(tiles, size)
    products = [torch.cat((own[0], below[0]))]
    if tiles.second:
        rest = torch.cat((own[1], below[1]))
        products.append(_padded(rest, tiles.first))
    return products


def _as_read(columns: Tensor) -> Tensor:
    """In the order in which matrix units read sixteen columns (`cell._operand`)."""
    return columns.view(-1, 2, 2, 4).transpose(2, 3).flatten()


def _padded(columns: Tensor, width: int) -> Tensor:
    """With padding behind them, doubling until there are `width`; the first of it is the bias."""
    padding = _BIAS
    while len(columns) < width:
        added = torch.full_like(columns, _NONE)
        added[0], padding = padding, _NONE
        columns = torch.cat((columns, added))
    return columns
