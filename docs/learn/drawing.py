"""Figures of the notebooks, drawn by `_static/figures.js` in the colours of the page's theme."""

import html
import json
from collections.abc import Sequence
from typing import NamedTuple

from IPython.display import HTML
from torch import Tensor

__all__ = ["Curve", "show"]


class Curve(NamedTuple):
    """Values at steps 0, 1, ..."""

    name: str
    values: Tensor
    colour: str
    dash: str = "solid"


def show(
    curves: Sequence[Curve],
    *,
    y: str,
    y_range: tuple[float, float] | None = None,
    zero_line: bool = False,
) -> HTML:
    """Draw curves over the steps; no request is made.

    Args:
        curves: From the first drawn to the last.
        y: Title of the axis.
        y_range: Its ends; those of the values if None.
        zero_line: Whether zero is marked.
    """
    data = [
        {
            "name": curve.name,
            "y": curve.values.tolist(),
            "mode": "lines+markers",
            "line": {"color": curve.colour, "dash": curve.dash},
        }
        for curve in curves
    ]
    axis = {"automargin": True, "zeroline": False, "gridcolor": "#e3e6ea"}
    layout = {
        "height": 360,
        "hovermode": "x unified",
        "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "xaxis": {**axis, "title": {"text": "step t"}},
        "yaxis": {**axis, "title": {"text": y}, **({"range": list(y_range)} if y_range else {})},
        "shapes": [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": 0,
                "y1": 0,
                "line": {"color": "#010101", "width": 1},
            }
        ]
        * zero_line,
    }
    text = json.dumps({"data": data, "layout": layout}).replace("</", "<\\/")
    label = html.escape(f"{y} over the steps: {', '.join(curve.name for curve in curves)}")
    place = f'<div class="figure-place" tabindex="0" role="img" aria-label="{label}"></div>'
    return HTML(f'{place}<script type="application/json" class="plotly-figure">{text}</script>')
