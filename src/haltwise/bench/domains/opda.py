"""OPDA: give up random configurations of an image and a language model."""

from dataclasses import dataclass, replace
from typing import ClassVar, final

import numpy as np

from haltwise.bench.domain import Domain, Question, Sample, recorded, sample_runs
from haltwise.curves.curves import Curves

__all__ = ["OpdaDomain"]


@final
@dataclass(frozen=True)
class OpdaDomain(Domain):
    """Recorded runs of OPDA (Lourie 2023); a group is a model.

    Models count in epochs or in steps, so that costs are shares of the budget of a run. The target
    is the median final accuracy of a model.
    """

    title: ClassVar[str] = "OPDA, models not seen"
    questions: ClassVar[tuple[Question, ...]] = (Question.GIVE_UP,)

    def curves(self, sample: Sample) -> Curves:
        curves = recorded(sample, "opda.npz").targets_among_peers()
        budget = np.repeat(curves.budget, curves.num_points)
        shares = replace(
            curves,
            cost=curves.cost / budget,
            budget=np.ones(curves.num_runs),
            cost_unit="budgets",
        )
        return sample_runs(shares, sample)


DOMAINS = {"opda": OpdaDomain()}
