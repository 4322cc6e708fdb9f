"""Models by name: those that come with the package, and those in run directories."""

import shlex
from collections.abc import Iterable
from pathlib import Path

from haltwise._core.discovery import unknown
from haltwise._core.errors import InputError, require
from haltwise._core.settings import shown
from haltwise.models.card import Card
from haltwise.models.files import OF_CURVES, halting_of, read_card, read_model
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel

__all__ = [
    "card_of",
    "find",
    "is_shipped",
    "load",
    "load_halting",
    "names",
    "run_directory",
    "stop_names",
]

_WEIGHTS = Path(__file__).parent / "weights"
_STOPS = _WEIGHTS / "stops"


def names() -> list[str]:
    """The names of the shipped models."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def stop_names() -> list[str]:
    """The names of the shipped models that stop an engine of `haltwise.solve`."""
    return sorted(path.stem for path in _STOPS.glob("*.safetensors"))


def is_shipped(name_or_path: str | Path) -> bool:
    """Whether this is the name of a model that comes with the package, or the file of one."""
    if str(name_or_path) in (*names(), *stop_names()):
        return True
    return find(name_or_path).resolve().is_relative_to(_WEIGHTS.resolve())


def run_directory(name_or_path: str | Path) -> Path:
    """The directory of a run: a path, that of a weights file, or a name in `runs/`."""
    path = Path(name_or_path)
    if path.is_file():
        return path.parent
    named = Path("runs") / path
    return named if named.is_dir() and not path.exists() else path


def find(name_or_path: str | Path) -> Path:
    """The weights file of a shipped name, a run directory, its name in runs/, or a file.

    Raises:
        InputError: There is none; near names are suggested.
    """
    for directory, known in ((_WEIGHTS, names()), (_STOPS, stop_names())):
        if str(name_or_path) in known:
            return directory / f"{name_or_path}.safetensors"
    require(
        isinstance(name_or_path, str | Path),
        f"weights must be a name or a path, got {shown(name_or_path)}",
    )
    path = Path(name_or_path)
    try:
        return _file_at(path if path.is_file() else run_directory(path), name_or_path)
    except OSError as error:
        raise InputError(f"cannot read {shown(str(path))}: {error.strerror}") from None


def _file_at(path: Path, name: str | Path) -> Path:
    """The weights file at a path that was found for a name."""
    if path.is_dir():
        best, of_curves = path / "best.safetensors", path / "model.safetensors"
        require(best.exists() or not of_curves.exists(), f"{path} holds {OF_CURVES}")
        if not best.exists():
            raise InputError(
                f"{path} holds no weights yet: there is no {best}; "
                + (
                    f"train it further with `haltwise train --resume {shlex.quote(str(path))}`"
                    if (path / "config.json").exists()
                    else "it is not the directory of a run either, so name one, or a weights file"
                )
            )
        return best
    if path.exists():
        return path
    raise InputError(
        unknown(str(name), names(), "optimizer")
        + " A run directory, its name in runs/ or a weights file will do as well."
    )


def _classes(own: Iterable[type]) -> list[type]:
    """The classes that a caller brings, refused where they are none."""
    found = [] if isinstance(own, type) or not isinstance(own, Iterable) else list(own)
    require(
        (found != [] or own in ([], ())) and all(isinstance(each, type) for each in found),
        f"own must be a list of classes, as in own=[MyRule], got {shown(own)}",
    )
    return found


def card_of(name_or_path: str | Path, own: Iterable[type] = ()) -> Card:
    """The card alone; see `load`."""
    return read_card(find(name_or_path), _classes(own))


def load(name_or_path: str | Path, own: Iterable[type] = ()) -> OptimizerModel:
    """A trained optimizer model, its weights frozen; its `card` says what it was trained for.

    Args:
        name_or_path: A shipped name (see `names`), a run directory, the name of one in `runs/`
            under the working directory, or a weights file.
        own: Classes of your own that the card may name, such as a halting method from a file;
            code that a file of weights names is never executed.

    Raises:
        InputError: There is no such model (near names are suggested), its file is corrupt, foreign
            or does not fit its card, or it knows when to stop a loop but not how to move
            parameters.

    Examples:
        >>> load("regression-2d").card.horizon
        40
    """
    model = read_model(find(name_or_path), _classes(own))
    if not isinstance(model, OptimizerModel):
        card = model.card
        if card.engine is not None:
            what, way = card.engine.name, f"haltwise.solve(problem, stop={str(name_or_path)!r})"
        elif card.family is not None and card.observed == "loss":
            what, way = "processes", f"haltwise.run(process, {str(name_or_path)!r})"
        else:
            what, way = "a training loop", "haltwise.HaltingMonitor in that loop"
        raise InputError(
            f"{name_or_path} knows when to stop {what}, but not how to move parameters; use it by "
            f"{way}"
        )
    return model


def load_halting(name_or_path: str | Path, own: Iterable[type] = ()) -> HaltingModel:
    """A trained halting model, with or without an update rule beside it; see `load`."""
    return halting_of(read_model(find(name_or_path), _classes(own)))
