"""A tiny run, what it leaves behind, and the comparison with an undisturbed one."""

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from tiny_runs import timeless, tiny

from faults.processes import events, fork
from faults.tally import Tally
from haltwise._core.files import load_tensors
from haltwise.training import Trainer
from haltwise.training.run.directory import RunDirectory
from haltwise.training.run.log import read_log

SETTINGS = tiny()


def advance(directory: Path) -> None:
    """Begin the run or resume it, and train to its end."""
    if (directory / "config.json").exists():
        trainer = Trainer.resume(directory, settings=SETTINGS)
    else:
        trainer = Trainer(SETTINGS, directory)
    for _ in trainer.run():
        pass


def state(directory: Path) -> dict[str, Any]:
    """Collect all that a run leaves behind, except its seconds."""
    (_, path), *_ = RunDirectory(directory, 3).checkpoints()
    found: dict[str, Any] = {"log": read_log(directory)}
    for name, file in (("checkpoint", path), ("best", directory / "best.safetensors")):
        tensors, metadata = load_tensors(file)
        found[name] = timeless(metadata)
        found[f"{name} tensors"] = {
            key: (str(value.dtype), value.shape, value.flatten().view(torch.uint8).tolist())
            for key, value in tensors.items()
        }
    return found


def compare(tally: Tally, directory: Path, reference: dict[str, Any], case: str) -> None:
    """Finish the run undisturbed and compare it with the reference."""
    status, text, _ = fork(lambda: advance(directory))
    if status != 0:
        tally.lost.append(f"{case}: {text}")
        return
    found = state(directory)
    wrong = [key for key in reference if found[key] != reference[key]]
    if wrong:
        tally.differing.append(f"{case}: {', '.join(wrong)}")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="haltwise-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def warm_up() -> None:
    """Import in the parent what every child would import; no backward pass before a fork."""
    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


def count_events(work: Callable[[], object], root: Path) -> tuple[float, int]:
    """Do `work` undisturbed in a child; return its seconds and its number of events."""
    counted = root / "events"

    def count() -> None:
        with counted.open("wb", buffering=0) as file:
            events(lambda _: None if file.closed else (file.write(b"."), None)[1])
            work()

    begin = time.perf_counter()
    status, text, _ = fork(count)
    assert status == 0, text
    return time.perf_counter() - begin, counted.stat().st_size


def make_reference(root: Path) -> tuple[dict[str, Any], float, int]:
    """Train undisturbed; return the state, its seconds and its number of events."""
    warm_up()
    seconds, num_events = count_events(lambda: advance(root / "reference"), root)
    return state(root / "reference"), seconds, num_events
