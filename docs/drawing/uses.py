"""The figures of docs/uses, one for each use, drawn from what benchmarks/uses wrote.

    python docs/drawing/uses.py runs/uses    # keeps the measurements, draws docs/_static/uses-*.svg

Without a directory the figures are drawn again from the measurements that were kept.
"""

import html
import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
KEPT = ROOT / "docs/drawing/uses.json"
STATIC = ROOT / "docs/_static"

NAMES = {
    "logistic": "logistic regressions",
    "negative-binomial": "negative-binomial regressions",
    "light-curves": "damped random walks",
    "alignment": "robust alignments",
    "michaelis-menten": "Michaelis-Menten fits",
}
WIDTH, LEFT, RIGHT, TOP, ROW = 760, 250, 170, 84, 38
STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1b1f24; }
.title { font-size: 15.5px; font-weight: 600; } .muted { fill: #59636e; }
.grid { stroke: #d8dde3; } .ours { fill: #0072b2; } .theirs { fill: #767676; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8eb; } .muted { fill: #a3abb5; } .grid { stroke: #39414a; }
  .ours { fill: #56b4e9; } .theirs { fill: #a8a8a8; }
}
"""


def collect(directory: Path) -> dict[str, Any]:
    """The measurements of all uses by name and threads."""
    found: dict[str, Any] = {}
    for path in sorted(directory.glob("*.json")):
        measured = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(measured["use"], {})[str(measured["threads"])] = measured
    return found


def draw(use: str, measured: dict[str, Any]) -> str:
    """Bars of seconds for 100,000 problems on one thread, with the error that was reached."""
    one = measured["1"]
    scale = 1e5 / one["problems"]
    rows = [(row["name"], row["seconds"] * scale, row["p99"]) for row in one["results"]]
    low = math.floor(math.log10(min(seconds for _, seconds, _ in rows)))
    high = math.ceil(math.log10(max(seconds for _, seconds, _ in rows)))
    ours = min(seconds for name, seconds, _ in rows if name.startswith("haltwise"))
    title = f"100,000 {NAMES[use]} in {ours:.2g} seconds of one core"
    height = TOP + ROW * len(rows) + 40

    def x(seconds: float) -> float:
        share = (math.log10(seconds) - low) / (high - low)
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-labelledby="t"><title id="t">{title}</title><style>{STYLE}</style>',
        f'<text class="title" x="12" y="24">{title}</text>',
        f'<text class="muted" x="12" y="45">Measured on {one["problems"]:,} problems; '
        "in brackets the 99th percentile of the loss above the least found</text>",
    ]
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(
            f'<line class="grid" x1="{at}" x2="{at}" y1="{TOP - 12}" y2="{height - 36}"/>'
            f'<text class="muted" x="{at}" y="{height - 16}" text-anchor="middle">'
            f"{10.0**power:g} s</text>"
        )
    for number, (name, seconds, error) in enumerate(rows):
        top = TOP + ROW * number
        kind = "ours" if name.startswith("haltwise") else "theirs"
        parts.append(
            f'<text x="{LEFT - 10}" y="{top + 16}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect class="{kind}" x="{LEFT}" y="{top}" width="{max(2, x(seconds) - LEFT):.1f}" '
            f'height="{ROW - 14}"/>'
            f'<text x="{x(seconds) + 8}" y="{top + 16}">{seconds:.3g} s '
            f'<tspan class="muted">({error:.0e})</tspan></text>'
        )
    return "\n".join((*parts, "</svg>\n"))


def main() -> None:
    """Draw all figures."""
    if len(sys.argv) > 1:
        kept = json.dumps(collect(Path(sys.argv[1])), indent=1)
        KEPT.write_text(kept + "\n", encoding="utf-8")
    for use, measured in json.loads(KEPT.read_text(encoding="utf-8")).items():
        (STATIC / f"uses-{use}.svg").write_text(draw(use, measured), encoding="utf-8")


if __name__ == "__main__":
    main()
