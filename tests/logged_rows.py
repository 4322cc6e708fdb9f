"""Logs whose rows of training and of validation stand apart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from haltwise.curves.curves import Curve, Curves, Floats


def with_rows_of_training(
    losses: Floats, group: Sequence[str], **settings: Any
) -> tuple[Curves, Curves]:
    """Runs with two rows of training before each row of a validation, and the latter alone.

    Args:
        losses: Of validations, shape [n, T].
        group: Of each run.
        **settings: Those of `Curves.from_runs`.

    Returns:
        The runs with all rows, the loss in one of three and that of training in the others; and
        with the validations alone, each with the training loss that was known by then.
    """
    num, every = len(losses), np.arange(3 * losses.shape[1])
    is_validation = every % 3 == 2
    repeated = np.repeat(losses, 3, 1)
    train = repeated - 0.1 + 0.01 * np.random.default_rng(0).standard_normal(repeated.shape)
    steps = (every + 1) / 3
    rows = [
        {
            "step": steps,
            "loss": np.where(is_validation, repeated[i], np.nan),
            "train_loss": np.where(is_validation, np.nan, train[i]),
        }
        for i in range(num)
    ]
    alone = [
        {"step": steps[2::3], "loss": losses[i], "train_loss": train[i, 1::3]} for i in range(num)
    ]
    settings |= {"metric": "loss", "cost": "step", "group": group}
    return Curves.from_runs(rows, **settings), Curves.from_runs(alone, **settings)


def write_log(curve: Curve, path: Path) -> None:
    """Write a run as a table in which what was not measured is empty."""
    columns = {"step": curve.cost, **curve.columns}
    rows = zip(*columns.values(), strict=True)
    lines = [",".join("" if np.isnan(x) else repr(float(x)) for x in row) for row in rows]
    path.write_text("\n".join([",".join(columns), *lines, ""]))
