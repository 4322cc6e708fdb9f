"""One colour and one name per rule and optimizer, the same on the whole page.

The colours are those of Okabe and Ito (2008), distinct to colour-blind readers. `INK` and
`SURFACE` stand for the page's colours of text and ground; on white the page darkens the yellow,
on black it lightens the blue.
"""

from typing import NamedTuple

__all__ = ["BLUE", "GREEN", "GREY", "INK", "VERMILION", "Style", "colour", "label", "style"]

INK = "#010101"
BLUE, SKY, ORANGE, VERMILION, GREEN, PINK, YELLOW, GREY = (
    "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#8C8C8C",
)  # fmt: skip

_RULES = {
    "learned": ("learned rule", BLUE),
    "calibrated": ("learned rule, recalibrated", SKY),
    "after_gradient": ("learned rule, after gradient", SKY),
    "given": ("given stops", BLUE),
    "gradient_norm": ("gradient norm", ORANGE),
    "plateau": ("plateau", PINK),
    "patience": ("patience", GREEN),
    "logistic": ("logistic", VERMILION),
    "fixed_tuned": ("fixed budget, tuned", YELLOW),
    "fixed": ("best fixed budget (hindsight)", GREY),
    "oracle": ("oracle (hindsight)", INK),
}


class Style(NamedTuple):
    """How a curve is drawn."""

    colour: str
    dash: str
    width: float


_OPTIMIZERS = {
    "sgd": Style(ORANGE, "solid", 1.6),
    "nesterov": Style(VERMILION, "dash", 1.6),
    "rmsprop": Style(PINK, "dashdot", 1.6),
    "adam": Style(GREEN, "longdash", 1.6),
}


def label(rule: str) -> str:
    """The name of a rule in tables and legends."""
    return _RULES[rule][0] if rule in _RULES else rule.replace("_", " ")


def colour(rule: str) -> str:
    """The colour of a rule."""
    return _RULES[rule][1] if rule in _RULES else GREY


def style(optimizer: str, position: int) -> Style:
    """The line of an optimizer; `position` tells further learned ones apart, 0 is evaluated."""
    if optimizer in _OPTIMIZERS:
        return _OPTIMIZERS[optimizer]
    if position == 0:
        return Style(BLUE, "solid", 3)
    return Style((SKY, GREY, INK)[position % 3], ("solid", "dash", "dashdot")[position % 3], 2)
