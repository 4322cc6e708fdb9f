"""What giving runs up saves and loses, as tables, sentences and figures."""

from pathlib import Path

import numpy as np

from haltwise.curves.learning import Learned
from haltwise.curves.levels import GiveUps, candidate_levels
from haltwise.evaluation.give_up import GiveUpRecord
from haltwise.report.drawing import Axis, Drawing, Panel, Rule, Series
from haltwise.report.formats import (
    card_facts,
    count,
    counted,
    in_groups,
    intervals_note,
    num,
    percent,
    percent_estimate,
    plural,
)
from haltwise.report.page import Column, Facts, Figure, Section, Table, write_page
from haltwise.report.palette import BLUE, GREY, VERMILION

__all__ = ["levels_table", "write_give_up"]

_FIT = 20  # groups in a table


def levels_table(record: GiveUpRecord) -> Table:
    """What is saved and lost at each level."""
    rows = [
        [name if _is_price(name) else float(name), at.saved, at.lost, at.level]
        for name, at in record.levels.items()
    ]
    note = intervals_note(record.runs, record.groups)
    if record.groups > 1:
        note += " That of successes lost is exact where they are single or none is lost."
    if record.ended_early:
        ended = counted(record.ended_early, "run")
        note += f" Counted as failures: {ended} that ended before the budget without success."
    return Table(
        "levels",
        f"Of {num(record.spent)} {plural(record.cost_unit)} in {counted(record.runs, 'run')} "
        f"{percent(record.oracle_saved)} went into runs that did not succeed",
        [
            Column("successes that may be lost", lambda v: v if isinstance(v, str) else percent(v)),
            Column("cost saved", percent_estimate),
            Column("successes lost", percent_estimate),
            Column("level"),
        ],
        rows,
        note=note,
    )


def write_give_up(path: Path, record: GiveUpRecord, learned: Learned) -> Path:
    """Write one page on what was learned: what it would have saved, lost, and where it fails.

    Raises:
        InputError: The page cannot be written.
    """
    card = learned.model.card
    shown = record.levels.get("0.05") or next(iter(record.levels.values()))
    overview = Section(
        anchor="saved",
        title="What it would have saved",
        subtitle=f"{in_groups(record.runs, record.groups)}, {card.metric}",
        headline=f"Giving doomed runs up saves {percent(shown.saved.value)} of all "
        f"{plural(record.cost_unit)} and loses {percent(shown.lost.value)} of the successes",
        verdict="gain" if shown.saved.low > 0 else "unclear",
        sentences=[
            "Neither the forecast of a run nor the level below which it is given up had seen its "
            "group. Another group may lose more all the same; a bound that holds for the next one "
            "is a certificate: haltwise judge --certify.",
            f"Between a success and a failure of the same task the forecast is right in "
            f"{percent(record.quarter_auc)} of the cases at a quarter of the budget.",
        ],
        blocks=[
            levels_table(record),
            _frontier(record, learned),
            *([_sizes(record)] if len(record.by_size) > 1 else []),
        ],
    )
    where = Section(
        anchor="groups",
        title="Where it fails",
        subtitle="each group, unseen by its forecast",
        blocks=[_groups(record)],
    )
    made = Section(
        anchor="made",
        title="How it was made",
        blocks=[Facts("Card", card_facts(card.to_json()))],
    )
    return write_page(path, "When to give a run up", [overview, where, made])


def _sizes(record: GiveUpRecord) -> Table:
    least = None  # from which on every number of runs saves something
    for at in reversed(record.by_size):
        if not at.saved > 0:
            break
        least = at.runs
    return Table(
        "sizes",
        f"It pays from {least} past runs on" if least else "With so few past runs it does not pay",
        [Column("past runs", count), Column("cost saved", percent), Column("lost", percent)],
        [[at.runs, at.saved, at.lost] for at in record.by_size],
        note="Runs drawn at random, at the level for the most successes lost; fewer were not "
        "tried, or too few to learn from.",
    )


def _is_price(level: str) -> bool:
    """Whether a level is called by a price, not by a share of successes."""
    return level.startswith("price")


def _groups(record: GiveUpRecord) -> Table:
    names = list(record.levels)
    worst = sorted(record.by_group.items(), key=lambda entry: -entry[1][names[-1]][1])
    rows = [
        [group, *(share for name in names for share in found[name])]
        for group, found in worst[:_FIT]
    ]
    left = len(worst) - len(rows)
    return Table(
        "groups",
        "Groups, those that lose most first",
        [
            Column("group", str),
            *(
                Column(f"{what} at {name if _is_price(name) else percent(float(name))}", percent)
                for name in names
                for what in ("saved", "lost")
            ),
        ],
        rows,
        note=f"{left} more lose no more than these." if left else "",
    )


def _frontier(record: GiveUpRecord, learned: Learned) -> Figure:
    scores = learned.scores
    stops = GiveUps.of(learned.curves, scores, candidate_levels(learned.curves, scores))
    saved, lost = stops.share_saved, stops.share_lost
    kept = sorted(set(np.linspace(0, len(lost) - 1, 200).round().astype(int).tolist()))
    names = [f"{percent(float(n))} lost" if n[0].isdigit() else n for n in record.levels]
    levels = record.levels.values()
    chosen = [(at.lost.value, at.saved.value) for at in levels]
    series = [
        Series(
            "other levels", [lost[k] for k in kept], [saved[k] for k in kept], BLUE, width=2.5,
            text=[_told(lost[k], saved[k]) for k in kept],
        ),
        Series(
            "levels on the card", [lost for lost, _ in chosen], [saved for _, saved in chosen],
            VERMILION, "points", size=12, symbol="diamond",
            text=[f"{name}: {_told(*at)}" for name, at in zip(names, chosen, strict=True)],
        ),
    ]  # fmt: skip
    panel = Panel(
        Axis("share of the successes lost", percent=True, range=(-0.005, 0.25)),
        Axis("share of the cost saved", percent=True),
        series,
        [Rule(GREY, y=record.oracle_saved, dash="dot")],
    )
    return Figure(
        "frontier",
        "The more successes one is ready to lose, the more is saved",
        "The dotted line is what one who knows the future would save, at no loss.",
        Drawing([panel], hover="point"),
    )


def _told(lost: float, saved: float) -> str:
    return f"{percent(saved)} of the cost saved, {percent(lost)} of the successes lost"
