"""The one way figures are drawn: traces and layout for plotly.js, and their numbers for CSV files.

Names from records are escaped, since plotly reads legends and hover texts as HTML.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from haltwise.evaluation import Interval

__all__ = ["Panel", "Plot"]

Numbers = Sequence[float | int | None]


@final
@dataclass(frozen=True)
class Panel:
    """A figure on the page."""

    title: str
    """What it shows was found."""
    note: str
    """How to read it."""
    plot: "Plot"
    half: bool = False
    """Whether it may share a line with another on wide screens."""


@final
class Plot:
    """Curves, points, bars or a heat map on two titled axes.

    Args:
        x: Title of the horizontal axis.
        y: Title of the vertical axis.
        log: The axes, of "x" and "y", that are logarithmic where all on them is positive.
    """

    def __init__(self, x: str, y: str, *, log: str = "") -> None:
        self.traces: list[dict[str, Any]] = []
        self.rows: list[list[Any]] = []
        self.columns = ["series", x, y]
        self._log = log
        self.layout: dict[str, Any] = {
            "margin": {"l": 8, "r": 12, "t": 12, "b": 8},
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 1.02,
                "yanchor": "bottom",
                "xanchor": "left",
            },
            "hovermode": "closest",
            "uirevision": "keep",  # legend and zoom survive a change of theme
            "xaxis": _axis(x),
            "yaxis": _axis(y),
        }

    def curve(
        self,
        name: str,
        x: Numbers,
        y: Numbers,
        colour: str,
        *,
        mode: str = "lines",
        dash: str = "solid",
        width: float = 2,
        symbol: str = "circle",
        size: float = 6,
        intervals: Sequence[Interval] = (),
        **more: Any,
    ) -> None:
        """Draw a curve, points (`mode="markers"`) or both, with 95 % intervals of y if given."""
        trace = {
            "type": "scatter",
            "name": html.escape(name),
            "legendgroup": html.escape(name),
            "mode": mode,
            "x": _rounded(x),
            "y": _rounded(y),
            "line": {"color": colour, "dash": dash, "width": width},
            "marker": {"color": colour, "symbol": symbol, "size": size},
            "hovertemplate": "%{x:.4g}: %{y:.4g}<extra>%{fullData.name}</extra>",
        }
        if intervals:
            trace["error_y"] = {
                "type": "data",
                "symmetric": False,
                "thickness": 1.2,
                "width": 3,
                "color": colour,
                "array": _rounded([each.high - each.value for each in intervals]),
                "arrayminus": _rounded([each.value - each.low for each in intervals]),
            }
            self.columns = [*self.columns[:3], "low", "high"]
        ends = [[each.low, each.high] for each in intervals] or [[] for _ in x]
        self.rows += [[name, *row, *end] for *row, end in zip(x, y, ends, strict=True)]
        self.traces.append(trace | more)

    def band(self, name: str, low: Numbers, high: Numbers, colour: str) -> None:
        """Shade what lies between two curves; it comes and goes with the curve called `name`."""
        steps = list(range(len(low)))
        self.traces.append(
            {
                "type": "scatter",
                "x": [*steps, *reversed(steps)],
                "y": _rounded([*high, *reversed(low)]),
                "fill": "toself",
                "fillcolor": colour,
                "opacity": 0.15,
                "mode": "none",
                "hoverinfo": "skip",
                "legendgroup": html.escape(name),
                "showlegend": False,
            }
        )

    def bars(
        self, name: str, values: Numbers, labels: Sequence[str], colours: list[str], pattern: str
    ) -> None:
        """Draw horizontal bars, stacked on those before."""
        shown = {"color": colours, "line": {"width": 1, "color": colours}}
        shape = {"shape": pattern, "fillmode": "replace", "size": 6, "solidity": 0.35}
        self.traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": _rounded(values),
                "y": [html.escape(each) for each in labels],
                "marker": shown | {"pattern": shape | {"fgcolor": colours}},
                "hovertemplate": "%{y}: %{x:.4g}<extra>%{fullData.name}</extra>",
            }
        )
        self.layout |= {"barmode": "stack"}
        self.rows += [[name, x, y] for x, y in zip(values, labels, strict=True)]

    def heat_map(self, values: Sequence[Sequence[float]], title: str) -> None:
        """Draw rows of values in [0, 1], numbered from 1, at the steps 0, 1, ..."""
        ranks = list(range(1, len(values) + 1))
        self.traces.append(
            {
                "type": "heatmap",
                "z": [[round(value, 4) for value in row] for row in values],
                "y": ranks,
                "x": list(range(len(values[0]))),
                "zmin": 0,
                "colorscale": [[0, "rgba(0,114,178,0)"], [1, "rgba(0,114,178,1)"]],
                "colorbar": {
                    "title": {"text": title, "side": "right"},
                    "thickness": 10,
                    "outlinewidth": 0,
                },
                "hovertemplate": "row %{y}, step %{x}: %{z:.3f}<extra></extra>",
            }
        )
        rows = zip(ranks, values, strict=True)
        self.rows += [[f"row {k}", t, value] for k, row in rows for t, value in enumerate(row)]

    def figure(self) -> dict[str, Any]:
        """Traces and layout for plotly.js."""
        for axis in self._log:
            curves = [trace for trace in self.traces if trace["type"] == "scatter"]
            values = [value for trace in curves for value in trace[axis] if value is not None]
            if values and min(values) > 0:
                wide = max(values) / min(values) >= 100
                self.layout[f"{axis}axis"] |= {"type": "log", "dtick": 1 if wide else "D2"}
        return {"data": self.traces, "layout": self.layout}

    @property
    def data(self) -> dict[str, Any]:
        """Headings and rows of a CSV file."""
        width = len(self.columns)
        return {
            "columns": self.columns,
            "rows": [[*row, *[None] * (width - len(row))] for row in self.rows],
        }


def _axis(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title, "standoff": 8},
        "automargin": True,
        "zeroline": False,
        "exponentformat": "power",
    }


def _rounded(values: Numbers) -> list[float | None]:
    """Six digits do for a drawing and halve the page; what is not finite leaves a gap."""
    return [
        float(f"{value:.6g}") if value is not None and math.isfinite(value) else None
        for value in values
    ]
