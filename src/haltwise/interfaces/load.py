"""Models by name, of every kind."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, overload

from haltwise.curves.model import CurveModel
from haltwise.curves.shipped import PRETRAINED, pretrained
from haltwise.models import loading
from haltwise.models.optimizer_model import OptimizerModel

__all__ = ["load"]


@overload
def load(  # type: ignore[overload-overlap]  # a literal is a string, too
    name_or_path: Literal["training-runs"], own: Iterable[type] = ...
) -> CurveModel: ...


@overload
def load(name_or_path: str | Path, own: Iterable[type] = ...) -> OptimizerModel: ...


def load(name_or_path: str | Path, own: Iterable[type] = ()) -> OptimizerModel | CurveModel:
    """A trained model: an optimizer model, or the curve model `training-runs`.

    The curve model gives up training runs that will not meet their target, by their logs alone; one
    that `haltwise learn` wrote is loaded by `haltwise.curves.load_curve_rule`.

    Args:
        name_or_path: A shipped name (`haltwise list`), a run directory, the name of one in `runs/`
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
        >>> load("training-runs").card.cost_unit
        'hours'
    """
    if str(name_or_path) == PRETRAINED:
        return pretrained()
    return loading.load(name_or_path, own)
