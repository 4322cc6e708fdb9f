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
import ctypes
import torch
from haltwise import LearnedOptimizer

torch.set_num_threads(1)
ctypes.CDLL(None).mallopt(-3, 2**16)  # M_MMAP_THRESHOLD: what is freed is given back

def memory(name):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))

def step(size, number):
    params = [torch.nn.Parameter(torch.ones(size // number)) for _ in range(number)]
    for param in params:
        param.grad = torch.ones_like(param)
    before = memory("VmRSS")
    optimizer = LearnedOptimizer(params, "regression-10d")
    for _ in range(2):
        optimizer.step(loss=1.0)
    return memory("VmHWM") - before

step(10, 1)
print(step(500_000, NUMBER) / 500_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [1, 500])
def test_a_step_takes_less_than_400_bytes_a_parameter(number: int, tmp_path: Path) -> None:
    """Of one tensor or of many, whose states are gathered for it."""
    program = _PEAK.replace("NUMBER", str(number))
    found = forked.run(program, cwd=tmp_path, folder=tmp_path, work=forked.code)
    assert found.returncode == 0, found.stderr
    assert 328 < float(found.stdout) < 400
