"""Recorded runs, and a monitor that learned from them, fixtures for all tests of one worker."""

import warnings
from pathlib import Path

import pytest
from line_fits import plain_loop
from loops import record_runs

from haltwise import HaltingMonitor
from haltwise.training import train_monitor


@pytest.fixture(scope="session")
def recorded_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """150 runs of decaying losses."""
    return record_runs(tmp_path_factory.mktemp("runs"), range(150))


@pytest.fixture(scope="session")
def stopper(recorded_runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a monitor of such loops, at a price of 0.02 a round."""
    directory = tmp_path_factory.mktemp("monitor") / "run"
    return train_monitor(recorded_runs, directory, price=0.02, halting={"num_steps": 150})


@pytest.fixture(scope="session")
def sgd_stopper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a monitor of SGD on lines, at a price of 0.03 a round."""
    folder = tmp_path_factory.mktemp("lines")
    for seed in range(100):
        plain_loop(HaltingMonitor.recording(folder / "runs"), seed, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return train_monitor(
            folder / "runs", folder / "run", price=0.03, halting={"num_steps": 100}
        )
