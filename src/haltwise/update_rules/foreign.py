"""A placeholder for an optimizer of which only recordings are known."""

from dataclasses import dataclass
from typing import NoReturn, final

from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.update_rules.base import State, UpdateRule, UpdateStep

__all__ = ["ForeignRule"]


@final
@dataclass(frozen=True)
class ForeignRule(UpdateRule):
    """Takes the place of a rule where it is not known what moves the parameters; cannot be run."""

    def init(self, params: Tensor) -> State:
        _refuse()

    def update(self, grad: Tensor, state: State) -> UpdateStep:
        _refuse()


def _refuse() -> NoReturn:
    raise InputError(
        "these weights know when to stop a training loop, but not how to move parameters; use "
        "them by haltwise.HaltingMonitor in that loop"
    )


RULES = {"foreign": ForeignRule}
