"""Records in sentences. Each is chosen by the figures, none claims what they do not show."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from haltwise.evaluation import EvaluationRecord, Interval, StoppingRecord
from haltwise.evaluation.baselines import BASELINES
from haltwise.report.formats import between, joined, num, percent, plain, text
from haltwise.report.palette import label
from haltwise.stop_rules import CostUnit

__all__ = ["Summary", "Tile", "describe", "summarize", "summarize_evaluation"]


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
    """A record in words."""

    verdict: str
    """`gain`, `loss`, `unclear` or `unknown`, by the interval of the captured gain."""
    headline: str
    sentences: list[str]
    warnings: list[str]
    tiles: list[Tile]


def summarize(record: StoppingRecord) -> Summary:
    """All that is said of stops before their tables."""
    gain = record.stops.gain
    verdict = _side(gain, "gain", "loss", "unclear")
    headline = {
        "gain": f"The stops capture {percent(gain.value)} of what hindsight could gain over the "
        "best fixed budget.",
        "loss": "The stops lose to the best fixed budget.",
        "unclear": "The stops cannot be told from the best fixed budget.",
        "unknown": "The captured gain is undefined here.",
    }
    return Summary(verdict, headline[verdict], describe(record), _warnings(record), _tiles(record))


def summarize_evaluation(record: EvaluationRecord) -> Summary:
    """All that is said of an evaluation before its tables; gradients first, users pay for them."""
    first, second = (record.stopping[unit] for unit in (CostUnit.GRADIENTS, CostUnit.UPDATES))
    found = summarize(first)
    setting = (
        f"{record.optimizer} solved {record.num_problems:,} held-out problems of {record.family}, "
        f"at most {record.horizon} steps each, at a price of {plain(record.price)} (units of loss) "
        "per step."
    )
    edges = [name for name, curve in record.curves.items() if curve.at_edge]
    diverged = [
        f"{name} on {curve.num_nonfinite:,}"
        for name, curve in record.curves.items()
        if curve.num_nonfinite
    ]
    warnings = list(found.warnings)
    if edges:
        warnings.append(
            f"The tuned learning rate of {joined(edges)} lies at the edge of the grid: a wider one "
            "might do better."
        )
    if diverged:
        warnings.append(f"Losses that were not finite: {joined(diverged)} problems.")
    sentences = [setting, *found.sentences, _execution(record), *describe(second)[:3]]
    return Summary(found.verdict, found.headline, sentences, warnings, found.tiles)


def describe(record: StoppingRecord) -> list[str]:
    """Cost, saving, the best baseline, variation, skill, regret, reliability: a sentence each."""
    sentences = (_outcome, _saved, _baseline, _variation, _skill, _regret, _reliability)
    return [found for sentence in sentences if (found := sentence(record))]


def _side(interval: Interval, above: str, below: str, unclear: str) -> str:
    """A word for an interval above 0, below 0 or around it; "unknown" if undefined."""
    if math.isnan(interval.low):
        return "unknown"
    return above if interval.low > 0 else below if interval.high < 0 else unclear


def _outcome(record: StoppingRecord) -> str:
    fixed, oracle, gain = record.rules["fixed"], record.rules["oracle"], record.stops.gain
    sentence = (
        f"Counted in {record.unit.value}, loss and price come to J = {num(record.stops.j.value)}, "
        f"against {num(fixed.j.value)} for the best fixed budget, {record.fixed_budget}, and "
        f"{num(oracle.j.value)} for the oracle"
    )
    if math.isnan(gain.value):
        return f"{sentence}."
    sure = between(gain, share=True)
    return f"{sentence}: a captured gain of {percent(gain.value)} (95 % interval {sure})."


def _saved(record: StoppingRecord) -> str:
    """Cost of fixed budgets of equal loss, against the cost of the stops."""
    stops, unit, found = record.stops, record.unit.value, record.frontier
    needed, saved = found.cost_for_equal_excess, found.saved
    sentence = (
        f"They take {num(stops.mean_cost)} {unit} on average to a mean excess loss of "
        f"{num(stops.mean_excess)}; "
    )
    if math.isnan(needed):
        sentence += f"no fixed budget of up to {record.num_steps} has so low a loss"
    else:
        sentence += f"budgets mixed at random need {num(needed)} for that"
    sure, least = between(saved, share=True), "at least " if math.isnan(needed) else ""
    ends = {
        "more": f", so {least}{percent(saved.value)} of the {unit} are saved ({sure}).",
        "less": f", so nothing is saved: they take more ({percent(saved.value)}, {sure}).",
        "unclear": f", so it is not sure that anything is saved: {percent(saved.value)} ({sure}).",
        "unknown": ".",
    }
    return sentence + ends[_side(saved, "more", "less", "unclear")]


def _baseline(record: StoppingRecord) -> str:
    """The stops beside the best of the tuned rules."""
    tuned = [name for name in record.rules if name in {"fixed_tuned", *BASELINES}]
    if not tuned:
        return ""
    best = min(tuned, key=lambda name: record.rules[name].j.value)
    found = record.rules[best]
    words = {
        "better": "They beat",
        "worse": "They are beaten by",
        "unclear": "They cannot be told from",
        "unknown": "Beside them stands",
    }
    return (
        f"{words[_side(found.difference, 'better', 'worse', 'unclear')]} the best of {len(tuned)} "
        f"rules tuned on other problems, {label(best)}: its J is {num(found.j.value)}, a "
        f"difference of {text(found.difference)}."
    )


def _variation(record: StoppingRecord) -> str:
    """Whether the stops vary as the oracle's do; if not, they are a fixed budget in disguise."""
    own, oracle = record.stops, record.rules["oracle"]
    return (
        f"They stop after {num(own.mean_cost)} ± {num(own.sd_cost)} (mean ± standard deviation), "
        f"the oracle after {num(oracle.mean_cost)} ± {num(oracle.sd_cost)}; item by item, the rank "
        f"correlation is {num(own.rank_correlation)}."
    )


def _skill(record: StoppingRecord) -> str:
    """The same stops dealt to the problems at random."""
    words = {
        "some": "{} is owed to knowing which problem is which.",
        "harm": "fitting the stops to the problems harms, by {}.",
        "unclear": "no skill in telling problems apart is sure ({}).",
        "unknown": "that is {} more.",
    }
    side = words[_side(record.skill, "some", "harm", "unclear")]
    return (
        f"The same stops dealt to the problems at random would cost J = {num(record.permuted_j)}: "
        + side.format(text(record.skill))
    )


def _regret(record: StoppingRecord) -> str:
    more, quantiles = record.rules["oracle"].difference, record.regret_quantiles
    mean = Interval(-more.value, -more.high, -more.low)
    return (
        f"The oracle’s J is lower by {text(mean)} on average; by at most {num(quantiles['0.5'])} "
        f"on half of the problems, by at most {num(quantiles['0.95'])} on 95 % of them."
    )


def _reliability(record: StoppingRecord) -> str:
    found = record.reliability
    if found is None:
        return ""
    return (
        f"Of the {found.num_cases:,} steps that the oracle reaches it stops at "
        f"{percent(found.frequency)}; the hazard says {percent(found.mean_hazard)} on average and "
        f"is off by {num(found.error)} (expected calibration error)."
    )


def _execution(record: EvaluationRecord) -> str:
    """Gradients really evaluated, and seconds."""
    found = record.execution
    sentence = (
        "Solved for real, halted problems leaving the batch, that was "
        f"{found.num_gradients:,} gradient evaluations in {num(found.seconds)} s; the best fixed "
        f"budget takes {found.num_gradients_fixed:,} in {num(found.seconds_fixed)} s"
    )
    phrases = {
        "halted": "halted by themselves",
        "out_of_steps": "ran out of steps",
        "nonfinite": "ended non-finite",
    }
    parts = [f"{count:,} {phrases[name]}" for name, count in found.outcomes.items() if count]
    return f"{sentence}. Of the problems, {joined(parts)}."


def _warnings(record: StoppingRecord) -> list[str]:
    """What a reader must know before believing the figures."""
    price, found = plain(record.price), []
    if record.oracle_share_at_0 == 1:
        found.append(
            f"At a price of {price} stopping at step 0 is best for every problem, so there is "
            "nothing to learn about when to stop; choose a lower price."
        )
    elif record.oracle_share_at_horizon == 1:
        found.append(
            f"At a price of {price} using all {record.num_steps} steps is best for every problem, "
            "so there is nothing to learn about when to stop; choose a higher price or record more "
            "steps."
        )
    elif math.isnan(record.stops.gain.value):
        found.append(
            f"At a price of {price} one fixed budget is as good as the oracle, so the captured "
            "gain is undefined."
        )
    if record.num_left_out:
        found.append(
            f"{record.num_left_out:,} problems met a loss or gradient that was not finite and are "
            "left out of every figure."
        )
    if record.stops.sd_cost == 0:
        found.append("Every stop is the same step: this is a fixed budget.")
    for whose, share in (
        ("The stops use", record.stops.share_at_horizon),
        ("Even the oracle uses", record.oracle_share_at_horizon),
    ):
        if share > 0.05:
            found.append(
                f"{whose} the whole horizon on {percent(share)} of the problems: at this price the "
                "horizon is short."
            )
    return found


def _tiles(record: StoppingRecord) -> list[Tile]:
    stops, oracle, unit = record.stops, record.rules["oracle"], record.unit.value
    shares: Sequence[tuple[str, Interval]] = (
        (f"captured gain, in {unit}", stops.gain),
        (f"{unit} saved at equal loss", record.frontier.saved),
    )
    tiles = [
        Tile(percent(found.value), name, f"95 %: {between(found, share=True)}")
        for name, found in shares
        if not math.isnan(found.value)
    ]
    cost = f"{stops.mean_cost:.1f} ± {stops.sd_cost:.1f}"
    detail = f"oracle {oracle.mean_cost:.1f} ± {oracle.sd_cost:.1f}"
    tiles.append(Tile(cost, f"{unit} until the stop", detail))
    fixed = f"best fixed budget {num(record.rules['fixed'].mean_excess)}"
    tiles.append(Tile(num(stops.mean_excess), "mean excess loss at the stop", fixed))
    return tiles
