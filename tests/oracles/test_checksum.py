"""Objects are known again by what they hold, in another process, too."""

import subprocess
import sys
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import numpy as np
import pytest
import torch

from haltwise import InputError
from haltwise._core.checksum import checksum
from haltwise.curves.rules.peers import Peers, PeersRule


class Open:
    def __init__(self, value: Any) -> None:
        self.value = value

    @cached_property
    def twice(self) -> Any:
        return 2 * self.value


@dataclass(frozen=True)
class Frozen:
    shown: float
    hidden: object = field(default=None, repr=False, compare=False)


class Slots:
    __slots__ = ("value",)

    def __init__(self, value: float) -> None:
        self.value = value


def scaled(by: float) -> Any:
    return lambda x: x * by


def nested_two(x: float) -> Any:
    return [lambda y: y + 2, x]


def nested_three(x: float) -> Any:
    return [lambda y: y + 3, x]


nested_three.__qualname__ = nested_two.__qualname__


DIFFERENT: list[object] = [
    *(None, False, 0, 0.0, "", b"", (), [], {}, set(), 1, 1.0, "1", float("nan")),
    *([1, 2], [[1], 2], [1, [2]], (1, 2), {1, 2}, {1: 2}, {2: 1}, {"a": [1]}, {"a": 1}),
    *(np.zeros(2), np.zeros((2, 1)), np.zeros(2, np.float32), np.array([0.0, -0.0]), np.float64(0)),
    *(np.array([1, None]), np.array([1, "a"], object)),
    *(torch.zeros(2), torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, 1), torch.ones(2)),
    *(Open(1), Open(2), Open([1]), Slots(1.0), Slots(2.0), Open, Slots),
    *(Frozen(1.0), Frozen(2.0), Frozen(1.0, 1), Frozen(1.0, np.ones(3)), Frozen(1.0, np.ones(2))),
    *(nested_two, nested_three, lambda x, *, y=1: y, lambda x, *, y=2: y),
    *(scaled(1.0), scaled(2.0), scaled, partial(scaled, 1), partial(scaled, 2)),
    *(np.random.default_rng(0), np.random.default_rng(1), len, max),
    *(PeersRule(), PeersRule(0.1), PeersRule(0.1, Peers({"a": np.ones((2, 41))}))),
]


def test_what_differs_has_another_checksum() -> None:
    found = [checksum(value) for value in DIFFERENT]
    same = [(i, j) for i, one in enumerate(found) for j in range(i) if one == found[j]]
    assert not same, [(DIFFERENT[i], DIFFERENT[j]) for i, j in same]


def test_equal_objects_have_one_whatever_was_done_to_them() -> None:
    assert checksum({"a": 1, "b": {2, 3}}) == checksum({"b": {3, 2}, "a": 1})
    assert checksum(np.arange(6.0).reshape(2, 3).T) == checksum(
        np.ascontiguousarray(np.arange(6.0).reshape(2, 3).T)
    )
    one, used = Open(3), Open(3)
    assert used.twice == 6
    assert checksum(one) == checksum(used)
    shared = [1.0]
    assert checksum([shared, shared]) == checksum([[1.0], [1.0]])
    cycle: list[object] = [1]
    cycle.append(cycle)
    assert checksum(cycle) == checksum(cycle)


def test_another_process_finds_the_same() -> None:
    script = (
        "import numpy as np; from haltwise._core.checksum import checksum; "
        "from haltwise.curves.rules.peers import Peers, PeersRule; "
        "print(checksum([{'x', 'y', 'z'}, PeersRule(.2, Peers({'a': np.ones((2, 41))}))]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    mine = checksum([{"x", "y", "z"}, PeersRule(0.2, Peers({"a": np.ones((2, 41))}))])
    assert done.stdout.strip() == mine


def test_what_cannot_be_taken_apart_is_refused() -> None:
    with (
        open(__file__) as file,  # noqa: PTH123
        pytest.raises(InputError, match="TextIOWrapper cannot be taken apart"),
    ):
        checksum({"log": file})
