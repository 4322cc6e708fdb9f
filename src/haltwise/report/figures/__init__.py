"""Records to figures. Every title says what was found; every figure carries its numbers.

Names from records are escaped, since plotly reads legends and hover texts as HTML.
"""

from collections.abc import Callable, Sequence

from haltwise.evaluation import Evaluation
from haltwise.report.figures.costs import frontier, parts_of_j
from haltwise.report.figures.curves import losses, training
from haltwise.report.figures.drawing import Panel
from haltwise.report.figures.stopping import budgets, gains, reliability
from haltwise.report.figures.stops import difficulty, posterior

__all__ = [
    "Panel",
    "budgets",
    "difficulty",
    "frontier",
    "gains",
    "losses",
    "parts_of_j",
    "posterior",
    "record_panels",
    "reliability",
    "training",
]


def record_panels(record: Evaluation, stem: str) -> list[Panel]:
    """Every figure that the record has data for."""
    makers: Sequence[Callable[[Evaluation, str], Panel | None]] = (
        lambda record, stem: parts_of_j(record, stem, "gradients"),
        lambda record, stem: parts_of_j(record, stem, "updates"),
        difficulty,
        posterior,
        frontier,
        losses,
    )
    panels = [make(record, stem) for make in makers]
    return [panel for panel in panels if panel is not None]
