"""Curve models by name: the one that comes with the package, and those in directories."""

from pathlib import Path

from haltwise._core.errors import require
from haltwise.curves.model import CurveModel

__all__ = ["PRETRAINED", "load_curve_model", "pretrained"]

PRETRAINED = "training-runs"
"""The model learned on public training runs."""

_WEIGHTS = Path(__file__).parent / "weights"


def pretrained() -> CurveModel:
    """The model that comes with the package."""
    return CurveModel.load(_WEIGHTS / f"{PRETRAINED}.safetensors")


def load_curve_model(name_or_path: str | Path) -> CurveModel:
    """A curve model: `training-runs`, a directory that `haltwise learn` wrote, or a file.

    Raises:
        InputError: There is none, or it is corrupt or foreign.
    """
    if str(name_or_path) == PRETRAINED:
        return pretrained()
    path = Path(name_or_path)
    path = path / "model.safetensors" if path.is_dir() else path
    require(
        path.is_file(),
        f"there is no model {path}; name {PRETRAINED}, or a directory that haltwise learn wrote",
    )
    return CurveModel.load(path)
