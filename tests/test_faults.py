"""A little of every part of the fault harness, in a process that has run no backward pass."""

import sys
from pathlib import Path

import forked
import pytest
from in_process import Result

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks and reads /proc")
QUICK = {"kills": 3, "interruptions": 6, "full-disks": 3, "damaged": 4, "locked": 3, "fuzzed": 160}


def faults(folder: Path, *arguments: object, sabotage: str = "") -> Result:
    code = f"{sabotage}\nimport runpy\n"
    code += "runpy.run_module('faults', run_name='__main__', alter_sys=True)"
    process = forked.Command(code, *arguments, cwd=folder, folder=folder, work=forked.code)
    return process.wait(600)


def only(**numbers: int) -> list[object]:
    sizes = dict.fromkeys(QUICK, 0) | numbers
    return [part for name, number in sizes.items() for part in (f"--{name}", number)]


def test_nothing_is_lost(tmp_path: Path) -> None:
    result = faults(tmp_path, *only(**QUICK))
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.count("0 lost, 0 differing") == len(QUICK)


CARELESS_WRITER = """
import os, pathlib, haltwise._core.files as c
def careless(path, content):
    with pathlib.Path(path).open("wb") as file:
        file.write(content[:-1])
        file.flush()
        os.fsync(file.fileno())
c.write_atomically = careless
"""
CARELESS_READER = "import haltwise.datasets.files as files; files.require = lambda *_: None"


@pytest.mark.parametrize(
    ("part", "number", "sabotage"),
    [("kills", 2, CARELESS_WRITER), ("fuzzed", 48, CARELESS_READER)],
)
def test_the_harness_sees_what_is_broken(
    part: str, number: int, sabotage: str, tmp_path: Path
) -> None:
    result = faults(tmp_path, *only(**{part: number}), sabotage=sabotage)
    assert result.returncode == 1, result.stdout + result.stderr
