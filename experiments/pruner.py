"""Simulate pruned random search on TaskSet: what is found in the time of 5, 10 and 20 trainings.

    python experiments/pruner.py DATA

DATA is a folder of the public archives (docs/howto/curves.md). Trials come in 30 random orders
and show one validation loss at a time; each goes on or is pruned, and none is resumed. What counts
is the normalised regret (best so far - best of all) / (median of all - best of all). Ours is the
pace rule of `haltwise.interfaces.optuna.HaltwisePruner` with chances learned on the other tasks by
boosted trees, the cheaper half of a `Forecast`; its `min_delta` is chosen on the other tasks.
Successive halving (ASHA) has the setting that is best in hindsight.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from haltwise.curves import Curves
from haltwise.curves.curves import Floats
from haltwise.curves.features import curve_features
from haltwise.curves.forecast import Rows
from haltwise.curves.learning import rows_of

TRAININGS = (5, 10, 20)
ORDERS = 30
RUNS = 200  # of a task that are learned from
RANKS = np.array([0, 2, 7, 20, 55, 150, 400, 999])  # final losses of a task that are targets
DELTAS = (0.0, 0.01, 0.02, 0.03, 0.05)  # nats
WORST = 2.0  # loss of a run that diverged

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]


class Trials(NamedTuple):
    """The trial at hand in each of n orders, shape [n] each."""

    run: Integers
    point: Integers
    best: Floats
    """Its best loss so far."""
    incumbent: Floats
    """The best loss of earlier trials; infinite for the first."""
    seen: Integers
    """Trials that have come to this point, with this one."""
    ahead: Integers
    """How many of them were better at it."""
    spent: int
    """Points that all trials have taken."""


Pruner = Callable[[Trials], Booleans]


def simulate(best: Floats, prune: Pruner) -> Floats:
    """The best loss after each budget in each order, shape [budgets, orders]."""
    num_runs, num_points = best.shape
    orders = np.stack(
        [np.random.default_rng(1000 + i).permutation(num_runs) for i in range(ORDERS)]
    )
    budgets = [num * num_points for num in TRAININGS]
    row, place = np.arange(ORDERS), np.zeros(ORDERS, np.int64)
    point, incumbent = place.copy(), np.full(ORDERS, np.inf)
    others = np.full((ORDERS, num_points, budgets[-1]), np.inf)
    seen = np.zeros((ORDERS, num_points), np.int64)
    found = []
    for spent in range(1, budgets[-1] + 1):
        run = orders[row, place]
        now = best[run, point]
        others[row, point, seen[row, point]] = now
        seen[row, point] += 1
        reached = np.minimum(incumbent, now)
        if spent in budgets:
            found.append(reached)
        most = int(seen.max())
        ahead = (others[row, point, :most] < now[:, None]).sum(1)
        trials = Trials(run, point, now, incumbent, seen[row, point], ahead, spent)
        ends = prune(trials) | (point == num_points - 1)
        incumbent = np.where(ends, reached, incumbent)
        place, point = place + ends, np.where(ends, 0, point + 1)
    return np.stack(found)


def never(trials: Trials) -> Booleans:
    """Prune nothing."""
    return np.zeros(len(trials.run), bool)


def successive_halving(first: int, factor: int, num_points: int) -> Pruner:
    """Let the best of `factor` go on, after `first` points, `first * factor` ..."""
    rungs = [first * factor**i - 1 for i in range(10) if first * factor**i < num_points]
    return lambda trials: (
        np.isin(trials.point, rungs)
        & (trials.seen >= factor)
        & (trials.ahead >= np.maximum(1, trials.seen // factor))
    )


def percentile(percent: int, warm_up: int) -> Pruner:
    """Prune what is worse than a percentile of five trials or more, as Optuna's pruners do."""

    def prune(trials: Trials) -> Booleans:
        place = np.minimum(trials.seen - 2, (trials.seen - 1) * percent // 100)
        return (trials.point >= warm_up) & (trials.seen > 5) & (trials.ahead > place)

    return prune


class Chances(NamedTuple):
    """The chance of each run at each point to meet some targets, and others between them."""

    logit: npt.NDArray[np.float32]
    """Shape [runs, targets, points]."""
    target: Floats

    def __call__(self, trials: Trials, target: Floats) -> Floats:
        # The log of a target's rank: chances change by as much from the 3rd to the 8th best run as
        # from the 20th to the 55th.
        ranks = np.log1p(RANKS)
        at = np.interp(target, self.target, ranks)
        low = np.clip(np.searchsorted(ranks, at, side="right") - 1, 0, len(ranks) - 2)
        share = (at - ranks[low]) / (ranks[low + 1] - ranks[low])
        logit = self.logit[trials.run, low, trials.point] * (1 - share)
        logit += self.logit[trials.run, low + 1, trials.point] * share
        chance: Floats = 1 / (1 + np.exp(-logit))
        return chance


def by_pace(chances: Chances, min_delta: float) -> Pruner:
    """Prune what promises too little for the study's pace or lags; see `HaltwisePruner`."""

    def prune(trials: Trials) -> Booleans:
        is_first = np.isinf(trials.incumbent)
        target = np.where(is_first, 0.0, trials.incumbent) - min_delta
        chance = chances(trials, target)
        left = (chances.logit.shape[-1] - 1 - trials.point) * (1 - chance / 2)
        judged = ~is_first & (trials.point >= 1) & (trials.best > target)
        lags = (trials.seen >= 4) & (trials.ahead >= trials.seen // 2)
        pruned: Booleans = judged & (lags | (chance * trials.spent < left))
        return pruned

    return prune


def curves_of(losses: Floats, target: Floats) -> Curves:
    """Curves of one task with a target each."""
    return Curves.from_matrix(losses, target=target, task=["0"] * len(losses))


def training_rows(losses: Floats, seed: int) -> Rows:
    """Rows of some runs of a task, with targets as a search has them: the best of 1 to 150 runs."""
    rng = np.random.default_rng(100 + seed)
    some = rng.permutation(len(losses))[:RUNS]
    num = np.exp(rng.uniform(0, np.log(150), RUNS)).astype(int)
    final = losses.min(1)
    target = [final[rng.choice(len(losses), k, replace=False)].min() for k in num]
    return rows_of(curves_of(losses[some], np.array(target)), seed)


def learned_chances(losses: Floats, rows: Rows) -> Chances:
    """Chances of the runs of a task by trees that were fitted to rows of others."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = ~np.isnan(rows.features).all(0)
    model = HistGradientBoostingClassifier(
        max_iter=100,
        learning_rate=0.08,
        max_leaf_nodes=12,
        min_samples_leaf=100,
        l2_regularization=5.0,
        max_bins=64,
        max_features=0.4,
        early_stopping=False,
        random_state=0,
    )
    weight = rows.weight / rows.weight.mean()
    model.fit(rows.features[:, known], rows.success, sample_weight=weight)
    targets = np.sort(losses.min(1))[RANKS]
    logits = []
    for target in targets:
        curves = curves_of(losses, np.full(len(losses), target))
        features = np.concatenate([curve_features(curve)[:, known] for curve in curves])
        logit = model.decision_function(features).reshape(losses.shape)
        logits.append(np.clip(logit, -9.2, 9.2).astype(np.float32))
    return Chances(np.stack(logits, 1), targets)


def regrets(losses: Floats, pruners: dict[str, Pruner]) -> dict[str, Floats]:
    """The mean normalised regret after each budget, by pruner."""
    best = np.minimum.accumulate(losses, 1)
    least, median = best[:, -1].min(), np.median(best[:, -1])
    return {
        name: ((simulate(best, prune) - least) / (median - least)).mean(1)
        for name, prune in pruners.items()
    }


def main() -> None:
    """Print the regrets after 5, 10 and 20 trainings, their means over tasks first."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    with np.load(parser.parse_args().data / "taskset.npz") as archive:
        valid = archive["valid"].astype(np.float64)
    losses = np.clip(np.where(np.isfinite(valid), valid, WORST), 1e-3, WORST)
    num_tasks, _, num_points = losses.shape
    hand: dict[str, Pruner] = {"none": never, "median": percentile(50, 0)}
    hand |= {"percentile 25": percentile(25, 3)}
    for first in (1, 2, 3, 4, 6, 9):
        for factor in (2, 3, 4):
            hand[f"ASHA {first} {factor}"] = successive_halving(first, factor, num_points)
    rows = [training_rows(losses[task], task) for task in range(num_tasks)]
    found = []
    for task in range(num_tasks):
        others = Rows.join([rows[other] for other in range(num_tasks) if other != task])
        chances = learned_chances(losses[task], others)
        ours = {f"ours {delta:g}": by_pace(chances, delta) for delta in DELTAS}
        found.append(regrets(losses[task], hand | ours))
        print(f"task {task} of {num_tasks} done", flush=True)
    regret = {name: np.array([each[name] for each in found]) for name in found[0]}
    ours_by_delta = np.array([regret[f"ours {delta:g}"][:, 1:].sum(1) for delta in DELTAS])
    chosen = (ours_by_delta.sum(1, keepdims=True) - ours_by_delta).argmin(0)
    regret["ours, chosen"] = np.array(
        [regret[f"ours {DELTAS[chosen[task]]:g}"][task] for task in range(num_tasks)]
    )
    for name, values in regret.items():
        print(f"{name:14s}", values.mean(0).round(3), "tasks at 10", values[:, 1].round(3), end=" ")
        print("at 20", values[:, 2].round(3))
    print("min_delta chosen", [DELTAS[i] for i in chosen])


if __name__ == "__main__":
    main()
