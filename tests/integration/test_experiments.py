"""Many trainings at once: each its own run, failures of one are nobody else's."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from haltwise.cli.sweep import sweep
from test_cli import TINY, haltwise

from haltwise import InputError


def test_failures_are_reported_and_the_rest_is_done_once(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "seed-1").write_text("in the way")
    command = ["sweep", "regression-2d", "--seeds", "0..1", "--jobs", 2, "--out", "out", *TINY]
    result = haltwise(*command, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.strip().endswith("1 of 2 trainings failed: seed-1")
    best = tmp_path / "out" / "seed-0" / "best.safetensors"
    before = best.stat().st_mtime_ns
    (tmp_path / "out" / "seed-1").unlink()
    result = haltwise(*command, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert best.stat().st_mtime_ns == before
    document = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert [run["name"] for run in document["runs"]] == ["seed-0", "seed-1"]
    assert [run["error"] for run in document["runs"]] == [None, None]
    figures = [run["metrics"]["mean_loss"] for run in document["runs"]]
    assert figures[0] != figures[1]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--seeds", "a"], "--seeds must be numbers"),
        (["--seeds", "3..1"], "--seeds must be numbers"),
        (["--prices", "x"], "--prices must be numbers"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--seed", "3"], "a sweep sets --seed itself"),
        (["--out", "/dev/null/x"], "cannot create"),
    ],
)
def test_impossible_sweeps_are_refused(options: list[str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        CliRunner().invoke(sweep, ["regression-2d", *options], catch_exceptions=False)
