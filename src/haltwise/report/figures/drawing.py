"""What all figures share."""

import html
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from haltwise.report.palette import label
from haltwise.report.tables import Data

__all__ = [
    "Panel",
    "add_band",
    "add_line",
    "all_positive",
    "any_known",
    "article",
    "dress",
    "log_axis",
    "new_figure",
    "ordinal",
    "rounded",
    "signed",
    "significant",
]


@final
@dataclass(frozen=True)
class Panel:
    """A figure on the page.

    Attributes:
        title: What it shows was found.
        note: How to read it.
        figure: `plotly.graph_objects.Figure`.
        data: Its numbers.
        half: Whether it may share a line with another on wide screens.
    """

    title: str
    note: str
    figure: Any
    data: Data
    half: bool = False


def new_figure(x_title: str, y_title: str) -> Any:
    """An empty figure with two titled axes."""
    from plotly.graph_objects import Figure

    figure = Figure()
    dress(figure)
    figure.update_xaxes(title_text=x_title, automargin=True)
    figure.update_yaxes(title_text=y_title, automargin=True)
    return figure


def log_axis(update: Callable[..., Any], *series: Sequence[float | None], **place: int) -> None:
    """Make an axis logarithmic if everything on it is positive, with a label a decade if many."""
    if all_positive(*series):
        decades = max(_decades(values) for values in series if any_known(values))
        update(type="log", dtick=1 if decades >= 2 else "D2", **place)


def dress(figure: Any) -> None:
    """What all figures share; colours of text and grid are the page's affair."""
    figure.update_layout(
        template="none",
        margin={"l": 8, "r": 12, "t": 12, "b": 8},
        legend={
            "orientation": "h",
            "x": 0,
            "y": 1.02,
            "yanchor": "bottom",
            "xanchor": "left",
        },
        hovermode="x unified",
        uirevision="keep",  # legend and zoom survive a change of theme
    )
    figure.update_xaxes(zeroline=False, title_standoff=8, exponentformat="power")
    figure.update_yaxes(zeroline=False, title_standoff=8, exponentformat="power")


def add_line(
    figure: Any,
    name: str,
    x: Sequence[float | None],
    y: Sequence[float | None],
    colour: str,
    dash: str = "solid",
    width: float = 2,
    *,
    mode: str = "lines",
    row: int | None = None,
) -> None:
    """Draw a curve."""
    place = {} if row is None else {"row": row, "col": 1}
    figure.add_scatter(
        x=list(x), y=[rounded(value) for value in y], mode=mode, name=html.escape(name),
        legendgroup=html.escape(name),
        line={"color": colour, "dash": dash, "width": width}, marker={"size": 6},
        hovertemplate="%{y:.4g}" if row is None and mode == "lines" else "%{x:.4g}: %{y:.4g}",
        **place,
    )  # fmt: skip


def add_band(
    figure: Any, name: str, low: Sequence[float | None], high: Sequence[float | None], colour: str
) -> None:
    """Shade what lies between two curves; it comes and goes with the curve called `name`."""
    steps = list(range(len(low)))
    figure.add_scatter(
        x=[*steps, *reversed(steps)],
        y=[rounded(value) for value in (*high, *reversed(low))],
        fill="toself", fillcolor=colour, opacity=0.15, mode="none", hoverinfo="skip",
        legendgroup=html.escape(name), showlegend=False,
    )  # fmt: skip


def rounded(value: float | None) -> float | None:
    """Six digits do for a drawing and halve the page."""
    return None if value is None else float(f"{value:.6g}")


def significant(values: Tensor) -> list[float | None]:
    """A vector to draw, rounded."""
    return [rounded(value) for value in values.tolist()]


def any_known(values: Sequence[float | None]) -> bool:
    """Whether there is anything to draw."""
    return any(value is not None for value in values)


def all_positive(*series: Sequence[float | None]) -> bool:
    """Whether a logarithmic axis can hold all that is known."""
    values = [value for values in series for value in values if value is not None]
    return bool(values) and min(values) > 0


def _decades(values: Sequence[float | None]) -> float:
    known = torch.tensor([value for value in values if value is not None])
    return (known.max() / known.min()).log10().item()


def ordinal(place: int) -> str:
    """1st, 2nd, 3rd."""
    suffix = "th" if 10 <= place % 100 <= 20 else {1: "st", 2: "nd", 3: "rd"}.get(place % 10, "th")
    return f"{place}{suffix}"


def article(rule: str) -> str:
    """A rule in a sentence: `the best fixed budget`, `gradient norm`."""
    return f"the {label(rule)}" if rule in {"fixed", "rule", "rule_after_gradient"} else label(rule)


def signed(value: float) -> str:
    """Two decimals and a proper minus."""
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")
