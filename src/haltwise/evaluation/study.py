"""Stop rules over many seeds and prices, on the trajectories of one optimizer."""

import math
from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import Any

import torch

from haltwise._errors import require
from haltwise._random import stream
from haltwise.evaluation._json import plain
from haltwise.evaluation.policies import OPPONENTS, choose_policies
from haltwise.evaluation.statistics import gain
from haltwise.halting.accounts import Account, costs, settle
from haltwise.halting.stopping import Traces, decisions
from haltwise.optimizer import LearnedOptimizer
from haltwise.tasks import TaskFamily
from haltwise.unroll import Recording, Trajectory, record

__all__ = ["study_stopping"]


def study_stopping(
    optimizer: LearnedOptimizer,
    family: TaskFamily,
    *,
    prices: Sequence[float],
    horizon: int,
    seeds: Sequence[int],
    num_problems: int = 2048,
    announce: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Captured gain of every stop rule, seed by seed; see `captured_gain` and `choose_policies`.

    A seed has its own test problems, stream (seed, "test"), and its own tuning problems, stream
    (seed, "tune"), on which opponents and the calibrated threshold are chosen.

    Args:
        optimizer: With a trained head; its rule may be hand-designed.
        family: What to draw problems from.
        prices: c, in units of the loss.
        horizon: T, steps allowed.
        seeds: At least 2.
        num_problems: n per seed, for the test and again for tuning.
        announce: Called with a sentence at the start of each seed.

    Returns:
        One entry per price and account: for each rule the captured gain by seed, its mean and
        standard deviation over seeds; the best tuned opponent; the margin to it, J of the opponent
        less J of the calibrated rule, mean over seeds with its 95 % interval by Student's t; and
        the failures: seeds in which the calibrated rule is worse than the best fixed budget or
        than that opponent.

    Raises:
        InputError: A setting is impossible, or no problem of a seed stays finite.
    """
    require(len(seeds) >= 2, f"a study needs at least 2 seeds, got {len(seeds)}")
    require(num_problems >= 100, f"num_problems must be at least 100, got {num_problems}")
    require(min(prices) > 0, f"every price must be above 0, got {min(prices)}")
    figures: dict[tuple[float, Account], list[dict[str, Any]]] = {
        (price, account): [] for price in prices for account in Account
    }
    left_out = 0
    for seed in seeds:
        announce(f"seed {seed}")
        recordings = []
        for name in ("test", "tune"):
            batch = family.sample(num_problems, stream(seed, name))
            recording = record(optimizer.rule, batch, horizon)
            finite = recording.finite.nonzero().squeeze(1)
            left_out += num_problems - len(finite)
            require(len(finite) > 0, f"no problem of seed {seed} stays finite")
            recordings.append(recording.select(finite))
        for price in prices:
            test, tuning = (_traces(optimizer, recording, price) for recording in recordings)
            for account in Account:
                figures[price, account].append(_by_rule(optimizer, test, tuning, account, price))
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


@torch.no_grad()
def _traces(optimizer: LearnedOptimizer, recording: Recording, price: float) -> Traces:
    prices = torch.full_like(recording.loss[:, 0], price)
    said = optimizer.speak(recording.signals, recording.readouts, prices)
    return Trajectory(recording, prices, said).traces()


def _by_rule(
    optimizer: LearnedOptimizer, test: Traces, tuning: Traces, account: Account, price: float
) -> dict[str, Any]:
    """Mean J and captured gain of every rule on one seed's test problems."""
    table = costs(test.excess, price).double()
    fixed, oracle = table.mean(0).min(), table.min(1).values.mean()
    result: dict[str, Any] = {
        "j": {"fixed": fixed.item(), "oracle": oracle.item()},
        "captured_gain": {},
        "stop_sd": {"oracle": table.argmin(1).double().std().item()},
    }
    for name, policy in choose_policies(optimizer, tuning, account, price).items():
        decided = decisions(policy.rule, test)
        j = settle(test, decided, account, policy.recall, price=price).double().mean()
        result["j"][name] = j.item()
        result["captured_gain"][name] = gain(fixed, j, oracle).item()
        result["stop_sd"][name] = decided.double().std().item()
    return result


def _summary(by_seed: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    names = list(by_seed[0]["captured_gain"])
    rules = {}
    for name in names:
        gains = [figures["captured_gain"][name] for figures in by_seed]
        rules[name] = {"by_seed": gains, "mean": fmean(gains), "sd": stdev(gains)}
    learned = "rule_calibrated" if "rule_calibrated" in names else "rule"
    best = max(OPPONENTS, key=lambda name: rules[name]["mean"])
    margins = [figures["j"][best] - figures["j"][learned] for figures in by_seed]
    failures = [
        seed
        for seed, figures in zip(seeds, by_seed, strict=True)
        if not figures["j"][learned] < min(figures["j"]["fixed"], figures["j"][best])
    ]
    summary: dict[str, Any] = plain(
        {
            "captured_gain": rules,
            "j": {
                name: fmean(figures["j"][name] for figures in by_seed) for name in by_seed[0]["j"]
            },
            "stop_sd": {
                name: fmean(figures["stop_sd"][name] for figures in by_seed)
                for name in by_seed[0]["stop_sd"]
            },
            "learned": learned,
            "best_opponent": best,
            "margin": _student_interval(margins),
            "failures": failures,
        }
    )
    return summary


def _student_interval(values: list[float]) -> dict[str, float]:
    """The mean of independent values with its 95 % interval by Student's t."""
    from scipy.stats import t

    center = fmean(values)
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / math.sqrt(len(values))
    return {"value": center, "low": center - half, "high": center + half}
