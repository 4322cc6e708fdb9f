"""What the state of the torch optimizer takes, and a step."""

import sys
from pathlib import Path

import forked
import pytest
from networks import numbers
from torch import nn

from haltwise import LearnedOptimizer


@pytest.mark.parametrize(("guard", "size"), [(False, 329), (True, 341)])
def test_state_is_made_at_the_first_step_and_as_large_as_documented(guard: bool, size: int) -> None:
    param = nn.Parameter(numbers(100))
    optimizer = LearnedOptimizer([param], "regression-10d", guard=guard)
    assert not optimizer.state
    param.grad = numbers(100)
    optimizer.step()
    tensors = {name: value for name, value in optimizer.state[param].items() if name != "group"}
    storages = {value.untyped_storage().data_ptr() for value in tensors.values()}
    assert len(storages) == len(tensors)
    assert sum(value.untyped_storage().nbytes() for value in tensors.values()) == size * 100


_PEAK = """
import torch
from haltwise import LearnedOptimizer

torch.set_num_threads(1)

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def step(size):
    param = torch.nn.Parameter(torch.ones(size))
    param.grad = torch.ones(size)
    before = memory("VmRSS")
    optimizer = LearnedOptimizer([param], "regression-10d")
    for _ in range(2):
        optimizer.step(loss=1.0)
    return memory("VmHWM") - before

step(10)
print(step(500_000) / 500_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_step_takes_less_than_400_bytes_a_parameter(tmp_path: Path) -> None:
    found = forked.run(_PEAK, cwd=tmp_path, folder=tmp_path, work=forked.code)
    assert found.returncode == 0, found.stderr
    assert 328 < float(found.stdout) < 400
