"""The contract of a domain of StopBench: recorded runs, and the questions they answer."""

import warnings
from abc import ABC, abstractmethod
from enum import StrEnum
from pathlib import Path
from typing import ClassVar, NamedTuple

import numpy as np

from haltwise._core.errors import DataWarning, InputError, require
from haltwise.curves.curves import Curves, Integers
from haltwise.curves.rule import CurveRule

__all__ = ["Domain", "Question", "Sample", "recorded", "sample_runs"]


class Question(StrEnum):
    """What a rule is asked."""

    STOP = "stop"
    """When does another point not pay? What is returned and the price of what was spent count."""
    GIVE_UP = "give-up"
    """Will the run meet its target? The cost saved counts, at so many successes lost."""


class Sample(NamedTuple):
    """How many runs of a domain are wanted.

    Attributes:
        num_runs: At most.
        seed: Of what is made, or of which are taken.
        data_dir: A folder of recorded curves, None if there is none.
    """

    num_runs: int
    seed: int
    data_dir: Path | None = None


class Domain(ABC):
    """Recorded runs of one kind of iterative process."""

    title: ClassVar[str]
    """What it is, in a few words."""
    questions: ClassVar[tuple[Question, ...]] = (Question.STOP,)
    scored: ClassVar[str | None] = None
    """The column by which an early stop is judged, at the best point by the metric; no rule sees
    it. The metric itself if None."""
    is_made: ClassVar[bool] = False
    """Whether the runs are made by code of the package, alike each time, so that they are kept."""
    reference: ClassVar[type[CurveRule] | None] = None
    """The best causal rule, where the law of the runs is known."""

    def prices(self, curves: Curves) -> tuple[float, ...] | None:
        """Of a whole budget, in typical gains of a run of the same task; None for those of all."""
        del curves
        return None

    def unit(self, curves: Curves) -> float | None:
        """What losses are counted in where runs stop early; None for the typical gain of a task."""
        del curves
        return None

    def given_price(self) -> float | None:
        """Of a unit of cost, in units of the loss, where somebody's own stops have one."""
        return None

    def stops(self, curves: Curves) -> Integers | None:
        """Stops that come with the runs, int64 [n], where somebody's own are judged."""
        del curves
        return None

    @abstractmethod
    def curves(self, sample: Sample) -> Curves:
        """Read or make the runs.

        Raises:
            InputError: The data are not there; the message says where they were looked for.
        """


def recorded(sample: Sample, name: str) -> Curves:
    """Read a file of recorded curves in the folder of data, or in `curves` within it.

    Raises:
        InputError: There is none.
    """
    from haltwise.curves.readers import read

    require(
        sample.data_dir is not None,
        f"{name} is recorded data; name the folder that holds it by --data-dir",
    )
    assert sample.data_dir is not None
    paths = (sample.data_dir / name, sample.data_dir / "curves" / name)
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise InputError(f"there is no file {' and no '.join(map(str, paths))}")
    with warnings.catch_warnings():
        # What these files lack is known, and stands in the notes that come with them.
        warnings.simplefilter("ignore", DataWarning)
        return read(found)


def sample_runs(curves: Curves, sample: Sample) -> Curves:
    """At most so many of the runs, drawn from each group alike, in their order."""
    if curves.num_runs <= sample.num_runs:
        return curves
    generator = np.random.default_rng(sample.seed)
    order = generator.permutation(curves.num_runs)
    # Of each group the same share: runs are ranked within their group, and the first taken.
    _, group, sizes = np.unique(curves.group[order], return_inverse=True, return_counts=True)
    by_group = np.argsort(group, kind="stable")
    begins = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    rank = np.empty(len(order))
    rank[by_group] = (np.arange(len(order)) - begins[group[by_group]] + 0.5) / sizes[
        group[by_group]
    ]
    chosen = order[np.argsort(rank, kind="stable")[: sample.num_runs]]
    return curves.select(np.sort(chosen))
