"""Validation, by which the best weights are kept, and calibration of the stop policies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import final

from torch import Tensor

from haltwise.models.files import Model
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.trajectory import Trajectory
from haltwise.rollout.record import record
from haltwise.stop_rules import (
    CostUnit,
    StopPolicy,
    choose,
    costs,
    decisions,
    steps_charged,
    total_cost,
)
from haltwise.tasks import TaskBatch
from haltwise.training.phases import halting_of
from haltwise.training.recordings import Recordings
from haltwise.training.settings import TrainingSettings

__all__ = ["Validated", "calibrate_policies", "validate", "validation_prices"]

_DIVERGED = 100  # times what a problem starts from that it has got worse by


@final
@dataclass(frozen=True)
class Validated:
    """What a validation measured.

    Attributes:
        metrics: Mean and final excess loss, J and mean halting step at the default price; NaN
            where no halting is learned.
        score: What weights are ranked by, lower is better; counted in prices.
        diverged: Whether most problems got worse than bearable.
        num_left_out: Validation problems that were not finite; None if counted elsewhere.
        halting_steps: Charged steps of the stops at the default price, shape [n].
    """

    metrics: dict[str, float]
    score: float
    diverged: bool
    num_left_out: int | None
    halting_steps: Tensor | None


def validate(
    settings: TrainingSettings,
    model: Model,
    recordings: Recordings,
    batch: TaskBatch | None,
    unit: CostUnit,
    *,
    judges_halting: bool,
) -> Validated:
    """Measure a model on the validation problems.

    Args:
        settings: Of the run.
        model: As trained so far.
        recordings: Where validation trajectories come from once the rule is final.
        batch: Validation problems, while the rule still learns.
        unit: What a stop is charged for.
        judges_halting: Whether weights are ranked by their stops, not by the mean loss.
    """
    diverged, num_left_out = False, None
    if batch is None:
        trajectory = recordings.take("validation", settings.validation.num_problems)
    else:
        assert isinstance(model, OptimizerModel)
        trajectory = record(model.rule, batch, settings.horizon)
        worse = trajectory.excess[:, 1:].mean(1) - trajectory.excess[:, 0]
        bearable = worse <= _DIVERGED * trajectory.excess[:, 0].abs()  # false for NaN
        diverged = bool(bearable.float().mean() < 0.5)
        trajectory = trajectory.select(trajectory.finite.nonzero().squeeze(1))
        num_left_out = settings.validation.num_problems - trajectory.num_items
    metrics = {
        "mean_loss": trajectory.excess[:, 1:].mean().item(),
        "final_loss": trajectory.excess[:, -1].mean().item(),
        "price_adjusted_loss": math.nan,
        "mean_halting_step": math.nan,
    }
    score = metrics["mean_loss"] / settings.price
    steps = None
    halting = halting_of(model)
    if halting.halts and judges_halting and trajectory.num_items > 0:
        adjusted, steps = _price_adjusted_loss(halting, trajectory, settings.price, unit)
        metrics |= {
            "price_adjusted_loss": adjusted,
            "mean_halting_step": steps.double().mean().item(),
        }
        score = sum(
            _price_adjusted_loss(halting, trajectory, price, unit)[0] / price
            for price in validation_prices(settings)
        )
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


def validation_prices(settings: TrainingSettings) -> list[float]:
    """The prices that validation and calibration average over."""
    spread = settings.price_range**0.75
    return sorted({settings.price / spread, settings.price, settings.price * spread})


def calibrate_policies(
    settings: TrainingSettings, model: Model, recordings: Recordings
) -> Mapping[CostUnit, StopPolicy]:
    """Choose what the method's rules leave open, on problems of their own, for each unit of cost."""
    halting = halting_of(model)
    recorded = recordings.take("calibration", settings.validation.num_calibration)
    parts = []
    for price in validation_prices(settings):
        judged = halting.attach(recorded, price)
        excess = judged.excess / price
        parts.append(replace(judged, excess=excess, signals=None, readouts=None, final=None))
    merged = Trajectory.join(parts)
    table = costs(merged.excess, 1.0)
    return {
        unit: choose(
            halting.method.candidates(merged, table, unit.decision_time),
            merged,
            unit,
            price=1.0,
            returns=(halting.method.returns(unit),),
        ).policy
        for unit in CostUnit
    }
