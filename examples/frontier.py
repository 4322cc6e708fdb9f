"""The README's figure: stopping by itself against fixed budgets, as one SVG for light and dark.

4,096 problems are recorded once, without stopping. At every price the halting model then says where
each would have stopped, which costs no further gradient: a point for each price, mean excess loss
against mean gradients.
"""

import html
import math
from pathlib import Path
from typing import NamedTuple

import click

import haltwise
from haltwise._core.files import write_atomically
from haltwise._core.random import stream
from haltwise.evaluation import Stops, judge
from haltwise.rollout import record
from haltwise.stop_rules import CostUnit
from haltwise.tasks import family

PRICES = [0.0527 * 10 ** (exponent / 6) for exponent in range(-6, 7)]
MIDDLE = 6


class Frontier(NamedTuple):
    """Mean gradients and mean excess loss, a pair for every price or budget."""

    learned: list[tuple[float, float]]
    oracle: list[tuple[float, float]]
    fixed: list[tuple[float, float]]
    budget_for_equal_loss: float
    """Gradients of the fixed budget, randomised between two, of the loss at the middle price."""


def measure(name: str, num_problems: int, seed: int) -> Frontier:
    """Judge the stops of an optimizer at every price, on problems that it has never seen."""
    model, unit = haltwise.load(name), CostUnit.GRADIENTS
    card = model.card
    assert card.family is not None
    problems = family(card.family.name).sample(num_problems, stream(seed, "test"))
    trajectory = record(model.rule, problems, card.horizon)
    records = []
    for price in PRICES:
        judged = model.halting.attach(trajectory, price)
        stops = {"learned": Stops.by(model.policy(unit), judged, unit)}
        records.append(judge(judged, stops, unit, price=price))
    learned, oracle = (
        [(found.rules[rule].mean_cost, found.rules[rule].mean_excess) for found in records]
        for rule in ("learned", "oracle")
    )
    frontier = records[MIDDLE].frontier
    fixed = [(float(step), excess) for step, excess in enumerate(frontier.mean_excess)]
    return Frontier(learned, oracle, fixed, frontier.cost_for_equal_excess)


WIDTH, HEIGHT = 760, 400
LEFT, RIGHT, TOP, BOTTOM = 74, 20, 74, 52
STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1b1f24; }
.title { font-size: 15.5px; font-weight: 600; } .muted { fill: #59636e; }
.grid { stroke: #d8dde3; } .axis { stroke: #8c959f; }
.fixed { stroke: #767676; fill: #767676; } .learned { stroke: #0072b2; fill: #0072b2; }
.oracle { stroke: #b34a00; fill: #b34a00; }
polyline { fill: none !important; stroke-width: 2.5; } text { stroke: none !important; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8eb; } .muted { fill: #a3abb5; } .grid { stroke: #39414a; }
  .axis { stroke: #6b7580; } .fixed { stroke: #a8a8a8; fill: #a8a8a8; }
  .learned { stroke: #56b4e9; fill: #56b4e9; } .oracle { stroke: #f08a4b; fill: #f08a4b; }
}
"""


def draw(frontier: Frontier, caption: str) -> str:
    """The figure as SVG."""
    right = 0.4 * (len(frontier.fixed) - 1)
    shown = [point for point in frontier.fixed if point[0] <= right]
    losses = [loss for _, loss in (*shown, *frontier.learned, *frontier.oracle) if loss > 0]
    low, high = math.floor(math.log10(min(losses))), math.ceil(math.log10(max(losses)))

    def x(cost: float) -> float:
        return round(LEFT + cost / right * (WIDTH - LEFT - RIGHT), 1)

    def y(loss: float) -> float:
        share = (math.log10(loss) - low) / (high - low)
        return round(HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM), 1)

    spent, reached = middle = frontier.learned[MIDDLE]
    title = (
        f"For equal loss: {spent:.1f} gradients a problem if stopped by itself, "
        f"{frontier.budget_for_equal_loss:.1f} with a fixed budget"
    )
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="t"><title id="t">{title}</title><style>{STYLE}</style>',
        f'<text class="title" x="12" y="24">{title}</text>',
        f'<text class="muted" x="12" y="45">{html.escape(caption)}</text>',
    ]
    for power in range(low, high + 1):
        height = y(10.0**power)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{height}" y2="{height}"/>'
            f'<text class="muted" x="{LEFT - 8}" y="{height + 4}" text-anchor="end">'
            f"{10.0**power:g}</text>"
        )
    parts += [
        f'<text class="muted" x="{x(cost)}" y="{HEIGHT - BOTTOM + 20}" '
        f'text-anchor="middle">{cost}</text>'
        for cost in range(0, int(right) + 1, 5)
    ]
    parts.append(
        f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">'
        "mean gradients a problem</text>"
        f'<text transform="translate(18 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)" '
        'text-anchor="middle">mean excess loss, nats</text>'
    )
    equal = (frontier.budget_for_equal_loss, reached)
    parts.append(
        f'<line class="axis" stroke-dasharray="4 4" x1="{x(middle[0])}" x2="{x(equal[0])}" '
        f'y1="{y(reached)}" y2="{y(reached)}"/>'
    )
    for kind, points, dash, mark in (
        ("fixed", shown, "", ""),
        ("oracle", frontier.oracle, "2 5", "diamond"),
        ("learned", frontier.learned, "", "circle"),
    ):
        line = " ".join(f"{x(cost)},{y(loss)}" for cost, loss in points)
        parts.append(f'<polyline class="{kind}" stroke-dasharray="{dash}" points="{line}"/>')
        for cost, loss in points:
            a, b = x(cost), y(loss)
            if mark == "circle":
                parts.append(f'<circle class="{kind}" cx="{a}" cy="{b}" r="4"/>')
            elif mark == "diamond":
                shape = f"{a},{b - 5} {a + 5},{b} {a},{b + 5} {a - 5},{b}"
                parts.append(f'<polygon class="{kind}" points="{shape}"/>')
    at = shown[len(shown) // 2]
    labels = [
        ("fixed", x(at[0]) + 8, y(at[1]) - 10, "the same steps for every problem"),
        (
            "learned",
            x(frontier.learned[0][0]) + 12,
            y(frontier.learned[0][1]) + 4,
            "stopped by itself",
        ),
        ("oracle", x(frontier.oracle[0][0]) - 12, y(frontier.oracle[0][1]) + 4, "hindsight"),
    ]
    for kind, a, b, text in labels:
        anchor = "end" if kind == "oracle" else "start"
        parts.append(
            f'<text class="{kind}" x="{a}" y="{b}" text-anchor="{anchor}" font-weight="600">'
            f"{text}</text>"
        )
    return "\n".join(parts) + "\n</svg>\n"


@click.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--optimizer", default="regression-2d", show_default=True)
@click.option("--num-problems", default=4096, show_default=True)
@click.option("--seed", default=2026, show_default=True)
def main(path: Path, optimizer: str, num_problems: int, seed: int) -> None:
    """Write the figure to PATH and its numbers to the terminal."""
    frontier = measure(optimizer, num_problems, seed)
    caption = (
        f"{optimizer}, {num_problems:,} held-out problems, seed {seed}; one point per price, "
        f"{PRICES[0]:.3g} to {PRICES[-1]:.3g} nats a gradient"
    )
    write_atomically(path, draw(frontier, caption).encode())
    for price, (cost, loss) in zip(PRICES, frontier.learned, strict=True):
        click.echo(f"price {price:.4f}: {cost:.2f} gradients, excess loss {loss:.4f}")
    click.echo(f"fixed budget of equal loss: {frontier.budget_for_equal_loss:.2f} gradients")


if __name__ == "__main__":
    main()
