"""Learned optimizers that come with the package, and those in run directories, by one name."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from haltwise._core.discovery import unknown
from haltwise._core.errors import InputError, require
from haltwise._core.settings import require_types
from haltwise._core.files import digest, load_tensors
from haltwise.models.optimizer_model import OptimizerModel, ModelConfig

__all__ = ["fingerprint", "load", "names", "read_card", "run_directory"]

_WEIGHTS = Path(__file__).parent / "weights"


def names() -> list[str]:
    """The names of the shipped optimizers."""
    return sorted(path.stem for path in _WEIGHTS.glob("*.safetensors"))


def run_directory(name_or_path: str | Path) -> Path:
    """Where a run lies: a directory, that of a weights file, or a name in `runs/`."""
    path = Path(name_or_path)
    if path.is_file():
        return path.parent
    named = Path("runs") / path
    return named if named.is_dir() and not path.exists() else path


def _find(name_or_path: str | Path) -> Path:
    """The weights file of a shipped name, a run directory or a file."""
    if str(name_or_path) in names():
        return _WEIGHTS / f"{name_or_path}.safetensors"
    path = Path(name_or_path)
    path = path if path.is_file() else run_directory(path)
    if path.is_dir():
        best = path / "best.safetensors"
        if not best.exists():
            raise InputError(
                f"{path} holds no weights yet: there is no {best}; train it further with "
                f"`haltwise train --resume {path}`"
            )
        return best
    if path.exists():
        return path
    raise InputError(
        unknown(str(name_or_path), names(), "optimizer")
        + " A run directory, its name in runs/ or a weights file will do as well."
    )


def read_card(name_or_path: str | Path) -> Mapping[str, Any]:
    """The card alone: family, horizon, price, seed, metrics, command and time.

    Raises:
        InputError: There is no such optimizer, or its file is corrupt or foreign.
    """
    return _read(name_or_path)[1]


def _read(name_or_path: str | Path) -> tuple[dict[str, Any], dict[str, Any]]:
    path = _find(name_or_path)
    tensors, card = load_tensors(path)
    if not isinstance(card, dict) or "config" not in card:
        raise InputError(f"{path} holds no optimizer; best.safetensors of a run does")
    return tensors, card


def load(name_or_path: str | Path) -> OptimizerModel:
    """A trained optimizer, ready for use; its `card` says what it was trained for.

    Args:
        name_or_path: A shipped name (see `names`), a run directory, the name of one in `runs/`
            under the working directory, or a weights file.

    Returns:
        The optimizer, its weights frozen.

    Raises:
        InputError: There is no such optimizer (near names are suggested), or its file is corrupt,
            foreign or does not fit its own configuration.

    Examples:
        >>> optimizer = load("regression-2d")
        >>> optimizer.card["config"]["family"]
        'regression-2d'
    """
    tensors, card = _read(name_or_path)
    try:
        config = ModelConfig(**card["config"]["optimizer"])
        optimizer = OptimizerModel.from_weights(config, tensors)
        require_types(_check_card, {**card["config"], **card})
        _check_card(**{name: card[name] for name in ("thresholds", "min_steps") if name in card})
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(
            f"the weights of {name_or_path} do not fit their configuration: {error}"
        ) from None
    optimizer.card = card
    return optimizer


def fingerprint(optimizer: OptimizerModel) -> str:
    """A checksum of all that moving and stopping depend on."""
    config = optimizer.card.get("config", {})
    said = [config.get(name) for name in ("posterior", "price", "horizon")]
    said += [optimizer.card.get(name) for name in ("thresholds", "min_steps")]
    return digest(
        optimizer.state_dict(), json.dumps([asdict(optimizer.config), *said], sort_keys=True)
    )


def _check_card(
    thresholds: list[Any] | None = None,
    min_steps: list[Any] | None = None,
    family: str = "",
    family_settings: dict[str, Any] | None = None,
    posterior: str = "",
    preset: str = "",
    horizon: int = 1,
    price: float = 1.0,
) -> None:
    """What is done by the numbers on a card, of the types that are annotated here."""
    del family, family_settings, posterior, preset, horizon, price
    for name, kind, pair in (("thresholds", float, thresholds), ("min_steps", int, min_steps)):
        if pair is not None:
            right = len(pair) == 2 and all(isinstance(value, (int, kind)) for value in pair)
            require(right and all(map(math.isfinite, pair)), f"{name} are {pair}")
