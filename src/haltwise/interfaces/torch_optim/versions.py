"""Whether a loop has changed parameters itself since a step, as by loading others into them."""

from collections.abc import Iterable, Sequence
from typing import final

from torch import Tensor

from haltwise.interfaces.torch_optim.groups import Group

__all__ = ["Versions"]


@final
class Versions:
    """Counts how often parameters are changed in place between steps, as PyTorch does.

    A loop that clips, masks or averages them changes them after every step: only more changes than
    after the step before are out of the ordinary. Parameters set by their `data` are not counted.
    """

    def __init__(self) -> None:
        self._left: list[tuple[int, int]] = []  # by the last step: parameters, and their changes
        self._usual: list[int] = []

    def begin_step(self, groups: Sequence[Group]) -> list[bool]:
        """Whether each group has been changed since the last step more often than is usual."""
        found, changes = [], []
        for number, group in enumerate(groups):
            changes.append(self._changes(number, group))
            found.append(changes[-1] > self._usual_of(number))
        self._usual = changes
        return found

    def end_step(self, groups: Iterable[Group]) -> None:
        """Note what a step leaves behind."""
        self._left = [_state_of(group) for group in groups]

    def are_unusual(self, groups: Sequence[Group], group: Group) -> bool:
        """Whether a group has been changed so since the last step, or taken out of all groups."""
        places = [number for number, each in enumerate(groups) if each is group]
        return not any(self._changes(place, group) <= self._usual_of(place) for place in places)

    def _usual_of(self, number: int) -> int:
        return self._usual[number] if number < len(self._usual) else 0

    def _changes(self, number: int, group: Group) -> int:
        if number >= len(self._left):
            return 0
        (size, version), (size_then, then) = _state_of(group), self._left[number]
        return version - then if size == size_then else 0


def _state_of(group: Group) -> tuple[int, int]:
    params: list[Tensor] = group["params"]
    return len(params), sum(param._version for param in params)
