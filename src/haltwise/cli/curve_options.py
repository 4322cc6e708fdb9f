"""Options of commands that read recorded runs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.progress import working
from haltwise.curves import Curves
from haltwise.curves.model import CurveModel
from haltwise.curves.raw import LearnedOn
from haltwise.curves.readers import settled
from haltwise.curves.rule import CurveRule
from haltwise.curves.shipped import PRETRAINED
from haltwise.curves.stop_model import StopModel

__all__ = ["curve_options", "given_options", "learned_on", "read_curves", "successes"]

_TEXTS: Mapping[str, str] = {
    "format": "Format of the file.  [default: recognised]",
    "run": "Column that tells runs apart.",
    "cost": "Column of what had been spent, such as seconds or steps.",
    "cost_unit": "What the cost is counted in, such as hours: where a learned rule was learned in "
    "it, its levels and prices hold as they are.  [default: the column's name]",
    "metric": "Column that is judged.",
    "group": "Column or label of the group of a run, such as a project: what is learned is tried "
    "on groups that it has not seen.",
    "task": "Column or label of what a run worked on: metrics of one task can be compared.",
    "target": "The metric that is a success: a number or a column.",
    "budget": "What a run may spend, in units of the cost: a number or a column.  [default: the "
    "most that a run of the same task spent]",
}


def curve_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options; the command is given them as one dictionary `reading`."""

    def command(**given: Any) -> Any:
        reading = {name: given.pop(name) for name in (*_TEXTS, "direction", "target_quantile")}
        return function(reading=reading, **given)

    command.__doc__ = function.__doc__
    vars(command)["__click_params__"] = vars(function).get("__click_params__", [])
    offered = [
        click.option(f"--{name.replace('_', '-')}", help=text) for name, text in _TEXTS.items()
    ]
    offered += [
        click.option(
            "--direction",
            type=click.Choice(["min", "max"]),
            help="Whether lower or higher is better.  [default: told by the metric's name]",
        ),
        click.option(
            "--target-quantile",
            type=float,
            help="Without targets: the share of a task's runs that shall fall short of success.",
        ),
    ]
    for option in reversed(offered):
        command = option(command)
    return command


def given_options(values: Mapping[str, Any]) -> list[str]:
    """The options among these values by name that were given: what is neither None nor False."""
    return [
        f"--{name.replace('_', '-')}"
        for name, value in values.items()
        if value is not None and value is not False
    ]


def successes(reading: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the options that say what a success is, by name."""
    return {name: reading[name] for name in ("target", "target_quantile")}


def learned_on(name: str, rule: CurveRule) -> LearnedOn | None:
    """What a model that the user has learned was learned on; None of any other rule."""
    if name == PRETRAINED or not isinstance(rule, CurveModel | StopModel):
        return None
    card = rule.card
    return LearnedOn(card.metric, "max" if card.direction == "max" else "min", card.cost_unit)


def read_curves(
    path: str, reading: Mapping[str, Any], data_dir: Path | None, like: LearnedOn | None = None
) -> Curves:
    """The runs of a file or folder, as the options say.

    Args:
        path: The file or folder.
        reading: The options.
        data_dir: Where a relative path may lie.
        like: What the model was learned on that reads them, which is meant where no option says
            otherwise.

    Raises:
        InputError: See `haltwise.curves.read`; or targets are given twice.
    """
    twice = given_options(successes(reading))
    require(len(twice) < 2, f"{' and '.join(twice)} both say what a success is; give one of them")
    settings = {name: value for name, value in reading.items() if name != "target_quantile"}
    for name in ("target", "budget"):
        settings[name] = _number(settings[name])
    with working("reading", Console(stderr=True)):
        curves = Curves.from_runs(**settled(path, data_dir=data_dir, like=like, **settings))
    curves = curves if settings["budget"] is None else curves.within_budgets()
    quantile = reading["target_quantile"]
    return curves if quantile is None else curves.targets_among_peers(quantile)


def _number(text: str | None) -> float | str | None:
    """A number where it is one, else the name of a column."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return text
