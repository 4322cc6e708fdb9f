"""Curve models by name: the one that comes with the package, and those in directories."""

from pathlib import Path

from haltwise._core.errors import require
from haltwise._core.files import load_tensors
from haltwise.curves.model import CurveModel
from haltwise.curves.stop_model import StopModel

__all__ = [
    "PRETRAINED",
    "find_curve_model",
    "is_curve_model",
    "load_curve_model",
    "load_curve_rule",
    "pretrained",
]

PRETRAINED = "training-runs"
"""The model learned on public training runs."""

_WEIGHTS = Path(__file__).parent / "weights"


def pretrained() -> CurveModel:
    """The model that comes with the package."""
    return load_curve_model(PRETRAINED)


def is_curve_model(name_or_path: str | Path) -> bool:
    """Whether a name, a directory or a file is of a model of curves, and not of other weights."""
    path = Path(name_or_path)
    if str(name_or_path) == PRETRAINED or (path / "model.safetensors").is_file():
        return True
    return path.is_file() and _kind(path) in (CurveModel.kind, StopModel.kind)


def find_curve_model(name_or_path: str | Path) -> Path:
    """The file of a curve model; see `load_curve_model`."""
    if str(name_or_path) == PRETRAINED:
        return _WEIGHTS / f"{PRETRAINED}.safetensors"
    path = Path(name_or_path)
    path = path / "model.safetensors" if path.is_dir() else path
    require(
        path.is_file(),
        f"there is no model {path}; name {PRETRAINED}, or a directory that haltwise learn wrote",
    )
    return path


def load_curve_model(name_or_path: str | Path) -> CurveModel:
    """A curve model: `training-runs`, a directory that `haltwise learn` wrote, or a file.

    Raises:
        InputError: There is none, it is corrupt or foreign, or it is a stop model.
    """
    path = find_curve_model(name_or_path)
    require(
        _kind(path) != StopModel.kind,
        f"{name_or_path} says when to stop runs early, not which to give up; name a model that "
        "haltwise learn wrote without --stop-early",
    )
    return CurveModel.load(path)


def load_curve_rule(name_or_path: str | Path) -> CurveModel | StopModel:
    """What `haltwise learn` wrote, which gives runs up or stops them early, or `training-runs`.

    Raises:
        InputError: There is none, or it is corrupt or foreign.
    """
    path = find_curve_model(name_or_path)
    return StopModel.load(path) if _kind(path) == StopModel.kind else CurveModel.load(path)


def _kind(path: Path) -> object:
    """What a safetensors file says that it holds."""
    return load_tensors(path)[1].get("kind")
