"""LCDB: when to stop buying data, by learning curves over the number of samples."""

from dataclasses import dataclass
from typing import ClassVar, final

from haltwise.bench.domain import Domain, Sample, recorded, sample_runs
from haltwise.curves.curves import Curves

__all__ = ["LcdbDomain"]


@final
@dataclass(frozen=True)
class LcdbDomain(Domain):
    """Errors of 28 learners on data sets by the samples they had (Yan et al. 2025).

    What is paid are samples, a group is a data set, and what is returned is scored on the test set.
    """

    title: ClassVar[str] = "LCDB: when to stop buying data"
    scored: ClassVar[str | None] = "test_error"

    def curves(self, sample: Sample) -> Curves:
        return sample_runs(recorded(sample, "lcdb11_error.npz"), sample)


DOMAINS = {"lcdb": LcdbDomain()}
