"""A small evaluation, its figures by the judge from curves drawn here."""

from dataclasses import replace
from typing import Any

import torch

from haltwise._core.random import stream
from haltwise.evaluation import Evaluation, EvaluationRecord, Stops, judge
from haltwise.evaluation.records import CurveRecord, ExecutionRecord
from haltwise.processes import Trajectory
from haltwise.stop_rules import CostUnit

PRICE, STEPS, NUM = 0.1, 6, 40


def make_evaluation(optimizer: str = "act", family: str = "regression-2d") -> Evaluation:
    """The learned rule stops where it is best, gradient norm a step later, logistic two before."""
    generator = stream(3, "evaluation")
    scale = torch.rand(NUM, 1, generator=generator) * 20 + 1
    excess = (scale * 0.4 ** torch.arange(STEPS + 1)).double()
    best = (excess + PRICE * torch.arange(STEPS + 1)).argmin(1)
    ends = {
        "learned": best,
        "gradient_norm": (best + 1).clamp_max(STEPS),
        "logistic": (best - 2).clamp_min(0),
    }
    stops = {
        name: Stops(excess.gather(1, end.unsqueeze(1)).squeeze(1), end)
        for name, end in ends.items()
    }
    trajectory = Trajectory(excess, excess)
    hazards = torch.rand(NUM, STEPS, generator=generator)
    stopping = {
        unit: judge(trajectory, stops, unit, price=PRICE, hazards=hazards) for unit in CostUnit
    }
    curve = CurveRecord(
        mean=excess.mean(0).tolist(),
        median=excess.median(0).values.tolist(),
        low=excess.quantile(0.05, 0).tolist(),
        high=excess.quantile(0.95, 0).tolist(),
        observed=excess.mean(0).tolist(),
        num_nonfinite=0,
        held_out=None,
    )
    adam = replace(curve, mean=[2 * value for value in curve.mean], learning_rate=0.1)
    arrays: dict[str, torch.Tensor] = {
        "excess": excess.float(),
        "loss": excess.float(),
        "posterior": torch.rand(NUM, STEPS + 1, generator=generator).softmax(1),
        "oracle": best,
    }
    for unit in CostUnit:
        for name, each in stops.items():
            arrays[f"cost.{unit.value}.{name}"] = each.cost
            arrays[f"j.{unit.value}.{name}"] = each.j(PRICE)
    record = EvaluationRecord(
        optimizer=optimizer,
        family=family,
        family_settings={"num_params": 2},
        price=PRICE,
        horizon=STEPS,
        seed=7,
        num_problems=NUM,
        environment={"haltwise": "0"},
        stopping=stopping,
        execution=ExecutionRecord(150, 200, 0.5, 1.0, {"halted": NUM, "nonfinite": 0}, None),
        curves={optimizer: curve, "adam": adam},
        others={},
        lbfgs=[9.0, 1.0, 1e-30],
        num_lbfgs=8,
    )
    return Evaluation(record, arrays)


def changed(evaluation: Evaluation, **changes: Any) -> Evaluation:
    """The same with other fields of its record."""
    return replace(evaluation, record=replace(evaluation.record, **changes))
