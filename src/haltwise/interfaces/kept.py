"""What `haltwise.solve` keeps for its next call: the model on its device, and its graphs."""

import functools
from pathlib import Path
from typing import final
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.settings import shown
from haltwise.engines import Engine, engines
from haltwise.models.files import placed
from haltwise.models.loading import find, load, run_directory
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.rollout.step_graphs import StepGraphs
from haltwise.update_rules import UpdateRule

__all__ = ["model_for", "named", "refuse_engines"]


def refuse_engines(optimizer: object) -> None:
    """Refuse an engine of `haltwise.solve` where the weights of an optimizer are expected.

    Raises:
        InputError: It is an engine or an update rule, or named as one and no run is.

    Examples:
        >>> refuse_engines("regression-2d")
    """
    is_engine = isinstance(optimizer, Engine | UpdateRule)
    if isinstance(optimizer, str):
        is_name = optimizer in {"auto", "lstm", *engines()}
        is_engine = is_name and not run_directory(optimizer).exists()
    require(
        not is_engine,
        f"{shown(optimizer)} is a method of haltwise.solve, not the weights of an optimizer; give "
        f"it by name, as in haltwise.solve(problem, method={shown(optimizer)})",
    )


def named(optimizer: str | Path) -> OptimizerModel:
    """See `haltwise.load`; the last is kept, as long as its file is unchanged."""
    refuse_engines(optimizer)
    found = find(optimizer).stat()
    return _named(optimizer, (found.st_mtime_ns, found.st_size))


@functools.lru_cache(maxsize=1)
def _named(optimizer: str | Path, version: tuple[int, int]) -> OptimizerModel:
    del version  # of the file, for the cache
    return load(optimizer)


def model_for(model: OptimizerModel, like: Tensor) -> tuple[OptimizerModel, StepGraphs | None]:
    """The model in the dtype and on the device of `like`, and graphs of its steps, on CUDA.

    They live as long as the model does, and as long as its weights are left as they are.
    """
    if not like.is_cuda:
        return placed(model, like), None
    kept = _KEPT.get(model)
    if kept is None or not kept.holds(model, like):
        kept = _KEPT[model] = _Kept(model, like)
    return kept.copy or model, kept.graphs


@final
class _Kept:
    """A model on a device; its copy, if it is elsewhere, must not keep the model alive."""

    def __init__(self, model: OptimizerModel, like: Tensor) -> None:
        own = placed(model, like)
        self.copy = None if own is model else own
        self.graphs = StepGraphs()
        self._place, self._card = (like.dtype, like.device), model.card
        self._weights = _weights(model)
        self._bits = _bits(self._weights)

    def holds(self, model: OptimizerModel, like: Tensor) -> bool:
        """Whether all is as it was."""
        now = _weights(model)
        return (
            self._place == (like.dtype, like.device)
            and self._card is model.card
            and [each.data_ptr() for each in now] == [each.data_ptr() for each in self._weights]
            and torch.equal(_bits(now), self._bits)  # at once: each comparison waits for the device
        )


def _weights(model: OptimizerModel) -> list[Tensor]:
    return [weight.detach() for weight in (*model.parameters(), *model.buffers())]


def _bits(weights: list[Tensor]) -> Tensor:
    """A copy of all their values, as bytes."""
    return torch.cat([weight.flatten().view(torch.uint8) for weight in weights])


_KEPT: WeakKeyDictionary[OptimizerModel, _Kept] = WeakKeyDictionary()
