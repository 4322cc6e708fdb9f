"""How the halting step and the loss of an item are coupled."""

from enum import StrEnum
from typing import final

__all__ = ["Coupling"]


@final
class Coupling(StrEnum):
    """What the loss is taken of."""

    EXPECTED_LOSS = "expected-loss"
    """Every exit: the mean of their losses under the posterior (PonderNet; the thesis' Eq. 8)."""
    EXPECTED_STATE = "expected-state"
    """The mean of the outputs under the posterior (adaptive computation time, Graves 2016)."""
    SAMPLED = "sampled"
    """The output of one exit drawn from the posterior; the score function carries the gradient."""
