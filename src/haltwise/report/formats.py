"""Numbers as readers see them."""

from haltwise.report.reading import Range

__all__ = [
    "MISSING",
    "count",
    "interval",
    "joined",
    "num",
    "percent",
    "percent_range",
    "plain",
    "spread",
]

MISSING = "–"
"""Stands where a record has no number."""

_SPACE = "\N{NARROW NO-BREAK SPACE}"
_MINUS = "\N{MINUS SIGN}"


def num(value: float | None) -> str:
    """Three significant digits: 0.0527, 11.2, 8,984, 2.1e-30."""
    if value is None:
        return MISSING
    size = abs(value)
    if size >= 999.5 and size < 1e7:
        text = f"{value:,.0f}"
    elif size == 0:
        text = "0"
    elif size < 1e-4 or size >= 1e7:
        text = f"{value:.1e}"
    else:
        text = f"{value:#.3g}".rstrip(".")
    return text.replace("-", _MINUS)


def plain(value: float | None) -> str:
    """A setting, as it was given."""
    return MISSING if value is None else f"{value:.6g}".replace("-", _MINUS)


def count(value: float | None) -> str:
    """A whole number with its thousands parted."""
    return MISSING if value is None else f"{value:,.0f}".replace("-", _MINUS)


def _hundredths(value: float) -> str:
    """Percentage points, with a decimal where rounding would claim none or all."""
    points = 100 * value
    near = 0 < abs(points) < 0.995 or 99 < abs(points) < 100
    text = f"{points:.1f}" if near else f"{points:.0f}"
    return ("0" if float(text) == 0 else text).replace("-", _MINUS)


def percent(value: float | None) -> str:
    """A share: 86 %."""
    return MISSING if value is None else f"{_hundredths(value)}{_SPACE}%"


def percent_range(value: Range) -> str:
    """The ends of an interval of shares."""
    return f"{_hundredths(value.low)} to {_hundredths(value.high)}{_SPACE}%"


def interval(value: Range | None) -> str:
    """An estimate with its interval: 0.86 [0.81, 0.90]."""
    if value is None:
        return ""
    parts = [f"{part:.2f}".replace("-", _MINUS) for part in value]
    return f"{parts[0]} [{parts[1]}, {parts[2]}]"


def spread(mean: float | None, sd: float | None) -> str:
    """Mean and standard deviation: 17.5 ± 8.4."""
    if mean is None:
        return MISSING
    return f"{mean:.1f}" if sd is None else f"{mean:.1f} ± {sd:.1f}"


def joined(words: list[str]) -> str:
    """a, b and c."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
