"""The picture of docs/architecture.md, drawn from the code.

Rooms are the packages below `haltwise`, their layers those of the import contract in
pyproject.toml, their descriptions the first lines of their docstrings, and arrows their imports.
Above them stand the flows, each name with the room that defines it.

    python docs/drawing/architecture.py    # writes docs/_static/architecture.svg
"""

import ast
import html
import textwrap
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import grimp

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/haltwise"
PICTURE = ROOT / "docs/_static/architecture.svg"

FLOWS: Mapping[str, Sequence[Sequence[str]]] = {
    "Trained": [
        ["TaskFamily"],
        ["TaskBatch"],
        ["UpdateRule"],
        ["Process"],
        ["record"],
        ["Trajectory"],
        ["Halter"],
        ["HaltingMethod"],
        ["Trainer"],
        ["HaltingModel", "Card"],
    ],
    "Used": [["Process"], ["HaltingSession"], ["Decision"]],
    "Judged": [["Trajectory", "Stops"], ["judge"], ["StoppingRecord"], ["write_report"]],
}
"""What flows into what, by occasion; names side by side go in together."""

WIDTH, MARGIN = 760, 40
PILL_HEIGHT, PILL_GAP, LETTER = 44, 26, 7.3
ROOM_GAP, LINE = 22, 14
CHARACTER = 6.1  # mean width of a character of a description
TITLE = "Imports between rooms point downwards; data flow from tasks to decisions"
STYLE = """
svg { color: #1b1f24; --accent: #0072b2; }
text { font: 12px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: currentColor; }
.title { font-size: 15.5px; font-weight: 600; } .heading { font-size: 13px; font-weight: 600; }
.name { font: 600 12px ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; }
.muted { font-size: 11px; opacity: .72; }
rect { fill: currentColor; fill-opacity: .045; stroke: currentColor; stroke-opacity: .4; }
.import { fill: none; stroke: currentColor; stroke-opacity: .55; }
.head { fill: currentColor; fill-opacity: .7; }
.pill { fill: var(--accent); fill-opacity: .1; stroke: var(--accent); stroke-opacity: 1; }
.flow { fill: none; stroke: var(--accent); stroke-width: 2.5; } .tip { fill: var(--accent); }
@media (prefers-color-scheme: dark) { svg { color: #e6e8eb; --accent: #56b4e9; } }
"""


class Box(NamedTuple):
    """A room's place."""

    left: float
    top: float
    width: float
    about: list[str]
    """What the room is for, line by line."""

    @property
    def middle(self) -> float:
        return self.left + self.width / 2

    @property
    def right(self) -> float:
        return self.left + self.width

    @property
    def bottom(self) -> float:
        return self.top + 28 + LINE * len(self.about)


# ------------------------------------------------------------------------------ what the code says


def layers() -> list[list[str]]:
    """Read the rooms of each layer, from the top, out of the import contract."""
    with (ROOT / "pyproject.toml").open("rb") as file:
        contracts = tomllib.load(file)["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if "containers" not in contract)
    named = [[part.strip().removeprefix("haltwise.") for part in row.split("|")] for row in rows]
    return [present for row in named if (present := [room for room in row if is_room(room)])]


def is_room(name: str) -> bool:
    """Whether `haltwise.name` is a package."""
    return (SOURCE / name / "__init__.py").exists()


def imports() -> dict[str, set[str]]:
    """Collect which rooms each room imports."""
    graph = grimp.build_graph("haltwise")
    found: dict[str, set[str]] = {room: set() for row in layers() for room in row}
    for module in sorted(graph.modules):
        for imported in graph.find_modules_directly_imported_by(module):
            importer, room = (name.split(".")[1:2] for name in (module, imported))
            if importer and room and importer != room and importer[0] in found:
                found[importer[0]].add(room[0])
    return found


def essential(arrows: Mapping[str, Iterable[str]]) -> list[tuple[str, str]]:
    """Keep those arrows that do not follow from others (the transitive reduction)."""

    def below(room: str) -> set[str]:
        return {room}.union(*(below(other) for other in arrows[room]))

    return sorted(
        (room, other)
        for room in arrows
        for other in arrows[room]
        if not any(other in below(third) for third in arrows[room] if third != other)
    )


def descriptions() -> dict[str, str]:
    """Take the first line of every room's docstring."""
    found = {}
    for row in layers():
        for room in row:
            tree = ast.parse((SOURCE / room / "__init__.py").read_text(encoding="utf-8"))
            line = (ast.get_docstring(tree) or "").partition("\n")[0]
            found[room] = line.replace("`", "")
    return found


def homes() -> dict[str, str]:
    """Find the room of every public class and function at the top of a file."""
    found = {}
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef):
                found.setdefault(node.name, path.relative_to(SOURCE).parts[0])
    return found


# ------------------------------------------------------------------------------------- the drawing


def text(x: float, y: float, words: str, kind: str, anchor: str = "start") -> str:
    """A line of text."""
    return (
        f'<text class="{kind}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">'
        f"{html.escape(words)}</text>"
    )


def arrow(points: Sequence[tuple[float, float]], line: str, tip: str, size: float) -> str:
    """A polyline with a head at its last point."""
    (before_x, before_y), (x, y) = points[-2:]
    length = ((x - before_x) ** 2 + (y - before_y) ** 2) ** 0.5
    along = ((x - before_x) / length * size, (y - before_y) / length * size)
    across = (-along[1] / 2, along[0] / 2)
    base = (x - along[0], y - along[1])
    corners = [
        (x, y),
        (base[0] + across[0], base[1] + across[1]),
        (base[0] - across[0], base[1] - across[1]),
    ]
    shaft = " ".join(f"{a:g},{b:g}" for a, b in (*points[:-1], base))
    head = " ".join(f"{a:.4g},{b:.5g}" for a, b in corners)
    return f'<polyline class="{line}" points="{shaft}"/><polygon class="{tip}" points="{head}"/>'


def draw_flows(top: float) -> tuple[list[str], float]:
    """Draw the flows below `top`, with the height at which they end."""
    home, parts = homes(), []
    y = top
    for occasion, flow in FLOWS.items():
        parts.append(text(MARGIN, y, occasion, "heading"))
        y += 12
        x: float = MARGIN
        for place, names in enumerate(flow):
            label = " + ".join(names)
            rooms = " and ".join(dict.fromkeys(home[name] for name in names))
            width = round(max(len(label) * LETTER, len(rooms) * CHARACTER) + 20)
            if x + width > WIDTH - MARGIN:
                x, y = MARGIN + PILL_GAP, y + PILL_HEIGHT + 12
            if place:
                begin = (x - PILL_GAP + 3, y + PILL_HEIGHT / 2)
                parts.append(arrow([begin, (x - 3, begin[1])], "flow", "tip", 9))
            parts += [
                f'<rect class="pill" x="{x:g}" y="{y:g}" width="{width}" height="{PILL_HEIGHT}" '
                'rx="9"/>',
                text(x + width / 2, y + 19, label, "name", "middle"),
                text(x + width / 2, y + 35, rooms, "muted", "middle"),
            ]
            x += width + PILL_GAP
        y += PILL_HEIGHT + 28
    return parts, y


def place_rooms(top: float) -> dict[str, Box]:
    """Give every room its box, those of a layer side by side."""
    about, boxes = descriptions(), {}
    for row in layers():
        width = (WIDTH - 2 * MARGIN - ROOM_GAP * (len(row) - 1)) / len(row)
        columns = int((width - 24) / CHARACTER)
        lines = {room: textwrap.wrap(about[room], columns, break_on_hyphens=False) for room in row}
        most = max(map(len, lines.values()))
        for place, room in enumerate(row):
            left = MARGIN + place * (width + ROOM_GAP)
            filled = lines[room] + [""] * (most - len(lines[room]))
            boxes[room] = Box(left, top, width, filled)
        top = boxes[row[0]].bottom + ROOM_GAP
    return boxes


def draw_rooms(boxes: Mapping[str, Box]) -> list[str]:
    """Draw the boxes, each with its name and what it is for."""
    parts = []
    for room, box in boxes.items():
        parts += [
            f'<rect x="{box.left:g}" y="{box.top:g}" width="{box.width:g}" '
            f'height="{box.bottom - box.top:g}" rx="4"/>',
            text(box.left + 12, box.top + 18, room, "name"),
        ]
        for number, line in enumerate(box.about):
            parts.append(text(box.left + 12, box.top + 34 + number * LINE, line, "muted"))
    return parts


def draw_imports(boxes: Mapping[str, Box]) -> list[str]:
    """Draw the essential imports; those that pass over a layer go along the nearer margin."""
    lanes = {"left": 0, "right": 0}
    parts = []
    for importer, imported in essential(imports()):
        begin, end = boxes[importer], boxes[imported]
        if end.top - begin.bottom <= ROOM_GAP:
            overlap = max(begin.left, end.left), min(begin.right, end.right)
            if overlap[0] < overlap[1]:
                x = sum(overlap) / 2
                points = [(x, begin.bottom), (x, end.top)]
            else:
                inner = 1 if end.left > begin.left else -1
                points = [
                    (begin.middle + inner * begin.width * 0.42, begin.bottom),
                    (end.middle - inner * end.width * 0.42, end.top),
                ]
        else:
            side = "left" if begin.left < WIDTH / 2 - begin.width / 2 else "right"
            lanes[side] += 1
            away = 10 * lanes[side]
            edge, lane = (
                (begin.left, MARGIN - away)
                if side == "left"
                else (begin.right, WIDTH - MARGIN + away)
            )
            y = (begin.top + begin.bottom) / 2
            turn = end.top - ROOM_GAP / 2
            reach = end.left + 24 * lanes[side] if side == "left" else end.right - 24 * lanes[side]
            points = [(edge, y), (lane, y), (lane, turn), (reach, turn), (reach, end.top)]
        parts.append(arrow(points, "import", "head", 7))
    return parts


def draw() -> str:
    """Draw the whole picture as SVG."""
    flows, top = draw_flows(60)
    boxes = place_rooms(top + 38)
    height = max(box.bottom for box in boxes.values()) + 16
    number = sum(len(others) for others in imports().values())
    shown = len(essential(imports()))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:g}" role="img" '
            f'aria-labelledby="t"><title id="t">{TITLE}</title><style>{STYLE}</style>',
            text(MARGIN, 26, TITLE, "title"),
            *flows,
            text(MARGIN, top + 4, "Rooms", "heading"),
            text(
                MARGIN,
                top + 22,
                f"An arrow means “imports”; {shown} of {number} are drawn, from which the others "
                "follow.",
                "muted",
            ),
            *draw_imports(boxes),
            *draw_rooms(boxes),
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    PICTURE.write_text(draw(), encoding="utf-8")
