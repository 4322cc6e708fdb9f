"""Commands and loops killed or told to end while they work, and then done again to their end."""

import importlib
import json
import random
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from loops import record_runs
from tiny_runs import TINY_OPTIONS, timeless

from faults.processes import fork, is_ended_by, kill_at, orphans
from faults.runs import count_events, scratch, state, warm_up
from faults.tally import Tally
from haltwise._core.files import load_tensors
from haltwise.cli import main
from haltwise.recordings.runs import RecordedRuns

_NUM_RUNS, _NUM_RECORDED = 48, 9
_INTERRUPTED = 130
_SOON = 0.8  # of the seconds of an undisturbed case, before most have ended


class Case(NamedTuple):
    """What is disturbed.

    Attributes:
        work: What is done, and done again until it is whole, in a copy of the directory given.
        found: What it leaves there, without what the clock says.
    """

    work: Callable[[Path], object]
    found: Callable[[Path], Any]


def interruptions(number: int, seed: int) -> Tally:
    """Kill commands, tell every fifth to end by SIGTERM, and do each again to its end."""
    tally, rng = Tally("interrupted commands"), random.Random(seed)
    with scratch() as root:
        begin = root / "begin"
        _prepare(begin)
        # In the same place, for records name the run that they are of.
        references = {name: _measure(case, begin, root / "case") for name, case in CASES.items()}
        for index in range(number):
            name = list(CASES)[index % len(CASES)]
            kill = index % 5 != 4
            _disturb(tally, rng, name, references[name], begin, root / "case", kill=kill)
    return tally


class Reference(NamedTuple):
    """What an undisturbed case leaves, and how long it takes."""

    found: Any
    seconds: float
    num_events: int


def _disturb(
    tally: Tally,
    rng: random.Random,
    name: str,
    reference: Reference,
    begin: Path,
    directory: Path,
    *,
    kill: bool,
) -> None:
    case = CASES[name]
    label = f"case {tally.cases}, {name}"
    tally.cases += 1
    shutil.copytree(begin, directory)

    def work() -> None:
        case.work(directory)

    number = signal.SIGKILL if kill else signal.SIGTERM
    if kill and rng.random() < 0.5:
        event = rng.randrange(reference.num_events)
        label += f", event {event}"
        ended = fork(kill_at(event, work))
    else:
        ended = fork(work, rng.uniform(0, _SOON * reference.seconds), number)
    if is_ended_by(ended.status, number) or ended.status >> 8 == _INTERRUPTED:
        tally.count("kills" if kill else "ends by SIGTERM")
    elif ended.status != 0:
        tally.lost.append(f"{label}: {ended.text}")
    tally.lost += [f"{label}: process {left} goes on" for left in orphans(ended.pid)]
    tally.lost += [f"{label}: {broken}" for broken in _broken(directory)]
    # A loop of one's own dies of the signal; a command tidies up.
    if ended.status >> 8 == _INTERRUPTED and (left := [*directory.rglob("*.tmp")]):
        tally.lost.append(f"{label}: {left[0].name} is left")
    status, text, _ = fork(work)
    if status != 0:
        tally.lost.append(f"{label}: done again: {text}")
    elif case.found(directory) != reference.found:
        tally.differing.append(label)
    shutil.rmtree(directory)


def _measure(case: Case, begin: Path, directory: Path) -> Reference:
    shutil.copytree(begin, directory)
    seconds, num_events = count_events(partial(case.work, directory), directory.parent)
    found = case.found(directory)
    shutil.rmtree(directory)
    return Reference(found, seconds, num_events)


def _broken(directory: Path) -> list[str]:
    """The files under their final names that are not whole."""
    found = []
    for path in sorted(directory.rglob("*")):
        try:
            if path.suffix == ".safetensors":
                load_tensors(path)
            elif path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".html" and not path.read_text("utf-8").rstrip().endswith(
                "</html>"
            ):
                found.append(f"{path.name} is cut")
        except ValueError as error:
            found.append(f"{path.name}: {error}")
    return found


# -------------------------------------------------------------------------------------- the cases


def _command(*arguments: str) -> Callable[[Path], object]:
    """A command line in which DIR stands for the directory."""

    def work(directory: Path) -> None:
        sys.argv = ["haltwise", *(each.replace("DIR", str(directory)) for each in arguments)]
        main()

    return work


def _document(name: str) -> Callable[[Path], Any]:
    return lambda directory: timeless(json.loads((directory / name).read_text(encoding="utf-8")))


def _record(directory: Path) -> None:
    """Go on until so many runs are recorded, whichever these are."""
    while (whole := len([*(directory / "more").glob("*.safetensors")])) < _NUM_RECORDED:
        record_runs(directory / "more", range(whole, whole + 1))


def _train_monitor(directory: Path) -> None:
    """Learn from the recordings, or go on with that."""
    if (directory / "monitor" / "config.json").exists():
        work = _command("train", "--resume", "DIR/monitor", "--threads", "1")
    else:
        work = _command(
            *("train-monitor", "DIR/runs", "--out", "DIR/monitor", "--price", "0.02"),
            *("--halting.num-steps", "8", "--threads", "1"),
        )
    work(directory)


def _recorded(directory: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return RecordedRuns.load(directory / "more").trajectory.excess.tolist()


_FEW = ("--num-problems", "32", "--threads", "1")
CASES = {
    "train": Case(
        _command("train", "regression-2d", "--out", "DIR/new", "--continue", *TINY_OPTIONS),
        lambda directory: state(directory / "new"),
    ),
    "train-monitor": Case(
        _train_monitor,
        lambda directory: state(directory / "monitor"),
    ),
    "recording": Case(_record, _recorded),
    "evaluate": Case(
        _command("evaluate", "DIR/run", "--no-learners", "--json", "DIR/figures.json", *_FEW),
        _document("figures.json"),
    ),
    "study": Case(
        _command("study", "DIR/run", "--seeds", "2", "--json", "DIR/study.json", *_FEW),
        _document("study.json"),
    ),
    "report": Case(
        _command("report", "DIR/run", "--out", "DIR/page.html"),
        lambda directory: (directory / "page.html").read_text(encoding="utf-8"),
    ),
}


def _prepare(directory: Path) -> None:
    """A finished run with an evaluation, and recordings."""
    warm_up()
    for name in ("train", "train_monitor", "evaluate", "study", "report"):
        importlib.import_module(f"haltwise.cli.{name}")
    for work in (
        _command("train", "regression-2d", "--out", "DIR/run", *TINY_OPTIONS),
        _command("evaluate", "DIR/run", "--no-learners", *_FEW),
        lambda folder: record_runs(folder / "runs", range(_NUM_RUNS)),
    ):
        status, text, _ = fork(partial(work, directory))
        assert status == 0, text
