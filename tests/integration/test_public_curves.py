"""The five public sets, where HALTWISE_DATA_DIR names a folder that holds them."""

import os
from pathlib import Path

import numpy as np
import pytest

from haltwise._core.errors import DataWarning
from haltwise.curves import read
from haltwise.datasets.store import DIRECTORY_VARIABLE

FOLDER = Path(os.environ.get(DIRECTORY_VARIABLE, "none")) / "curves"
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no curves in {DIRECTORY_VARIABLE}")


def test_algoperf() -> None:
    found = read("algoperf.npz")
    assert found.num_runs == 3496
    assert len(np.unique(found.group)) == 12
    assert found.cost_unit == "hours"
    wasted = found.spent[~found.succeeded].sum() / found.spent.sum()
    assert 0.67 < wasted < 0.70
    assert len(np.unique(read("algoperf.npz", group="family").group)) == 18
    # By the definition in the source: the metric meets the target in the direction of its sign.
    with np.load(FOLDER / "algoperf.npz", allow_pickle=False) as raw:
        value, offset, sign = raw["value"], raw["offset"], raw["metric_sign"]
        for run in range(0, 3496, 97):
            valid = value[offset[run] : offset[run + 1], 4] * sign[run]
            met = bool((valid >= raw["target"][run, 0] * sign[run]).any())
            assert met == found.succeeded[run]
        # By the rules of the benchmark, a submission that tunes itself has three times the time.
        most = raw["target"][:, raw["target_column"].tolist().index("max_seconds")]
        hours = most / 3600 * np.where(raw["ruleset"] == "self_tuning", 3, 1)
    np.testing.assert_allclose(found.budget, hours, rtol=1e-6)


def test_runs_of_algoperf_that_diverge_end_with_the_worst_metric() -> None:
    """By its archive: the metrics and losses of 12 runs are NaN from a point on."""
    with np.load(FOLDER / "algoperf.npz", allow_pickle=False) as raw:
        value, offset = raw["value"], raw["offset"]
    valid = read("algoperf.npz")
    with pytest.warns(DataWarning, match="751 of 3496 runs: they never measured 'train_loss'"):
        train = read("algoperf.npz", metric="train_loss")
    diverged = [run for run in range(3496) if np.isnan(value[offset[run + 1] - 1, 4])]
    assert len(diverged) == 12
    for run in diverged:
        known = ~np.isnan(value[offset[run] : offset[run + 1], 4])
        assert np.isfinite(valid[run].loss).tolist() == known.tolist()
    assert train.num_runs == 3496 - 751  # the workloads of the others report none
    assert sum(np.isposinf(run.loss[-1]) for run in train) == 27


def test_taskset() -> None:
    found = read("taskset.npz")
    assert (found.num_runs, len(np.unique(found.group))) == (9000, 9)
    assert found.num_points.tolist() == [51] * 9000
    assert set(found.budget) == {10_000}
    assert found.columns == ("train", "valid", "test")
    with np.load(FOLDER / "taskset.npz", allow_pickle=False) as raw:
        valid = raw["valid"].reshape(9000, 51)
    for run in range(0, 9000, 7):
        assert np.isposinf(found[run].loss).tolist() == (~np.isfinite(valid[run])).tolist()


def test_opda() -> None:
    with pytest.warns(DataWarning, match="49 of 1536 runs: they have no point"):
        found = read("opda.npz")
    assert found.num_runs == 1487
    assert sorted(set(found.group)) == ["alexnet", "deberta_base"]
    assert found.direction == "max"
    deberta = found.select(found.group == "deberta_base")
    assert (deberta.cost[deberta.offset[1:] - 1] == deberta.budget).all()


def test_nanogpt() -> None:
    found = read("nanogpt.npz")
    assert (found.num_runs, len(found.cost)) == (1235, 25557)
    assert sorted(set(found.task)) == ["track_1_short", "track_2_medium", "track_3_optimization"]


def test_lcdb() -> None:
    found = read("lcdb11_error.npz")
    assert (found.num_runs, len(np.unique(found.group))) == (7204, 265)
    assert found.cost_unit == "samples"
    assert 0 <= np.nanmin(found.values) <= np.nanmax(found.values) <= 1
