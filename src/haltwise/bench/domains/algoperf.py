"""AlgoPerf: give up training runs of large workloads that will not meet their target."""

from dataclasses import dataclass
from typing import ClassVar, final

from haltwise.bench.domain import Domain, Question, Sample, recorded, sample_runs
from haltwise.curves.curves import Curves

__all__ = ["AlgoPerfDomain"]


@final
@dataclass(frozen=True)
class AlgoPerfDomain(Domain):
    """Recorded submissions to AlgoPerf (Kasimbeg et al. 2025); a group is a submission."""

    title: ClassVar[str] = "AlgoPerf, submissions not seen"
    questions: ClassVar[tuple[Question, ...]] = (Question.GIVE_UP,)

    def curves(self, sample: Sample) -> Curves:
        return sample_runs(recorded(sample, "algoperf.npz"), sample)


DOMAINS = {"algoperf": AlgoPerfDomain()}
