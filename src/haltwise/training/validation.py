"""Validation, by which the best weights are kept, and calibration of the stop policies."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.tensors import widened
from haltwise.halting.objectives import LOSSES_OF_STEPS
from haltwise.models.card import Card
from haltwise.models.files import Model, halting_of
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.models.scales import Scales
from haltwise.processes.trajectory import Trajectory
from haltwise.rollout.record import record
from haltwise.stop_rules import (
    BASELINES,
    RETURNABLE,
    CostUnit,
    DecisionTime,
    FixedBudget,
    StopPolicy,
    StopRule,
    choose,
    costs,
    decisions,
    returnable,
    steps_charged,
    total_cost,
    tune_baselines,
)
from haltwise.tasks import TaskBatch
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import Source

__all__ = [
    "DIVERGED",
    "Calibrated",
    "Validated",
    "calibrate_policies",
    "measure_scales",
    "validate",
    "validation_prices",
]

DIVERGED = 100
"""Times the loss at the start, by which a problem has got worse."""

_OTHERS: Mapping[str, type[StopRule]] = {"fixed_tuned": FixedBudget, **BASELINES}


@final
@dataclass(frozen=True)
class Validated:
    """The result of a validation.

    Attributes:
        metrics: Mean and final excess loss, J and mean halting step at the default price; NaN
            where no halting is learned.
        score: Rank of the weights, in prices; lower is better.
        diverged: Whether most problems ended far above their start.
        num_left_out: Validation problems left out because they were not finite.
        halting_steps: Charged steps of the stops at the default price, shape [n].
    """

    metrics: dict[str, float]
    score: float
    diverged: bool
    num_left_out: int
    halting_steps: Tensor | None


def validate(
    settings: TrainingSettings,
    model: Model,
    source: Source,
    batches: Sequence[TaskBatch],
    *,
    judges_halting: bool,
) -> Validated:
    """Measure a model on the validation problems.

    They are the `batches` while the rule still learns, and recorded once it is final. Weights are
    ranked by their stops if `judges_halting`, else by what the rule minimises.
    """
    diverged = False
    if not batches:
        trajectory = source.take(model, settings.validation.num_problems, "validation")
        num_left_out = source.num_left_out[("validation",)]
    else:
        assert isinstance(model, OptimizerModel)
        recorded = [record(model.rule, batch, settings.horizon) for batch in batches]
        trajectory = Trajectory.join(recorded)
        worse = trajectory.excess[:, 1:].mean(1) - trajectory.excess[:, 0]
        bearable = worse <= DIVERGED * trajectory.excess[:, 0].abs()  # false for NaN
        diverged = bool(bearable.float().mean() < 0.5)
        trajectory = trajectory.select(trajectory.finite.nonzero().squeeze(1))
        num_left_out = sum(part.num_items for part in recorded) - trajectory.num_items
    metrics = {
        "mean_loss": trajectory.excess[:, 1:].mean().item(),
        "final_loss": trajectory.excess[:, -1].mean().item(),
        "price_adjusted_loss": math.nan,
        "mean_halting_step": math.nan,
    }
    objective = LOSSES_OF_STEPS[settings.joint.losses]
    score = objective(trajectory.excess, settings.price).mean().item()
    steps = None
    halting = halting_of(model)
    if halting.halts and judges_halting and trajectory.num_items > 0:
        judged = {
            price: _price_adjusted_loss(halting, trajectory, price, source.unit)
            for price in validation_prices(settings)
        }
        metrics["price_adjusted_loss"], steps = judged[settings.price]
        metrics["mean_halting_step"] = widened(steps).mean().item()
        score = sum(adjusted / price for price, (adjusted, _) in judged.items())
    return Validated(metrics, score, diverged, num_left_out, steps)


def _price_adjusted_loss(
    halting: HaltingModel, trajectory: Trajectory, price: float, unit: CostUnit
) -> tuple[float, Tensor]:
    """J and charged steps [n] of stops that are not calibrated yet."""
    judged = halting.attach(trajectory, price)
    rule, returns = halting.method.policy(unit)
    decided = decisions(rule, judged)
    j = total_cost(judged, decided, unit, returns, price=price)
    return j.mean().item(), steps_charged(decided, unit, judged.num_steps)


def validation_prices(settings: TrainingSettings | Card) -> list[float]:
    """The prices that validation and calibration average over."""
    spread = settings.price_range**0.75
    return sorted({settings.price / spread, settings.price, settings.price * spread})


@final
class Calibrated(NamedTuple):
    """The stop policy of each unit of cost, and what it was chosen among.

    Attributes:
        policies: Those of least mean J.
        scores: Mean J in prices on the calibration problems, of the best setting of each kind of
            stop rule by its name, the lowest first; `learned` is the halting method's own.
    """

    policies: Mapping[CostUnit, StopPolicy]
    scores: Mapping[CostUnit, Mapping[str, float]]

    def to_json(self) -> dict[str, Any]:
        """What was chosen and by what margin, in prices, for the card and the log."""
        document = {}
        for unit, scores in self.scores.items():
            (chosen, least), *others = scores.items()
            margin = min((score - least for _, score in others), default=None)
            document[unit.value] = {"chosen": chosen, "margin": margin, "mean_j": {**scores}}
        return document


def calibrate_policies(
    card: Card,
    halting: HaltingModel,
    recorded: Trajectory,
    held: Mapping[CostUnit, StopPolicy] = MappingProxyType({}),
) -> Calibrated:
    """Choose the stop policy of each unit of cost, on recorded calibration problems.

    Among the settings of the halting method, and those of the stop rules that need no halting model
    and that every evaluation compares with; all may return the same iterates. A policy serves every
    price: it is chosen by the mean of J in prices at the validation prices, and a setting in units
    of the loss is one setting at all of them.

    Args:
        card: Of the model; says its prices and whether it stops a recorded loop, which is left
            where it is.
        halting: The halting model.
        recorded: The problems.
        held: Policies that are candidates, too.
    """
    parts = []
    for price in validation_prices(card):
        judged = halting.attach(recorded, price)
        excess = judged.excess / price
        parts.append(replace(judged, excess=excess, signals=None, readouts=None, final=None))
    merged = Trajectory.join(parts)
    table = costs(merged.excess, 1.0)
    policies, scores = {}, {}
    for unit in CostUnit:
        own, returns = halting.method.returns(unit), RETURNABLE[unit][:1]
        if card.family is not None:
            returns = returnable(unit, holds="hold_logits" in merged.outputs)
        times = sorted({unit.decision_time, DecisionTime.AFTER_GRADIENT}, reverse=True)
        rules = [rule for time in times for rule in halting.method.candidates(merged, table, time)]
        offered = tuple(dict.fromkeys((own, *returns)))  # of equals the method's own is kept
        found = {"learned": choose(rules, merged, unit, price=1.0, returns=offered)}
        found |= tune_baselines(merged, unit, 1.0, _OTHERS, returns)
        if unit in held:
            rule, iterate = held[unit]
            found["held"] = choose([rule], merged, unit, price=1.0, returns=(iterate,))
        ranked = sorted(found.items(), key=lambda entry: entry[1].mean_j(1.0))
        policies[unit] = ranked[0][1].policy
        scores[unit] = {name: each.mean_j(1.0) for name, each in ranked}
    return Calibrated(policies, scores)


def measure_scales(
    card: Card, halting: HaltingModel, recorded: Trajectory, generator: torch.Generator
) -> Scales | None:
    """Measure the scales of recorded problems; None where they have no size of their own."""
    if card.rule is None or recorded.final is None or recorded.final.shape[1] == 0:
        return None
    num_items, dim = recorded.final.shape
    exponent = 2 * torch.rand(num_items, generator=generator).to(recorded.loss) - 1
    price = card.price * card.price_range**exponent
    judged = halting.attach(recorded, price)
    return Scales.of(recorded, decisions(card.policies[card.unit].rule, judged), price, dim)
