"""Figures of losses: of every optimizer, and of training."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from haltwise.evaluation import Evaluation
from haltwise.report.figures.drawing import (
    Panel,
    add_band,
    add_line,
    all_positive,
    any_known,
    dress,
    log_axis,
    new_figure,
    ordinal,
)
from haltwise.report.formats import count, num
from haltwise.report.palette import INK, optimizer_style
from haltwise.report.reading import (
    finite_list,
    mapping,
    name_at,
    number,
)
from haltwise.report.tables import Cell, Data

__all__ = ["losses", "training"]


def losses(record: Evaluation, stem: str) -> Panel | None:
    """Mean excess loss of every optimizer against steps, L-BFGS against gradient evaluations."""
    summary = record.summary
    contender = name_at(summary, "optimizer")
    curves = {
        str(name): finite_list(summary, "curves", name, "mean")
        for name in mapping(summary, "curves")
    }
    curves = {name: curve for name, curve in curves.items() if any_known(curve)}
    if not curves:
        return None
    figure = new_figure("steps", "mean excess loss")
    log_axis(figure.update_yaxes, *curves.values())
    rows: list[Sequence[Cell]] = []
    for position, (name, curve) in enumerate(curves.items()):
        style = optimizer_style(name, contender, position)
        lowest, highest = (finite_list(summary, "curves", name, key) for key in ("low", "high"))
        if all_positive(lowest) and len(lowest) == len(highest) == len(curve):
            add_band(figure, name, lowest, highest, style.colour)
        add_line(figure, name, range(len(curve)), curve, style.colour, style.dash, style.width)
        medians = finite_list(summary, "curves", name, "median")
        medians += [None] * (len(curve) - len(medians))
        rows += [(name, t, curve[t], medians[t]) for t in range(len(curve))]
    lbfgs = finite_list(summary, "lbfgs", "mean_by_gradient_evaluations")
    note = (
        "Without stopping; bands hold 90 % of the problems. SGD, Nesterov, RMSprop and Adam at "
        "learning rates tuned apart."
    )
    if any_known(lbfgs):
        few = number(summary, "lbfgs", "num_problems")
        add_line(
            figure, "L-BFGS (x: gradient evaluations)", range(len(lbfgs)), lbfgs, INK, "dot", 2
        )
        rows += [("L-BFGS by gradient evaluations", t, lbfgs[t], None) for t in range(len(lbfgs))]
        note += (
            f" L-BFGS, dotted, is apart: {count(few)} problems in double precision, counted in "
            "gradient evaluations of its line search; it may leave the figure below."
        )
    own = [value for value in curves.get(contender, []) if value is not None]
    if all_positive(*curves.values()) and own:
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
            title += f"; {contender} is {ordinal(place)} of {len(last)} with {num(last[contender])}"
    columns = ["optimizer", "step", "mean_excess", "median_excess"]
    return Panel(title, note, figure, Data(f"{stem}-losses", columns, rows))


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
    shown = [part for part in shown if any_known(part[3])]
    if len(entries) < 2 or not shown:
        return None
    figure = make_subplots(rows=len(shown), cols=1, shared_xaxes=True, vertical_spacing=0.07)
    dress(figure)
    for row, (_, title, colour, values) in enumerate(shown, start=1):
        add_line(figure, title, steps, values, colour, mode="lines+markers", row=row)
        figure.update_yaxes(title_text=title, row=row, col=1, automargin=True)
        if title != _TRAINING[2][1]:
            log_axis(figure.update_yaxes, values, row=row, col=1)
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
