"""What a figure shows, as values: `drawing.js` draws it and tells the values."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Literal, final

from haltwise.report.formats import rounded

__all__ = ["Axis", "Drawing", "Panel", "Rule", "Series"]

Numbers = Sequence[float | None]


@final
@dataclass(frozen=True)
class Axis:
    """A direction of a figure."""

    title: str
    log: bool = False
    percent: bool = False
    """Whether its values are shares."""
    range: tuple[float, float] | None = None
    """Its ends; those of the values if None."""
    categories: Sequence[str] | None = None
    """What its places are called, if they are no numbers; from the left, from below."""


@final
@dataclass(frozen=True)
class Series:
    """Values that are drawn and named as one."""

    name: str
    x: Numbers
    y: Sequence[float | str | None]
    colour: str
    kind: Literal["line", "points", "bars", "band"] = "line"
    dash: str = "solid"
    width: float = 2
    size: float = 0
    """Of a mark at each value, in pixels; 0 for none."""
    symbol: str = "circle"
    low: Numbers | None = None
    """Lower ends of intervals at each value, or of a band."""
    high: Numbers | None = None
    opacity: Sequence[float] | None = None
    """Of each bar."""
    text: Sequence[str] | None = None
    """What is told of each value, instead of the value itself."""
    legend: bool = True
    tell: bool = True
    """Whether its values are told."""


@final
@dataclass(frozen=True)
class Rule:
    """A straight line across a panel, at one x or at one y."""

    colour: str
    x: float | None = None
    y: float | None = None
    dash: str = "solid"
    width: float = 1.6


@final
@dataclass(frozen=True)
class Panel:
    """Series on common axes."""

    x: Axis
    y: Axis
    series: Sequence[Series]
    lines: Sequence[Rule] = ()


@final
@dataclass(frozen=True)
class Drawing:
    """Panels one above the other, with one x for all."""

    panels: Sequence[Panel]
    hover: Literal["x", "point"] = "x"
    """Whether all values at one x are told together, or each alone."""

    def embedded(self) -> dict[str, Any]:
        """JSON values; numbers have six digits, and None where they are not finite."""
        found: dict[str, Any] = _plain(self)
        return found


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        found = {each.name: getattr(value, each.name) for each in fields(value)}
        return {name: _plain(each) for name, each in found.items() if each is not None}
    if isinstance(value, float):
        return rounded(value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(each) for each in value]
    return value
