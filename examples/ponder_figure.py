"""The figure of `examples/ponder_maps.py`: one SVG that is readable on light and dark pages."""

import base64
import html
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from haltwise._core.files import write_atomically

__all__ = ["Maps", "draw"]

WIDTH, HEIGHT = 760, 640
LEFT, RIGHT, TOP, BOTTOM = 62, 190, 70, 330
CELL, GAP = 112, 8
STYLE = """
text { font: 13px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1b1f24; }
.title { font-size: 15.5px; font-weight: 600; } .muted { fill: #59636e; }
.grid { stroke: #d8dde3; } polyline { fill: none !important; stroke-width: 2; }
text { stroke: none !important; } image { image-rendering: pixelated; }
.c0 { stroke: #0072b2; fill: #0072b2; } .c1 { stroke: #b34a00; fill: #b34a00; }
.c2 { stroke: #59636e; fill: #59636e; } .c3 { stroke: #007a5a; fill: #007a5a; }
.c6 { stroke: #b3261e; fill: #b3261e; }
.c4 { stroke: #a3427f; fill: #a3427f; } .c5 { stroke: #8a6d00; fill: #8a6d00; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6e8eb; } .muted { fill: #a3abb5; } .grid { stroke: #39414a; }
  .c0 { stroke: #56b4e9; fill: #56b4e9; } .c1 { stroke: #f08a4b; fill: #f08a4b; }
  .c2 { stroke: #a8a8a8; fill: #a8a8a8; } .c3 { stroke: #2cc79b; fill: #2cc79b; }
  .c6 { stroke: #ef7d7d; fill: #ef7d7d; }
  .c4 { stroke: #e08fc4; fill: #e08fc4; } .c5 { stroke: #d9b93b; fill: #d9b93b; }
}
"""


class Maps(NamedTuple):
    """Images and the units that their positions took, shapes [n, ...], of at most so many."""

    images: Tensor
    steps: Tensor
    most: int


def draw(
    path: Path, title: str, curves: Mapping[str, list[tuple[float, float]]], maps: Maps
) -> None:
    """Draw accuracy against the share of operations, and ponder maps under their images.

    Args:
        path: Of the SVG.
        title: What was found.
        curves: (share, accuracy) by name; a curve of one point is drawn as a mark.
        maps: Drawn below, as many as there is room for.
    """
    points = [point for curve in curves.values() for point in curve]
    high = math.ceil(50 * max(right for _, right in points)) / 50
    low = high - 0.1

    def x(share: float) -> float:
        return round(LEFT + share * (WIDTH - LEFT - RIGHT), 1)

    def y(right: float) -> float:
        return round(BOTTOM - (right - low) / (high - low) * (BOTTOM - TOP), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-labelledby="t"><title id="t">{html.escape(title)}</title><style>{STYLE}</style>',
        f'<text class="title" x="12" y="24">{html.escape(title)}</text>',
        '<text class="muted" x="12" y="45">accuracy on held-out images against multiply-adds '
        "that were executed, in shares of the network with all units</text>",
    ]
    for tick in range(6):
        right = low + tick * 0.02
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(right)}" y2="{y(right)}"/>'
            f'<text class="muted" x="{LEFT - 8}" y="{y(right) + 4}" text-anchor="end">'
            f"{right:.2f}</text>"
            f'<text class="muted" x="{x(tick / 5)}" y="{BOTTOM + 20}" text-anchor="middle">'
            f"{tick / 5:g}</text>"
        )
    for number, (name, curve) in enumerate(curves.items()):
        shown = sorted(point for point in curve if point[1] >= low and point[0] <= 1.02)
        line = " ".join(f"{x(share)},{y(right)}" for share, right in shown)
        dash = "" if number < 2 else ' stroke-dasharray="5 4"'
        radius = 4 if number < 2 else 2.5
        parts.append(f'<polyline class="c{number}"{dash} points="{line}"/>')
        parts += [
            f'<circle class="c{number}" cx="{x(share)}" cy="{y(right)}" r="{radius}"/>'
            for share, right in shown
        ]
        parts.append(
            f'<text class="c{number}" x="{WIDTH - RIGHT + 14}" y="{TOP + 16 + 22 * number}" '
            f'font-weight="600">{html.escape(name)}</text>'
        )
    top = BOTTOM + 62
    parts.append(
        f'<text class="muted" x="12" y="{top - 14}">images, and the units that their positions '
        f"took: black 1, white {maps.most}</text>"
    )
    for number in range(min(len(maps.images), (WIDTH - 12) // (CELL + GAP))):
        left = 12 + number * (CELL + GAP)
        pictures = (maps.images[number], (maps.steps[number] - 1) / (maps.most - 1))
        for place, picture in enumerate(pictures):
            parts.append(
                f'<image x="{left}" y="{top + place * (CELL + GAP)}" width="{CELL}" '
                f'height="{CELL}" href="{_png(picture)}"/>'
            )
    write_atomically(path, ("\n".join(parts) + "\n</svg>\n").encode())


def _png(picture: Tensor) -> str:
    """A picture [height, width] of numbers from 0 to 1 as an address that holds it."""
    height, width = picture.shape
    levels = (picture.clamp(0, 1) * 255).round().byte().tolist()
    rows = b"".join(b"\0" + bytes(level) for level in levels)
    chunks = (
        (b"IHDR", struct.pack(">2I5B", width, height, 8, 0, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows, 9)),
        (b"IEND", b""),
    )
    made = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    return "data:image/png;base64," + base64.b64encode(made).decode()
