"""Random streams as a pure function of a seed and a path, so that nothing depends on history."""

import hashlib

import torch
from torch import Tensor

__all__ = ["random_subsets", "split_mix", "stream"]


def _signed(value: int) -> int:
    """`value` modulo 2^64 as an int64 holds it."""
    return (value + 2**63) % 2**64 - 2**63


_GAMMA = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)))


def stream(seed: int, *path: str | int) -> torch.Generator:
    """Make a CPU generator that depends on `seed` and `path` alone.

    `stream(0, "train", 17)` is the same whichever steps ran before it, which makes resumed and
    sharded runs equal to uninterrupted ones.

    Args:
        seed: The user's seed.
        path: What the numbers are for, from coarse to fine.
    """
    digest = hashlib.blake2b(repr((seed, *path)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)


def split_mix(seed: Tensor, index: Tensor) -> Tensor:
    """The 64 uniform bits that SplitMix64 from `seed` puts out as its number `index`, from 0.

    Integers alone are used, so the bits are those of every device. For one seed distinct indices
    give distinct bits: the generator is a bijection of its counter. Source: Steele, Lea & Flood
    2014, "Fast splittable pseudorandom number generators".

    Args:
        seed: int64, of any shape.
        index: int64, at least 0, of a shape that broadcasts with it.

    """
    bits = seed + (index + 1) * _GAMMA  # int64 wraps modulo 2^64
    for shift, factor in _ROUNDS:
        bits = (bits ^ _shift_right(bits, shift)) * factor
    return bits ^ _shift_right(bits, 31)


def _shift_right(bits: Tensor, count: int) -> Tensor:
    shifted: Tensor = (bits >> count) & (2 ** (64 - count) - 1)  # zeros come in, not the sign
    return shifted


def random_subsets(seed: Tensor, step: int, num_items: int, size: int) -> Tensor:
    """One uniformly random subset of 0..N-1 per seed, in random order, drawn anew at every step.

    The same on every device and whichever problems stand beside.

    Args:
        seed: One stream per problem, int64 [B].
        step: t, at least 0; without limit.
        num_items: N.
        size: M <= N, drawn without replacement.

    Returns:
        Distinct items per row, int64 [B, M].
    """
    now = split_mix(seed, torch.full_like(seed, step))
    keys = split_mix(now.unsqueeze(1), torch.arange(num_items, device=seed.device))
    subsets: Tensor = keys.topk(size, dim=1, largest=False).indices  # distinct keys: no ties
    return subsets
