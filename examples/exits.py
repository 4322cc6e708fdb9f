"""Exits of networks that answer at every step: accuracy against compute, easy against hard.

What the other examples print and draw. The baselines of a learned exit stop at the first exit at
which a statistic of the answers falls to a level: the entropy of the answer, the number of steps
since it last changed (patience), the divergence from the answer before, or how much that changed
(second difference). Levels are chosen on one half of the items and judged on the other.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

__all__ = [
    "Exits",
    "Point",
    "accuracy_at",
    "draw",
    "halves",
    "highest_price",
    "point",
    "row",
    "statistics_of_answers",
    "table",
]

KEPT = 0.002
"""What accuracy may fall by where that of all steps is to be kept."""


@dataclass(frozen=True)
class Exits:
    """n items at exits 0..T.

    Attributes:
        right: Whether the answer of each exit is right, or what share of it, shape [n, T+1].
        cost: What each exit costs, rising, shape [T+1].
        learned: The exit that was learned, int64 [n].
        hard: Which items are hard, bool [n].
        statistics: Of the baselines, by name, at exits 0..T-1, shape [n, T]; they stop where these
            are at most a level.
    """

    right: Tensor
    cost: Tensor
    learned: Tensor
    hard: Tensor
    statistics: Mapping[str, Tensor]


@dataclass(frozen=True)
class Point:
    """Mean cost and accuracy of a way to exit, over all items, the easy and the hard, [3] each."""

    name: str
    cost: list[float]
    accuracy: list[float]


def statistics_of_answers(log_prob: Tensor) -> dict[str, Tensor]:
    """The baselines' statistics of answers with log-probabilities [n, T+1, C]."""
    prob = log_prob.exp()
    entropy = -(prob * log_prob).sum(-1)
    answer = log_prob.argmax(-1)
    kept = torch.zeros_like(entropy)
    for step in range(1, kept.shape[1]):
        kept[:, step] = (kept[:, step - 1] + 1) * (answer[:, step] == answer[:, step - 1])
    divergence = (prob[:, 1:] * (log_prob[:, 1:] - log_prob[:, :-1])).sum(-1)
    never = torch.full_like(entropy[:, :1], torch.inf)
    moved = (prob[:, 2:] - 2 * prob[:, 1:-1] + prob[:, :-2]).abs().sum(-1)
    return {
        "entropy": entropy[:, :-1],
        "patience": -kept[:, :-1],
        "KL between steps": torch.cat((never, divergence), 1)[:, :-1],
        "second difference": torch.cat((never, never, moved), 1)[:, :-1],
    }


def first_below(statistic: Tensor, level: float) -> Tensor:
    """The first exit at which a statistic [n, T] is at most a level, T if none; int64 [n]."""
    reached = torch.cat(
        (statistic <= level, torch.ones_like(statistic[:, :1], dtype=torch.bool)), 1
    )
    return reached.byte().argmax(1)


def point(name: str, exits: Exits, stop: Tensor, rows: Tensor) -> Point:
    """Measure exits int64 [n] on some rows (bool [n])."""
    parts = [rows, rows & ~exits.hard, rows & exits.hard]
    right = exits.right.double().gather(1, stop.unsqueeze(1)).squeeze(1)
    cost = exits.cost.double()[stop]
    means = [(cost[part].mean().item(), right[part].mean().item()) for part in parts]
    return Point(name, *map(list, zip(*means, strict=True)))


def halves(num: int) -> tuple[Tensor, Tensor]:
    """Every other item to choose levels on, and the rest to judge by, bool [n] each."""
    tuned = torch.arange(num) % 2 == 0
    return tuned, ~tuned


def curves(exits: Exits, num_levels: int = 60) -> dict[str, list[Point]]:
    """Each baseline at many levels, chosen as quantiles of the tuning half; fixed depths, too."""
    tuned, judged = halves(len(exits.learned))
    found = {
        "fixed depth": [
            point("fixed depth", exits, torch.full_like(exits.learned, depth), judged)
            for depth in range(exits.right.shape[1])
        ]
    }
    for name, statistic in exits.statistics.items():
        levels = dict.fromkeys(levels_of(statistic[tuned], num_levels) or [-math.inf])
        found[name] = [
            point(name, exits, first_below(statistic, level), judged) for level in levels
        ]
    return found


def levels_of(statistic: Tensor, num: int) -> list[float]:
    """So many quantiles of a statistic's finite values, rising; none if there are none."""
    finite = statistic[statistic.isfinite()].double()
    if len(finite) == 0:
        return []
    return finite.quantile(torch.linspace(0, 1, num, dtype=torch.float64)).tolist()


def accuracy_at(points: list[Point], cost: float) -> float:
    """The accuracy of the best mixture of two points at a mean cost, NaN if none is so cheap."""
    best = -math.inf
    for one in points:
        for other in points:
            (low, a), (high, b) = (one.cost[0], one.accuracy[0]), (other.cost[0], other.accuracy[0])
            if low <= cost <= high:
                weight = (cost - low) / (high - low) if high > low else 0.0
                best = max(best, a + weight * (b - a))
            elif high <= cost:  # more is not needed
                best = max(best, b)
    return best if math.isfinite(best) else math.nan


def highest_price(right: Tensor, by_price: Mapping[float, Tensor]) -> float:
    """The highest price whose exits keep the accuracy of all steps on the tuning half.

    Args:
        right: As in `Exits`.
        by_price: The exits learned at each price, int64 [n], prices rising.
    """
    tuned, _ = halves(len(right))
    kept = right[tuned, -1].double().mean() - KEPT
    prices = list(by_price)
    for price in reversed(prices):
        stop = by_price[price][tuned].unsqueeze(1)
        if right[tuned].double().gather(1, stop).mean() >= kept:
            return price
    return prices[0]


def as_accurate(exits: Exits, statistic: Tensor) -> Tensor:
    """The exits at the highest level of a statistic that keeps the accuracy of all steps."""
    tuned, _ = halves(len(exits.right))
    levels = [-math.inf, *levels_of(statistic[tuned], 200)]
    by_price = {level: first_below(statistic, level) for level in levels}
    return by_price[highest_price(exits.right, by_price)]


def row(each: Point) -> str:
    """A line of a table."""
    cost, right = each.cost, each.accuracy
    return (
        f"  {each.name:24}  {cost[0]:5.2f} ({cost[1]:5.2f}, {cost[2]:5.2f})   "
        f"{right[0]:.4f} ({right[1]:.4f}, {right[2]:.4f})"
    )


def table(exits: Exits) -> str:
    """The learned exits, all steps, and each baseline as accurate as these; then at equal cost.

    Where all steps are not the best, as where too many objects are painted, equal cost alone.
    """
    _, judged = halves(len(exits.learned))
    last = torch.full_like(exits.learned, exits.right.shape[1] - 1)
    stops = {"learned": exits.learned, "all steps": last}
    depths = exits.right.double().mean(0)
    if depths[-1] >= depths.max() - KEPT:  # more steps do no harm
        stops |= {name: as_accurate(exits, value) for name, value in exits.statistics.items()}
    lines = ["  exit                      cost (easy, hard)      accuracy (easy, hard)"]
    lines += [row(point(name, exits, stop, judged)) for name, stop in stops.items()]
    cost = point("learned", exits, exits.learned, judged).cost[0]
    lines += [f"  at a mean cost of {cost:.2f}, the best mixture of two settings of"]
    for name, points in curves(exits).items():
        accuracy = accuracy_at(points, cost)
        shown = f"{accuracy:.4f}" if math.isfinite(accuracy) else "takes more"
        lines.append(f"  {name:24}  {'':24}{shown}")
    return "\n".join(lines)


def draw(exits: Exits, path: Path, title: str) -> None:
    """Draw accuracy against mean cost, of easy (dashed) and hard items; one page of HTML."""
    import plotly.graph_objects as go

    figure = go.Figure(layout={"title": title, "template": "plotly_white"})
    _, judged = halves(len(exits.learned))
    shown = {**curves(exits), "learned": [point("learned", exits, exits.learned, judged)]}
    for place, (name, points) in enumerate(shown.items()):
        colour = ["#8c8c8c", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#0072b2"][place % 6]
        for part, (kind, dash) in enumerate((("easy", "dash"), ("hard", "solid")), 1):
            pairs = sorted((each.cost[part], each.accuracy[part]) for each in points)
            figure.add_scatter(
                x=[cost for cost, _ in pairs], y=[right for _, right in pairs],
                name=f"{name}, {kind}", mode="lines+markers",
                line={"dash": dash, "color": colour},
                marker={"size": 12 if name == "learned" else 5},
            )  # fmt: skip
    figure.update_xaxes(title="mean cost")
    figure.update_yaxes(title="accuracy")
    figure.write_html(path, include_plotlyjs=True)
