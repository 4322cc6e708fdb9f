"""Fresh problems or recorded runs for a trained model, and the exchange of its weights file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from haltwise._core.errors import CalibrationWarning, require, warn
from haltwise._core.files import read_bytes, write_atomically
from haltwise.cli import options
from haltwise.models import loading
from haltwise.models.card import Card, Choice
from haltwise.models.files import Model, halting_of, read_model, save_model
from haltwise.processes.trajectory import Trajectory
from haltwise.recordings.runs import RecordedRuns
from haltwise.training import TrainingSettings
from haltwise.training.run.directory import RunDirectory
from haltwise.training.sources import FamilySource, source_of

__all__ = ["Opened", "opened", "record_for", "replace_weights"]

_COORDINATES = 2**18  # of all problems together, unless told otherwise


class Opened(NamedTuple):
    """A trained model and the file that it lies in."""

    model: Model
    path: Path


@contextmanager
def opened(run: str, own: list[type], verb: str) -> Iterator[Opened]:
    """A model of one's own that knows when to stop; its run is not trained meanwhile.

    Args:
        run: A run directory, its name in runs/ or a weights file.
        own: Classes that the card names.
        verb: What is done to it, for messages.

    Raises:
        InputError: It comes with the package, does not halt, or is being trained.
    """
    require(
        not loading.is_shipped(run),
        f"{run} comes with the package and stays as it is; copy {loading.find(run)} to a "
        f"directory of yours and {verb} the copy",
    )
    path = loading.find(run)
    directory = RunDirectory(path.parent, 1)
    if (path.parent / "config.json").exists():
        directory.lock()
    try:
        model = read_model(path, own)
        require(
            halting_of(model).halts,
            f"{run} was trained without halting; there is no stop to {verb}",
        )
        yield Opened(model, path)
    finally:
        directory.unlock()


def record_for(
    model: Model,
    run: str,
    *,
    runs: Path | None,
    family: str | None,
    settings: dict[str, Any],
    num_problems: int | None,
    seed: int,
    data_dir: Path | None,
    purpose: str,
) -> Trajectory:
    """Recorded runs for a monitor, or fresh problems or processes for any other model.

    Args:
        model: The model.
        run: Its name, for messages.
        runs: The directory of recorded runs.
        family: Name of the family of problems; the one trained on if None.
        settings: Settings of the family.
        num_problems: Problems to draw; 4096, for networks down to 64, if None.
        seed: Of the problems.
        data_dir: See `haltwise.tasks.family`.
        purpose: For other problems than those drawn for anything else.

    Warns:
        CalibrationWarning: Some are left out because they do not stay finite.

    Raises:
        InputError: These runs are not of the loop that the model stops, or it stops no loop.
    """
    card = model.card
    require(
        runs is None
        or ((card.family is None or card.engine is not None) and family is None and not settings),
        f"--runs are for monitors, and {run} was trained on problems; name a --family"
        if card.family is not None
        else "give --runs or --family, not both",
    )
    if runs is not None:
        return _of_runs(card, runs)
    source = source_of(
        TrainingSettings(
            family=options.family_choice(card, family, settings),
            rule=card.engine or card.rule or Choice("none"),
            horizon=card.horizon,
            seed=seed,
        ),
        "cpu",
        data_dir,
    )
    if num_problems is None:
        dim = source.family.dim if isinstance(source, FamilySource) else 1
        num_problems = min(4096, max(64, _COORDINATES // dim))
    recorded = source.take(model, num_problems, purpose)
    num_left_out = source.num_left_out[(purpose,)]
    if num_left_out:
        warn(
            f"{num_left_out} of {num_problems} problems are left out: they do not stay finite",
            CalibrationWarning,
        )
    return recorded


def replace_weights(found: Opened, card: Card) -> Path:
    """Write the model with another card in place of its file; where the file before is kept."""
    before = _free(found.path)
    write_atomically(before, read_bytes(found.path))
    save_model(found.path, found.model.state_dict(), card)
    return before


def _of_runs(card: Card, directory: Path) -> Trajectory:
    """Load recorded runs of the loop that the model stops."""
    runs = RecordedRuns.load(directory, card.horizon)
    require(
        runs.observed == card.observed,
        f"the model watches {card.observed}, but the runs in {directory} were recorded with "
        f"{runs.observed}; record some as those it was trained on",
    )
    require(
        runs.engine == card.engine,
        f"the model stops {_ran(card.engine)}, but the runs in {directory} are of "
        f"{_ran(runs.engine)}; record some as those it was trained on",
    )
    return (runs.keeping_best() if card.keeps_best else runs).trajectory


def _ran(engine: Choice | None) -> str:
    return "a loop" if engine is None else f"{engine.name} {dict(engine.settings)}"


def _free(path: Path) -> Path:
    """The name under which the file before is kept; none of those kept is overwritten."""
    number, stem = 1, f"{path.stem}.before"
    while (kept := path.with_name(f"{stem}.safetensors")).exists():
        number += 1
        stem = f"{path.stem}.before-{number}"
    return kept
