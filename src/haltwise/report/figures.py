"""Records as figures."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haltwise.bench.domain import Question
from haltwise.bench.records import BenchRecord, captured, failed_share, saved
from haltwise.evaluation import EvaluationRecord, StoppingRecord
from haltwise.report.drawing import Axis, Drawing, Panel, Series
from haltwise.report.formats import count, num, percent, short
from haltwise.report.page import Figure
from haltwise.report.palette import (
    BLUE,
    GREEN,
    GREY,
    INK,
    VERMILION,
    Line,
    optimizer_line,
    rule_colour,
    rule_name,
)

__all__ = [
    "frontier",
    "loss_curves",
    "reliability",
    "rule_strip",
    "stop_steps",
    "training",
]


def frontier(record: StoppingRecord, stem: str) -> Figure:
    """Mean excess against mean cost: budgets, the judged rule's settings, and every rule."""
    budgets, own, unit = record.frontier, record.stops, record.unit.value
    hull = [budgets.mean_excess[t] for t in budgets.hull]
    series = [
        _line("fixed budgets", budgets.mean_excess, Line(GREY, "dot", 1.5)),
        _line("budgets mixed at random", hull, Line(GREY, "solid", 2), budgets.hull),
    ]
    name = rule_name(record.judged)
    if budgets.settings:
        costs, settings = zip(*budgets.settings, strict=True)
        style = Line(BLUE, "solid", 2.5)
        series.append(_line(f"{name}, other settings", settings, style, costs, size=5))
    # Rules that read all signals share the colours of others.
    symbols = dict.fromkeys(("logistic_signals", "boosted_trees", "value_trees"), "triangle-up")
    symbols |= {"oracle": "star", "fixed": "square", record.judged: "diamond"}
    for rule in sorted(record.rules, key=lambda rule: rule == record.judged):  # that one on top
        stops = record.rules[rule]
        symbol = symbols.get(rule, "circle")
        series.append(
            Series(
                rule_name(rule), [stops.mean_cost], [stops.mean_excess], rule_colour(rule),
                "points", size=10 if symbol in ("circle", "triangle-up") else 14, symbol=symbol,
            )
        )  # fmt: skip
    drawn = [budgets.mean_excess, [stops.mean_excess for stops in record.rules.values()]]
    what = record.excess_name
    y = Axis(f"mean {what}", log=_is_log(*drawn))
    theirs = float(np.interp(own.mean_cost, budgets.hull, hull))
    is_below = own.mean_excess < theirs and not math.isclose(own.mean_excess, theirs)
    side = "below" if is_below else "not below"
    note = "Lower and further left is better. The diamond is the policy judged"
    note += ", as it ships; its other settings return what it returns." if budgets.settings else "."
    return Figure(
        f"{stem}-frontier",
        f"For {num(own.mean_cost)} {unit} on average the stops leave a mean {what} of "
        f"{num(own.mean_excess)}, {side} the {num(theirs)} of fixed budgets mixed at random",
        note,
        Drawing([Panel(Axis(f"mean cost, {unit}"), y, series)], hover="point"),
    )


def stop_steps(record: StoppingRecord, costs: Mapping[str, Tensor], stem: str) -> Figure:
    """How many items end at each of the costs, int64 [n], of the judged rule and the oracle."""
    unit = record.unit.value
    series = []
    for rule, steps in costs.items():
        shares = torch.bincount(steps.long(), minlength=record.num_steps + 1) / len(steps)
        places = list(range(len(shares)))
        series.append(Series(rule_name(rule), places, shares.tolist(), rule_colour(rule), "bars"))
    axes = Axis(f"cost, {unit}"), Axis("share of the problems", percent=True)
    own, oracle = record.stops, record.rules["oracle"]
    return Figure(
        f"{stem}-stops",
        f"Stops vary by {num(own.sd_cost)} {unit} around {num(own.mean_cost)}, the oracle’s by "
        f"{num(oracle.sd_cost)} around {num(oracle.mean_cost)}; rank correlation "
        f"{num(own.rank_correlation)}",
        "Stops that do not vary are a fixed budget in disguise. The oracle sees every problem’s "
        "future.",
        Drawing([Panel(*axes, series)]),
        half=True,
    )


def reliability(record: StoppingRecord, stem: str) -> Figure | None:
    """How often the oracle stops where the hazard is so high; None without hazards."""
    found = record.reliability
    if found is None:
        return None
    x = Axis("hazard: probability of stopping now", percent=True, range=(0, 1))
    y = Axis("share at which the oracle stops", percent=True, range=(-0.02, 1.02))
    bins = found.bins
    series = [
        _line("perfect", [0, 1], Line(GREY, "dot", 1.5), tell=False),
        Series(
            "hazards", [each.mean_hazard for each in bins], [each.frequency.value for each in bins],
            BLUE, size=6, low=[each.frequency.low for each in bins],
            high=[each.frequency.high for each in bins],
            text=[
                f"{percent(each.frequency.value)} where the hazard is {percent(each.mean_hazard)}, "
                f"{count(each.num_cases)} steps"
                for each in bins
            ],
        ),
    ]  # fmt: skip
    return Figure(
        f"{stem}-reliability",
        f"Hazards are off by {num(found.error)} on average: their mean is "
        f"{percent(found.mean_hazard)}, and the oracle stops at {percent(found.frequency)} of the "
        "steps it reaches",
        f"{count(found.num_cases)} steps that the oracle reaches, by hazard in tenths; bars are "
        "95 % intervals.",
        Drawing([Panel(x, y, series)], hover="point"),
        half=True,
    )


def loss_curves(record: EvaluationRecord, stem: str) -> Figure:
    """Mean excess of every optimizer if nothing stops it."""
    means = {short(name): curve.mean for name, curve in record.curves.items()}
    own, *_ = means
    series = []
    for place, (name, curve) in enumerate(record.curves.items()):
        style = optimizer_line(name, place)
        if place == 0 and min(curve.low) > 0:
            x = list(range(len(curve.mean)))
            series.append(
                Series(
                    own, x, curve.mean, style.colour, "band", low=curve.low, high=curve.high,
                    legend=False, tell=False,
                )
            )  # fmt: skip
        series.append(_line(short(name), curve.mean, style))
    note = f"Nothing is stopped; the band holds 90 % of the problems of {own}."
    y = Axis("mean excess loss", log=_is_log(*means.values()))
    if y.log:
        # L-BFGS reaches 1e-30 on quadratics, diverging curves 1e30: both would flatten the rest.
        known = [value for curve in means.values() for value in curve if math.isfinite(value)]
        top = min(max(known), 10 * max(means[own]))
        y = replace(y, range=(min(known) / 3, 1.5 * top))
        note += " A curve may leave the figure."
    if record.lbfgs:
        means["L-BFGS"] = record.lbfgs
        series.append(_line("L-BFGS", record.lbfgs, Line(INK, "dot", 2)))
        note += (
            f" L-BFGS is counted in the gradients of its line search, on {record.num_lbfgs} of the "
            "problems in double precision."
        )
    last = {name: curve[-1] for name, curve in means.items() if math.isfinite(curve[-1])}
    best = min(last, key=lambda each: last[each], default=own)
    title = f"After {record.horizon} steps the mean excess of {own} is {num(means[own][-1])}"
    if best == own:
        title += f", the lowest of {len(means)} optimizers"
    else:
        title += f"; the lowest of {len(means)} optimizers is {num(last[best])}, by {best}"
    return Figure(f"{stem}-losses", title, note, Drawing([Panel(Axis("steps"), y, series)]))


_LOGGED = (
    ("loss", "objective", BLUE),
    ("price_adjusted_loss", "J, validation", VERMILION),
    ("mean_halting_step", "mean stop", GREEN),
)


def training(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The objective, J and the mean stop in training; None if fewer than two entries are logged."""
    entries = [entry for entry in log if isinstance(entry.get("step"), int)]
    series = {
        title: ([_number(entry.get(key)) for entry in entries], colour)
        for key, title, colour in _LOGGED
    }
    series = {title: each for title, each in series.items() if any(map(math.isfinite, each[0]))}
    if len(entries) < 2 or not series:
        return None
    steps = [entry["step"] for entry in entries]
    panels = [
        Panel(
            Axis("meta-steps"),
            Axis(title, log=title != _LOGGED[-1][1] and _is_log(values)),
            [_line(title, values, Line(colour, "solid", 2), steps, size=5)],
        )
        for title, (values, colour) in series.items()
    ]
    title = f"Training took {count(steps[-1])} meta-steps"
    judged = [value for value in series.get(_LOGGED[1][1], ([], ""))[0] if math.isfinite(value)]
    if judged:
        title += f"; J on validation problems went from {num(judged[0])} to {num(judged[-1])}"
        title += f", its lowest was {num(min(judged))}" if min(judged) < judged[-1] else ""
    note = "The objective has units of its own, which differ between the phases of training."
    return Figure("training", title, note, Drawing(panels))


def rule_strip(record: BenchRecord, question: Question, judged: str) -> Figure:
    """Every rule in every case of a bench as a mark, the judged one a diamond."""
    stops = question is Question.STOP
    x = Axis(
        "captured gain, mean over prices" if stops else "share of the cost saved", percent=True
    )
    cases, floor = record.of(question), -0.5
    domains = [case.domain for case in cases.values()]
    series = []
    for rule in sorted(record.rules(question), key=lambda rule: rule == judged):  # that on top
        found = {
            case.domain: fmean(
                (captured if stops else saved)(case, cell, key).value
                for key in (case.keys if stops else case.keys[-1:])
            )
            for name, case in cases.items()
            if (cell := record.cell(name, rule)) is not None
        }
        text = [f"{percent(value)} on {domain}" for domain, value in found.items()]
        own = rule == judged
        series.append(
            Series(
                rule_name(rule), [max(value, floor) for value in found.values()], list(found),
                BLUE if own else GREY, "points", size=13 if own else 8,
                symbol="diamond" if own else "ring", text=text, legend=own,
            )
        )  # fmt: skip
    best = [1.0 if stops else failed_share(case) for case in cases.values()]
    series.append(Series("oracle", best, domains, INK, "points", size=12, symbol="star"))
    ends = (
        "0 is the best equal budget in hindsight, 100 % the oracle, and gains below −50 % lie there"
    )
    kept = "where no more successes than allowed are lost; see the tables"
    return Figure(
        f"bench-strip-{question}",
        f"{'Stopping early' if stops else 'Giving up'}: every rule on every domain, the diamond is "
        f"{rule_name(judged)}",
        f"Further right is better{f': {ends}' if stops else f' {kept}'}.",
        Drawing([Panel(x, Axis("", categories=domains[::-1]), series)], hover="point"),
    )


def _is_log(*series: Sequence[float]) -> bool:
    """Whether values fit a logarithmic axis: all that is finite is positive."""
    known = [value for values in series for value in values if math.isfinite(value)]
    return bool(known) and min(known) > 0


def _line(
    name: str, y: Sequence[float], line: Line, x: Sequence[float] | None = None, **more: Any
) -> Series:
    places = list(range(len(y))) if x is None else x
    return Series(name, places, y, line.colour, dash=line.dash, width=line.width, **more)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
