"""Learn `training-runs`, the curve model that comes with the package, or try it on a set unseen.

    python experiments/training_runs.py DATA OUT.safetensors
    python experiments/training_runs.py DATA --without taskset --without nanogpt

DATA is a folder of the public archives (docs/howto/curves.md). With `--without` nothing is written:
the model is learned on the other sets and judged on those left out, whose targets are the medians
of what runs of the same task reach.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np

from haltwise._core.errors import DataWarning
from haltwise.curves import Curves, read
from haltwise.curves.forecast import Rows
from haltwise.curves.learning import Learned, learn, rows_of
from haltwise.evaluation.give_up import judge_curves

SETS = {"taskset": 0.15, "nanogpt": 0.15, "lcdb11_error": 0.15}
"""Weight of a set beside AlgoPerf, whose targets are given and whose costs are hours. OPDA is
share-alike and never learned from."""
NEVER = ("opda",)
MOST_RUNS = 2000


def rows_beside(data: Path, name: str, weight: float) -> Rows:
    """Rows of some runs of a set, which weigh together as much as said, beside AlgoPerf's 5,000."""
    curves = read(data / f"{name}.npz").targets_among_peers()
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(curves.num_runs)[:MOST_RUNS])
    rows = rows_of(curves.select(some), 0)
    return rows._replace(weight=rows.weight * (weight * 5000 / rows.weight.sum()))


def learned(data: Path, without: tuple[str, ...]) -> Learned:
    """The model, with levels chosen on AlgoPerf's submissions, each unseen by its forecast."""
    beside = [rows_beside(data, name, w) for name, w in SETS.items() if name not in without]
    return learn(
        read(data / "algoperf.npz", columns=COLUMNS),
        beside=beside,
        progress=print,
        provenance={
            "sets": ["algoperf", *(name for name in SETS if name not in without)],
            "licences": "AlgoPerf and TaskSet Apache-2.0, NanoGPT MIT, LCDB 1.1 CC BY 4.0",
            "command": "python experiments/training_runs.py DATA OUT.safetensors",
        },
    )


COLUMNS = ("train_metric", "train_loss", "valid_loss", "logged_grad_norm_geomean")


def main() -> None:
    """Learn, and write or judge."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--without", action="append", default=[], choices=[*SETS, *NEVER])
    given = parser.parse_args()
    warnings.simplefilter("ignore", DataWarning)
    found = learned(given.data, tuple(given.without))
    print(json.dumps(found.model.card.to_json()["levels"], indent=1))
    if given.out is not None and not given.without:
        found.model.save(given.out)
        print(given.out, given.out.stat().st_size, "bytes")
    for name in given.without:
        curves: Curves = read(given.data / f"{name}.npz").targets_among_peers()
        record = judge_curves(found.model, curves)
        print(name, f"AUC at a quarter {record.quarter_auc:.3f}", record.to_json()["levels"])


if __name__ == "__main__":
    main()
