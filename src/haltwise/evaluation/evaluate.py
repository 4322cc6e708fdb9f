"""One held-out evaluation: every rule on the same problems, both units of cost."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import final

import torch
from torch import Tensor

from haltwise._core.errors import FitWarning, require, warn
from haltwise._core.random import stream
from haltwise._core.settings import price_per_unit
from haltwise._core.tensors import map_tensors, widened
from haltwise._core.version import __version__
from haltwise._core.workers import Workers
from haltwise.evaluation.baselines import choose_policies
from haltwise.evaluation.judge import Stops, judge, settings_frontier
from haltwise.evaluation.learners import learned_baselines
from haltwise.evaluation.optimizers import HAND_DESIGNED, lbfgs_curve, loss_curves, tune_rule
from haltwise.evaluation.records import (
    CurveRecord,
    EvaluationRecord,
    ExecutionRecord,
    HeldOutRecord,
    StoppingRecord,
)
from haltwise.halting.session import HaltingSession
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.optimization import OptimizationProcess
from haltwise.processes.trajectory import Trajectory
from haltwise.rollout.early_exit import Execution, Outcome, run_until_halted
from haltwise.rollout.record import record
from haltwise.stop_rules import (
    CostUnit,
    DecisionTime,
    FixedBudget,
    ReturnedIterate,
    StopPolicy,
    costs,
)
from haltwise.tasks.base import TaskBatch, TaskFamily
from haltwise.tasks.module import ModuleBatch

__all__ = ["Evaluation", "beyond_prices", "evaluate", "judge_model", "keep_finite"]

_NUM_LBFGS = 64  # problems: one at a time, it is slow


@final
@dataclass(frozen=True)
class Evaluation:
    """What an evaluation measured, and the numbers of each problem behind it."""

    record: EvaluationRecord
    arrays: dict[str, Tensor]
    """Of the n test problems that stayed finite: `excess` and `loss` [n, T+1]; `posterior`, the
    probability of halting at each step when updates are counted, [n, T+1]; `oracle`, the steps of
    least J [n]; and of every rule `cost.UNIT.RULE` and `j.UNIT.RULE` [n]."""


def evaluate(
    models: Mapping[str, OptimizerModel],
    family: TaskFamily,
    *,
    family_name: str,
    price: float,
    horizon: int,
    seed: int,
    num_problems: int = 4096,
    device: torch.device | str = "cpu",
    workers: Workers | None = None,
    learners: bool = True,
    announce: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Evaluate a self-stopping optimizer on held-out problems.

    Test problems come from the stream (seed, "test"), those on which baselines are tuned from
    (seed, "tune"); neither is used in meta-training, whose streams have other names.

    Args:
        models: By name. The first is evaluated; others that halt are judged beside it, and of those
            that do not the losses are recorded.
        family: What to draw problems from.
        family_name: For the record.
        price: c, in units of the loss.
        horizon: T, steps allowed.
        seed: Of the problems.
        num_problems: n, for the test and again for the tuning.
        device: Where problems are solved; the models are moved there.
        workers: They share the tuning of learning rates, which costs the most; all find the same.
        learners: Whether trees and a logistic regression on all signals are baselines, too; see
            `haltwise.evaluation.learners`. They take about a minute at 4,096 problems.
        announce: Called with a sentence at the start of each part.

    Raises:
        InputError: A setting is impossible, the first model does not halt, or no problem stays
            finite.

    Warns:
        FitWarning: A model was not trained at such a price.
    """
    price = price_per_unit(price)
    require(horizon >= 1, f"the horizon must be at least 1 step, got {horizon}")
    require(num_problems >= 32, f"num_problems must be at least 32, got {num_problems}")
    taken = sorted(models.keys() & HAND_DESIGNED)
    require(not taken, f"{', '.join(taken)} is the name of a hand-designed optimizer; rename yours")
    name = next(iter(models))
    model = models[name]
    require(model.halting.halts, f"{name} was trained without halting; there are no stops to judge")
    announce(f"drawing {num_problems} test and {num_problems} tuning problems")
    test, tuning = (
        family.sample(num_problems, stream(seed, part), device=device) for part in ("test", "tune")
    )

    stopping: dict[str, dict[CostUnit, StoppingRecord]] = {}
    curves: dict[str, CurveRecord] = {}
    arrays: dict[str, Tensor] = {}
    for key, each in models.items():
        announce(f"unrolling {key}")
        each.to(device)
        if not each.halting.halts:
            curves[key] = _curve(loss_curves(each.rule, test, horizon), test)
            continue
        warn_of_price(each.halting, price, key)
        recorded, tune_on = (record(each.rule, batch, horizon) for batch in (test, tuning))
        announce(f"judging the stops of {key}")
        stopping[key], found = _judge_both(
            each.halting,
            recorded,
            tune_on,
            price,
            learners=learners,
            has_reference=test.has_reference,
        )
        curves[key] = _curve(recorded, test)
        arrays = arrays or found
    announce("solving for real, halted problems leaving the batch")
    execution = _execute(model, test, price, horizon, stopping[name][CostUnit.GRADIENTS])

    announce("tuning the hand-designed optimizers")
    for key, make in HAND_DESIGNED.items():
        tuned = tune_rule(make, tuning, horizon, workers)
        curve = _curve(loss_curves(tuned.rule, test, horizon), test)
        curves[key] = replace(curve, learning_rate=tuned.learning_rate, at_edge=tuned.at_edge)
    lbfgs, num_lbfgs = [], 0
    if not test.stochastic:
        announce("running L-BFGS")
        few = family.sample(
            min(_NUM_LBFGS, num_problems), stream(seed, "test"), dtype=torch.float64
        )
        lowest = lbfgs_curve(few, horizon)
        lowest = lowest[lowest.isfinite().all(1)]  # where a problem begins at NaN, none helps
        num_lbfgs = len(lowest)
        lbfgs = lowest.mean(0).tolist() if num_lbfgs else []
    return Evaluation(
        EvaluationRecord(
            optimizer=name,
            family=family_name,
            family_settings=asdict(family),
            price=price,
            horizon=horizon,
            seed=seed,
            num_problems=num_problems,
            environment={
                "haltwise": __version__,
                "torch": torch.__version__,
                "threads": str(torch.get_num_threads()),
                "device": str(device),
            },
            stopping=stopping.pop(name),
            execution=execution,
            curves=curves,
            others=stopping,
            lbfgs=lbfgs,
            num_lbfgs=num_lbfgs,
        ),
        arrays,
    )


def judge_model(
    model: HaltingModel,
    test: Trajectory,
    tuning: Trajectory,
    unit: CostUnit,
    price: float,
    baselines: dict[str, Stops],
    *,
    has_reference: bool = True,
) -> tuple[StoppingRecord, dict[str, Stops]]:
    """Judge the stops of a halting model beside those of rules tuned on other items.

    Both trajectories have the model's outputs; the tuning items stayed finite. `baselines` have
    stops on the test items that stayed finite, and so have all rules in what is returned beside the
    record.
    """
    kept, time = keep_finite(test), unit.decision_time
    policies = choose_policies(model, tuning, unit, price)
    stops = {name: Stops.by(policy, kept, unit) for name, policy in policies.items()} | baselines
    settings = model.method.candidates(kept, costs(kept.excess, price), time)
    judged = judge(
        kept,
        stops,
        unit,
        price=price,
        hazards=model.method.hazards(kept.outputs, time),
        settings=settings_frontier(settings, policies["learned"].returns, kept, unit),
        num_left_out=test.num_items - kept.num_items,
        has_reference=has_reference,
    )
    return judged, stops


def warn_of_price(model: HaltingModel, price: float, name: str) -> None:
    """Say so where a model is judged at a price that it was not trained at."""
    if beyond := beyond_prices(model, price):
        warn(
            f"{name} {beyond}, and is judged by that: train one for such a price",
            FitWarning,
        )


def beyond_prices(model: HaltingModel, price: float) -> str:
    """Why a model does not stop as it should at a price, in words; empty where it knows it."""
    asked, card = torch.tensor(price, dtype=torch.float64, device="cpu"), model.card
    if not model.halts or abs(model.trained_price(asked).item() - price) <= 1e-4 * price:
        return ""
    low, high = card.price / card.price_range, card.price * card.price_range
    known = f"prices from {low:.3g} to {high:.3g}" if low < high else f"a price of {low:.3g}"
    return f"was trained at {known}; at {price:.3g} it stops as at the nearest that it knows"


def keep_finite(trajectory: Trajectory) -> Trajectory:
    """The items that stayed finite, on the CPU: few numbers, many small operations."""
    finite = trajectory.select(trajectory.finite.nonzero().squeeze(1))
    return map_tensors(replace(finite, readouts=None, final=None), Tensor.cpu)


def _judge_both(
    model: HaltingModel,
    test: Trajectory,
    tuning: Trajectory,
    price: float,
    *,
    learners: bool,
    has_reference: bool,
) -> tuple[dict[CostUnit, StoppingRecord], dict[str, Tensor]]:
    """The records in both units of cost, and the arrays behind them."""
    test, tuning = model.attach(test, price), keep_finite(model.attach(tuning, price))
    require(
        tuning.num_items > 0 and bool(test.finite.any()),
        "no problem stays finite, so there are no stops to judge; look at it by haltwise diagnose",
    )
    records, kept = {}, keep_finite(test)
    posterior = model.method.posterior(kept.outputs, DecisionTime.AFTER_GRADIENT)
    arrays = {
        "excess": kept.excess,
        "loss": kept.loss,
        "posterior": posterior.log_prob().exp(),
        "oracle": costs(widened(kept.excess), price).argmin(1),
    }
    baselines = learned_baselines(tuning, kept, CostUnit, price) if learners else {}
    for unit in CostUnit:
        others = baselines.get(unit, {})
        records[unit], stops = judge_model(
            model, test, tuning, unit, price, others, has_reference=has_reference
        )
        for name, each in stops.items():
            arrays[f"cost.{unit.value}.{name}"] = each.cost
            arrays[f"j.{unit.value}.{name}"] = each.j(price)
    return records, arrays


def _execute(
    model: OptimizerModel, test: TaskBatch, price: float, horizon: int, stopping: StoppingRecord
) -> ExecutionRecord:
    """Gradients really evaluated and seconds, beside those of the best fixed budget."""
    prices = torch.full_like(test.start[:, 0], price)

    def run(policy: StopPolicy, max_steps: int) -> tuple[Execution, float]:
        started = time.perf_counter()
        session = HaltingSession(policy, prices, model.halting.prepare())
        done = run_until_halted(OptimizationProcess(model.rule, test), session, max_steps)
        return done, time.perf_counter() - started

    budget = stopping.fixed_budget
    done, seconds = run(model.policy(), horizon)
    never = StopPolicy(FixedBudget(horizon), ReturnedIterate.NEXT)
    seconds_fixed = run(never, budget)[1] if budget else 0.0
    counts = torch.bincount(done.outcome, minlength=len(Outcome)).tolist()
    return ExecutionRecord(
        num_gradients=int(done.num_gradients.sum()),
        num_gradients_fixed=test.num_problems * budget,
        seconds=seconds,
        seconds_fixed=seconds_fixed,
        outcomes={kind.name.lower(): counts[kind] for kind in Outcome if kind is not Outcome.TAKEN},
        held_out=_held_out(test, done.result),
    )


def _held_out(batch: TaskBatch, params: Tensor) -> HeldOutRecord | None:
    """Networks on the test examples, if there are any."""
    if not isinstance(batch, ModuleBatch) or batch.task.test is None:
        return None
    loss, accuracy = (widened(value) for value in batch.held_out(params))
    return HeldOutRecord(
        loss.mean().item(), loss.std().item(), accuracy.mean().item(), accuracy.std().item()
    )


def _curve(curve: Trajectory, test: TaskBatch) -> CurveRecord:
    excess, observed = curve.excess.cpu().double(), widened(curve.loss).cpu()
    assert curve.final is not None
    num_nonfinite = int((~excess.isfinite().all(1)).sum())
    begun = excess[:, 0].isfinite()  # where a problem begins at NaN, none helps
    excess, observed = excess[begun], observed[begun]
    return CurveRecord(
        mean=excess.mean(0).tolist(),
        median=excess.median(0).values.tolist(),
        low=excess.quantile(0.05, 0).tolist(),
        high=excess.quantile(0.95, 0).tolist(),
        observed=observed.mean(0).tolist(),
        num_nonfinite=num_nonfinite,
        held_out=_held_out(test, curve.final),
    )
