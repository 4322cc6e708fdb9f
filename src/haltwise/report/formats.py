"""Numbers and names as readers see them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from haltwise._core.percent import in_percent
from haltwise.evaluation import Interval

__all__ = [
    "MISSING",
    "Saving",
    "Spread",
    "as_given",
    "card_facts",
    "count",
    "counted",
    "facts",
    "in_groups",
    "interval",
    "intervals_note",
    "joined",
    "num",
    "percent",
    "percent_estimate",
    "plural",
    "rounded",
    "saving",
    "short",
    "slug",
    "spread",
]

_FOR_PROGRAMS = ("first_rounds", "ranges", "seen")  # on cards

MISSING = "–"
"""Stands where there is no number."""

_PLURALS = {
    **{
        unit: f"{unit}s"
        for unit in (
            "epoch", "step", "iteration", "round", "update", "gradient", "evaluation", "sample",
            "example", "token", "tree", "second", "minute", "hour", "day",
        )
    },
    "batch": "batches",
}  # fmt: skip
_SPACE = "\N{NARROW NO-BREAK SPACE}"
_DIRECTORY = re.compile(r"(?<![\w.~/\\-])(?:[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])+")


class Spread(NamedTuple):
    """A mean and a standard deviation."""

    mean: float
    sd: float


class Saving(NamedTuple):
    """The share of the cost that is saved, and that of the successes that is lost for it."""

    saved: float
    lost: float


def num(value: float) -> str:
    """Three significant digits: 0.0527, 11.2, 8,984, 2.1e-30."""
    size = abs(value)
    if not math.isfinite(value):
        return MISSING
    if size == 0:
        return "0"
    if size < 1e-4 or size >= 1e7:
        return _minus(f"{value:.1e}")
    return _minus(f"{value:,.0f}" if size >= 999.5 else f"{value:#.3g}".rstrip("."))


def as_given(value: float) -> str:
    """A setting, as it was given."""
    return _minus(f"{value:.6g}")


def count(value: float) -> str:
    """A whole number with its thousands parted."""
    return _minus(f"{value:,.0f}") if math.isfinite(value) else MISSING


def counted(number: float, noun: str) -> str:
    """A number of things: 1 run, 8,827 runs."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def plural(unit: str) -> str:
    """A unit of cost as it follows a number: a column called epoch counts epochs."""
    return _PLURALS.get(unit, unit)


def in_groups(runs: int, groups: int) -> str:
    """How many runs of how many groups; each may be one of its own."""
    return counted(runs, "run") + ("" if groups == runs else f" of {counted(groups, 'group')}")


def intervals_note(runs: int, groups: int) -> str:
    """How the intervals of a table came to be."""
    if groups == 1:
        return "All runs are of one group, so no interval tells how others would fare."
    left_out = "runs" if groups == runs else counted(groups, "group")
    return f"95 % intervals, {left_out} left out in turn."


def percent(value: float) -> str:
    """A share: 86 %."""
    return f"{_hundredths(value)}{_SPACE}%" if math.isfinite(value) else MISSING


def percent_estimate(value: Interval) -> str:
    """A share with its interval: 86 % [81, 90]."""
    if not _has_width(value):
        return percent(value.value)
    return f"{percent(value.value)} [{_hundredths(value.low)}, {_hundredths(value.high)}]"


def interval(value: Interval) -> str:
    """An estimate with its interval: 0.860 [0.812, 0.901]."""
    if not _has_width(value):
        return num(value.value)
    return f"{num(value.value)} [{num(value.low)}, {num(value.high)}]"


def _has_width(value: Interval) -> bool:
    """Whether there is an interval: none of no width, which would claim to know all."""
    return math.isfinite(value.low + value.high) and value.low < value.high


def spread(value: Spread) -> str:
    """A mean with its standard deviation: 8.10 ± 3.50."""
    return f"{num(value.mean)} ± {num(value.sd)}"


def saving(value: Saving) -> str:
    """What is saved and lost: 23 % / 0.9 %."""
    return f"{percent(value.saved)} / {percent(value.lost)}"


def joined(words: Sequence[str]) -> str:
    """Words in a sentence: a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def rounded(value: float) -> float | None:
    """Six digits, enough for a drawing; None if not finite, which JSON does not know."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def short(text: str) -> str:
    """Text with only the last part of every absolute path in it."""
    return _DIRECTORY.sub("", text)


def slug(name: str) -> str:
    """A name as part of a file name: letters, digits, dots and hyphens."""
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:80] or "data"


def facts(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of names and values."""
    lines = []
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            lines += facts(value, f"{name}.")
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        lines.append((name, ", ".join(map(_fact, values)) or MISSING))
    return lines


def card_facts(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a card says, as a JSON object, in lines; but for what only programs read."""
    return facts({name: value for name, value in document.items() if name not in _FOR_PROGRAMS})


def _fact(value: Any) -> str:
    if value is None:
        return MISSING
    return as_given(value) if isinstance(value, float) else short(str(value))


def _hundredths(value: float) -> str:
    """Percentage points."""
    return _minus(in_percent(value).removesuffix(" %")) if math.isfinite(value) else MISSING


def _minus(text: str) -> str:
    return text.replace("-", "\N{MINUS SIGN}")
