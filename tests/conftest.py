"""What every test shares: one thread, explicit generators, no example database on disk.

Without a GPU, Triton's interpreter runs the fused kernels; it must know before it is imported.
"""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from image_files import write_cifar, write_mnist
from kernel_cases import instruction_set
from recorded_monitors import recorded_runs, sgd_stopper, stopper
from workers import alone

__all__ = [
    "alone",
    "generator",
    "instruction_set",
    "one_thread",
    "recorded_runs",
    "sgd_stopper",
    "stopper",
    "tiny_images",
]

torch.set_num_threads(1)
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
hypothesis.settings.register_profile(
    "oracle", deadline=None, derandomize=True, database=None, max_examples=60
)
hypothesis.settings.load_profile("oracle")


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over tests and modules, which live to the end."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def no_waiting_for_disks() -> Iterator[None]:
    """Files need outlive no power cut; `tests/faults` waits, in processes of its own."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(os, "fsync", lambda descriptor: None)
        patched.setattr(os, "sync", lambda: None, raising=False)
        yield


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For tests that change the number of threads."""
    yield
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh stream for every test, so that no test depends on another."""
    return torch.Generator().manual_seed(20170524)


@pytest.fixture(scope="session")
def tiny_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a few random images in the files of MNIST and CIFAR-10."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(1)
    labels = np.arange(240, dtype=np.uint8) % 10
    grey = random.integers(0, 256, (240, 28, 28), np.uint8)
    write_mnist(folder / "mnist", (grey, labels), (grey[:20], labels[:20]))
    write_cifar(folder / "cifar10", random.integers(0, 256, (240, 3, 32, 32), np.uint8), labels)
    return folder
