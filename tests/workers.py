"""Runs that several processes share."""

from pathlib import Path

import pytest
import torch
from forked import hold
from tiny_runs import finish, tiny
from torch import distributed
from torch.multiprocessing.spawn import start_processes

from haltwise._core.workers import Workers
from haltwise.training import Trainer, TrainingSettings

__all__ = ["alone", "sharded", "together"]


def sharded(preset: str = "act", num_shards: int = 4) -> TrainingSettings:
    """Settings of a tiny run of virtual shards."""
    return tiny(preset, run={"num_shards": num_shards})


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of such a run that one process trained."""
    directory = tmp_path_factory.mktemp("alone") / "run"
    finish(Trainer(sharded(), directory))
    return directory


def work(rank: int, size: int, directory: Path, steps: int, interrupted: bool) -> None:
    """Train as one of several processes; the last interrupts the run after so many steps."""
    torch.set_num_threads(1)
    meeting = f"file://{directory}.{steps}.meeting"
    distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    workers = Workers(rank, size)
    begun = (directory / "config.json").exists()
    workers.wait()
    trainer = (
        Trainer.resume(directory, workers=workers)
        if begun
        else Trainer(sharded(), directory, workers=workers)
    )
    for progress in trainer.run():
        if progress.step == steps and rank == size - 1:
            trainer.interrupt()
    assert trainer.interrupted == interrupted
    workers.leave()


def together(size: int, directory: Path, steps: int = 10**9) -> None:
    """Train in several processes, forked from one that has imported what they need."""
    hold(__name__)
    arguments = (size, directory, steps, steps < 10**9)
    start_processes(work, arguments, nprocs=size, start_method="forkserver")
