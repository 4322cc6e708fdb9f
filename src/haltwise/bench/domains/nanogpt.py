"""NanoGPT speedrun: give up runs that will not reach the better half of their track."""

from dataclasses import dataclass
from typing import ClassVar, final

from haltwise.bench.domain import Domain, Question, Sample, recorded, sample_runs
from haltwise.curves.curves import Curves

__all__ = ["NanoGPTDomain"]


@final
@dataclass(frozen=True)
class NanoGPTDomain(Domain):
    """Recorded runs of the NanoGPT speedrun (Jordan et al.); a group is a record.

    The target is the median final loss of a track.
    """

    title: ClassVar[str] = "NanoGPT, records not seen"
    questions: ClassVar[tuple[Question, ...]] = (Question.GIVE_UP,)

    def curves(self, sample: Sample) -> Curves:
        return sample_runs(recorded(sample, "nanogpt.npz").targets_among_peers(), sample)


DOMAINS = {"nanogpt": NanoGPTDomain()}
