"""What every test shares: one thread, explicit generators, no example database on disk."""

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile(
    "oracle", deadline=None, derandomize=True, database=None, max_examples=60
)
hypothesis.settings.load_profile("oracle")


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh stream for every test, so that no test depends on another."""
    return torch.Generator().manual_seed(20170524)
