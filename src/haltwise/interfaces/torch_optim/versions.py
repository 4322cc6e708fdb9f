"""Whether a loop has changed parameters itself since a step, as by loading others into them."""

import math
from collections.abc import Iterable, Sequence
from typing import final

from torch import Tensor

from haltwise.interfaces.torch_optim.groups import Group

__all__ = ["NewStarts", "Versions"]

_SURE = 3  # losses in a row that the steps before cannot have led to: one may be an outlier


@final
class Versions:
    """Counts how often parameters are changed in place between steps, as PyTorch does.

    A loop that clips, masks or averages them changes them after every step: only more changes than
    after the step before are out of the ordinary, and none are where no count of such is known, as
    after the first step of a loop that goes on from a file. Parameters set by their `data` are not
    counted.
    """

    def __init__(self) -> None:
        self._left: list[tuple[int, int]] = []  # by the last step: parameters, and their changes
        self._usual: list[int] = []

    def begin_step(self, groups: Sequence[Group]) -> list[bool]:
        """Whether each group has been changed since the last step more often than is usual."""
        changes = [self._changes(number, group) for number, group in enumerate(groups)]
        usual = self._usual + changes[len(self._usual) :]
        self._usual = changes[: len(self._left)]
        return [found > known for found, known in zip(changes, usual, strict=False)]

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


@final
class NewStarts:
    """Tells groups that others have set to another start from those that they have set back.

    To go back from another start would undo what others have done on purpose, as to begin another
    run. Parameters that were averaged and set back, say, are at the loss that they were at before.
    """

    def __init__(self) -> None:
        self._doubts: dict[int, tuple[float, int]] = {}  # the highest loss expected; above it

    def __bool__(self) -> bool:
        return bool(self._doubts)

    def is_in_doubt(self, number: int) -> bool:
        """Whether so little is known as yet of a group that its guard is not to go by it."""
        return number in self._doubts

    def suspect(self, number: int, highest_expected: float) -> None:
        """Look at the losses of a group that others have changed, from this step on."""
        if math.isfinite(highest_expected):  # else no loss is above it, and there may come none
            self._doubts.setdefault(number, (highest_expected, 0))

    def observe(self, number: int, loss: float) -> bool:
        """See the loss of a group; whether it is at another start beyond doubt."""
        if number not in self._doubts or not math.isfinite(loss):  # that tells nothing
            return False
        highest, count = self._doubts.pop(number)
        if loss > highest and count + 1 < _SURE:
            self._doubts[number] = highest, count + 1
        return loss > highest and count + 1 >= _SURE


def _state_of(group: Group) -> tuple[int, int]:
    params: list[Tensor] = group["params"]
    return len(params), sum(param._version for param in params)
