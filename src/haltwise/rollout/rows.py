"""Rows of B items and one that is nobody's, so that what is not to be written has a place, too.

To write the rows of those items of which a mask says so would take an index as long as the mask has
entries that are set; a device then has to tell the host how many. Instead all are written, those
that are not meant into the last row, which nobody reads.
"""

import torch
from torch import Tensor

from haltwise._core.tensors import select_state

__all__ = ["Rows", "gather_rows", "scatter_rows"]

Rows = dict[str, Tensor]
"""Tensors of B + 1 rows; the last is nobody's."""


def gather_rows(rows: Rows, items: Tensor) -> Rows:
    """Copy the rows of `items` (int64 [M], B for none) and the one that is nobody's."""
    index = torch.cat((items, items.new_full((1,), len(next(iter(rows.values()))) - 1)))
    return select_state(rows, index)


def scatter_rows(rows: Rows, items: Tensor, part: Rows) -> None:
    """Put back what `gather_rows` took."""
    for name, value in rows.items():
        value.index_copy_(0, items, part[name][:-1])
