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


_PROGRAM = """
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

def under_adam(size, number):
    # Beside the state.
    params = [torch.nn.Parameter(torch.ones(size // number)) for _ in range(number)]
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer = LearnedOptimizer(params, "regression-10d")
    for loss in (1.0, 9.0, 9.0, 9.0, 9.0):  # rises, so that Adam takes over
        optimizer.step(loss=loss)
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak begins anew
    before = memory("VmRSS")
    optimizer.step(loss=9.0)
    return memory("VmHWM") - before

step(10, 1)
print(WHAT(500_000, NUMBER) / 500_000)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [1, 500])
def test_a_step_takes_less_than_400_bytes_a_parameter(number: int, tmp_path: Path) -> None:
    """Of one tensor or of many, whose states are gathered for it."""
    assert 328 < _peak("step", number, tmp_path) < 400


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_adam_takes_no_memory_for_all_tensors_at_once(tmp_path: Path) -> None:
    """A copy of all takes four bytes a parameter, and its formula needs several."""
    assert _peak("under_adam", 25, tmp_path) < 4


def _peak(what: str, number: int, folder: Path) -> float:
    program = _PROGRAM.replace("NUMBER", str(number)).replace("WHAT", what)
    found = forked.run(program, cwd=folder, folder=folder, work=forked.code)
    assert found.returncode == 0, found.stderr
    return float(found.stdout)
