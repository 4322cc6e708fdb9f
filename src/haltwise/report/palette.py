"""One colour and one name per rule and optimizer, the same on the whole page.

The colours are those of Okabe and Ito (2008), distinct to colour-blind readers. `INK` and
`SURFACE` stand for the page's colours of text and ground; on white the page darkens the yellow,
on black it lightens the blue.
"""

from typing import NamedTuple

__all__ = [
    "ACCOUNTS",
    "GREY",
    "INK",
    "SURFACE",
    "TUNED",
    "Style",
    "label",
    "optimizer_style",
    "rule_colour",
]

INK, SURFACE = "#010101", "#020202"

ACCOUNTS = ("gradients", "updates")
"""The headline account first: users pay for gradients."""

TUNED = ("gradient_norm", "plateau", "patience", "logistic")
"""Opponents tuned on separate problems."""

_BLUE, _SKY, _ORANGE, _VERMILION, _GREEN, _PINK, _YELLOW, GREY = (
    "#0072B2", "#56B4E9", "#E69F00", "#D55E00", "#009E73", "#CC79A7", "#F0E442", "#8C8C8C",
)  # fmt: skip

_RULES = {
    "rule": ("learned rule", _BLUE),
    "rule_after_gradient": ("learned rule, after gradient", _SKY),
    "rule_calibrated": ("learned rule, recalibrated", _SKY),
    "posterior_mode": ("posterior mode (thesis)", _YELLOW),
    "gradient_norm": ("gradient norm", _ORANGE),
    "plateau": ("plateau", _PINK),
    "patience": ("patience", _GREEN),
    "logistic": ("logistic", _VERMILION),
    "fixed": ("best fixed budget", GREY),
    "oracle": ("oracle (hindsight)", INK),
}


class Style(NamedTuple):
    """How a curve is drawn."""

    colour: str
    dash: str
    width: float


_OPTIMIZERS = {
    "sgd": Style(_ORANGE, "solid", 1.6),
    "nesterov": Style(_VERMILION, "dash", 1.6),
    "rmsprop": Style(_PINK, "dashdot", 1.6),
    "adam": Style(_GREEN, "longdash", 1.6),
}


def label(rule: str) -> str:
    """What a rule is called in tables and legends."""
    return _RULES[rule][0] if rule in _RULES else rule.replace("_", " ")


def rule_colour(rule: str) -> str:
    """The colour of a rule."""
    return _RULES[rule][1] if rule in _RULES else GREY


def optimizer_style(name: str, contender: str, position: int) -> Style:
    """The line of an optimizer; `position` tells further learned ones apart."""
    if name == contender:
        return Style(_BLUE, "solid", 3)
    if name in _OPTIMIZERS:
        return _OPTIMIZERS[name]
    return Style((_SKY, GREY, INK)[position % 3], ("solid", "dash", "dashdot")[position % 3], 2)
