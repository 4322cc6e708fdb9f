"""Records as figures; names are escaped, since plotly reads legends and hover texts as HTML."""

import html
import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from haltwise._core.extras import extra
from haltwise.bench.domain import Question
from haltwise.bench.records import BenchRecord, captured, failed_share, saved
from haltwise.evaluation import EvaluationRecord, StoppingRecord
from haltwise.report.formats import count, num, percent, rounded, short
from haltwise.report.page import Figure
from haltwise.report.palette import (
    BLUE,
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
    "new_figure",
    "reliability",
    "rule_strip",
    "stop_steps",
    "training",
]


def frontier(record: StoppingRecord, stem: str) -> Figure:
    """Mean excess against mean cost: budgets, the judged rule's settings, and every rule."""
    budgets, own, unit = record.frontier, record.stops, record.unit.value
    figure = new_figure(f"mean cost, {unit}", "mean excess loss")
    _line(figure, "fixed budgets", budgets.mean_excess, Line(GREY, "dot", 1.5))
    hull = [budgets.mean_excess[t] for t in budgets.hull]
    _line(figure, "budgets mixed at random", hull, Line(GREY, "solid", 2), budgets.hull)
    name = rule_name(record.judged)
    if budgets.settings:
        costs, settings = zip(*budgets.settings, strict=True)
        _line(
            figure, f"{name}, other settings", settings, Line(BLUE, "solid", 2.5), costs,
            mode="lines+markers", marker={"size": 5},
        )  # fmt: skip
    # Rules that read all signals share the colours of others.
    symbols = dict.fromkeys(("logistic_signals", "boosted_trees", "value_trees"), "triangle-up")
    symbols |= {"oracle": "star", "fixed": "square", record.judged: "diamond"}
    order = sorted(record.rules, key=lambda rule: rule == record.judged)  # that one on top
    for rule in order:
        stops = record.rules[rule]
        symbol = symbols.get(rule, "circle")
        figure.add_scatter(
            x=[rounded(stops.mean_cost)], y=[rounded(stops.mean_excess)], mode="markers",
            name=html.escape(rule_name(rule)),
            marker={"color": rule_colour(rule), "symbol": symbol,
                    "size": 10 if symbol in ("circle", "triangle-up") else 14},
            hovertemplate="cost %{x:.4g}<br>excess %{y:.4g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(hovermode="closest")
    drawn = [budgets.mean_excess, [stops.mean_excess for stops in record.rules.values()]]
    _log(figure.update_yaxes, *drawn)
    theirs = float(np.interp(own.mean_cost, budgets.hull, hull))
    side = "below" if own.mean_excess < theirs else "not below"
    note = "Lower and further left is better. The diamond is the policy judged"
    note += ", as it ships; its other settings return what it returns." if budgets.settings else "."
    return Figure(
        f"{stem}-frontier",
        f"For {num(own.mean_cost)} {unit} on average the stops leave a mean excess of "
        f"{num(own.mean_excess)}, {side} the {num(theirs)} of fixed budgets mixed at random",
        note,
        figure,
    )


def stop_steps(record: StoppingRecord, costs: Mapping[str, Tensor], stem: str) -> Figure:
    """How many items end at each of the costs, int64 [n], of the judged rule and the oracle."""
    unit = record.unit.value
    figure = new_figure(f"cost, {unit}", "share of the problems")
    for rule, steps in costs.items():
        shares = torch.bincount(steps.long(), minlength=record.num_steps + 1) / len(steps)
        figure.add_bar(
            x=list(range(len(shares))), y=list(map(rounded, shares.tolist())),
            name=html.escape(rule_name(rule)), marker={"color": rule_colour(rule)},
            hovertemplate="%{y:.1%}",
        )  # fmt: skip
    figure.update_layout(barmode="group", bargap=0.15)
    figure.update_yaxes(tickformat=".0%")
    own, oracle = record.stops, record.rules["oracle"]
    return Figure(
        f"{stem}-stops",
        f"Stops vary by {num(own.sd_cost)} {unit} around {num(own.mean_cost)}, the oracle’s by "
        f"{num(oracle.sd_cost)} around {num(oracle.mean_cost)}; rank correlation "
        f"{num(own.rank_correlation)}",
        "Stops that do not vary are a fixed budget in disguise. The oracle sees every problem’s "
        "future.",
        figure,
        half=True,
    )


def reliability(record: StoppingRecord, stem: str) -> Figure | None:
    """How often the oracle stops where the hazard is so high; None without hazards."""
    found = record.reliability
    if found is None:
        return None
    figure = new_figure("hazard: probability of stopping now", "share at which the oracle stops")
    _line(figure, "perfect", [0, 1], Line(GREY, "dot", 1.5))
    figure.add_scatter(
        x=[rounded(each.mean_hazard) for each in found.bins],
        y=[rounded(each.frequency.value) for each in found.bins],
        error_y={
            "array": [_gap(each.frequency.high, each.frequency.value) for each in found.bins],
            "arrayminus": [_gap(each.frequency.value, each.frequency.low) for each in found.bins],
            "color": BLUE,
        },
        customdata=[each.num_cases for each in found.bins],
        mode="lines+markers", name="hazards", line={"color": BLUE, "width": 2},
        hovertemplate="hazard %{x:.3f}<br>oracle %{y:.3f}<br>%{customdata} cases<extra></extra>",
    )  # fmt: skip
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(range=[0, 1])
    figure.update_yaxes(range=[-0.02, 1.02])
    return Figure(
        f"{stem}-reliability",
        f"Hazards are off by {num(found.error)} on average: their mean is "
        f"{percent(found.mean_hazard)}, and the oracle stops at {percent(found.frequency)} of the "
        "steps it reaches",
        f"{count(found.num_cases)} steps that the oracle reaches, by hazard in tenths; bars are "
        "95 % intervals.",
        figure,
        half=True,
    )


def loss_curves(record: EvaluationRecord, stem: str) -> Figure:
    """Mean excess of every optimizer if nothing stops it."""
    figure = new_figure("steps", "mean excess loss")
    means = {short(name): curve.mean for name, curve in record.curves.items()}
    own, *_ = means
    for place, (name, curve) in enumerate(record.curves.items()):
        style = optimizer_line(name, place)
        if place == 0 and min(curve.low) > 0:
            _band(figure, own, curve.low, curve.high, style.colour)
        _line(figure, short(name), curve.mean, style)
    note = f"Nothing is stopped; the band holds 90 % of the problems of {own}."
    if _log(figure.update_yaxes, *means.values()):
        # L-BFGS reaches 1e-30 on quadratics, diverging curves 1e30: both would flatten the rest.
        known = [value for curve in means.values() for value in curve if math.isfinite(value)]
        top = min(max(known), 10 * max(means[own]))
        figure.update_yaxes(range=[math.log10(min(known)) - 0.5, math.log10(top) + 0.2])
        note += " A curve may leave the figure."
    if record.lbfgs:
        means["L-BFGS"] = record.lbfgs
        _line(figure, "L-BFGS", record.lbfgs, Line(INK, "dot", 2))
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
    return Figure(f"{stem}-losses", title, note, figure)


_LOGGED = (
    ("loss", "objective", BLUE),
    ("price_adjusted_loss", "J, validation", VERMILION),
    ("mean_halting_step", "mean stop", "#009E73"),
)


def training(log: Sequence[Mapping[str, Any]]) -> Figure | None:
    """The objective, J and the mean stop in training; None if fewer than two entries are logged."""
    with extra("report"):
        from plotly.subplots import make_subplots

    entries = [entry for entry in log if isinstance(entry.get("step"), int)]
    series = {
        title: ([_number(entry.get(key)) for entry in entries], colour)
        for key, title, colour in _LOGGED
    }
    series = {title: each for title, each in series.items() if any(map(math.isfinite, each[0]))}
    if len(entries) < 2 or not series:
        return None
    figure = make_subplots(rows=len(series), cols=1, shared_xaxes=True, vertical_spacing=0.07)
    _dress(figure)
    steps = [entry["step"] for entry in entries]
    for row, (title, (values, colour)) in enumerate(series.items(), 1):
        place = {"row": row, "col": 1}
        _line(figure, title, values, Line(colour, "solid", 2), steps, mode="lines+markers", **place)
        figure.update_yaxes(title_text=title, automargin=True, **place)
        if title != _LOGGED[-1][1]:
            _log(figure.update_yaxes, values, **place)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="meta-steps", automargin=True, row=len(series), col=1)
    title = f"Training took {count(steps[-1])} meta-steps"
    judged = [value for value in series.get(_LOGGED[1][1], ([], ""))[0] if math.isfinite(value)]
    if judged:
        title += f"; J on validation problems went from {num(judged[0])} to {num(judged[-1])}"
        title += f", its lowest was {num(min(judged))}" if min(judged) < judged[-1] else ""
    note = "The objective has units of its own, which differ between the phases of training."
    return Figure("training", title, note, figure)


# ------------------------------------------------------------------------------------- drawing


def rule_strip(record: BenchRecord, question: Question, judged: str) -> Figure:
    """Every rule in every case of a bench as a mark, the judged one a diamond."""
    stops = question is Question.STOP
    figure = new_figure(
        "captured gain, mean over prices" if stops else "share of the cost saved", ""
    )
    cases, floor = record.of(question), -0.5
    for rule in sorted(record.rules(question), key=lambda rule: rule == judged):  # that on top
        found = {
            case.domain: fmean(
                (captured if stops else saved)(case, cell, key).value
                for key in (case.keys if stops else case.keys[-1:])
            )
            for name, case in cases.items()
            if (cell := record.cell(name, rule)) is not None
        }
        is_own = rule == judged
        figure.add_scatter(
            x=[rounded(max(value, floor)) for value in found.values()], y=list(found),
            customdata=list(map(rounded, found.values())), mode="markers",
            name=html.escape(rule_name(rule)), showlegend=is_own,
            marker={"color": BLUE if is_own else GREY, "size": 13 if is_own else 8,
                    "symbol": "diamond" if is_own else "circle-open"},
            hovertemplate="%{customdata:.1%}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    best = [1.0 if stops else failed_share(case) for case in cases.values()]
    figure.add_scatter(
        x=list(map(rounded, best)), y=[case.domain for case in cases.values()], mode="markers",
        name="oracle", marker={"color": INK, "symbol": "star", "size": 12},
        hovertemplate="%{x:.1%}<extra>%{fullData.name}</extra>",
    )  # fmt: skip
    order = [case.domain for case in cases.values()][::-1]
    figure.update_xaxes(tickformat=".0%")
    figure.update_yaxes(categoryorder="array", categoryarray=order)
    figure.update_layout(hovermode="closest", showlegend=True)
    ends = (
        "0 is the best equal budget in hindsight, 100 % the oracle, and gains below −50 % lie there"
    )
    kept = "where no more successes than allowed are lost; see the tables"
    return Figure(
        f"bench-strip-{question}",
        f"{'Stopping early' if stops else 'Giving up'}: every rule on every domain, the diamond is "
        f"{rule_name(judged)}",
        f"Further right is better{f': {ends}' if stops else f' {kept}'}.",
        figure,
    )


def new_figure(x_title: str, y_title: str) -> Any:
    """An empty figure in the style of all."""
    with extra("report"):
        from plotly.graph_objects import Figure as Drawing

    figure = Drawing()
    _dress(figure)
    figure.update_xaxes(title_text=x_title, automargin=True)
    figure.update_yaxes(title_text=y_title, automargin=True)
    return figure


def _dress(figure: Any) -> None:
    """What all figures share; colours of text and grid are the page's affair."""
    figure.update_layout(
        template="none",
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "xanchor": "left"},
        hovermode="x unified",
        uirevision="keep",  # legend and zoom survive a change of theme
    )
    for update in (figure.update_xaxes, figure.update_yaxes):
        update(zeroline=False, title_standoff=8, exponentformat="power")


def _line(
    figure: Any,
    name: str,
    y: Sequence[float],
    line: Line,
    x: Sequence[float] | None = None,
    **more: Any,
) -> None:
    figure.add_scatter(
        x=list(range(len(y)) if x is None else map(rounded, x)),
        y=list(map(rounded, y)),
        name=html.escape(name),
        legendgroup=html.escape(name),
        line={"color": line.colour, "dash": line.dash, "width": line.width},
        hovertemplate="%{y:.4g}",
        **({"mode": "lines"} | more),
    )


def _band(figure: Any, name: str, low: Sequence[float], high: Sequence[float], colour: str) -> None:
    """Shade what lies between two curves; it comes and goes with the line called `name`."""
    steps = list(range(len(low)))
    figure.add_scatter(
        x=[*steps, *reversed(steps)], y=list(map(rounded, (*high, *reversed(low)))),
        fill="toself", fillcolor=colour, opacity=0.15, mode="none", hoverinfo="skip",
        legendgroup=html.escape(name), showlegend=False,
    )  # fmt: skip


def _log(update: Callable[..., Any], *series: Sequence[float], **place: int) -> bool:
    """Make an axis logarithmic if all that is finite on it is positive; say whether."""
    known = [value for values in series for value in values if math.isfinite(value)]
    positive = bool(known) and min(known) > 0
    if positive:
        update(type="log", dtick=1 if max(known) > 100 * min(known) else "D2", **place)
    return positive


def _gap(high: float, low: float) -> float:
    return rounded(high - low) or 0.0


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan
