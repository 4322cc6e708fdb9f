"""One colour and one name per stop rule and optimizer, the same on every page.

The colours are those of Okabe and Ito (2008), distinct to colour-blind readers. The style sheet has
them, darker or lighter where the ground asks for it; `INK` is the colour of text.
"""

from typing import NamedTuple

from haltwise.report.formats import short

__all__ = [
    "BLUE",
    "GREEN",
    "GREY",
    "INK",
    "VERMILION",
    "Line",
    "optimizer_line",
    "rule_colour",
    "rule_name",
]

INK = "var(--ink)"

BLUE, _SKY, _ORANGE, VERMILION, GREEN, _PINK, _YELLOW, GREY = (
    f"var(--{name})"
    for name in ("blue", "sky", "orange", "vermilion", "green", "pink", "yellow", "grey")
)

_RULES = {
    "learned": ("learned rule", BLUE),
    "given": ("these stops", BLUE),
    "calibrated": ("learned rule, recalibrated", _SKY),
    "after_gradient": ("learned rule, after the gradient", _YELLOW),
    "gradient_norm": ("gradient norm", _ORANGE),
    "plateau": ("plateau", _PINK),
    "patience": ("patience", GREEN),
    "logistic": ("logistic", VERMILION),
    "logistic_signals": ("logistic, all signals", VERMILION),
    "boosted_trees": ("boosted trees, all signals", _ORANGE),
    "value_trees": ("value trees, all signals", GREEN),
    "last_improvement": ("last improvement below the price", _PINK),
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
    "adam": Line(GREEN, "longdash", 1.6),
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
