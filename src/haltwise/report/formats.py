"""Numbers as readers see them, and as CSV files hold them."""

import math
from collections.abc import Sequence
from typing import NamedTuple, final

from haltwise.evaluation import Interval

__all__ = [
    "MISSING",
    "Cell",
    "Share",
    "Spread",
    "between",
    "columns_of",
    "joined",
    "num",
    "percent",
    "plain",
    "raw",
    "text",
]

MISSING = "–"
"""Stands where there is no number."""

_SPACE = "\N{NARROW NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


@final
class Spread(NamedTuple):
    """A mean and a standard deviation."""

    mean: float
    sd: float


@final
class Share(NamedTuple):
    """A share, shown in per cent."""

    value: float


Cell = str | int | float | None | Interval | Spread | Share
"""What a table holds."""


def text(cell: Cell) -> str:
    """A cell as it is read."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Interval):
        return f"{num(cell.value)} {between(cell)}" if math.isfinite(cell.value) else MISSING
    if isinstance(cell, Spread):
        return f"{num(cell.mean)} ± {num(cell.sd)}" if math.isfinite(cell.mean) else MISSING
    if isinstance(cell, Share):
        return percent(cell.value)
    return f"{cell:,}" if isinstance(cell, int) else num(cell)


def raw(cell: Cell) -> list[str | float | None]:
    """The unrounded numbers of a cell."""
    if isinstance(cell, Interval):
        return [cell.value, cell.low, cell.high]
    return list(cell) if isinstance(cell, (Spread, Share)) else [cell]


def columns_of(name: str, cells: Sequence[Cell]) -> list[str]:
    """The headings of the numbers of a column of cells of one kind."""
    for cell in cells:
        if isinstance(cell, Interval):
            return [name, f"{name}, low", f"{name}, high"]
        if isinstance(cell, Spread):
            return [name, f"{name}, sd"]
    return [name]


def num(value: float | None) -> str:
    """Three significant digits: 0.0527, 11.2, 8,984, 2.1e-30."""
    if value is None or not math.isfinite(value):
        return MISSING
    size = abs(value)
    if size >= 999.5 and size < 1e7:
        shown = f"{value:,.0f}"
    elif size == 0:
        shown = "0"
    elif size < 1e-4 or size >= 1e7:
        shown = f"{value:.1e}"
    else:
        shown = f"{value:#.3g}".rstrip(".")
    return shown.replace("-", _MINUS)


def plain(value: float) -> str:
    """A setting, as it was given."""
    return f"{value:.6g}".replace("-", _MINUS)


def percent(value: float) -> str:
    """A share: 86 %, with a decimal where rounding would claim none or all."""
    if not math.isfinite(value):
        return MISSING
    points = 100 * value
    near = 0 < abs(points) < 0.995 or 99 < abs(points) < 100
    shown = f"{points:.1f}" if near else f"{points:.0f}"
    return ("0" if float(shown) == 0 else shown).replace("-", _MINUS) + f"{_SPACE}%"


def between(interval: Interval, *, share: bool = False) -> str:
    """The ends of an interval: [0.81, 0.90], or 81 % to 90 %."""
    if share:
        return f"{percent(interval.low)} to {percent(interval.high)}"
    return f"[{num(interval.low)}, {num(interval.high)}]"


def joined(words: Sequence[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
