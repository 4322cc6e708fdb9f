"""When to stop a loop, learned from 60 of its runs, beside other learners on the same 60.

    python experiments/few_runs.py --data-dir DATA

Half of the groups of a domain of StopBench are held out; of the others 60 runs are drawn. Every
learner reads the same inputs and cross-fits on the same three folds of groups to choose its setting
and level. DATA holds TaskSet's archive (docs/howto/curves.md).
"""

import argparse
import json
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from haltwise.bench.cases import Case, stop_case
from haltwise.bench.domain import Sample
from haltwise.bench.domains import domains
from haltwise.curves.curves import Floats
from haltwise.curves.folds import deal
from haltwise.curves.levels import quantile_levels, stops_below
from haltwise.curves.rule import CurveRule, cross_fitted
from haltwise.curves.rules import curve_rules
from haltwise.curves.rules.learners import with_inputs
from haltwise.curves.stopping import learn_to_stop
from haltwise.evaluation.statistics import jackknife

NAMES = ("last-improvement-untuned", "last-improvement", "logistic", "boosted-trees", "value-trees")
DOMAINS = ("mixtures", "digits", "taskset")
NUM_DOMAIN, NUM_RUNS = 600, 60
OWN = "learn_to_stop"


def split(case: Case, draw: int) -> tuple[Case, Case]:
    """60 runs of half of the groups, and all runs of the other half."""
    generator = np.random.default_rng(1000 + draw)
    groups = generator.permutation(np.unique(case.shown.group))
    held_out = np.isin(case.shown.group, groups[: len(groups) // 2])
    some = generator.choice(np.flatnonzero(~held_out), NUM_RUNS, replace=False)
    return case.select(np.sort(some)), case.select(np.flatnonzero(held_out))


def tuned(name: str, own: Case, price: float, draw: int) -> tuple[CurveRule, float]:
    """A rule at the setting and level that cost least on folds that it has not seen."""
    best: tuple[float, CurveRule, float] | None = None
    fold = deal(own.shown.group, 3, draw)
    for rule in curve_rules()[name].candidates(price):
        scores = cross_fitted(rule, own.shown, fold)
        fixed = rule.fixed_level
        levels = quantile_levels(scores) if fixed is None else np.array([fixed])
        means = own.charges(stops_below(scores, levels), price).mean(0)
        if best is None or means.min() < best[0]:
            best = float(means.min()), rule, float(levels[means.argmin()])
    assert best is not None
    return best[1].fit(own.shown), best[2]


def gain(rule: CurveRule, level: float, test: Case, price: float) -> float:
    """Captured gain: 0 is the best equal budget in hindsight, 1 the oracle."""
    stops = stops_below(rule.scores(test.shown), np.array([level]))
    fixed, oracle = test.fixed(price).mean(0).min(), test.oracle(price).mean()
    return float((fixed - test.charges(stops, price).mean()) / (fixed - oracle))


def compare(case: Case, price: float, draw: int) -> tuple[dict[str, float], float]:
    """The gain of each rule, and the seconds of a processor that `learn_to_stop` took."""
    own, test = (
        Case(part.question, with_inputs(part.shown, price), 0, part.loss, part.prices)
        for part in split(case, draw)
    )
    found = {name: gain(*tuned(name, own, price, draw), test, price) for name in NAMES}
    begun = time.process_time()
    model = learn_to_stop(own.shown, price, returned=own.loss, seed=draw).model
    seconds = time.process_time() - begun
    found[OWN] = gain(model, model.fixed_level, test, price)
    return found, seconds


def interval(values: Floats) -> str:
    """A mean with its 95 % interval over draws."""
    (found,) = jackknife(lambda means: means, torch.from_numpy(values).unsqueeze(1))
    return f"{found.value:.3f} ± {found.high - found.value:.3f}"


def main() -> None:
    """Print a table of captured gains, and write all draws."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--price", type=float, default=0.1)
    parser.add_argument("--domain", action="append", choices=DOMAINS)
    parser.add_argument("--json", type=Path, default=Path("few-runs.json"))
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    record = {}
    with threadpool_limits(1):
        for name in given.domain or DOMAINS:
            domain = domains()[name]
            curves = domain.curves(Sample(NUM_DOMAIN, 0, given.data_dir))
            case = stop_case(curves, domain.scored)
            draws = [compare(case, given.price, draw) for draw in range(given.draws)]
            record[name] = {rule: [found[rule] for found, _ in draws] for rule in (*NAMES, OWN)} | {
                "seconds": [seconds for _, seconds in draws]
            }
            given.json.write_text(json.dumps(record, indent=1))
            for rule in (*NAMES, OWN):
                ahead = np.array(record[name][OWN]) - np.array(record[name][rule])
                print(
                    f"{name} {rule}: {interval(np.array(record[name][rule]))}, "
                    f"{OWN} ahead by {interval(ahead)}",
                    flush=True,
                )
            print(f"{name}: {np.mean(record[name]['seconds']):.1f} s to learn", flush=True)


if __name__ == "__main__":
    main()
