"""One held-out evaluation: every rule on the same problems, both accounts, everything counted."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.json import plain
from haltwise._core.random import stream
from haltwise._core.tensors import map_tensors
from haltwise._core.version import __version__
from haltwise._core.workers import Workers
from haltwise.evaluation.baselines import (
    HAND_DESIGNED,
    Curves,
    lbfgs_curve,
    loss_curves,
    tune_rule,
)
from haltwise.evaluation.policies import choose_policies, speaks_hazard
from haltwise.evaluation.statistics import (
    captured_gain,
    lower_hull,
    permuted_cost,
    randomized_budget,
)
from haltwise.evaluation.stopping import MIN_PROBLEMS, stopping_report
from haltwise.halting.halter import AFTER, BEFORE
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.early_exit import Outcome, execute
from haltwise.rollout.record import Recording, Trajectory, unroll
from haltwise.stop_rules import (
    FixedBudget,
    HazardThreshold,
    StopRule,
    Traces,
    decisions,
)
from haltwise.stop_rules.accounts import (
    CostUnit,
    ReturnedIterate,
    StopPolicy,
    costs,
    returned_steps,
    steps_charged,
    total_cost,
)
from haltwise.tasks import TaskBatch, TaskFamily
from haltwise.tasks.module import ModuleBatch

__all__ = ["Contender", "Evaluation", "evaluate"]


@final
@dataclass(frozen=True)
class Contender:
    """A learned optimizer under a name, for the tables."""

    name: str
    optimizer: OptimizerModel


@final
@dataclass
class Evaluation:
    """What an evaluation measured.

    Attributes:
        summary: JSON: settings, tables, curves.
        arrays: Per-problem data behind the summary.
    """

    summary: dict[str, Any]
    arrays: dict[str, Tensor] = field(default_factory=dict)


def evaluate(
    contender: Contender,
    family: TaskFamily,
    *,
    family_name: str,
    price: float,
    horizon: int,
    seed: int,
    num_problems: int = 4096,
    baseline: Contender | None = None,
    others: tuple[Contender, ...] = (),
    device: torch.device | str = "cpu",
    workers: Workers | None = None,
    announce: Callable[[str], None] | None = None,
) -> Evaluation:
    """Evaluate a self-stopping optimizer on held-out problems.

    Test problems come from the stream (seed, "test"), those on which opponents are tuned from
    (seed, "tune"); neither is used in meta-training, whose streams have other names.

    Args:
        contender: The optimizer, with a halting head.
        family: What to draw problems from.
        family_name: For the record.
        price: c, in units of the loss.
        horizon: T, steps allowed.
        seed: Of the problems.
        num_problems: n, for the test and again for the tuning.
        baseline: The LSTM optimizer without halting, for the thesis' first objective.
        others: Further self-stopping optimizers, reported beside the contender.
        device: Where problems are solved; the optimizers are moved there.
        workers: The processes that share the tuning of learning rates, which costs the most; all
            find the same.
        announce: Called with a sentence at the start of each part.

    Raises:
        InputError: A setting is impossible.
    """
    require(price > 0, f"price must be above 0, got {price}")
    require(horizon >= 1, f"the horizon must be at least 1 step, got {horizon}")
    names = [contender.name, *(other.name for other in (baseline, *others) if other)]
    require(
        len(set(names) | set(HAND_DESIGNED)) == len(names) + len(HAND_DESIGNED),
        f"every optimizer needs a name of its own, got {', '.join(names)}",
    )
    require(num_problems >= 32, f"num_problems must be at least 32, got {num_problems}")
    announce = announce or (lambda _: None)
    announce(f"drawing {num_problems} test and {num_problems} tuning problems")
    test = family.sample(num_problems, stream(seed, "test"), device=device)
    tuning = family.sample(num_problems, stream(seed, "tune"), device=device)
    prices = torch.full((num_problems,), price, device=device)
    for each in (contender, baseline, *others):
        if each is not None:
            each.optimizer.to(device)

    announce("unrolling the learned optimizers")
    trajectory = unroll(contender.optimizer, test, horizon, prices)
    tuning_trajectory = unroll(contender.optimizer, tuning, horizon, prices)
    announce("tuning the stop rules")
    stopping = _stopping(contender, trajectory, tuning_trajectory, price, seed)
    summary: dict[str, Any] = {
        "family": family_name,
        "family_settings": asdict(family),
        "optimizer": contender.name,
        "price": price,
        "seed": seed,
        "num_problems": num_problems,
        "horizon": horizon,
        "versions": {"haltwise": __version__, "torch": torch.__version__},
        "num_threads": torch.get_num_threads(),
        "device": str(device),
        **stopping.summary,
    }
    announce("solving for real, halted problems leaving the batch")
    summary["executed"] = _executed(contender.optimizer, test, prices, horizon)

    announce("tuning the hand-designed optimizers")
    curves = {contender.name: _curves(trajectory.recording)}
    summary["tuned_optimizers"] = {}
    for name, make in HAND_DESIGNED.items():
        tuned = tune_rule(make, tuning, horizon, workers)
        curves[name] = loss_curves(tuned.rule, test, horizon)
        summary["tuned_optimizers"][name] = {
            "learning_rate": tuned.learning_rate,
            "at_edge_of_grid": tuned.at_edge,
        }
    if baseline is not None:
        curves[baseline.name] = loss_curves(baseline.optimizer.rule, test, horizon)
        summary["first_objective"] = _first_objective(
            contender.name, summary, baseline.name, curves[baseline.name].excess
        )
    summary["comparisons"] = {}
    for other in others:
        other_test = unroll(other.optimizer, test, horizon, prices)
        other_tuning = unroll(other.optimizer, tuning, horizon, prices)
        curves[other.name] = _curves(other_test.recording)
        summary["comparisons"][other.name] = _stopping(
            other, other_test, other_tuning, price, seed
        ).summary
    summary["curves"] = {name: _curve_figures(curve) for name, curve in curves.items()}
    if isinstance(test, ModuleBatch) and test.task.test is not None:
        announce("classifying the test examples")
        summary["held_out"] = {
            name: _held_out(test, curve.params) for name, curve in curves.items()
        }
    if not test.stochastic:
        announce("running L-BFGS")
        few = family.sample(min(64, num_problems), stream(seed, "test"), dtype=torch.float64)
        summary["lbfgs"] = {
            "num_problems": few.num_problems,
            "mean_by_gradient_evaluations": lbfgs_curve(few, horizon).mean(0),
        }
    return Evaluation(plain(summary), stopping.arrays)


def _curves(recording: Recording) -> Curves:
    return Curves(recording.excess, recording.loss, recording.params)


def _curve_figures(curves: Curves) -> dict[str, Any]:
    excess, observed = curves.excess.double(), curves.observed.double()
    return {
        "mean": excess.mean(0),
        "median": excess.median(0).values,
        "low": excess.quantile(0.05, 0),
        "high": excess.quantile(0.95, 0),
        "sum": excess[:, 1:].mean(0).sum().item(),
        "observed": observed.mean(0),
        "num_nonfinite": int((~excess.isfinite().all(1)).sum()),
    }


def _held_out(batch: ModuleBatch, params: Tensor) -> dict[str, float]:
    """Loss and accuracy on the test examples, mean and standard deviation over problems."""
    loss, accuracy = (value.double() for value in batch.held_out(params))
    return {
        "loss": loss.mean().item(),
        "loss_sd": loss.std().item(),
        "accuracy": accuracy.mean().item(),
        "accuracy_sd": accuracy.std().item(),
    }


def _stopping(
    contender: Contender, trajectory: Trajectory, tuning: Trajectory, price: float, seed: int
) -> Evaluation:
    """Every stop rule on one optimizer's trajectories."""
    test = _finite_traces(trajectory)
    tune_on = _finite_traces(tuning)
    table = costs(test.excess, price)
    best = table.min(1)
    fixed = table.mean(0).min(0)
    summary: dict[str, Any] = {
        "num_nonfinite": trajectory.num_problems - test.num_problems,
        "fixed_budget": int(fixed.indices),
        **{name: {} for name in _BY_ACCOUNT},
    }
    arrays = {
        **{item.name: getattr(test, item.name) for item in fields(test)},
        "oracle": best.indices,
    }
    for account in CostUnit:
        key = account.value
        policies = choose_policies(contender.optimizer, tune_on, account, price)
        decided = {name: decisions(policy.rule, test) for name, policy in policies.items()}
        j = {
            name: total_cost(test, decided[name], account, policy.recall, price=price)
            for name, policy in policies.items()
        }
        gains = {
            name: asdict(captured_gain(table, cost, stream(seed, "bootstrap", key)))
            for name, cost in j.items()
        }
        summary["captured_gain"][key] = gains["rule"]
        summary["captured_gain_by_rule"][key] = gains
        summary["j"][key] = {
            **{name: cost.double().mean().item() for name, cost in j.items()},
            "oracle": best.values.double().mean().item(),
            "fixed": fixed.values.item(),
        }
        stops = {
            name: steps_charged(step, account, test.num_steps) for name, step in decided.items()
        }
        summary["permuted_j"][key] = permuted_cost(table, stops["rule"])
        if test.num_problems >= MIN_PROBLEMS:
            output = AFTER if account is CostUnit.UPDATES else BEFORE
            summary["stopping_report"][key] = stopping_report(
                test.excess,
                decided["rule"],
                price=price,
                account=account,
                returned=returned_steps(decided["rule"], test, policies["rule"].recall),
                hazards=test.signal("hazard_logits")[..., output].double().sigmoid()
                if speaks_hazard(contender.optimizer)
                else None,
                opponents=False,  # tuned above, on separate problems and with more to go by
                generator=stream(seed, "stopping report", key),
            )
        summary["steps"][key] = {
            name: _step_figures(
                test, stops[name], returned_steps(decided[name], test, policy.recall)
            )
            for name, policy in policies.items()
        } | {"oracle": _step_figures(test, best.indices, best.indices)}
        summary["stop_rules"][key] = {
            name: {**_settings(policy.rule), "recall": policy.recall.value}
            for name, policy in policies.items()
        }
        arrays |= {f"end.{key}.{name}": stop for name, stop in stops.items()}
        arrays |= {f"j.{key}.{name}": cost for name, cost in j.items()}
    summary["frontier"] = _frontier(contender.optimizer, test)
    return Evaluation(summary, arrays)


_BY_ACCOUNT = (
    "j", "captured_gain", "captured_gain_by_rule", "steps", "permuted_j", "stop_rules",
    "stopping_report",
)  # fmt: skip


def _finite_traces(trajectory: Trajectory) -> Traces:
    """Of the problems that stayed finite, on the CPU: few numbers, many small operations."""
    finite = trajectory.select(trajectory.finite.nonzero().squeeze(1))
    return map_tensors(finite.traces(), Tensor.cpu)


def _settings(rule: StopRule) -> dict[str, Any]:
    """What a rule is, in JSON."""
    return {"kind": type(rule).__name__, **vars(rule)}


def _step_figures(test: Traces, cost: Tensor, end: Tensor) -> dict[str, float]:
    """Of stops that paid `cost` [n] and ended at theta_end [n]."""
    initial = test.excess[:, :1]
    share = test.excess.gather(1, end.unsqueeze(1)) / initial
    return {
        "mean": cost.double().mean().item(),
        "sd": cost.double().std().item(),
        "excess_at_stop": _mean_at(test.excess, end),
        "share_at_horizon": (cost == test.num_steps).double().mean().item(),
        "share_within_5_percent_of_initial": (share <= 0.05).double().mean().item(),
    }


def _mean_at(table: Tensor, end: Tensor) -> float:
    return table.gather(1, end.unsqueeze(1)).double().mean().item()


def _frontier(optimizer: OptimizerModel, test: Traces) -> dict[str, Any]:
    """Mean loss against steps: the hull of fixed budgets; the rule as its threshold varies."""
    mean_loss = test.excess.double().mean(0)
    own = optimizer.policy(CostUnit.UPDATES).rule
    points = []
    for shift in (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        if isinstance(own, HazardThreshold):
            end = decisions(replace(own, threshold=own.threshold + shift), test)
        else:
            shifted = replace(
                test,
                increments=test.signal("increments") + shift,
                hazard_logits=test.signal("hazard_logits") + shift,
            )
            end = decisions(own, shifted)
        steps = end.double().mean().item()
        points.append(
            {
                "shift": shift,
                "mean_steps": steps,
                "mean_excess": _mean_at(test.excess, end),
                "fixed_at_same_steps": randomized_budget(mean_loss, steps),
            }
        )
    return {"hull": lower_hull(mean_loss), "rule": points}


def _executed(
    optimizer: OptimizerModel, test: TaskBatch, prices: Tensor, horizon: int
) -> dict[str, Any]:
    """Gradients really evaluated when halted problems leave the batch, and the time it took."""
    started = time.perf_counter()
    result = execute(optimizer, test, optimizer.policy(), prices, horizon)
    seconds = time.perf_counter() - started
    started = time.perf_counter()
    execute(
        optimizer, test, StopPolicy(FixedBudget(horizon), ReturnedIterate.NEXT), prices, horizon
    )
    full_seconds = time.perf_counter() - started
    excess = test.score(result.params, 0).excess
    held_out = (
        {"held_out": _held_out(test, result.params)}
        if isinstance(test, ModuleBatch) and test.task.test is not None
        else {}
    )
    counts = torch.bincount(result.outcome, minlength=len(Outcome)).tolist()
    return {
        "gradient_evaluations": int(result.num_gradients.sum()),
        "gradient_evaluations_of_the_full_horizon": test.num_problems * horizon,
        "mean_updates": result.num_updates.double().mean().item(),
        "mean_excess": excess[excess.isfinite()].double().mean().item(),
        "outcomes": {outcome.name.lower(): counts[outcome] for outcome in Outcome},
        **held_out,
        "seconds": seconds,
        "seconds_of_the_full_horizon": full_seconds,
    }


def _first_objective(
    name: str, summary: dict[str, Any], baseline_name: str, baseline: Tensor
) -> dict[str, Any]:
    """The thesis' first objective: less computation than the LSTM optimizer for equal loss."""
    mean = baseline.double().mean(0)
    result: dict[str, Any] = {"act": name, "lstm": baseline_name}
    for account in CostUnit:
        steps = summary["steps"][account.value]["rule"]
        cost, loss = steps["mean"], steps["excess_at_stop"]
        low = int(cost)
        high = min(low + 1, len(mean) - 1)
        at_same_cost = ((1 - (cost - low)) * mean[low] + (cost - low) * mean[high]).item()
        reached = (mean <= loss).nonzero()
        result[account.value] = {
            "act_cost": cost,
            "act_excess": loss,
            "lstm_excess_at_same_cost": at_same_cost,
            "lstm_cost_for_equal_excess": int(reached[0]) if len(reached) else None,
        }
    return result
