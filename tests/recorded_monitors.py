"""Recorded runs, and monitors that learned from them, fixtures for all tests of all workers."""

import warnings
from pathlib import Path

import pytest
from line_fits import plain_loop
from loops import record_runs
from made_once import made_once

from haltwise import HaltingMonitor
from haltwise.training import train_monitor


@pytest.fixture(scope="session")
def recorded_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 runs of decaying losses."""
    return made_once(tmp_path_factory, "runs", lambda folder: record_runs(folder, range(150)))


@pytest.fixture(scope="session")
def stopper(recorded_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a monitor of such loops, at a price of 0.02 a round."""

    def train(folder: Path) -> None:
        train_monitor(recorded_runs, folder / "run", price=0.02, halting={"num_steps": 150})

    return made_once(tmp_path_factory, "monitor", train) / "run"


@pytest.fixture(scope="session")
def sgd_stopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a monitor of SGD on lines, at a price of 0.03 a round."""

    def train(folder: Path) -> None:
        for seed in range(100):
            plain_loop(HaltingMonitor.recording(folder / "runs"), seed, 20)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            train_monitor(folder / "runs", folder / "run", price=0.03, halting={"num_steps": 100})

    return made_once(tmp_path_factory, "lines", train) / "run"
