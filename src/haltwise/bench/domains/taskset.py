"""TaskSet: configurations of Adam on small recurrent networks."""

from dataclasses import dataclass
from typing import ClassVar, final

from haltwise.bench.domain import Domain, Question, Sample, recorded, sample_runs
from haltwise.curves.curves import Curves

__all__ = ["TaskSetDomain"]


@final
@dataclass(frozen=True)
class TaskSetDomain(Domain):
    """Recorded runs of TaskSet (Metz et al. 2020); a group is a task.

    Early stops are scored by the test loss at the best validation loss so far. To give up, the
    target is the median final loss of a task: will the run be one of the better half?
    """

    title: ClassVar[str] = "TaskSet, tasks not seen"
    questions: ClassVar[tuple[Question, ...]] = (Question.STOP, Question.GIVE_UP)
    scored: ClassVar[str | None] = "test"

    def curves(self, sample: Sample) -> Curves:
        return sample_runs(recorded(sample, "taskset.npz").targets_among_peers(), sample)


DOMAINS = {"taskset": TaskSetDomain()}
