"""A judged set of stops, in words, a table and figures."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from haltwise.evaluation import Interval, StoppingRecord
from haltwise.evaluation.learners import LEARNERS
from haltwise.report.figures import frontier, reliability, stop_steps
from haltwise.report.formats import (
    Spread,
    as_given,
    counted,
    interval,
    num,
    percent,
    percent_estimate,
    slug,
    spread,
)
from haltwise.report.page import Column, Figure, Section, Table, write_page
from haltwise.report.palette import rule_name
from haltwise.stop_rules import BASELINES

__all__ = [
    "best_baseline",
    "headline",
    "rules_table",
    "sentences",
    "stopping_figures",
    "verdict",
    "warnings",
    "write_stopping_report",
]

_TUNED = ("fixed_tuned", *BASELINES, *LEARNERS)
_ABSURD = 10.0  # a captured gain, of all that can be gained, beyond which that is next to nothing


def write_stopping_report(record: StoppingRecord, path: Path, title: str) -> Path:
    """Write one HTML page about stops that were judged, whoever made them.

    Args:
        record: From `haltwise.evaluation.stopping_report`.
        path: Where the page goes; it holds everything and makes no request.
        title: Its title, for instance the name of the file with the stops.

    Raises:
        InputError: The page cannot be written.
    """
    stem = slug(title)
    section = Section(
        anchor="stops",
        title=title,
        subtitle=f"price {as_given(record.price)} per step, counted in {record.unit.value}",
        headline=headline(record),
        verdict=verdict(record),
        sentences=sentences(record),
        warnings=warnings(record),
        blocks=[rules_table(record, stem), *stopping_figures(record, stem)],
    )
    return write_page(path, title, [section])


def best_baseline(record: StoppingRecord) -> str | None:
    """The tuned baseline of lowest J; None if there is none."""
    known = [name for name in _TUNED if name in record.rules]
    return min(known, key=lambda name: record.rules[name].j.value, default=None)


def verdict(record: StoppingRecord) -> str:
    """`gain`, `loss` or `unclear`, by the interval of what is gained over the best fixed budget."""
    gain = record.rules["fixed"].difference if _has_no_room(record) else record.stops.gain
    return "gain" if gain.low > 0 else "loss" if gain.high < 0 else "unclear"


def headline(record: StoppingRecord) -> str:
    """The captured gain in a sentence, that of the best tuned baseline beside it."""
    gain, best = record.stops.gain, best_baseline(record)
    if not math.isfinite(gain.value):
        return "The best fixed budget is as good as the oracle: nothing can be gained here"
    if _has_no_room(record):
        own, fixed, oracle = (record.rules[r].j.value for r in (record.judged, "fixed", "oracle"))
        return (
            f"Next to nothing can be gained here: J of the oracle is {num(fixed - oracle)} below "
            f"that of the best fixed budget, and J of the stops {num(abs(own - fixed))} "
            f"{'above' if own > fixed else 'below'} it, so captured gain is a share of almost 0"
        )
    beside = ""
    if best is not None:
        theirs = percent(record.rules[best].gain.value)
        beside = f"; {rule_name(best)}, the best of the tuned baselines, captures {theirs}"
    if gain.low > 0:
        found = f"Stopping captures {percent_estimate(gain)} of what hindsight could gain"
        return f"{found} over the best fixed budget{beside}"
    found = f"captured gain is {percent_estimate(gain)}{beside}"
    if gain.high < 0:
        return f"The best fixed budget is better: the {found}"
    return f"Stopping cannot be told from the best fixed budget: the {found}"


def sentences(record: StoppingRecord) -> list[str]:
    """What the stops cost, what they save, whom they beat and what they know."""
    own, oracle = record.stops, record.rules["oracle"]
    outcome = (
        f"Counted in {record.unit.value}, {record.excess_name} and price × cost come to J = "
        f"{interval(own.j)}, against {num(record.rules['fixed'].j.value)} for the best fixed "
        f"budget, {record.fixed_budget}, and {num(oracle.j.value)} for the oracle, on "
        f"{counted(record.num_items, 'problem')}."
    )
    return [outcome, _saved(record), *_baseline(record), _skill(record), _regret(record)]


def warnings(record: StoppingRecord) -> list[str]:
    """Warnings if items were left out or are of one group, or if given losses rise."""
    found = []
    own = record.stops.j
    if record.num_items > 1 and math.isfinite(own.value) and math.isnan(own.low):
        found.append(
            "All problems are of one group, so no interval tells how another group would fare."
        )
    if record.num_left_out:
        left_out = counted(record.num_left_out, "problem")
        found.append(f"Left out: {left_out} that did not stay finite (NaN or infinite).")
    if record.rises and record.judged == "given":
        what, side, way_out = (
            ("Losses", "higher", "if higher is better, say so (--direction max)")
            if record.direction == "min"
            else ("Scores", "lower", "if lower is better, leave out --direction max")
        )
        found.append(
            f"{what} end {side} than they start on {percent(record.share_rising)} of the problems; "
            f"{way_out}."
        )
    return found


def rules_table(record: StoppingRecord, stem: str = "", *, wide: bool = True) -> Table:
    """Every rule, the judged one first, then by J; with `wide`, more than a terminal can hold."""
    order = sorted(
        record.rules, key=lambda rule: (rule != record.judged, record.rules[rule].j.value)
    )
    rows = []
    for rule in order:
        stops, gain = record.rules[rule], record.rules[rule].gain
        if rule in ("fixed", "oracle"):  # 0 and 1 by definition
            gain = replace(gain, low=math.nan, high=math.nan)
        rows.append(
            [
                rule,
                stops.j,
                gain,
                None if rule == record.judged else stops.difference,
                Spread(stops.mean_cost, stops.sd_cost),
                stops.mean_excess,
                stops.share_at_horizon,
                stops.share_solved,
                stops.rank_correlation,
                stops.policy,
            ]
        )
    return Table(
        f"{stem}-rules-{record.unit.value}",
        f"Stop rules at a price of {as_given(record.price)}, counted in {record.unit.value}",
        [
            Column("stop rule", rule_name),
            Column("J", interval),
            Column("captured gain", percent_estimate),
            Column(f"J above {rule_name(record.judged)}", interval if wide else None),
            Column("cost", spread),
            Column(f"{record.excess_name} at the stop", num if wide else None),
            Column("at the horizon", percent if wide else None),
            Column("solved", percent if wide and record.has_reference else None),
            Column("rank correlation with the oracle’s", num if wide else None),
            Column("policy", None),
        ],
        rows,
        note=f"J{' and excess' if record.has_reference else ''} in units of the loss"
        + (", which is the score with its sign changed" if record.direction == "max" else "")
        + ", lower is better; ± is the standard deviation. Brackets hold 95 % intervals; "
        "differences are paired. Baselines are tuned on other problems than they are judged on"
        + (
            f"; they may return the best point so far. These stops are taken {record.stops.policy}."
            if record.judged == "given"
            else "."
        ),
        strong=0,
    )


def stopping_figures(
    record: StoppingRecord, stem: str, costs: Mapping[str, Tensor] | None = None
) -> list[Figure]:
    """The figures; `costs` is what each item was charged by the judged rule and the oracle."""
    figures = [
        frontier(record, stem),
        stop_steps(record, costs, stem) if costs else None,
        reliability(record, stem),
    ]
    return [figure for figure in figures if figure is not None]


def _saved(record: StoppingRecord) -> str:
    """The cost that budgets need for equal excess, beside that of the stops."""
    own, budgets, unit, what = record.stops, record.frontier, record.unit.value, record.excess_name
    saved = budgets.saved
    text = f"They take {num(own.mean_cost)} {unit} to a mean {what} of {num(own.mean_excess)}; "
    # NaN where the excess of the last step is not as low.
    least = min(budgets.mean_excess)
    if least <= own.mean_excess or math.isclose(least, own.mean_excess):
        needed = num(budgets.cost_for_equal_excess)
        text += f"for equal {what}, budgets mixed at random need {needed} {unit}"
        if not math.isfinite(saved.value):  # they need none
            return f"{text}, so that nothing can be saved."
        change = f"{percent_estimate(saved)} are saved"
    else:
        text += f"no fixed budget of up to {record.num_steps} comes so low"
        best = record.fixed_budget
        share = 1 - own.mean_cost / best if best else 0.0
        than = f"{percent(abs(share))} {'less' if share >= 0 else 'more'} than the best, {best}"
        return f"{text}. They take {than}, which leaves {num(budgets.mean_excess[best])}."
    if saved.low <= 0 <= saved.high:
        change = f"it is not sure that anything is saved ({percent_estimate(saved)})"
    elif saved.value < 0:
        more = Interval(-saved.value, -saved.high, -saved.low)
        change = f"these take {percent_estimate(more)} more"
    return f"{text}: {change}."


def _has_no_room(record: StoppingRecord) -> bool:
    """Whether the oracle gains too little for captured gain, a share of that, to say anything."""
    gain = record.stops.gain
    ends = [abs(end) for end in (gain.value, gain.low, gain.high) if math.isfinite(end)]
    return math.isfinite(gain.value) and max(ends) > _ABSURD


def _baseline(record: StoppingRecord) -> list[str]:
    best = best_baseline(record)
    if best is None:
        return []
    name, more = rule_name(best), record.rules[best].difference
    number = sum(rule in record.rules for rule in _TUNED)
    who = f"{name}, the best of {number} baselines tuned on other problems"
    change = interval(more)
    if more.low > 0:
        return [f"They beat {who}: its J is higher by {change}."]
    if more.high < 0:
        return [f"They are beaten by {who}: its J less theirs is {change}."]
    return [f"They cannot be told from {who}: its J less theirs is {change}."]


def _skill(record: StoppingRecord) -> str:
    text = f"Dealt to the problems at random, the same stops have a J of {num(record.permuted_j)}: "
    change = interval(record.skill)
    if record.skill.low > 0:
        return f"{text}telling problems apart lowers J by {change}."
    if record.skill.high < 0:
        return f"{text}fitting the stops to the problems does harm, J less that is {change}."
    return f"{text}it is not sure that they tell problems apart ({change})."


def _regret(record: StoppingRecord) -> str:
    found = record.regret_quantiles
    shares = [f"{num(found[level])} on {percent(float(level))}" for level in found]
    return f"J is above the oracle’s by at most {', '.join(shares)} of the problems."
