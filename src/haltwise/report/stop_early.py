"""What stopping runs early saves, as a table, sentences and a figure."""

import math
from pathlib import Path

from haltwise.curves.stop_model import StopCard
from haltwise.evaluation.stop_early import StopEarlyRecord
from haltwise.report.drawing import Axis, Drawing, Panel, Rule, Series
from haltwise.report.formats import (
    as_given,
    card_facts,
    in_groups,
    interval,
    intervals_note,
    num,
    percent,
    percent_estimate,
)
from haltwise.report.page import Column, Facts, Figure, Section, Table, write_page
from haltwise.report.palette import BLUE, GREY, VERMILION

__all__ = ["ways_table", "write_stop_early"]

_FIT = 20  # groups in a table


def ways_table(record: StopEarlyRecord) -> Table:
    """What each way to stop costs."""
    return Table(
        "ways",
        f"{in_groups(record.runs, record.groups)}, at a price of "
        f"{as_given(record.price)} per unit of {record.cost_unit}",
        [
            Column("rule", str),
            Column("J", interval),
            Column("loss", interval),
            Column("cost", percent_estimate),
        ],
        [[name, way.j, way.returned, way.spent] for name, way in record.ways.items()],
        note="J is the loss at the stop and the price of what was spent, in units of the metric; "
        "lower is better. "
        + (
            f"The loss is the {record.metric} with its sign changed. "
            if record.direction == "max"
            else ""
        )
        + "The best equal share of its budget for every run is chosen in hindsight; the oracle "
        "knows the future. " + intervals_note(record.runs, record.groups),
    )


def write_stop_early(path: Path, record: StopEarlyRecord, card: StopCard) -> Path:
    """Write one page on what was learned: what it would have saved, and where it fails.

    Raises:
        InputError: The page cannot be written.
    """
    saved = record.saved
    overview = Section(
        anchor="saved",
        title="What it would have saved",
        subtitle=f"{in_groups(record.runs, record.groups)}, {record.metric}",
        headline=f"Stopping {percent(record.stopped)} of the runs before their end saves "
        f"{num(saved.value)} of J a run",
        verdict="gain" if saved.low > 0 else "loss" if saved.high < 0 else "unclear",
        sentences=[
            "What scores a run had not seen its group. The level was chosen by these very scores, "
            "so on other runs a little less may be saved: haltwise judge says how much.",
            *(
                []
                if math.isnan(record.captured.value)
                else [
                    "Of what an oracle gains over the best equal share, "
                    f"{percent(record.captured.value)} are captured."
                ]
            ),
        ],
        blocks=[ways_table(record), _shares(record)],
    )
    worst = sorted(record.by_group.items(), key=lambda entry: entry[1])
    groups = Table(
        "groups",
        "Groups, those that save least first",
        [Column("group", str), Column("saved a run", num)],
        [[group, gain] for group, gain in worst[:_FIT]],
        note=f"{len(worst) - _FIT} more save no less." if len(worst) > _FIT else "",
    )
    where = Section(anchor="groups", title="Where it fails", blocks=[groups])
    made = Section(
        anchor="made", title="How it was made", blocks=[Facts("Card", card_facts(card.to_json()))]
    )
    return write_page(path, "When to stop a run early", [overview, where, made])


def _shares(record: StopEarlyRecord) -> Figure:
    shares, costs = zip(*record.by_share, strict=True)
    model = record.ways["model"]
    panel = Panel(
        Axis("share of the cost spent", percent=True),
        Axis("J, lower is better"),
        [
            Series("all runs alike", shares, costs, BLUE, width=2.5),
            Series(
                "the model", [model.spent.value], [model.j.value], VERMILION, "points", size=12,
                symbol="diamond",
                text=[f"{percent(model.spent.value)} spent, J {num(model.j.value)}"],
            ),
        ],
        [Rule(GREY, y=record.ways["oracle"].j.value, dash="dot")],
    )  # fmt: skip
    return Figure(
        "shares",
        "What it costs to stop all runs alike, and by the model",
        "The dotted line is the oracle's.",
        Drawing([panel], hover="point"),
    )
