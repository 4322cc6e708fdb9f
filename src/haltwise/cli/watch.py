"""`haltwise watch`: follow a growing log, and say when to give the run up."""

import contextlib
import math
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import click
import numpy as np

from haltwise._core.errors import InputError, require
from haltwise._core.files import read_bytes
from haltwise._core.plugins import is_file, load_object
from haltwise.cli.curve_options import learned_on
from haltwise.cli.places import PATH
from haltwise.cli.printing import say
from haltwise.curves import Curve, Curves
from haltwise.curves.columns import is_validation
from haltwise.curves.levels import MIN_POINTS
from haltwise.curves.raw import LearnedOn, NothingRecordedError
from haltwise.curves.readers import settled
from haltwise.curves.readers.files import files_below
from haltwise.curves.rule import CurveRule
from haltwise.curves.shipped import PRETRAINED
from haltwise.curves.stop_model import StopModel
from haltwise.interfaces.levelled_rule import LevelledRule

__all__ = ["command"]

_LINES = (".csv", ".tsv", ".jsonl", ".ndjson", ".log", ".txt")  # one point a line
_GIVEN_UP = 3  # exit code
_REST = 9.0  # times what a look takes, which grows with the log, to the next


@final
class _Verdict(NamedTuple):
    kind: Literal["wait", "cannot read", "go on", "give up", "success", "end"]
    sentence: str


@click.command("watch")
@click.argument("log", type=PATH)
@click.option(
    "--rule",
    default=PRETRAINED,
    show_default=True,
    help="What gives runs up or stops them early: a learned model, its name or directory, or a "
    "rule on curves of your own, PATH.py:NAME, whose file is executed.",
)
@click.option("--level", type=float, help="Give up where the score is below; for any rule.")
@click.option(
    "--price", type=float, help="(Value of a unit of cost) / (value of a success); if learned."
)
@click.option(
    "--lost", type=float, help="Share of successes that may be lost; if learned.  [default: .01]"
)
@click.option("--format", help="Format of the log.  [default: recognised]")
@click.option(
    "--metric",
    help="Column that is judged.  [default: that of a rule you learned, or the one of validation]",
)
@click.option(
    "--cost",
    help="Column of what was spent.  [default: that of a rule you learned, or told by its name]",
)
@click.option(
    "--direction",
    type=click.Choice(["min", "max"]),
    help="Whether lower or higher is better.  [default: told by the metric's name]",
)
@click.option("--target", type=float, help="The value of the metric that is a success.")
@click.option("--budget", type=float, help="What the run may spend, in units of the cost.")
@click.option(
    "--cost-unit",
    help="What the cost is counted in. Where it is what a learned rule was learned in, the levels "
    "for --lost hold as they are; else they are translated by the budget.",
)
@click.option(
    "--min-points", default=MIN_POINTS, show_default=True, help="Points before it is given up."
)
@click.option(
    "--poll",
    default=5.0,
    show_default=True,
    help="Seconds between looks at the log; at least nine times what a look takes.",
)
@click.option("--once", is_flag=True, help="Say what is to be said now, and do not wait.")
@click.option("--exit-code", is_flag=True, help="Exit with code 3 where the run is given up.")
def command(
    log: Path,
    rule: str,
    level: float | None,
    price: float | None,
    lost: float | None,
    cost_unit: str | None,
    min_points: int,
    poll: float,
    once: bool,
    exit_code: bool,
    **reading: Any,
) -> None:
    """Follow a growing LOG, and say when the run should be given up, or stopped early.

    LOG holds one run, in any format of `haltwise learn`: CSV, JSON lines, trainer_state.json,
    Lightning's metrics.csv and others. Where nobody names the metric it is the one that a rule of
    yours was learned on, or the one of validation data. A metric that is written as nan is the
    worst there is, since the run diverged; leave empty what was not measured. A line is printed
    where the verdict changes, or what keeps the log from being read; the command ends when the run
    is given up, has met its target or has spent its budget. It never touches the run itself, but
    with --exit-code a script can: code 3 says give up, and nothing else does.
    """
    require(poll > 0, f"--poll must be above 0, got {poll:g}")
    levelled = LevelledRule(
        _rule(rule),
        level=level,
        price=price,
        lost=lost,
        cost_unit=cost_unit,
        min_points=min_points,
    )
    like = learned_on(rule, levelled.rule)
    shown: _Verdict | None = None
    for _ in _changes(log, poll):
        try:
            curve, unit = _one_run(log, reading, like)
        except InputError as error:
            if once:
                raise
            has_begun = log.exists() and not isinstance(error, NothingRecordedError)
            verdict = _Verdict("cannot read" if has_begun else "wait", f"waiting: {error}")
        else:
            if cost_unit is None:
                _require_unit(levelled.rule, unit)
            verdict = _judge(curve, levelled)
        is_news = shown is None or verdict.kind != shown.kind
        if is_news or (verdict.kind == "cannot read" and verdict != shown):
            say(f"{log}: {verdict.sentence}")
        shown = verdict
        if once or verdict.kind in ("give up", "success", "end"):
            break
    if exit_code and shown is not None and shown.kind == "give up":
        click.get_current_context().exit(_GIVEN_UP)


def _rule(name: str) -> CurveRule | str:
    if not is_file(name):
        return name
    found = load_object(name, CurveRule, "rule on curves")
    rule: CurveRule = found() if isinstance(found, type) else found
    return rule


def _changes(log: Path, poll: float) -> Iterator[None]:
    """Yield at once, and whenever the log has changed, at most a tenth of the time looking."""
    before = None
    while True:
        began, now = time.monotonic(), _state(log)
        if now != before:
            before = now
            yield
        time.sleep(max(poll, _REST * (time.monotonic() - began)))


def _state(log: Path) -> list[tuple[str, int, int]]:
    """What changes as a file, or any file in a folder, grows."""
    found = []
    for file in (log, *files_below(log)):
        with contextlib.suppress(OSError):  # not there yet, or no longer
            status = file.stat()
            found.append((str(file), status.st_mtime_ns, status.st_size))
    return sorted(found)


def _one_run(log: Path, reading: dict[str, Any], like: LearnedOn | None) -> tuple[Curve, str]:
    """The one run of a log as it is now, and what its cost is counted in."""
    reading = {**reading, "like": like}
    if log.is_dir() or (log.is_file() and _has_lines(log)):
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / log.resolve().name
            _copy_whole_lines(log.resolve(), copy)
            try:
                given = settled(copy, **reading)
            except InputError as error:
                raise type(error)(str(error).replace(str(copy), str(log))) from None
    else:  # where it lies, for what lies beside it may belong to it
        given = settled(log, **reading)
    if reading["metric"] is None:
        _require_judged(log, given["metric"], like)
    curves = Curves.from_runs(**given)
    require(curves.num_runs == 1, f"{log} holds {curves.num_runs} runs; watch a log that holds one")
    # Where nothing tells the budget, the record takes what was spent by the longest run.
    budget = np.asarray(np.nan if given["budget"] is None else given["budget"], float)
    return curves[0]._replace(budget=budget.item()), curves.cost_unit


def _has_lines(log: Path) -> bool:
    return log.suffix.lower() in _LINES


def _copy_whole_lines(log: Path, copy: Path) -> None:
    """Copy a log as far as its lines are whole: half a number that is being written is one, too."""
    if log.is_dir() and not log.is_symlink():  # which may lead to a folder that it lies in
        copy.mkdir()
        with contextlib.suppress(OSError):  # a folder that may not be read, or is gone
            for part in log.iterdir():
                _copy_whole_lines(part, copy / part.name)
    elif log.is_file() and _has_lines(log):
        whole, newline, _ = read_bytes(log).rpartition(b"\n")
        copy.write_bytes(whole + newline)
    elif log.exists():
        copy.symlink_to(log)


def _require_judged(log: Path, metric: str, like: LearnedOn | None) -> None:
    """Refuse a column in place of one that may be measured later, such as the first validation."""
    if like is not None:
        require(
            metric == like.metric,
            f"{log} measures no {like.metric!r} yet, on which the rule was learned; if it never "
            "will, name the column that is judged (--metric)",
        )
    else:
        require(
            is_validation(metric),
            f"{log} measures {metric!r}, but nothing yet on what is called validation data; if it "
            "never will, name the column that is judged (--metric)",
        )


def _require_unit(rule: CurveRule, cost_unit: str) -> None:
    """Refuse a price that is of another unit than the column of costs is called."""
    if isinstance(rule, StopModel):
        try:
            rule.require_unit(cost_unit)
        except InputError as error:
            raise InputError(f"{error}; or say --cost-unit {rule.card.cost_unit!r}") from None


def _judge(curve: Curve, rule: LevelledRule) -> _Verdict:
    def at(place: int) -> str:
        return f"{curve.metric} {curve.columns[curve.metric][place]:.4g} at {curve.cost[place]:g}"

    learned = "the rule forecasts whether the run will meet its target"
    require(
        not rule.is_learned or math.isfinite(curve.target),
        f"{learned}, but there is none; name one (--target)",
    )
    require(
        not rule.is_learned or 0 < curve.budget < math.inf,
        f"{learned} within its budget, but there is none; name one (--budget), in units of the "
        "cost",
    )
    spent = curve.cost[-1]
    if curve.is_measured.any():
        curve = curve.measured()  # those at which a monitor in the loop is updated
    last = curve.num_points - 1
    if curve.success >= 0:
        return _Verdict("success", f"the target {curve.target:g} is met, {at(curve.success)}")
    place = rule.gives_up(curve)
    if place is not None:
        why = rule.rule.why(curve.until(place + 1))
        what = "stop" if isinstance(rule.rule, StopModel) else "give up"
        return _Verdict("give up", f"{what}, {at(place)}: {why}")
    if spent >= curve.budget:
        return _Verdict("end", f"the budget {curve.budget:g} is spent, {at(last)}")
    return _Verdict("go on", f"go on, {at(last)} after {curve.is_measured.sum()} points")
