"""Figures of cost: J in its parts, and loss against cost."""

import html
from collections.abc import Sequence
from typing import Any

import torch

from haltwise.evaluation import CostUnit, Evaluation
from haltwise.evaluation.statistics import randomized_budget
from haltwise.halting.halter import BEFORE
from haltwise.report.figures.drawing import (
    Panel,
    add_line,
    any_known,
    article,
    log_axis,
    new_figure,
    ordinal,
    rounded,
)
from haltwise.report.figures.stops import outputs
from haltwise.report.formats import num
from haltwise.report.palette import GREY, INK, SURFACE, TUNED, label, rule_colour
from haltwise.report.reading import (
    finite,
    finite_list,
    items,
    mapping,
    name_at,
    number,
)
from haltwise.report.tables import Cell, Data, measures
from haltwise.stop_rules.accounts import steps_charged

__all__ = ["frontier", "parts_of_j"]


def parts_of_j(record: Evaluation, stem: str, account: str) -> Panel | None:
    """J of every rule in one account, as excess loss at the stop plus price times cost."""
    summary = record.summary
    price = number(summary, "price")
    entries = []
    for name in mapping(summary, "j", account):
        values = measures(summary, account, name)
        j, steps = values[0], values[4]
        if j is None:
            continue
        paid = None if price is None or steps is None else price * steps
        excess = values[6] if values[6] is not None else None if paid is None else j - paid
        entries.append((name, j, excess, paid))
    if not entries:
        return None
    entries.sort(key=lambda entry: -entry[1])  # horizontal bars are drawn from the bottom
    names = [html.escape(label(entry[0])) for entry in entries]
    colours = [rule_colour(entry[0]) for entry in entries]
    figure = new_figure("J, units of loss", "")
    split = all(entry[2] is not None and entry[3] is not None for entry in entries)
    parts: list[tuple[str, list[Any], str]] = [("J", [entry[1] for entry in entries], "")]
    if split:
        parts = [
            ("excess loss at the stop", [entry[2] for entry in entries], ""),
            (f"price × {account}", [entry[3] for entry in entries], "/"),
        ]
    for name, values, pattern in parts:
        for shown in (False, True):  # the bars; a swatch for the legend
            colour = INK if shown else colours
            figure.add_bar(
                x=[None] if shown else values, y=names[:1] if shown else names, orientation="h",
                name=name, legendgroup=name, showlegend=shown and split,
                marker={"color": colour, "line": {"width": 1, "color": colour},
                        "pattern": {"shape": pattern, "fillmode": "replace", "fgcolor": colour,
                                    "size": 6, "solidity": 0.35}},
                hovertemplate="%{y}<br>%{x:.4g}<extra>%{fullData.name}</extra>",
            )  # fmt: skip
    low = min(0.0, *(part or 0.0 for entry in entries for part in entry[1:]))
    top = max(entry[1] for entry in entries)
    # A rule far worse than those of interest would flatten them: its bar leaves the figure.
    known = [entry[1] for entry in entries if entry[0] in {"rule", "fixed", "oracle"}]
    limit = 1.4 * min(top, 2 * max(known)) if known and max(known) > 0 else 1.4 * max(top, -low)
    for name, entry in zip(names, entries, strict=True):
        cut, inside = entry[1] > limit, entry[1] > 0.75 * limit  # phones have no room beside it
        figure.add_annotation(
            x=min(entry[1], limit), y=name, text=f"{num(entry[1])}{' →' if cut else ''}",
            xanchor="right" if inside else "left", showarrow=False, xshift=-2 if inside else 4,
            bgcolor=SURFACE if inside else None,
        )  # fmt: skip
    figure.update_layout(barmode="relative", bargap=0.35, hovermode="closest")
    figure.update_xaxes(range=[1.05 * low, limit])
    ranked = sorted((e for e in entries if e[0] != "oracle"), key=lambda entry: entry[1])
    title = f"J of every rule, counted in {account}"
    places = [entry[0] for entry in ranked]
    if "rule" in places and len(places) > 1:
        place = places.index("rule")
        title = f"Counted in {account}, the learned rule’s J is "
        if place == 0:
            title += f"the lowest of {len(places)}, {num(ranked[0][1])}"
        else:
            title += (
                f"{ordinal(place + 1)} of {len(places)}, {num(ranked[place][1])}; "
                f"the lowest is {num(ranked[0][1])}, by {article(places[0])}"
            )
    note = (
        "J = excess loss at the stop + price × cost. The best fixed budget and the oracle are "
        "chosen with hindsight on these very problems."
    )
    if top > limit:
        note += " A bar with an arrow is longer than the figure."
    rows = [(name, j, excess, paid) for name, j, excess, paid in reversed(entries)]
    data = Data(f"{stem}-j-{account}", ["rule", "j", "excess_at_stop", "price_times_cost"], rows)
    return Panel(title, note, figure, data, half=True)


def frontier(record: Evaluation, stem: str) -> Panel | None:
    """Mean excess loss against mean cost: budgets, their hull, rules and the oracle."""
    summary = record.summary
    fixed = _fixed_budgets(record)
    if not any_known(fixed):
        return None
    hull = items(summary, "frontier", "hull")
    hull = [t for t in hull if isinstance(t, int) and 0 <= t < len(fixed)]
    varied = {
        "gradients": _varied_threshold(record),
        "updates": [
            (_shift(p), number(p, "mean_steps"), number(p, "mean_excess"))
            for p in items(summary, "frontier", "rule")
        ],
    }
    dots = {
        name: (values[4], values[6])
        for name in (*TUNED, "posterior_mode", "oracle", "rule")  # the rule on top
        for values in [measures(summary, "gradients", name)]
        if values[4] is not None and values[6] is not None
    }
    heights = [fixed, [y for points in varied.values() for _, _, y in points]]
    heights.append([y for _, y in dots.values()])
    figure = new_figure("mean cost, steps", "mean excess loss")
    log_axis(figure.update_yaxes, *heights)
    rows: list[Sequence[Cell]] = [("fixed budget", None, t, y) for t, y in enumerate(fixed)]
    add_line(figure, "fixed budgets", range(len(fixed)), fixed, GREY, "dot", 1.5)
    if hull:
        add_line(figure, "budgets mixed at random", hull, [fixed[t] for t in hull], GREY)
        rows += [("lower hull", None, t, fixed[t]) for t in hull]
    for account, points in varied.items():
        if not points:
            continue
        rows += [(f"threshold varied, {account}", *point) for point in points]
        figure.add_scatter(
            x=[point[1] for point in points], y=[rounded(point[2]) for point in points],
            name=f"learned rule, threshold varied ({account})", mode="lines+markers",
            line={"color": rule_colour("rule"), "width": 2.5,
                  "dash": "solid" if account == "gradients" else "dash"},
            marker={"size": 5}, visible=True if account == "gradients" else "legendonly",
            customdata=[point[0] for point in points],
            hovertemplate="threshold shifted by %{customdata:.3g}<br>mean cost %{x:.1f}<br>"
            "mean excess loss %{y:.3g}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    for name, (x, y) in dots.items():
        symbol, size = {"oracle": ("star", 14), "rule": ("diamond", 13)}.get(name, ("circle", 11))
        figure.add_scatter(
            x=[x], y=[y], mode="markers", name=label(name),
            marker={"color": rule_colour(name), "size": size, "symbol": symbol},
            hovertemplate="mean cost %{x:.1f}<br>mean excess loss %{y:.3g}"
            "<extra>%{fullData.name}</extra>",
        )  # fmt: skip
        rows.append((f"{name}, gradients", None, x, y))
    figure.update_layout(hovermode="closest")
    title = "Mean excess loss against mean cost"
    if "rule" in dots and None not in fixed:
        cost, mine = dots["rule"]
        known = torch.tensor(fixed, dtype=torch.float64)
        theirs = randomized_budget(known, min(cost or 0.0, len(fixed) - 1.0))
        side = "below" if mine < theirs else "above" if mine > theirs else "equal to"
        title = (
            f"At its own {cost:.1f} gradients, the learned rule’s excess loss is {num(mine)}, "
            f"{side} the {num(theirs)} of fixed budgets mixed at random"
        )
    note = (
        "Counted in gradients; lower and further left is better. The dashed curve, shown by a "
        "click on its name, counts updates."
    )
    columns = ["series", "threshold_shift", "mean_cost", "mean_excess"]
    return Panel(title, note, figure, Data(f"{stem}-frontier", columns, rows))


_Point = tuple[float | None, float | None, float | None]


def _shift(point: object) -> float | None:
    shift = number(point, "shift")
    return number(point, "threshold") if shift is None else shift


def _varied_threshold(record: Evaluation) -> list[_Point]:
    """The learned rule, deciding before the gradient, with its threshold shifted."""
    excess = record.arrays.get("excess")
    kind, scores = outputs(record, BEFORE)
    if excess is None or scores is None or excess.ndim != 2 or not len(excess):
        return []
    num_steps = scores.shape[1]
    if excess.shape != (len(scores), num_steps + 1):
        return []
    if kind == "hazard":
        own = number(record.summary, "stop_rules", "gradients", "rule", "threshold") or 0.0
        margins = scores - own
    else:
        margins = -scores
    points: list[_Point] = []
    for shift in (-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0):
        halts = margins >= shift
        first = torch.where(halts.any(1), halts.int().argmax(1), num_steps)
        end = steps_charged(first, CostUnit.GRADIENTS, num_steps)
        mean = excess.double().gather(1, end.unsqueeze(1)).mean().item()
        points.append((shift, end.double().mean().item(), finite(mean)))
    return points


def _fixed_budgets(record: Evaluation) -> list[float | None]:
    """Mean excess loss of ending at each step."""
    excess = record.arrays.get("excess")
    if excess is not None and excess.ndim == 2 and len(excess):
        return finite_list({"mean": excess.double().mean(0).tolist()}, "mean")
    return finite_list(record.summary, "curves", name_at(record.summary, "optimizer"), "mean")
