"""Records to figures. Every title says what was found; every figure carries its numbers.

Names from records are escaped, since plotly reads legends and hover texts as HTML.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional

from haltwise.evaluation import Account, Evaluation
from haltwise.evaluation.statistics import randomized_budget
from haltwise.halting.accounts import paid
from haltwise.halting.head import AFTER, BEFORE
from haltwise.report.formats import count, num, percent
from haltwise.report.palette import GREY, INK, SURFACE, TUNED, label, optimizer_style, rule_colour
from haltwise.report.reading import (
    at_ends,
    finite,
    finite_list,
    get,
    initial_excess,
    items,
    mapping,
    name_at,
    number,
    rank_correlation,
)
from haltwise.report.tables import Cell, Data, measures

__all__ = [
    "Panel",
    "difficulty",
    "frontier",
    "losses",
    "parts_of_j",
    "posterior",
    "record_panels",
    "training",
]

_MAX_POINTS, _MAX_ROWS, _NUM_BINS = 1500, 40, 8


@final
@dataclass(frozen=True)
class Panel:
    """A figure on the page.

    Attributes:
        title: What it shows was found.
        note: How to read it.
        figure: `plotly.graph_objects.Figure`.
        data: Its numbers.
        half: Whether it may share a line with another on wide screens.
    """

    title: str
    note: str
    figure: Any
    data: Data
    half: bool = False


def record_panels(record: Evaluation, stem: str) -> list[Panel]:
    """Every figure that the record has data for."""
    makers: Sequence[Callable[[Evaluation, str], Panel | None]] = (
        lambda record, stem: parts_of_j(record, stem, "gradients"),
        lambda record, stem: parts_of_j(record, stem, "updates"),
        difficulty,
        posterior,
        frontier,
        losses,
    )
    panels = [make(record, stem) for make in makers]
    return [panel for panel in panels if panel is not None]


def losses(record: Evaluation, stem: str) -> Panel | None:
    """Mean excess loss of every optimizer against steps, L-BFGS against gradient evaluations."""
    summary = record.summary
    contender = name_at(summary, "optimizer")
    curves = {
        str(name): finite_list(summary, "curves", name, "mean")
        for name in mapping(summary, "curves")
    }
    curves = {name: curve for name, curve in curves.items() if _known(curve)}
    if not curves:
        return None
    figure = _figure("steps", "mean excess loss")
    _log_axis(figure.update_yaxes, *curves.values())
    rows: list[Sequence[Cell]] = []
    for position, (name, curve) in enumerate(curves.items()):
        style = optimizer_style(name, contender, position)
        _line(figure, name, range(len(curve)), curve, style.colour, style.dash, style.width)
        medians = finite_list(summary, "curves", name, "median")
        medians += [None] * (len(curve) - len(medians))
        rows += [(name, t, curve[t], medians[t]) for t in range(len(curve))]
    lbfgs = finite_list(summary, "lbfgs", "mean_by_gradient_evaluations")
    note = "Without stopping; SGD, Nesterov, RMSprop and Adam at learning rates tuned apart."
    if _known(lbfgs):
        few = number(summary, "lbfgs", "num_problems")
        _line(figure, "L-BFGS (x: gradient evaluations)", range(len(lbfgs)), lbfgs, INK, "dot", 2)
        rows += [("L-BFGS by gradient evaluations", t, lbfgs[t], None) for t in range(len(lbfgs))]
        note += (
            f" L-BFGS, dotted, is apart: {count(few)} problems in double precision, counted in "
            "gradient evaluations of its line search; it may leave the figure below."
        )
    own = [value for value in curves.get(contender, []) if value is not None]
    if _all_positive(*curves.values()) and own:
        # L-BFGS reaches 1e-30 on quadratics, diverging curves 1e30: both would flatten the rest.
        values = torch.tensor([value for curve in curves.values() for value in curve if value])
        low, high = values.double().min().log10().item(), values.double().max().log10().item()
        ceiling = torch.tensor(max(own)).log10().item() + 1
        figure.update_yaxes(range=[low - 0.5, min(high + 0.3, ceiling)])
        if high > ceiling:
            note += " Curves that leave the figure above diverge."
    last = {name: curve[-1] for name, curve in curves.items() if curve[-1] is not None}
    title = "Loss of every optimizer, step by step"
    if last:
        ranked = sorted(last, key=lambda name: last[name] or 0.0)
        best = ranked[0]
        steps = len(curves[best]) - 1
        title = f"After {steps} steps {best} has the least mean excess loss, {num(last[best])}"
        if contender in last and best != contender:
            place = ranked.index(contender) + 1
            title += (
                f"; {contender} is {_ordinal(place)} of {len(last)} with {num(last[contender])}"
            )
    columns = ["optimizer", "step", "mean_excess", "median_excess"]
    return Panel(title, note, figure, Data(f"{stem}-losses", columns, rows))


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
    figure = _figure("J, units of loss", "")
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
        cut = entry[1] > limit
        figure.add_annotation(
            x=limit if cut else entry[1], y=name, text=f"{num(entry[1])}{' →' if cut else ''}",
            xanchor="right" if cut else "left", showarrow=False, xshift=-2 if cut else 4,
            bgcolor=SURFACE if cut else None,
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
                f"{_ordinal(place + 1)} of {len(places)}, {num(ranked[place][1])}; "
                f"the lowest is {num(ranked[0][1])}, by {_article(places[0])}"
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


def difficulty(record: Evaluation, stem: str) -> Panel | None:
    """Halting step against how far each problem has to go."""
    start = initial_excess(record)
    account = "gradients" if at_ends(record, "gradients", "rule") is not None else "updates"
    stops, oracle = at_ends(record, account, "rule"), at_ends(record, account, "oracle")
    if start is None or stops is None or len(stops) != len(start):
        return None
    usable = start.isfinite() & (start > 0)
    if int(usable.sum()) < 3:
        return None
    start, stops = start[usable], stops[usable].double()
    oracle = oracle[usable].double() if oracle is not None and len(oracle) == len(usable) else None
    figure = _figure("initial excess loss", f"stop, {account}")
    _log_axis(figure.update_xaxes, start.tolist())
    chosen = torch.linspace(0, len(start) - 1, min(_MAX_POINTS, len(start))).round().long()
    order = start.argsort()
    bins = [part for part in order.tensor_split(min(_NUM_BINS, len(start))) if len(part)]
    sides = [("rule", stops), *([("oracle", oracle)] if oracle is not None else [])]
    for name, values in reversed(sides):  # the rule on top
        colour = rule_colour(name)
        opacity, size, symbol = (0.35, 5, "circle") if name == "rule" else (0.25, 4, "diamond")
        figure.add_scatter(
            x=_significant(start[chosen]), y=values[chosen].int().tolist(), mode="markers",
            name=label(name), opacity=opacity,
            marker={"color": colour, "size": size, "symbol": symbol},
            hovertemplate="initial excess %{x:.3g}<br>stop %{y}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    for name, values in reversed(sides):
        figure.add_scatter(
            x=_significant(torch.stack([start[part].log().mean().exp() for part in bins])),
            y=_significant(torch.stack([values[part].mean() for part in bins])),
            mode="lines+markers", name=f"{label(name)}, mean",
            line={"color": rule_colour(name), "width": 3 if name == "rule" else 2,
                  "dash": "solid" if name == "rule" else "dot"},
            marker={"size": 8, "symbol": "circle" if name == "rule" else "diamond"},
            hovertemplate="initial excess ≈ %{x:.3g}<br>mean stop %{y:.1f}"
            "<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    figure.update_layout(hovermode="closest")
    figure.update_yaxes(rangemode="tozero")
    skill = rank_correlation(start, stops)
    title = "Halting step against difficulty"
    if skill is not None:
        found = (
            "Problems that start further away get more steps"
            if skill > 0.1
            else "Problems that start further away get fewer steps"
            if skill < -0.1
            else "How far away a problem starts hardly changes where it stops"
        )
        title = f"{found} (rank correlation {_signed(skill)}"
        other = None if oracle is None else rank_correlation(start, oracle)
        title += ")" if other is None else f"; the oracle’s {_signed(other)})"
    note = (
        f"{len(chosen)} of {len(start)} problems; lines are means over {len(bins)} equal groups "
        "by initial excess loss."
    )
    rows: list[Sequence[Cell]] = [
        (
            start[index].item(),
            int(stops[index]),
            None if oracle is None else int(oracle[index]),
        )
        for index in chosen.tolist()
    ]
    columns = ["initial_excess", f"stop_{account}", "oracle_stop"]
    return Panel(title, note, figure, Data(f"{stem}-difficulty", columns, rows), half=True)


def posterior(record: Evaluation, stem: str) -> Panel | None:
    """q(t|x,T) of some problems over the whole horizon, of the posterior that the rule reads."""
    stops = at_ends(record, "updates", "rule")
    kind, scores = _outputs(record, AFTER)
    if scores is None or stops is None or not len(stops) or len(scores) != len(stops):
        return None
    if kind == "hazard":  # stick-breaking: q(t) = rho_t prod_{k<t} (1 - rho_k), rho_T = 1
        survival = functional.pad(functional.logsigmoid(-scores).cumsum(1), (1, 0))
        log_q = survival + functional.pad(functional.logsigmoid(scores), (0, 1))
    else:  # thesis Eq. 10
        log_q = functional.pad(scores.cumsum(1), (1, 0)).log_softmax(1)
    usable = log_q.exp().isfinite().all(1).nonzero().squeeze(1)
    if not len(usable):
        return None
    q, stops = log_q[usable].exp(), stops[usable]
    order = stops.argsort(stable=True)
    shown = order[torch.linspace(0, len(order) - 1, min(_MAX_ROWS, len(order))).round().long()]
    ranks = list(range(1, len(shown) + 1))
    figure = _figure("steps t", "problems, by halting step")
    figure.add_heatmap(
        z=[[round(value, 4) for value in row] for row in q[shown].tolist()], y=ranks,
        x=list(range(q.shape[1])), zmin=0, zmax=round(max(q[shown].max().item(), 1e-4), 4),
        colorscale=[[0, "rgba(0,114,178,0)"], [1, "rgba(0,114,178,1)"]],
        colorbar={"title": {"text": "q(t|x,T)", "side": "right"}, "thickness": 10,
                  "outlinewidth": 0},
        hovertemplate="problem %{y}, t = %{x}<br>q = %{z:.3f}<extra></extra>",
    )  # fmt: skip
    figure.add_scatter(
        x=stops[shown].tolist(), y=ranks, mode="markers", name="the rule stops here (updates)",
        marker={"symbol": "circle-open", "size": 7, "color": "#D55E00", "line": {"width": 1.8}},
        hovertemplate="problem %{y}<br>stops at t = %{x}<extra></extra>", showlegend=True,
    )  # fmt: skip
    figure.update_layout(hovermode="closest")
    if kind == "hazard":
        near = (torch.arange(q.shape[1]) - stops.unsqueeze(1)).abs() <= 2
        title = (
            f"On average, {percent((q * near).sum(1).mean().item())} of the halting posterior "
            "lies within two steps of where the rule stops"
        )
    else:
        agreement = (q.argmax(1) == stops).double().mean().item()
        title = (
            "The rule, which stops at the posterior’s first mode, stops at its highest one on "
            f"{percent(agreement)} of the problems"
        )
    note = (
        f"q(t|x,T), the halting posterior over the whole horizon"
        f"{' (from the hazards)' if kind == 'hazard' else ''}, of {len(shown)} of {len(q)} "
        "problems spread evenly over the halting steps."
    )
    rows = [
        (rank, int(stops[index]), *(round(value, 6) for value in q[index].tolist()))
        for rank, index in zip(ranks, shown.tolist(), strict=True)
    ]
    columns = ["problem", "stop_updates", *(f"q_{t}" for t in range(q.shape[1]))]
    return Panel(title, note, figure, Data(f"{stem}-posterior", columns, rows), half=True)


def _outputs(record: Evaluation, output: int) -> tuple[str, Tensor | None]:
    """What the learned rule reads, [n, T]: log-odds of the hazard, or increments of the logit."""
    account = "updates" if output == AFTER else "gradients"
    rule = get(record.summary, "stop_rules", account, "rule", "kind")
    if rule == "PonderThreshold":  # reads a sum, not a value
        return "mode", None
    kind = "hazard" if rule == "HazardThreshold" else "mode"
    values = record.arrays.get("hazard_logits" if kind == "hazard" else "increments")
    usable = values is not None and values.ndim == 3 and values.shape[2] == 2
    return kind, values[..., output].double() if values is not None and usable else None


def frontier(record: Evaluation, stem: str) -> Panel | None:
    """Mean excess loss against mean cost: budgets, their hull, rules and the oracle."""
    summary = record.summary
    fixed = _fixed_budgets(record)
    if not _known(fixed):
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
    figure = _figure("mean cost, steps", "mean excess loss")
    _log_axis(figure.update_yaxes, *heights)
    rows: list[Sequence[Cell]] = [("fixed budget", None, t, y) for t, y in enumerate(fixed)]
    _line(figure, "fixed budgets", range(len(fixed)), fixed, GREY, "dot", 1.5)
    if hull:
        _line(figure, "budgets mixed at random", hull, [fixed[t] for t in hull], GREY)
        rows += [("lower hull", None, t, fixed[t]) for t in hull]
    for account, points in varied.items():
        if not points:
            continue
        rows += [(f"threshold varied, {account}", *point) for point in points]
        figure.add_scatter(
            x=[point[1] for point in points], y=[_rounded(point[2]) for point in points],
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
    kind, scores = _outputs(record, BEFORE)
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
        end = paid(first, Account.GRADIENTS, num_steps)
        mean = excess.double().gather(1, end.unsqueeze(1)).mean().item()
        points.append((shift, end.double().mean().item(), finite(mean)))
    return points


def _fixed_budgets(record: Evaluation) -> list[float | None]:
    """Mean excess loss of ending at each step."""
    excess = record.arrays.get("excess")
    if excess is not None and excess.ndim == 2 and len(excess):
        return finite_list({"mean": excess.double().mean(0).tolist()}, "mean")
    return finite_list(record.summary, "curves", name_at(record.summary, "optimizer"), "mean")


_TRAINING = (
    ("loss", "objective", "#0072B2"),
    ("price_adjusted_loss", "J, validation", "#D55E00"),
    ("mean_halting_step", "mean stop, steps", "#009E73"),
)


def training(log: Sequence[Mapping[str, Any]]) -> Panel | None:
    """What the training log tells: the objective, J and the mean halting step."""
    from plotly.subplots import make_subplots

    entries = [entry for entry in log if isinstance(entry, Mapping)]
    entries = [entry for entry in entries if number(entry, "step") is not None]
    steps = [number(entry, "step") for entry in entries]
    shown = [
        (key, title, colour, [number(entry, key) for entry in entries])
        for key, title, colour in _TRAINING
    ]
    shown = [part for part in shown if _known(part[3])]
    if len(entries) < 2 or not shown:
        return None
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.07)
    _dress(figure)
    for row, (_, title, colour, values) in enumerate(shown, start=1):
        _line(figure, title, steps, values, colour, mode="lines+markers", row=row)
        figure.update_yaxes(title_text=title, row=row, col=1, automargin=True)
        if title != _TRAINING[2][1]:
            _log_axis(figure.update_yaxes, values, row=row, col=1)
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="meta-steps", row=len(shown), col=1, automargin=True)
    adjusted = [
        (number(entry, "price_adjusted_loss"), number(entry, "step") or 0) for entry in entries
    ]
    known = [(value, step) for value, step in adjusted if value is not None]
    title = f"Training: {num(steps[-1])} meta-steps"
    if len(known) >= 2:
        best, where = min(known)
        title = f"Training: validation J went from {num(known[0][0])} to {num(known[-1][0])}"
        if best == known[-1][0]:
            title += ", its lowest"
        else:
            title += f"; the lowest was {num(best)} at meta-step {num(where)}"
    note = (
        "The objective is in units of its own and can be compared only within the run; J is "
        "excess loss at the stop plus price times cost, averaged over both ways to decide."
    )
    keys = list(dict.fromkeys(str(key) for entry in entries for key in entry))
    rows = [[number(entry, key) for key in keys] for entry in entries]
    return Panel(title, note, figure, Data("training", keys, rows))


def _figure(x_title: str, y_title: str) -> Any:
    from plotly.graph_objects import Figure

    figure = Figure()
    _dress(figure)
    figure.update_xaxes(title_text=x_title, automargin=True)
    figure.update_yaxes(title_text=y_title, automargin=True)
    return figure


def _log_axis(update: Callable[..., Any], *series: Sequence[float | None], **place: int) -> None:
    """Make an axis logarithmic if everything on it is positive, with a label a decade if many."""
    if _all_positive(*series):
        decades = max(_decades(values) for values in series if _known(values))
        update(type="log", dtick=1 if decades >= 2 else "D2", **place)


def _dress(figure: Any) -> None:
    """What all figures share; colours of text and grid are the page's affair."""
    figure.update_layout(
        template="none",
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "xanchor": "left",
        },
        hovermode="x unified",
        uirevision="keep",  # legend and zoom survive a change of theme
    )
    figure.update_xaxes(zeroline=False, title_standoff=8, exponentformat="power")
    figure.update_yaxes(zeroline=False, title_standoff=8, exponentformat="power")


def _line(
    figure: Any,
    name: str,
    x: Sequence[float | None],
    y: Sequence[float | None],
    colour: str,
    dash: str = "solid",
    width: float = 2,
    *,
    mode: str = "lines",
    row: int | None = None,
) -> None:
    place = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=list(x), y=[_rounded(value) for value in y], mode=mode, name=html.escape(name),
        line={"color": colour, "dash": dash, "width": width}, marker={"size": 6},
        hovertemplate="%{y:.4g}" if row is None and mode == "lines" else "%{x:.4g}: %{y:.4g}",
        **place,
    )  # fmt: skip


def _rounded(value: float | None) -> float | None:
    """Six digits do for a drawing and halve the page."""
    return None if value is None else float(f"{value:.6g}")


def _significant(values: Tensor) -> list[float | None]:
    return [_rounded(value) for value in values.tolist()]


def _known(values: Sequence[float | None]) -> bool:
    return any(value is not None for value in values)


def _all_positive(*series: Sequence[float | None]) -> bool:
    values = [value for values in series for value in values if value is not None]
    return bool(values) and min(values) > 0


def _decades(values: Sequence[float | None]) -> float:
    known = torch.tensor([value for value in values if value is not None])
    return (known.max() / known.min()).log10().item()


def _ordinal(place: int) -> str:
    suffix = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{suffix}"


def _article(rule: str) -> str:
    """A rule in a sentence: `the best fixed budget`, `gradient norm`."""
    return f"the {label(rule)}" if rule in {"fixed", "rule", "rule_after_gradient"} else label(rule)


def _signed(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
