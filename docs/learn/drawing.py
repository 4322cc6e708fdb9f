"""What the notebooks draw with."""

import json
from typing import Any

from IPython.display import HTML

__all__ = ["show"]


def show(figure: Any, height: int = 360) -> HTML:
    """A Plotly figure for `_static/figures.js`, which knows the theme; no request is made."""
    document = figure.to_plotly_json()
    document["layout"].pop("template", None)
    document["layout"]["height"] = height
    text = json.dumps({"data": document["data"], "layout": document["layout"]})
    text = text.replace("</", "<\\/")
    return HTML(f'<div></div><script type="application/json" class="plotly-figure">{text}</script>')
