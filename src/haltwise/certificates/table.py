"""The risk table: losses of calibration problems under thresholds from the safest on."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor

from haltwise._core.arrays import real_numbers, require_unmasked
from haltwise._core.errors import InputError, refusing_others, require
from haltwise._core.settings import real_number

__all__ = ["RiskTable", "label_codes"]


@final
@dataclass(frozen=True, eq=False)
class RiskTable:
    """Losses of n problems under C thresholds, and what a bolder threshold saves.

    Columns go from the safest threshold to the boldest, in an order that does not depend on these
    problems. Make one with `RiskTable.of`.
    """

    losses: Tensor
    """Of each problem under each threshold, at most `bound`; float64 [n, C]. Below 0 is a gain."""
    savings: Tensor
    """What each problem saves under each threshold, in any unit; float64 [n, C]."""
    groups: Tensor | None
    """The group of each problem, int64 [n]."""
    subjects: Tensor
    """The problems that the risk is about, for instance those that would succeed; bool [n]."""
    risk: str
    """The mean of the losses in words."""
    bound: float
    """The largest loss a single problem can have."""
    is_indicator: bool
    """Whether a loss is 0 or 1 by definition, not only in these problems."""
    num_clipped: int
    """Problems whose loss exceeds the bound under some threshold and counts as the bound."""

    @classmethod
    def of(
        cls,
        losses: Any,
        savings: Any = None,
        *,
        groups: Sequence[Any] | Tensor | None = None,
        subjects: Any = None,
        risk: str = "mean loss",
        bound: float = 1.0,
        clip: bool = False,
        is_indicator: bool | None = None,
    ) -> Self:
        """A table of arrays or tensors.

        Args:
            losses: Shape [n, C]; booleans are an indicator.
            savings: Shape [n, C]; zero if None.
            groups: Labels of any kind, [n].
            subjects: Bool [n]; all problems if None.
            risk: In words, for messages and certificates.
            bound: The largest loss a single problem can have.
            clip: Whether larger losses, and those that are not a number, count as the bound. The
                certificate is one of the clipped losses then, and says so.
            is_indicator: Whether a loss is 0 or 1 by definition; whether it is boolean if None.

        Raises:
            InputError: Shapes do not fit, or a loss is above the bound.

        Examples:
            >>> table = RiskTable.of([[0, 0.2], [0, 0.4]], [[1, 2], [1, 3]], groups=["a", "b"])
            >>> table.num_problems, table.num_thresholds, table.num_groups
            (2, 2, 2)
        """
        values = torch.tensor(real_numbers(losses, "losses"), device="cpu")
        require(
            values.ndim == 2 and values.numel() > 0,
            f"losses must be a matrix [n, C] of n problems under C thresholds, got shape "
            f"{list(values.shape)}",
        )
        num = len(values)
        about = torch.as_tensor([True] * num if subjects is None else subjects, device="cpu")
        given = torch.zeros_like(values) if savings is None else savings
        saved = torch.tensor(real_numbers(given, "savings"), device="cpu")
        require(
            saved.shape == values.shape and bool(saved.isfinite().all()),
            f"savings must be finite and have the shape of losses {list(values.shape)}, got "
            f"{list(saved.shape)}",
        )
        require(about.shape == (num,), f"subjects must have shape [{num}], got {list(about.shape)}")
        about = about.bool()
        require(bool(about.any()), "the risk is about none of the problems; record others")
        largest = real_number("bound", bound)
        require(0 < largest < float("inf"), f"bound must be above 0 and finite, got {largest:g}")
        values = torch.where(about.unsqueeze(1), values, 0)
        above = ~(values <= largest)  # true for NaN
        num_clipped = int(above.any(1).sum())
        require(
            clip or not num_clipped,
            f"the loss of {num_clipped} of {num} problems is above the bound of {largest:g} or not "
            "finite; give a larger bound, or clip=True (--clip) to certify the loss clipped there",
        )
        values = values.masked_fill(above, largest)
        require(bool(values.isfinite().all()), "a loss is minus infinity; leave out that problem")
        boolean = torch.as_tensor(losses, device="cpu").dtype == torch.bool
        indicator = boolean if is_indicator is None else is_indicator
        require(
            not indicator or (largest == 1 and bool(((values == 0) | (values == 1)).all())),
            "an indicator must be 0 or 1, and its bound 1",
        )
        codes = None if groups is None else label_codes(groups, num)
        return cls(values, saved, codes, about, risk, largest, indicator, num_clipped)

    @property
    def num_problems(self) -> int:
        """Problems that the risk is about."""
        return int(self.subjects.sum())

    @property
    def num_thresholds(self) -> int:
        """C."""
        return self.losses.shape[1]

    @property
    def num_groups(self) -> int:
        """Groups of which at least one problem is a subject; 0 where there are no groups."""
        return 0 if self.groups is None else len(self.groups[self.subjects].unique())

    @property
    def has_groups_of_one(self) -> bool:
        """Whether there are groups and each is a single problem, whatever the risk is about."""
        return self.groups is not None and len(self.groups.unique()) == len(self.groups)

    @property
    def num_in_largest_group(self) -> int:
        """Problems that the risk is about in the group that has most of them; 0 without groups."""
        if self.groups is None:
            return 0
        return int(self.groups[self.subjects].unique(return_counts=True)[1].max())

    def relative_losses(self) -> Tensor:
        """Losses of the subjects in units of the bound, at most 1; shape [num_problems, C]."""
        return self.losses[self.subjects] / self.bound

    def group_means(self) -> Tensor:
        """Mean of `relative_losses` in each group, shape [num_groups, C]."""
        assert self.groups is not None
        _, codes = self.groups[self.subjects].unique(return_inverse=True)
        sums = self.losses.new_zeros(self.num_groups, self.num_thresholds)
        return sums.index_add_(0, codes, self.relative_losses()).div_(codes.bincount().unsqueeze(1))


def label_codes(labels: Sequence[Any] | Tensor, num: int) -> Tensor:
    """Number the labels [num] of any kind in the order of their first appearance, int64."""
    require_unmasked(labels, "group", has_nan=True)
    found = np.asarray(labels.cpu() if isinstance(labels, Tensor) else labels)
    if found.shape != (num,):
        raise InputError(f"group must have one label a problem, [{num}], got {list(found.shape)}")
    require(
        found.dtype.kind != "f" or not np.isnan(found).any(),
        "group must have a label for each problem, but some are NaN; leave those problems out",
    )
    with refusing_others("the labels in group must be texts or numbers, all of one kind"):
        _, first, codes = np.unique(found, return_index=True, return_inverse=True)
    rank = np.empty_like(first)
    rank[first.argsort()] = np.arange(len(first))
    return torch.from_numpy(rank[codes])
