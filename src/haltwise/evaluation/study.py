"""Stop rules, or heads, over many seeds and prices, on the trajectories of one rule."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.json import plain
from haltwise._core.random import stream
from haltwise._core.tensors import map_tensors
from haltwise.evaluation.policies import OPPONENTS, choose_policies
from haltwise.evaluation.statistics import gain, rank_correlation
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.recordings.runs import RecordedRuns
from haltwise.rollout.record import Recording, Trajectory, record
from haltwise.stop_rules import StopRule, Traces, decisions
from haltwise.stop_rules.accounts import CostUnit, costs, total_cost
from haltwise.tasks import TaskFamily
from haltwise.update_rules import UpdateRule

__all__ = ["AFTER_GRADIENT", "study_heads", "study_runs", "study_stopping"]

AFTER_GRADIENT = "the same, deciding after the gradient"

_Cell = tuple[float, CostUnit]


def study_stopping(
    optimizer: OptimizerModel,
    families: Sequence[TaskFamily],
    *,
    prices: Sequence[float],
    horizon: int,
    seeds: Sequence[int],
    num_problems: int = 2048,
    device: torch.device | str = "cpu",
    announce: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Captured gain of every stop rule, seed by seed; see `captured_gain` and `choose_policies`.

    A seed has its own test problems, stream (seed, "test"), and its own tuning problems, stream
    (seed, "tune"), on which opponents and the calibrated threshold are chosen.

    Args:
        optimizer: With a trained head; its rule may be hand-designed.
        families: What to draw problems from, as many from each.
        prices: c, in units of the loss.
        horizon: T, steps allowed.
        seeds: At least 2.
        num_problems: n per seed, for the test and again for tuning.
        device: Where problems are solved.
        announce: Called with a sentence at the start of each seed.

    Returns:
        One entry per price and account: for each rule the captured gain by seed, its mean and
        standard deviation over seeds, and means over seeds of J, of the standard deviation of the
        step it stops at and of that step's rank correlation with the oracle's; the best tuned
        opponent; the margin to it, J of the opponent less J of the calibrated rule, mean over
        seeds with its 95 % interval by Student's t; and the failures: seeds in which the
        calibrated rule is worse than the best fixed budget or than that opponent.

    Raises:
        InputError: A setting is impossible, or no problem of a seed stays finite.
    """
    figures: dict[_Cell, list[dict[str, Any]]] = {}
    left_out = 0
    for seed in _checked(seeds, prices, num_problems):
        announce(f"seed {seed}")
        recordings, lost = _record(optimizer.rule, families, seed, num_problems, horizon, device)
        left_out += lost
        for price in prices:
            test, tuning = (_traces(optimizer, recording, price) for recording in recordings)
            for account in CostUnit:
                found = _by_rule(optimizer, test, tuning, account, price, OPPONENTS)
                figures.setdefault((price, account), []).append(found)
    return [
        {
            "price": price,
            "account": account.value,
            "seeds": list(seeds),
            "num_problems": num_problems,
            "num_left_out": left_out,
            **_summary(by_seed, list(seeds)),
        }
        for (price, account), by_seed in figures.items()
    ]


def study_heads(
    heads: Mapping[str, OptimizerModel],
    families: Sequence[TaskFamily],
    *,
    prices: Sequence[float],
    horizon: int,
    seeds: Sequence[int],
    num_problems: int = 2048,
    device: torch.device | str = "cpu",
    announce: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Captured gain of several heads on the same trajectories, each calibrated on others.

    Args:
        heads: By name, all beside the same rule.
        families: See `study_stopping`, as all that follows.
        prices: c.
        horizon: T.
        seeds: At least 2.
        num_problems: n per seed.
        device: Where problems are solved.
        announce: Called with a sentence.

    Returns:
        One entry per price and account: for each head the captured gain by seed, its mean and
        standard deviation over seeds, and how much higher its J is than the first head's, mean
        over seeds with its 95 % interval by Student's t. Where gradients are counted, the first
        head is judged a second time if it is a hazard, deciding after the gradient is paid for
        (`AFTER_GRADIENT`).

    Raises:
        InputError: A setting is impossible, or the heads do not share a rule.
    """
    first, *others = heads.values()
    require(
        all(_same_rule(first, other) for other in others),
        "heads are compared on the trajectories of one rule, but these have several",
    )
    found: dict[_Cell, dict[str, list[tuple[float, float]]]] = {}
    for seed in _checked(seeds, prices, num_problems):
        announce(f"seed {seed}")
        recordings, _ = _record(first.rule, families, seed, num_problems, horizon, device)
        for price in prices:
            for name, head in heads.items():
                test, tuning = (_traces(head, recording, price) for recording in recordings)
                for account in CostUnit:
                    figures = _by_rule(head, test, tuning, account, price, {})
                    chosen = {name: _learned(figures)}
                    if head is first and "rule_after_gradient" in figures["captured_gain"]:
                        chosen[AFTER_GRADIENT] = "rule_after_gradient"
                    cell = found.setdefault((price, account), {})
                    for key, rule in chosen.items():
                        pair = figures["captured_gain"][rule], figures["j"][rule]
                        cell.setdefault(key, []).append(pair)
    results = []
    for (price, account), cell in found.items():
        base = next(iter(cell.values()))
        summary = {
            name: {
                "captured_gain": _spread([value for value, _ in pairs]),
                "difference": _student_interval(
                    [j - best for (_, j), (_, best) in zip(pairs, base, strict=True)]
                ),
            }
            for name, pairs in cell.items()
        }
        results.append(
            {
                "price": price,
                "account": account.value,
                "seeds": list(seeds),
                "num_problems": num_problems,
                "heads": plain(summary),
            }
        )
    return results


def study_runs(
    monitor: OptimizerModel, test: RecordedRuns, tuning: RecordedRuns, *, price: float
) -> dict[str, Any]:
    """The stops of a monitor on recorded runs, beside those of opponents tuned on other runs.

    Args:
        monitor: What `haltwise.training.train_monitor` wrote, loaded.
        test: Runs that nothing was learned or tuned on.
        tuning: On which opponents choose their settings, and whether to return the best state seen.
        price: c, in units of the score.

    Returns:
        For each rule its mean J = score + price * rounds, its captured gain and the standard
        deviation of its stops; for each opponent how much higher its J is than the monitor's, with
        the normal 95 % interval over runs. All go back to the best state if the monitor's loop
        does.

    Raises:
        InputError: The price is impossible, or the runs have another length.
    """
    require(price > 0, f"price must be above 0, got {price}")
    pair = [test, tuning]
    if monitor.card["config"].get("keeps_best"):
        pair = [runs.keeping_best() for runs in pair]
    lengths = [runs.recording.num_steps for runs in pair]
    require(
        lengths[0] == lengths[1],
        f"the runs to judge by have {lengths[0]} steps, those to tune on {lengths[1]}; record them "
        "alike",
    )
    traces, others = (_traces(monitor, runs.recording, price) for runs in pair)
    found = _by_rule(monitor, traces, others, CostUnit.UPDATES, price, OPPONENTS)
    by_run = found.pop("j_by_problem")
    found["difference"] = {}
    for name in OPPONENTS:
        difference = by_run[name] - by_run["rule"]
        half = 1.96 * difference.std().item() / len(difference) ** 0.5
        center = difference.mean().item()
        found["difference"][name] = {
            "value": center,
            "low": center - half,
            "high": center + half,
        }
    result: dict[str, Any] = plain({"price": price, "num_runs": traces.num_problems, **found})
    return result


def _same_rule(one: OptimizerModel, other: OptimizerModel) -> bool:
    weights, others = (
        {k: v for k, v in optimizer.state_dict().items() if k.startswith("rule.")}
        for optimizer in (one, other)
    )
    settings, rest = (
        (optimizer.config.rule, optimizer.config.rule_settings) for optimizer in (one, other)
    )
    return settings == rest and all(torch.equal(weights[name], others[name]) for name in weights)


def _checked(seeds: Sequence[int], prices: Sequence[float], num_problems: int) -> Sequence[int]:
    require(len(seeds) >= 2, f"a study needs at least 2 seeds, got {len(seeds)}")
    require(num_problems >= 32, f"num_problems must be at least 32, got {num_problems}")
    require(min(prices) > 0, f"every price must be above 0, got {min(prices)}")
    return seeds


def _record(
    rule: UpdateRule,
    families: Sequence[TaskFamily],
    seed: int,
    num_problems: int,
    horizon: int,
    device: torch.device | str,
) -> tuple[list[Recording], int]:
    """The seed's test and tuning problems, and how many were left out as not finite."""
    share = num_problems // len(families)
    if isinstance(rule, nn.Module):
        rule = copy.deepcopy(rule).to(device)
    recordings = []
    for name in ("test", "tune"):
        parts = [
            record(rule, family.sample(share, stream(seed, name), device=device), horizon)
            for family in families
        ]
        recording = map_tensors(Recording.join(parts), Tensor.cpu)
        finite = recording.finite.nonzero().squeeze(1)
        require(len(finite) > 0, f"no problem of seed {seed} stays finite")
        recordings.append(recording.select(finite))
    return recordings, 2 * share * len(families) - sum(part.num_problems for part in recordings)


@torch.no_grad()
def _traces(optimizer: OptimizerModel, recording: Recording, price: float) -> Traces:
    prices = torch.full_like(recording.loss[:, 0], price)
    said = optimizer.speak(recording.signals, recording.readouts, prices)
    return Trajectory(recording, prices, said).traces()


def _by_rule(
    optimizer: OptimizerModel,
    test: Traces,
    tuning: Traces,
    account: CostUnit,
    price: float,
    opponents: Mapping[str, type[StopRule]],
) -> dict[str, Any]:
    """Mean J and captured gain of every rule on one seed's test problems."""
    table = costs(test.excess, price).double()
    fixed, oracle, oracle_stop = table.mean(0).min(), table.min(1).values.mean(), table.argmin(1)
    result: dict[str, Any] = {
        "j": {"fixed": fixed.item(), "oracle": oracle.item()},
        "captured_gain": {},
        "stop_sd": {"oracle": oracle_stop.double().std().item()},
        "rank_correlation": {},
        "j_by_problem": {},
        "policies": {},
    }
    policies = choose_policies(optimizer, tuning, account, price, opponents)
    for name, policy in policies.items():
        decided = decisions(policy.rule, test)
        each = total_cost(test, decided, account, policy.recall, price=price).double()
        j = each.mean()
        result["j_by_problem"][name] = each
        result["policies"][name] = repr(policy)
        result["j"][name] = j.item()
        result["captured_gain"][name] = gain(fixed, j, oracle).item()
        result["stop_sd"][name] = decided.double().std().item()
        correlation = rank_correlation(decided, oracle_stop)
        result["rank_correlation"][name] = math.nan if correlation is None else correlation
    return result


def _learned(figures: dict[str, Any]) -> str:
    """The name of the head's own rule: calibrated like its opponents, where it can be."""
    return "rule_calibrated" if "rule_calibrated" in figures["captured_gain"] else "rule"


def _summary(by_seed: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    rules = {
        name: _spread([figures["captured_gain"][name] for figures in by_seed])
        for name in by_seed[0]["captured_gain"]
    }
    means = {
        key: {name: _spread([f[key][name] for f in by_seed])["mean"] for name in by_seed[0][key]}
        for key in ("j", "stop_sd", "rank_correlation")
    }
    learned = _learned(by_seed[0])
    best = min(OPPONENTS, key=lambda name: means["j"][name])
    margins = [figures["j"][best] - figures["j"][learned] for figures in by_seed]
    failures = [
        seed
        for seed, figures in zip(seeds, by_seed, strict=True)
        if not figures["j"][learned] < min(figures["j"]["fixed"], figures["j"][best])
    ]
    summary: dict[str, Any] = plain(
        {
            "captured_gain": rules,
            **means,
            "learned": learned,
            "best_opponent": best,
            "margin": _student_interval(margins),
            "failures": failures,
        }
    )
    return summary


def _spread(values: list[float]) -> dict[str, Any]:
    """Values by seed, their mean and standard deviation; NaN where one is undefined."""
    column = torch.tensor(values, dtype=torch.float64)
    return {"by_seed": values, "mean": column.mean().item(), "sd": column.std().item()}


def _student_interval(values: list[float]) -> dict[str, float]:
    """The mean of independent values with its 95 % interval by Student's t."""
    from scipy.stats import t

    center, sd = (_spread(values)[key] for key in ("mean", "sd"))
    half = float(t.ppf(0.975, len(values) - 1)) * sd / math.sqrt(len(values))
    return {"value": center, "low": center - half, "high": center + half}
