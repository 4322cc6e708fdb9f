"""The charts of the measured figures, drawn from the tables of the pages that show them.

    python docs/drawing/results.py    # writes docs/_static/results-*.svg

A chart has a row for each line of a table and a mark for each of some columns; the tables remain
the one place where a figure is written.
"""

import html
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from uses import STATIC, STYLE

DOCS = Path(__file__).parents[1]
WIDTH, RIGHT, TOP, ROW = 760, 30, 112, 26
MARKS = ("ours", "theirs", "others")
"""Classes of the columns' marks, in their order; shapes differ, so colours need not be seen."""
COLOURS = """
.ours { stroke: #0072b2; } .theirs { stroke: #767676; } .others { fill: #b34a00; stroke: #b34a00; }
.link { stroke: #b4bcc5; stroke-width: 2; }
@media (prefers-color-scheme: dark) {
  .ours { stroke: #56b4e9; } .theirs { stroke: #a8a8a8; }
  .others { fill: #f08a4b; stroke: #f08a4b; } .link { stroke: #59636e; }
}
"""


class Chart(NamedTuple):
    """A table's columns as marks on one axis."""

    page: str
    heading: str
    """Of the section that holds the table, the first one there unless `nth` says otherwise."""
    title: str
    """What was found; true of every row."""
    note: str
    label: Sequence[int]
    """Columns that name a row."""
    columns: Mapping[str, int]
    """Columns that are shown, by what they are called in the legend."""
    axis: str
    logarithmic: bool = False
    most: float = 0.0
    """Where the axis ends at least."""
    nth: int = 0


CHARTS = {
    "gain": Chart(
        "results.md",
        "Over ten seeds",
        "Learned stops capture more than the best tuned rule, most where losses swing",
        "captured gain in gradients, mean of 10 seeds, by trajectories and price",
        (0, 1),
        {"learned": 4, "best tuned rule": 5},
        "captured gain: 0 the best fixed budget, 1 an oracle",
    ),
    "modules": Chart(
        "results.md",
        "Modules that no weights were trained for",
        "On modules never seen, the default is below a tuned Adam on all six",
        "median loss of six modules on digits after 100 steps, 15 seeds",
        (0,),
        {"small-networks, as it ships": 1, "Adam, tuned for each": 3, "Adam, rate 1e-3": 2},
        "loss after 100 steps, lower is better",
        logarithmic=True,
    ),
    "given-up": Chart(
        "results.md",
        "Training runs given up",
        "A fourth of the hours saved for 1 % of the successes",
        "AlgoPerf's 3,496 public runs; neither forecast nor level had seen the submission",
        (0,),
        {"training-runs": 1, "boosted trees, in hindsight": 3, "best hand-made rule": 4},
        "share of all hours saved, by the share of successes that may be lost",
    ),
    "pruning": Chart(
        "results.md",
        "Pruning a random search",
        "After ten whole trainings, HaltwisePruner has half the regret of the medians",
        "nine tasks of TaskSet, 30 random orders; 0 is the best configuration, 1 the median one",
        (0,),
        {"regret after 10 trainings": 2, "after 20": 3},
        "regret, lower is better",
    ),
    "depth": Chart(
        "adaptive-examples.md",
        "Looped transformer: Sudoku and mazes",
        "A looped transformer solves puzzles in two to four of its twelve loops",
        "mean loops a puzzle of at most 12; accuracy within .8 points of that of all loops",
        (0,),
        {"learned exits": 1, "exits by entropy": 4},
        "loops",
        most=12,
    ),
}


def table(page: str, heading: str, nth: int = 0) -> list[list[str]]:
    """The lines of a table, its head left out."""
    text = (DOCS / page).read_text(encoding="utf-8")
    section = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    found = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = found[nth].splitlines()[2:]
    return [[cell.strip().replace("`", "") for cell in row.strip("|").split("|")] for row in rows]


def number(cell: str) -> float:
    """The first number of a cell; NaN if it has none."""
    found = re.search(r"[-\N{MINUS SIGN}]?\d*\.?\d+", cell)
    return float(found[0]) if found else math.nan


def ticks(values: Sequence[float], *, logarithmic: bool) -> list[float]:
    """Round places on the axis that hold all values."""
    if logarithmic:
        low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
        return [10.0**power for power in range(low, high + 1)]
    size = 10 ** math.floor(math.log10(max(values)))
    step = next(
        s for s in (0.1 * size, 0.2 * size, 0.5 * size, size, 2 * size) if 6 * s >= max(values)
    )
    return [step * i for i in range(math.ceil(max(values) / step) + 1)]


def mark(kind: str, x: float, y: float) -> str:
    """A disc, a square on end or a triangle."""
    if kind == "ours":
        return f'<circle class="{kind}" cx="{x}" cy="{y}" r="6"/>'
    if kind == "theirs":
        return f'<path class="{kind}" d="M{x} {y - 7}l7 7l-7 7l-7 -7z"/>'
    return f'<path class="{kind}" d="M{x} {y - 6}l6 11h-12z"/>'


def draw(chart: Chart) -> str:
    """The chart as SVG."""
    rows = table(chart.page, chart.heading, chart.nth)
    labels = [", ".join(row[column] for column in chart.label) for row in rows]
    values = [[number(row[column]) for column in chart.columns.values()] for row in rows]
    seen = [v for row in values for v in row if not math.isnan(v)]
    places = ticks([*seen, *[chart.most] * (chart.most > 0)], logarithmic=chart.logarithmic)
    scale = math.log10 if chart.logarithmic else float
    low, high = scale(places[0]), scale(places[-1])
    left = 24 + max(round(6.7 * len(label)) for label in labels)
    height = TOP + ROW * len(rows) + 46

    def x(value: float) -> float:
        return round(left + (scale(value) - low) / (high - low) * (WIDTH - left - RIGHT), 1)

    title, note = html.escape(chart.title), html.escape(chart.note)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="t"><title id="t">{title}</title><style>{STYLE}{COLOURS}</style>',
        f'<text class="title" x="12" y="24">{title}</text>',
        f'<text class="muted" x="12" y="45">{note}</text>',
    ]
    at = 18
    for kind, name in zip(MARKS, chart.columns, strict=False):
        parts.append(f'{mark(kind, at, 68)}<text x="{at + 14}" y="73">{html.escape(name)}</text>')
        at += 44 + round(7 * len(name))
    parts += [
        f'<line class="grid" x1="{x(place)}" x2="{x(place)}" y1="{TOP - 18}" y2="{height - 46}"/>'
        f'<text class="muted" x="{x(place)}" y="{height - 30}" text-anchor="middle">'
        f"{place:.4g}</text>"
        for place in places
    ]
    middle = round((left + WIDTH - RIGHT) / 2)
    parts.append(
        f'<text class="muted" x="{middle}" y="{height - 10}" text-anchor="middle">'
        f"{html.escape(chart.axis)}</text>"
    )
    for line, (label, row) in enumerate(zip(labels, values, strict=True)):
        y = TOP + ROW * line
        shown = [(kind, x(v)) for kind, v in zip(MARKS, row, strict=False) if not math.isnan(v)]
        ends = sorted(place for _, place in shown)
        parts.append(
            f'<text x="{left - 14}" y="{y + 5}" text-anchor="end">{html.escape(label)}</text>'
            f'<line class="link" x1="{ends[0]}" x2="{ends[-1]}" y1="{y}" y2="{y}"/>'
            + "".join(mark(kind, place, y) for kind, place in reversed(shown))
        )
    return "\n".join((*parts, "</svg>\n"))


def main() -> None:
    """Draw all charts."""
    for name, chart in CHARTS.items():
        (STATIC / f"results-{name}.svg").write_text(draw(chart), encoding="utf-8")


if __name__ == "__main__":
    main()
