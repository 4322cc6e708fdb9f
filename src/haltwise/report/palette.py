"""One colour and one name per stop rule and optimizer, the same on every page.

The colours are those of Okabe and Ito (2008), distinct to colour-blind readers. `INK` stands for
the page's colour of text; on white the page darkens the yellow, on black it lightens the blue.
"""

from typing import NamedTuple

from haltwise.report.formats import short

__all__ = [
    "BLUE",
    "GREY",
    "INK",
    "VERMILION",
    "Line",
    "optimizer_line",
    "rule_colour",
    "rule_name",
]

INK = "#010101"

BLUE, _SKY, _ORANGE, VERMILION, _GREEN, _PINK, _YELLOW, GREY = (
    "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#8C8C8C",
)  # fmt: skip

_RULES = {
    "learned": ("learned rule", BLUE),
    "given": ("these stops", BLUE),
    "calibrated": ("learned rule, recalibrated", _SKY),
    "after_gradient": ("learned rule, after the gradient", _YELLOW),
    "gradient_norm": ("gradient norm", _ORANGE),
    "plateau": ("plateau", _PINK),
    "patience": ("patience", _GREEN),
    "logistic": ("logistic", VERMILION),
    "logistic_signals": ("logistic, all signals", VERMILION),
    "boosted_trees": ("boosted trees, all signals", _ORANGE),
    "value_trees": ("value trees, all signals", _GREEN),
    "fixed_tuned": ("fixed budget, tuned", GREY),
    "fixed": ("best fixed budget (hindsight)", GREY),
    "these-stops": ("these stops", BLUE),
    "best-causal": ("best causal rule", INK),
    "oracle": ("oracle (hindsight)", INK),
}


class Line(NamedTuple):
    """How a curve is drawn."""

    colour: str
    dash: str
    width: float


_OPTIMIZERS = {
    "sgd": Line(_ORANGE, "solid", 1.6),
    "nesterov": Line(VERMILION, "dash", 1.6),
    "rmsprop": Line(_PINK, "dashdot", 1.6),
    "adam": Line(_GREEN, "longdash", 1.6),
}
_DASHES = ("solid", "dash", "dashdot")


def rule_name(rule: str) -> str:
    """What a stop rule is called in tables and legends."""
    return _RULES[rule][0] if rule in _RULES else short(rule).replace("_", " ")


def rule_colour(rule: str) -> str:
    """The colour of a stop rule."""
    return _RULES[rule][1] if rule in _RULES else _YELLOW


def optimizer_line(name: str, place: int) -> Line:
    """The line of an optimizer, the one evaluated at place 0."""
    if place == 0:
        return Line(BLUE, "solid", 3)
    return _OPTIMIZERS.get(name) or Line((_SKY, GREY, INK)[place % 3], _DASHES[place % 3], 2)
