"""Records as figures. Every title says what was found, and stays true beside all that is drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from haltwise.evaluation import EvaluationRecord, StoppingRecord
from haltwise.evaluation.statistics import rank_correlation
from haltwise.report.drawing import Panel, Plot
from haltwise.report.formats import num, percent
from haltwise.report.palette import (
    BLUE,
    GREEN,
    GREY,
    INK,
    VERMILION,
    colour,
    label,
    style,
)
from haltwise.stop_rules import CostUnit

__all__ = ["difficulty", "frontier", "losses", "parts_of_j", "posterior", "reliability", "training"]

_MAX_POINTS, _MAX_ROWS, _NUM_BINS = 1500, 40, 8
_HINDSIGHT = ("fixed", "oracle")


def parts_of_j(record: StoppingRecord) -> Panel:
    """J of every rule, as excess loss at the stop plus price times cost."""
    names = sorted(record.rules, key=lambda name: -record.rules[name].j.value)  # from the bottom
    known = max(record.rules[name].j.value for name in (record.judged, *_HINDSIGHT))
    worst = record.rules[names[0]].j.value
    limit = 1.4 * min(worst, 2 * known) if known > 0 else None
    plot = Plot("J, units of loss", "")
    labels, colours = [label(name) for name in names], [colour(name) for name in names]
    rules = [record.rules[name] for name in names]
    plot.bars("excess loss at the stop", [rule.mean_excess for rule in rules], labels, colours, "")
    paid = [record.price * rule.mean_cost for rule in rules]
    plot.bars(f"price x {record.unit.value}", paid, labels, colours, "/")
    if limit is not None:
        plot.layout["xaxis"]["range"] = [min(0.0, *(rule.mean_excess for rule in rules)), limit]
    ranked = [name for name in reversed(names) if name not in _HINDSIGHT]
    place, best = ranked.index(record.judged), record.rules[ranked[0]].j.value
    own = record.stops.j.value
    title = f"J is {num(own)} for the {label(record.judged)}, the lowest of {len(ranked)} rules"
    if place:
        title = (
            f"J is {num(own)} for the {label(record.judged)}, place {place + 1} of {len(ranked)}; "
            f"the lowest is {num(best)}, {label(ranked[0])}"
        )
    note = (
        f"Counted in {record.unit.value}. The best fixed budget and the oracle, chosen in "
        "hindsight, are not ranked."
    )
    if limit is not None and worst > limit:
        note += " Bars that leave the figure are longer."
    return Panel(title, note, plot, half=True)


def frontier(record: StoppingRecord) -> Panel:
    """Mean excess loss against mean cost: budgets, mixtures of them, rules and the oracle."""
    found, stops, unit = record.frontier, record.stops, record.unit.value
    curve = found.mean_excess
    plot = Plot(f"mean cost, {unit}", "mean excess loss", log="y")
    plot.curve("fixed budgets", range(len(curve)), curve, GREY, dash="dot", width=1.5)
    plot.curve("budgets mixed at random", found.hull, [curve[t] for t in found.hull], GREY)
    if found.settings:
        cost, excess = zip(*found.settings, strict=True)
        name = f"{label(record.judged)}, other settings"
        plot.curve(name, cost, excess, colour(record.judged), mode="lines+markers", size=4)
    for name in reversed(record.rules):  # the stops judged on top
        rule = record.rules[name]
        marks = {record.judged: ("diamond", 13), "oracle": ("star", 14)}
        symbol, size = marks.get(name, ("circle", 10))
        plot.curve(
            label(name),
            [rule.mean_cost],
            [rule.mean_excess],
            colour(name),
            mode="markers",
            symbol=symbol,
            size=size,
        )
    needed = found.cost_for_equal_excess
    least = f"for that, fixed budgets mixed at random need {num(needed)}"
    if math.isnan(needed):
        least = f"no fixed budget of up to {record.num_steps} comes so low"
    title = (
        f"{num(stops.mean_cost)} {unit} on average to a mean excess loss of "
        f"{num(stops.mean_excess)}; {least}"
    )
    note = "Lower and further left is better. A mixture may take fewer steps than it is allowed."
    return Panel(title, note, plot)


def reliability(record: StoppingRecord) -> Panel | None:
    """How often the oracle stops where the hazard is so high."""
    found = record.reliability
    if found is None or not found.bins:
        return None
    plot = Plot("mean hazard", "share at which the oracle stops")
    plot.curve("perfectly reliable", [0, 1], [0, 1], GREY, dash="dot", width=1.5)
    frequency = [each.frequency for each in found.bins]
    plot.curve(
        "hazard",
        [each.mean_hazard for each in found.bins],
        [each.value for each in frequency],
        colour(record.judged),
        mode="lines+markers",
        size=8,
        intervals=frequency,
        text=[f"{each.num_cases:,} cases" for each in found.bins],
        hovertemplate="mean hazard %{x:.3f}<br>the oracle stops at %{y:.3f}<br>%{text}"
        "<extra></extra>",
    )
    for axis in ("xaxis", "yaxis"):
        plot.layout[axis]["range"] = [-0.02, 1.02]
    title = f"Counted in {record.unit.value}, the hazard is off by {num(found.error)} on average"
    note = (
        f"Of the {found.num_cases:,} steps that the oracle reaches, in ten bins of the hazard: how "
        "often it stops there, with 95 % intervals. The mean distance from the diagonal is the "
        "expected calibration error."
    )
    return Panel(title, note, plot, half=True)


def difficulty(record: EvaluationRecord, arrays: Mapping[str, Tensor]) -> Panel | None:
    """Cost of the stops against how far each problem has to go."""
    unit = CostUnit.GRADIENTS
    stops = arrays[f"cost.{unit.value}.{record.stopping[unit].judged}"]
    start, oracle = arrays["excess"][:, 0].double(), arrays["oracle"]
    usable = (start > 0).nonzero().squeeze(1)
    if len(usable) < _NUM_BINS:
        return None
    start, sides = start[usable], {"learned": stops[usable], "oracle": oracle[usable]}
    plot = Plot("initial excess loss", f"{unit.value} until the stop", log="x")
    shown = torch.linspace(0, len(start) - 1, min(_MAX_POINTS, len(start))).round().long()
    for name, opacity in (("oracle", 0.25), ("learned", 0.35)):
        x, y = start[shown].tolist(), sides[name][shown].tolist()
        plot.curve(label(name), x, y, colour(name), mode="markers", size=5, opacity=opacity)
    bins = start.argsort().tensor_split(_NUM_BINS)
    for name, dash in (("oracle", "dot"), ("learned", "solid")):
        x = [start[part].log().mean().exp().item() for part in bins]
        y = [sides[name][part].double().mean().item() for part in bins]
        plot.curve(
            f"{label(name)}, mean", x, y, colour(name), mode="lines+markers", dash=dash, width=3
        )
    plot.layout["yaxis"]["rangemode"] = "tozero"
    own, best = (rank_correlation(start, sides[name]) for name in ("learned", "oracle"))
    found = "How far away a problem starts hardly changes where it stops"
    if abs(own) > 0.1:
        more = "more" if own > 0 else "fewer"
        found = f"Problems that start further away get {more} steps"
    title = f"{found} (rank correlation {num(own)}; the oracle’s {num(best)})"
    note = (
        f"{len(shown)} of {len(start)} problems; lines are means over {_NUM_BINS} equal groups by "
        "initial excess loss."
    )
    return Panel(title, note, plot, half=True)


def posterior(record: EvaluationRecord, arrays: Mapping[str, Tensor]) -> Panel | None:
    """The halting posterior of some problems over the whole horizon."""
    q, unit = arrays["posterior"], CostUnit.UPDATES
    stops = arrays[f"cost.{unit.value}.{record.stopping[unit].judged}"]
    if not len(q):
        return None
    order = stops.argsort(stable=True)
    shown = order[torch.linspace(0, len(order) - 1, min(_MAX_ROWS, len(order))).round().long()]
    plot = Plot("steps t", "problems, by halting step")
    plot.heat_map(q[shown].tolist(), "q(t|x,T)")
    plot.curve(
        "the rule stops here",
        stops[shown].tolist(),
        range(1, len(shown) + 1),
        VERMILION,
        mode="markers",
        symbol="circle-open",
        size=7,
        showlegend=True,
    )
    near = (torch.arange(q.shape[1]) - stops.unsqueeze(1)).abs() <= 2
    title = (
        f"On average, {percent((q.double() * near).sum(1).mean().item())} of the halting posterior "
        "lies within two steps of where the rule stops"
    )
    note = (
        f"q(t|x,T), the halting posterior over the whole horizon, of {len(shown)} of {len(q)} "
        "problems spread evenly over the halting steps; cost counted in updates."
    )
    return Panel(title, note, plot, half=True)


def losses(record: EvaluationRecord) -> Panel:
    """Mean excess loss of every optimizer against steps, L-BFGS against gradient evaluations."""
    plot = Plot("steps", "mean excess loss", log="y")
    for position, (name, curve) in enumerate(record.curves.items()):
        look = style(name, position)
        if min(curve.low) > 0:
            plot.band(name, curve.low, curve.high, look.colour)
        steps = range(len(curve.mean))
        plot.curve(name, steps, curve.mean, look.colour, dash=look.dash, width=look.width)
    note = (
        "Without stopping; bands hold 90 % of the problems. SGD, Nesterov, RMSprop and Adam at "
        "learning rates tuned on other problems."
    )
    last = {name: curve.mean[-1] for name, curve in record.curves.items()}
    ranked = sorted(last, key=lambda name: torch.inf if math.isnan(last[name]) else last[name])
    best, own = ranked[0], record.optimizer
    title = (
        f"Of {len(ranked)} optimizers that take a gradient a step, {best} has the lowest excess "
        f"loss after {record.horizon} steps, {num(last[best])}"
    )
    if best != own:
        title += f"; {own} has {num(last[own])}"
    if record.lbfgs:
        lowest = [value if value > 0 else None for value in record.lbfgs]
        plot.curve("L-BFGS (x: gradients)", range(len(lowest)), lowest, INK, dash="dot")
        note += (
            f" L-BFGS, dotted, on {record.num_lbfgs} of the problems in double precision, counted "
            "in the gradients of its line search; it may leave the figure below."
        )
        if record.lbfgs[-1] < last[best]:
            title += "; L-BFGS, with a line search, comes lower still"
    # L-BFGS reaches 1e-30 on quadratics, diverging curves 1e30: both would flatten the rest.
    values = torch.tensor([value for curve in record.curves.values() for value in curve.mean])
    top = torch.tensor(max(record.curves[own].mean))
    values = values[values.isfinite()]
    if len(values) and (values > 0).all() and top.isfinite():
        low, high, ceiling = (v.log10().item() for v in (values.min(), values.max(), top))
        plot.layout["yaxis"]["range"] = [low - 0.5, min(high + 0.3, ceiling + 1)]
        if high > ceiling + 1:
            note += " Curves that leave the figure above diverge."
    return Panel(title, note, plot)


_TRAINING = (
    ("loss", "objective", BLUE),
    ("price_adjusted_loss", "J, validation", VERMILION),
    ("mean_halting_step", "mean stop, steps", GREEN),
)


def training(log: Sequence[Mapping[str, Any]]) -> list[Panel]:
    """What the training log tells: the objective, J and the mean halting step."""
    panels = []
    for key, name, shade in _TRAINING:
        known = [
            (entry["step"], entry[key])
            for entry in log
            if isinstance(entry.get("step"), int) and isinstance(entry.get(key), (int, float))
        ]
        if len(known) < 2:
            continue
        steps, values = zip(*known, strict=True)
        plot = Plot("meta-steps", name, log="y" if key != "mean_halting_step" else "")
        plot.curve(name, steps, values, shade, mode="lines+markers", size=5)
        title = f"Training: {name}, from {num(values[0])} to {num(values[-1])}"
        note = ""
        if key == "price_adjusted_loss":
            best = min(values)
            where = steps[values.index(best)]
            title += f"; its lowest is {num(best)}, at meta-step {where:,}"
            note = "Excess loss at the stop plus price x cost, mean over both ways to decide."
        elif key == "loss":
            note = "In units of its own: it compares only within a phase of the run."
        panels.append(Panel(title, note, plot, half=True))
    return panels
