"""Figures of stops, problem by problem."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from haltwise.evaluation import Evaluation
from haltwise.evaluation.statistics import rank_correlation
from haltwise.halting.halter import AFTER
from haltwise.report.figures.drawing import Panel, log_axis, new_figure, signed, significant
from haltwise.report.formats import percent
from haltwise.report.palette import label, rule_colour
from haltwise.report.reading import (
    at_ends,
    get,
    initial_excess,
)
from haltwise.report.tables import Cell, Data

__all__ = ["difficulty", "outputs", "posterior"]

_MAX_POINTS, _MAX_ROWS, _NUM_BINS = 1500, 40, 8


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
    figure = new_figure("initial excess loss", f"stop, {account}")
    log_axis(figure.update_xaxes, start.tolist())
    chosen = torch.linspace(0, len(start) - 1, min(_MAX_POINTS, len(start))).round().long()
    order = start.argsort()
    bins = [part for part in order.tensor_split(min(_NUM_BINS, len(start))) if len(part)]
    sides = [("rule", stops), *([("oracle", oracle)] if oracle is not None else [])]
    for name, values in reversed(sides):  # the rule on top
        colour = rule_colour(name)
        opacity, size, symbol = (0.35, 5, "circle") if name == "rule" else (0.25, 4, "diamond")
        figure.add_scatter(
            x=significant(start[chosen]), y=values[chosen].int().tolist(), mode="markers",
            name=label(name), opacity=opacity,
            marker={"color": colour, "size": size, "symbol": symbol},
            hovertemplate="initial excess %{x:.3g}<br>stop %{y}<extra>%{fullData.name}</extra>",
        )  # fmt: skip
    for name, values in reversed(sides):
        figure.add_scatter(
            x=significant(torch.stack([start[part].log().mean().exp() for part in bins])),
            y=significant(torch.stack([values[part].mean() for part in bins])),
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
        title = f"{found} (rank correlation {signed(skill)}"
        other = None if oracle is None else rank_correlation(start, oracle)
        title += ")" if other is None else f"; the oracle’s {signed(other)})"
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
    kind, scores = outputs(record, AFTER)
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
    figure = new_figure("steps t", "problems, by halting step")
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


def outputs(record: Evaluation, output: int) -> tuple[str, Tensor | None]:
    """What the learned rule reads, [n, T]: log-odds of the hazard, or increments of the logit."""
    account = "updates" if output == AFTER else "gradients"
    rule = get(record.summary, "stop_rules", account, "rule", "kind")
    if rule == "PonderThreshold":  # reads a sum, not a value
        return "mode", None
    kind = "hazard" if rule == "HazardThreshold" else "mode"
    values = record.arrays.get("hazard_logits" if kind == "hazard" else "increments")
    usable = values is not None and values.ndim == 3 and values.shape[2] == 2
    return kind, values[..., output].double() if values is not None and usable else None
