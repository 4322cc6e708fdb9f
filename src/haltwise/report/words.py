"""Records to sentences. Each is chosen by the figures, none claims what they do not show."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from haltwise.evaluation import Evaluation
from haltwise.report.formats import (
    count,
    joined,
    num,
    percent,
    percent_range,
    plain,
    spread,
)
from haltwise.report.palette import ACCOUNTS, TUNED, label
from haltwise.report.reading import (
    Range,
    get,
    mapping,
    name_at,
    number,
    paired_difference,
    range_of,
)
from haltwise.report.tables import measures, saved_share

__all__ = ["Summary", "Tile", "first_objective", "summarize", "verdict_on"]


@final
@dataclass(frozen=True)
class Tile:
    """A number to see at a glance."""

    value: str
    name: str
    detail: str


@final
@dataclass(frozen=True)
class Summary:
    """A record in words.

    Attributes:
        verdict: `gain`, `loss`, `unclear` or `unknown`, by the interval in gradients.
        headline: The verdict in a sentence.
        sentences: What was saved, at what loss, how surely, against whom.
        warnings: What to keep in mind.
        tiles: The numbers of the headline.
    """

    verdict: str
    headline: str
    sentences: list[str]
    warnings: list[str]
    tiles: list[Tile]


def summarize(record: Evaluation) -> Summary:
    """Everything that is said of a record before its tables."""
    gain = range_of(record.summary, "captured_gain_by_rule", "gradients", "rule")
    verdict = verdict_on(gain)
    sentences = [
        _setting(record),
        _outcome(record, "gradients"),
        _outcome(record, "updates"),
        *(_opponent(record, account) for account in ACCOUNTS),
        _against_fixed(record),
        _skill(record),
        _executed(record),
    ]
    return Summary(
        verdict,
        _headline(record, gain, verdict),
        [sentence for sentence in sentences if sentence],
        _warnings(record),
        _tiles(record, gain),
    )


def verdict_on(gain: Range | None) -> str:
    """What the interval of a captured gain says."""
    if gain is None:
        return "unknown"
    return "gain" if gain.low > 0 else "loss" if gain.high < 0 else "unclear"


def _headline(record: Evaluation, gain: Range | None, verdict: str) -> str:
    summary = record.summary
    if gain is None:
        rule, fixed = (number(summary, "j", "gradients", name) for name in ("rule", "fixed"))
        if rule is None or fixed is None:
            return "The record holds no J to judge the stops by."
        side = "below" if rule < fixed else "above" if rule > fixed else "equal to"
        return (
            f"J is {num(rule)}, {side} the best fixed budget’s {num(fixed)}; the record does not "
            "say how sure that is."
        )
    if verdict == "gain":
        return (
            f"Stopping itself captures {percent(gain.value)} of what hindsight could gain over "
            "the best fixed budget."
        )
    if verdict == "loss":
        return "Stopping itself loses to the best fixed budget here."
    return "Stopping itself cannot be told from the best fixed budget here."


def _setting(record: Evaluation) -> str:
    summary = record.summary
    problems, horizon = (count(number(summary, key)) for key in ("num_problems", "horizon"))
    return (
        f"{name_at(summary, 'optimizer')} solved {problems} held-out problems of "
        f"{name_at(summary, 'family')}, at most {horizon} steps each, at a price of "
        f"{plain(number(summary, 'price'))} (units of loss) per step."
    )


def _outcome(record: Evaluation, account: str) -> str:
    """What the rule cost and captured in one account."""
    summary = record.summary
    j, _, _, _, mean, sd, excess = measures(summary, account, "rule")
    oracle = measures(summary, account, "oracle")
    fixed = number(summary, "j", account, "fixed")
    gain = range_of(summary, "captured_gain_by_rule", account, "rule")
    if j is None:
        return ""
    stops = f"Counted in {account}, it stops after {spread(mean, sd)} (mean ± standard deviation)"
    if oracle[4] is not None:
        stops += f", the oracle after {spread(oracle[4], oracle[5])}"
    at = "" if excess is None else f" The mean excess loss at the stop is {num(excess)}."
    solved = number(summary, "steps", account, "rule", "share_within_5_percent_of_initial")
    if excess is not None and solved is not None:
        at = f"{at[:-1]}; {percent(solved)} of the problems end with at most 5 % of the initial."
    costs = f" Loss and price come to J = {num(j)}"
    if fixed is not None and oracle[0] is not None:
        costs += (
            f", against {num(fixed)} for the best fixed budget and {num(oracle[0])} for the oracle"
        )
    captured = "."
    if gain is not None:
        captured = (
            f": a captured gain of {percent(gain.value)} (95 % interval {percent_range(gain)})"
        )
        captured += ", worse than that budget." if gain.high < 0 else "."
    return stops + "." + at + costs + captured


def _opponent(record: Evaluation, account: str) -> str:
    """The learned rule beside the best of the tuned ones."""
    summary = record.summary
    rule = number(summary, "j", account, "rule")
    tuned = {name: number(summary, "j", account, name) for name in TUNED}
    known = {name: value for name, value in tuned.items() if value is not None}
    if rule is None or not known:
        return ""
    best = min(known, key=lambda name: known[name])
    theirs = known[best]
    difference = paired_difference(record, account, "rule", best)
    who = (
        f"{label(best)}, the best of the {len(known)} rules tuned on separate problems"
        if len(known) > 1
        else f"{label(best)}, tuned on separate problems"
    )
    place = f"counted in {account}"
    against = f"J {num(rule)} against {num(theirs)}"
    if difference is None:
        relation = "below" if rule < theirs else "above" if rule > theirs else "equal to"
        return f"Its J, {num(rule)} {place}, is {relation} the {num(theirs)} of {who}."
    sure = f"paired difference {_signed_range(difference)}"
    if difference.high < 0:
        return f"It beats {who}, {place}: {against} ({sure})."
    if difference.low > 0:
        return f"It is beaten by {who}, {place}: {against} ({sure})."
    return f"It cannot be told from {who}, {place}: {against} ({sure})."


def _signed_range(value: Range) -> str:
    return f"{num(value.value)} [{num(value.low)}, {num(value.high)}], 95 %"


def _against_fixed(record: Evaluation) -> str:
    """Cost and loss apart, in the headline account."""
    rule = measures(record.summary, "gradients", "rule")
    fixed = measures(record.summary, "gradients", "fixed")
    cost, budget, excess, fixed_excess = rule[4], fixed[4], rule[6], fixed[6]
    if cost is None or not budget or excess is None or fixed_excess is None:
        return ""
    share = cost / budget - 1
    amount = (
        f"{percent(-share)} fewer gradients than"
        if share < 0
        else f"{percent(share)} more gradients than"
        if share > 0
        else "as many gradients as"
    )
    relation = (
        "a lower" if excess < fixed_excess else "a higher" if excess > fixed_excess else "the same"
    )
    return (
        f"It makes {amount} the best fixed budget of {count(budget)}, and ends at {relation} mean "
        f"excess loss: {num(excess)} against {num(fixed_excess)}."
    )


def _skill(record: Evaluation) -> str:
    """What is left when the stops are dealt to the problems at random."""
    shuffled = number(record.summary, "permuted_j", "gradients")
    rule = number(record.summary, "j", "gradients", "rule")
    if shuffled is None or rule is None:
        return ""
    text = f"With the same stops dealt to the problems at random, J would be {num(shuffled)}"
    if shuffled > rule:
        return f"{text}: {num(shuffled - rule)} of J is owed to knowing which problem is which."
    return f"{text}: fitting the stops to the problems gains nothing."


def _executed(record: Evaluation) -> str:
    """Gradients really evaluated, and seconds."""
    executed = get(record.summary, "executed")
    used = number(executed, "gradient_evaluations")
    full = number(executed, "gradient_evaluations_of_the_full_horizon")
    share = saved_share(record.summary)
    if used is None or full is None or share is None:
        return ""
    text = (
        "Solved for real, halted problems leaving the batch, that was "
        f"{count(used)} gradient evaluations of the full horizon’s {count(full)}"
    )
    text += f", {percent(share)} fewer" if share > 0 else ", none saved"
    seconds = number(executed, "seconds")
    full_seconds = number(executed, "seconds_of_the_full_horizon")
    if seconds is not None and full_seconds is not None:
        faster = seconds < full_seconds
        text += (
            f", in {num(seconds)} s instead of {num(full_seconds)} s"
            if faster
            else (
                f", yet it took {num(seconds)} s, no less than the full horizon’s "
                f"{num(full_seconds)} s"
            )
        )
    outcomes = get(executed, "outcomes")
    if isinstance(outcomes, Mapping):
        phrases = {
            "halted": "halted by themselves",
            "out_of_steps": "ran out of steps",
            "nonfinite": "ended non-finite",
        }
        parts = [
            f"{count(value)} {phrases.get(str(name), str(name).replace('_', ' '))}"
            for name in outcomes
            if (value := number(outcomes, name))
        ]
        if parts:
            return f"{text}. Of the problems, {joined(parts)}."
    return f"{text}."


def _warnings(record: Evaluation) -> list[str]:
    summary = record.summary
    warnings = []
    lost = number(summary, "num_nonfinite")
    if lost:
        warnings.append(
            f"{count(lost)} problems met a loss or gradient that was not finite and are left out "
            "of every J and gain."
        )
    edges = [
        str(name)
        for name, entry in mapping(summary, "tuned_optimizers").items()
        if get(entry, "at_edge_of_grid") is True
    ]
    if edges:
        one = len(edges) == 1
        warnings.append(
            f"The tuned learning rate{'' if one else 's'} of {joined(edges)} "
            f"{'lies' if one else 'lie'} at the edge of the grid: {'it' if one else 'they'} might "
            "do better."
        )
    diverged = [
        f"{name} on {count(value)}"
        for name in mapping(summary, "curves")
        if (value := number(summary, "curves", name, "num_nonfinite"))
    ]
    if diverged:
        warnings.append(f"Losses that were not finite: {joined(diverged)} problems.")
    horizon = number(summary, "steps", "gradients", "rule", "share_at_horizon")
    if horizon is not None and horizon > 0.05:
        warnings.append(
            f"{percent(horizon)} of the problems used the whole horizon: a longer one may change "
            "the figures."
        )
    oracle = number(summary, "steps", "gradients", "oracle", "share_at_horizon")
    if oracle is not None and oracle > 0.05:
        warnings.append(
            f"Even the oracle uses the whole horizon on {percent(oracle)} of the problems: at this "
            "price the horizon is short."
        )
    return warnings


def _tiles(record: Evaluation, gain: Range | None) -> list[Tile]:
    summary = record.summary
    updates = range_of(summary, "captured_gain_by_rule", "updates", "rule")
    rule, oracle = (measures(summary, "gradients", name) for name in ("rule", "oracle"))
    fixed = measures(summary, "gradients", "fixed")
    tiles = []
    if gain is not None:
        detail = f"95 %: {percent_range(gain)}"
        if updates is not None:
            detail += f"; in updates {percent(updates.value)}"
        tiles.append(Tile(percent(gain.value), "captured gain, in gradients", detail))
    share = saved_share(summary)
    if share is not None:
        used = number(summary, "executed", "gradient_evaluations")
        tiles.append(
            Tile(percent(share), "gradients saved of the full horizon", f"{count(used)} evaluated")
        )
    if rule[4] is not None:
        other = f"oracle {spread(oracle[4], oracle[5])}" if oracle[4] is not None else ""
        tiles.append(Tile(spread(rule[4], rule[5]), "gradients until the stop", other))
    if rule[6] is not None:
        other = f"best fixed budget {num(fixed[6])}" if fixed[6] is not None else ""
        tiles.append(Tile(num(rule[6]), "mean excess loss at the stop", other))
    return tiles


def first_objective(record: Evaluation) -> list[str]:
    """The thesis' first objective: less computation than the LSTM optimizer for equal loss."""
    result: Any = get(record.summary, "first_objective")
    sentences = []
    for account in ACCOUNTS:
        cost, excess = (number(result, account, key) for key in ("act_cost", "act_excess"))
        if cost is None or excess is None:
            continue
        needed = number(result, account, "lstm_cost_for_equal_excess")
        same = number(result, account, "lstm_excess_at_same_cost")
        text = (
            f"Counted in {account}, {name_at(result, 'act')} reaches a mean excess loss of "
            f"{num(excess)} at a mean cost of {cost:.1f}; "
        )
        if needed is None:
            text += f"{name_at(result, 'lstm')}, which does not halt, never gets there"
        else:
            text += f"{name_at(result, 'lstm')}, which does not halt, needs {count(needed)}"
            share = 1 - cost / needed if needed else 0.0
            if needed and share > 0:
                text += f", so {percent(share)} of the computation is saved"
            elif (needed and share < 0) or not needed:
                text += ", so nothing is saved"
            else:
                text += ", just as much"
        text += "."
        if same is not None:
            relation = "lower" if excess < same else "higher" if excess > same else "equal"
            text += (
                f" At equal cost the LSTM optimizer’s excess loss is {num(same)}; that of the "
                f"self-stopping one is {relation}."
            )
        sentences.append(text)
    return sentences
