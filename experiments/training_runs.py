"""Learn `training-runs`, the curve model that comes with the package, or try it on a set unseen.

    python experiments/training_runs.py DATA OUT.safetensors
    python experiments/training_runs.py DATA --families
    python experiments/training_runs.py DATA --seed 1
    python experiments/training_runs.py DATA --without taskset --without nanogpt

DATA is a folder of the public archives (docs/howto/curves.md). With `--without` nothing is written:
a forecast is fitted to the other sets and tried on those left out, whose targets are the medians of
what runs of the same task reach.
"""

import argparse
import json
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np

from haltwise._core.errors import DataWarning
from haltwise._core.seen import marks_of
from haltwise.curves import CurveModel, Curves, read
from haltwise.curves.features import curve_features
from haltwise.curves.forecast import Forecast, Rows
from haltwise.curves.learning import Learned, learn, rows_of
from haltwise.evaluation.give_up import quarter_auc

SETS = {"taskset": 0.15, "nanogpt": 0.15, "lcdb11_error": 0.15}
"""Weight of a set beside AlgoPerf, whose targets are given and whose costs are hours. OPDA is
share-alike and never learned from."""
NEVER = ("opda",)
MOST_RUNS = 2000
COLUMNS = ("train_metric", "train_loss", "valid_loss", "logged_grad_norm_geomean")


def beside(data: Path, name: str) -> Curves:
    """Some runs of a set."""
    curves = read(data / f"{name}.npz").targets_among_peers()
    rng = np.random.default_rng(0)
    return curves.select(np.sort(rng.permutation(curves.num_runs)[:MOST_RUNS]))


def rows_beside(curves: Curves, weight: float) -> Rows:
    """Rows of runs, which weigh together as much as said, beside AlgoPerf's 5,000."""
    rows = rows_of(curves, 0)
    return rows._replace(weight=rows.weight * (weight * 5000 / rows.weight.sum()))


def learned(data: Path, *, families: bool, seed: int) -> Learned:
    """The model, with levels chosen on AlgoPerf's submissions, each unseen by its forecast.

    With `families` the groups are families of workloads instead, whatever their framework and
    variant.
    """
    curves = read(data / "algoperf.npz", columns=COLUMNS)
    if families:
        parts = [task.split("_") for task in curves.task]
        two = ("imagenet", "librispeech")  # whose second word is another model
        curves = curves.with_groups(["_".join(p[: 2 if p[0] in two else 1]) for p in parts])
    others = {name: beside(data, name) for name in SETS}
    found = learn(
        curves,
        beside=[rows_beside(others[name], weight) for name, weight in SETS.items()],
        seed=seed,
        progress=print,
        provenance={
            "sets": ["algoperf", *SETS],
            "licences": "AlgoPerf and TaskSet Apache-2.0, NanoGPT MIT, LCDB 1.1 CC BY 4.0",
            "command": "python experiments/training_runs.py DATA OUT.safetensors",
        },
    )
    seen = marks_of(curve.loss for each in (curves, *others.values()) for curve in each)
    card = replace(found.model.card, seen=seen)
    return found._replace(model=CurveModel(found.model.forecast, card))


def try_without(data: Path, unseen: str) -> None:
    """Forecast the runs of a set with trees that were fitted to the others."""
    names = [name for name in SETS if name != unseen]
    parts = [rows_beside(beside(data, name), SETS[name]) for name in names]
    parts.append(rows_of(read(data / "algoperf.npz", columns=COLUMNS), 0))
    forecast = Forecast.fit(Rows.join(parts), seed=0)
    curves = read(data / f"{unseen}.npz").targets_among_peers()
    chances = [forecast.chance(curve_features(curve)) for curve in curves]
    for group in np.unique(curves.group):
        mine = np.flatnonzero(curves.group == group)
        found = quarter_auc(curves.select(mine), [chances[run] for run in mine])
        if len(mine) >= 50:
            print(f"{unseen} {group}: AUC {found:.3f} at a quarter of the budget, {len(mine)} runs")
    print(f"{unseen}: AUC {quarter_auc(curves, chances):.3f}, learned on algoperf and {names}")


def main() -> None:
    """Learn and write, or try on a set unseen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--without", action="append", default=[], choices=[*SETS, *NEVER])
    parser.add_argument("--families", action="store_true", help="hold out families of workloads")
    parser.add_argument("--seed", type=int, default=0, help="of folds and trees; 0 is shipped")
    given = parser.parse_args()
    warnings.simplefilter("ignore", DataWarning)
    for name in given.without:
        try_without(given.data, name)
    if not given.without:
        found = learned(given.data, families=given.families, seed=given.seed)
        print(json.dumps(found.model.card.to_json()["levels"], indent=1))
        if given.out is not None:
            found.model.save(given.out)
            print(given.out, given.out.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
