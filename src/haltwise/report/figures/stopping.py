"""Figures of stopping reports: gain at other prices, reliability, loss against steps."""

from collections.abc import Mapping, Sequence
from typing import Any

from haltwise.report.figures.drawing import (
    Panel,
    add_line,
    all_positive,
    any_known,
    log_axis,
    new_figure,
    rounded,
    signed,
)
from haltwise.report.formats import count, interval, num, plain
from haltwise.report.palette import GREY, INK, rule_colour
from haltwise.report.reading import Range, finite_list, get, items, number, range_of
from haltwise.report.tables import Cell, Data

__all__ = ["budgets", "gains", "reliability"]

_LINES = {
    "gradients": (rule_colour("rule"), "solid", "circle"),
    "updates": (rule_colour("rule_after_gradient"), "dash", "diamond"),
}


def gains(reports: Mapping[str, Any], stem: str) -> Panel | None:
    """Captured gain of the same stops at several prices, a curve an account."""
    figure = new_figure("price per step", "captured gain")
    rows: list[tuple[str, float, float, float, float]] = []
    for account, report in reports.items():
        points = [
            (price, estimate)
            for entry in items(report, "captured_gain_by_price")
            if (price := number(entry, "price")) and (estimate := range_of(entry, "gain"))
        ]
        points.sort()
        rows += [(account, price, *estimate) for price, estimate in points]
        colour, dash, symbol = _LINES[account]
        if points:
            figure.add_scatter(
                x=[rounded(price) for price, _ in points],
                y=[rounded(estimate.value) for _, estimate in points],
                error_y=_error([estimate for _, estimate in points], colour),
                name=f"counted in {account}", mode="lines+markers",
                line={"color": colour, "dash": dash, "width": 2.5},
                marker={"size": 7, "symbol": symbol},
                hovertemplate="price %{x:.4g}: gain %{y:.3f}<extra>%{fullData.name}</extra>",
            )  # fmt: skip
    if not rows:
        return None
    shown = sorted({row[1] for row in rows})
    figure.update_xaxes(type="log", tickvals=shown, ticktext=[num(price) for price in shown])
    figure.update_layout(hovermode="closest")
    figure.add_hline(y=0, line={"color": GREY, "width": 1, "dash": "dot"})
    figure.add_hline(y=1, line={"color": INK, "width": 1, "dash": "dot"})
    title = "Captured gain of the same stops at other prices"
    own = next((number(report, "price") for report in reports.values()), None)
    if own is not None:
        worst, where = min((value, price) for _, price, value, *_ in rows)
        title = (
            f"The stops, made for a price of {plain(own)}, capture least at {num(where)}: "
            f"{signed(worst)}"
        )
    note = (
        "1 is the oracle, 0 the best fixed budget, each at its price. The stops do not know of the "
        "other prices. Bars are 95 % intervals."
    )
    columns = ["account", "price", "captured_gain", "low", "high"]
    return Panel(title, note, figure, Data(f"{stem}-gains", columns, rows), half=True)


def reliability(report: object, stem: str) -> Panel | None:
    """Reliability diagram of the hazard: how often the oracle stops where it is so sure."""
    account = str(get(report, "account"))
    points = [
        (hazard, estimate, number(entry, "num_cases"), number(entry, "effective_cases"))
        for entry in items(report, "reliability", "bins")
        if (hazard := number(entry, "mean_hazard")) is not None
        and (estimate := range_of(entry, "frequency"))
    ]
    if not points:
        return None
    figure = new_figure("mean hazard", "share at which the oracle stops")
    add_line(figure, "perfectly reliable", [0, 1], [0, 1], GREY, "dot", 1.5)
    colour = rule_colour("rule")
    figure.add_scatter(
        x=[rounded(hazard) for hazard, *_ in points],
        y=[rounded(estimate.value) for _, estimate, *_ in points],
        error_y=_error([estimate for _, estimate, *_ in points], colour),
        name="hazard", mode="lines+markers", line={"color": colour, "width": 2},
        marker={"size": 8},
        customdata=[[count(cases), count(effective)] for *_, cases, effective in points],
        hovertemplate="mean hazard %{x:.3f}<br>the oracle stops at %{y:.3f}<br>%{customdata[0]} "
        "cases, worth %{customdata[1]}<extra></extra>",
    )  # fmt: skip
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(range=[-0.02, 1.02])
    figure.update_yaxes(range=[-0.02, 1.02])
    error = number(report, "reliability", "expected_calibration_error")
    title = f"Reliability of the hazard, counted in {account}"
    if error is not None:
        title = f"Counted in {account}, the hazard is off by {num(error)} on average"
    note = (
        "Of all the steps that the oracle reaches, in ten bins of the hazard: how often it stops "
        "there. The mean distance from the diagonal is the expected calibration error. Bars are "
        "95 % intervals."
    )
    rows = [(hazard, *estimate, *rest) for hazard, estimate, *rest in points]
    columns = ["mean_hazard", "frequency", "low", "high", "num_cases", "effective_cases"]
    data = Data(f"{stem}-reliability-{account}", columns, rows)
    return Panel(title, note, figure, data, half=True)


def budgets(report: object, stem: str) -> Panel | None:
    """Mean loss against mean steps: budgets, their lower hull, the stops."""
    curve = finite_list(report, "frontier", "mean_loss_by_budget")
    steps, loss = (range_of(report, "frontier", name) for name in ("mean_steps", "mean_loss"))
    if not any_known(curve) or steps is None or loss is None:
        return None
    hull = [t for t in items(report, "frontier", "hull") if t in range(len(curve))]
    account = str(get(report, "account"))
    figure = new_figure(f"mean cost, {account}", "mean loss")
    add_line(figure, "fixed budgets", range(len(curve)), curve, GREY, "dot", 1.5)
    add_line(figure, "budgets mixed at random", hull, [curve[t] for t in hull], GREY)
    colour = rule_colour("rule")
    figure.add_scatter(
        x=[rounded(steps.value)], y=[rounded(loss.value)], name="these stops", mode="markers",
        marker={"color": colour, "size": 12, "symbol": "diamond"},
        error_x=_error([steps], colour), error_y=_error([loss], colour),
        hovertemplate="mean cost %{x:.2f}<br>mean loss %{y:.4g}<extra>these stops</extra>",
    )  # fmt: skip
    if all_positive(curve, [loss.value]):
        log_axis(figure.update_yaxes, curve, [loss.value])
    figure.update_layout(hovermode="closest")
    theirs = number(report, "frontier", "fixed_loss_at_equal_steps", "value")
    title = "Mean loss against mean cost"
    if theirs is not None:
        side = "below" if loss.value < theirs else "above" if loss.value > theirs else "equal to"
        title = (
            f"At {steps.value:.1f} {account} on average, the stops’ mean loss is "
            f"{num(loss.value)}, {side} the {num(theirs)} of budgets mixed at random"
        )
    rows: list[Sequence[Cell]] = [("fixed budget", t, y) for t, y in enumerate(curve)]
    rows += [("lower hull", t, curve[t]) for t in hull]
    rows.append(("these stops", steps.value, loss.value))
    note = (
        "Lower and further left is better. A mix may take fewer steps than it is allowed. Bars are "
        f"95 % intervals: cost {interval(steps)}."
    )
    data = Data(f"{stem}-budgets", ["series", "mean_cost", "mean_loss"], rows)
    return Panel(title, note, figure, data)


def _error(ranges: Sequence[Range], colour: str) -> dict[str, Any]:
    """Bars from the low to the high end of intervals."""
    return {
        "type": "data", "symmetric": False, "thickness": 1.2, "width": 3, "color": colour,
        "array": [rounded(max(each.high - each.value, 0.0)) for each in ranges],
        "arrayminus": [rounded(max(each.value - each.low, 0.0)) for each in ranges],
    }  # fmt: skip
