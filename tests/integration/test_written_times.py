"""Dates and times that logs write out are a cost, counted from the first of a run."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from haltwise._core.errors import DataWarning, InputError
from haltwise.curves import Curves, read

BEGUN = datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
FORMS = {
    "iso": lambda moment: moment.isoformat(),
    "zulu": lambda moment: moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
    "logging": lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S,000"),
    "pandas": lambda moment: moment.strftime("%Y-%m-%d %H:%M:%S"),
}


def rows(form: str) -> list[dict[str, str | float]]:
    """Two runs, their rows mixed, a minute and two minutes a point; one cell has no time."""
    found = [
        {
            "run": run,
            "when": FORMS[form](BEGUN + timedelta(hours=late, seconds=step * pace)),
            "loss": 3.0 - step,
        }
        for step in range(3)
        for run, late, pace in (("a", 0, 60), ("b", 5, 120))
    ]
    return [*found, {"run": "a", "when": "", "loss": 9.0}]


def read_csv(form: str, folder: Path) -> Curves:
    lines = [",".join(f'"{each}"' for each in row.values()) for row in rows(form)]
    (folder / "log.csv").write_text("\n".join(["run,when,loss", *lines, ""]))
    return read(folder / "log.csv", metric="loss", cost="when", run="run")


def read_again(form: str, kind: str, folder: Path) -> Curves:
    if kind == "csv":
        return read_csv(form, folder)
    if kind == "jsonl":
        (folder / "log.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows(form)))
        return read(folder / "log.jsonl", metric="loss", cost="when", run="run")
    columns = {name: [row[name] for row in rows(form)] for name in rows(form)[0]}
    return Curves.from_frame(columns, metric="loss", cost="when", run="run")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["csv", "jsonl", "frame"])
def test_times_are_seconds_since_the_first_of_a_run(form: str, kind: str, tmp_path: Path) -> None:
    with pytest.warns(DataWarning) as told:
        curves = read_again(form, kind, tmp_path)
    assert any("'when' holds times of day" in str(warning.message) for warning in told)
    assert [curve.cost.tolist() for curve in curves] == [[0, 60, 120], [0, 120, 240]]
    assert [curve.loss.tolist() for curve in curves] == [[3, 2, 1], [3, 2, 1]]


def test_a_clock_that_was_set_back_is_told_by_its_zone(tmp_path: Path) -> None:
    """Of a night with 2:30 twice; times without a zone would go back."""
    whens = ["2026-10-25T02:30:00+02:00", "2026-10-25T02:30:00+01:00", "2026-10-25T03:30:00+01:00"]
    lines = [f"{when},{loss}" for when, loss in zip(whens, (3, 2, 1), strict=True)]
    (tmp_path / "log.csv").write_text("\n".join(["time,loss", *lines, ""]))
    with pytest.warns(DataWarning, match="times of day"):
        assert read(tmp_path / "log.csv", cost="time", metric="loss").cost.tolist() == [
            0,
            3600,
            7200,
        ]


def test_a_time_that_is_the_same_throughout_a_run_is_a_label(tmp_path: Path) -> None:
    lines = [f"2026-01-0{day} 12:00:00,{step},{3 - step}" for day in (1, 2) for step in range(3)]
    (tmp_path / "log.csv").write_text("\n".join(["begun,step,loss", *lines, ""]))
    curves = read(tmp_path / "log.csv", run="begun", cost="step", metric="loss", group="begun")
    assert curves.group.tolist() == ["2026-01-01 12:00:00", "2026-01-02 12:00:00"]


@pytest.mark.parametrize("second", ["12:00:01", "2026-13-01 12:00:01", "2026-01-01T12:00:01Z"])
def test_what_is_no_time_or_of_another_clock_is_refused(second: str, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text(f"when,loss\n2026-01-01 12:00:00,3\n{second},2\n")
    with pytest.raises(InputError, match=r"the column 'when' of .* holds the text"):
        read(log, cost="when", metric="loss")
