"""Stopping reports in sentences and tables."""

from collections.abc import Mapping
from typing import Any

from haltwise.report.formats import (
    MISSING,
    count,
    interval,
    joined,
    num,
    percent,
    percent_range,
    plain,
    spread,
)
from haltwise.report.palette import label
from haltwise.report.reading import Range, get, items, mapping, name_at, number, range_of
from haltwise.report.tables import Data, Table
from haltwise.report.words import Summary, Tile, verdict_on

__all__ = [
    "conclusion",
    "contenders_table",
    "degeneracy_table",
    "notes",
    "seeds_table",
    "summarize_stopping",
    "warnings",
]


def summarize_stopping(report: Mapping[str, Any]) -> Summary:
    """Everything that is said of a stopping report before its tables."""
    sentences = [
        _setting(report),
        _outcome(report),
        _saved(report),
        *notes(report),
        _opponent(report),
        _seconds(report),
        _seeds(report),
    ]
    return Summary(
        verdict_on(range_of(report, "captured_gain")),
        _headline(report),
        [sentence for sentence in sentences if sentence],
        warnings(report),
        _tiles(report),
    )


def conclusion(report: Mapping[str, Any]) -> str:
    """What was saved, at what loss, and how sure that is."""
    parts = (_headline, _outcome, _saved, _opponent, _seconds, _seeds)
    return " ".join(sentence for part in parts if (sentence := part(report)))


def notes(report: Mapping[str, Any]) -> list[str]:
    """What the stops know of the problems: skill, regret, reliability."""
    return [note for note in (_skill(report), _regret(report), _reliability(report)) if note]


def warnings(report: Mapping[str, Any]) -> list[str]:
    """What to keep in mind, the seeds that failed included."""
    failed = [
        f"Seed {count(number(entry, 'seed'))} failed: {name_at(entry, 'reason')}."
        for entry in items(report, "seeds", "failures")
    ]
    said = [entry for entry in items(report, "warnings") if isinstance(entry, str)]
    return [*said, *failed]


def _headline(report: Mapping[str, Any]) -> str:
    gain = range_of(report, "captured_gain")
    return {
        "gain": f"The stops capture {percent(gain.value if gain else None)} of what hindsight "
        "could gain over the best fixed budget.",
        "loss": "The stops lose to the best fixed budget.",
        "unclear": "The stops cannot be told from the best fixed budget.",
        "unknown": "The captured gain is undefined here.",
    }[verdict_on(gain)]


def _setting(report: Mapping[str, Any]) -> str:
    problems, steps = (count(number(report, key)) for key in ("num_problems", "num_steps"))
    return (
        f"Stops on {problems} problems of {steps} steps at most, at a price of "
        f"{plain(number(report, 'price'))} (units of loss) per step, counted in "
        f"{name_at(report, 'account')}."
    )


def _outcome(report: Mapping[str, Any]) -> str:
    rule, oracle, fixed = (number(report, "j", k, "value") for k in ("rule", "oracle", "fixed"))
    if rule is None:
        return ""
    text = f"Loss and price come to J = {num(rule)}"
    if oracle is not None and fixed is not None:
        budget = count(number(report, "fixed_budget"))
        text += (
            f", against {num(fixed)} for the best fixed budget, {budget}, and {num(oracle)} for "
            "the oracle"
        )
    gain = range_of(report, "captured_gain")
    if gain is not None:
        text += f": a captured gain of {percent(gain.value)} (95 % interval {percent_range(gain)})"
    return f"{text}."


def _saved(report: Mapping[str, Any]) -> str:
    """Steps that fixed budgets need for equal loss, against those taken."""
    steps, loss = (number(report, "frontier", key, "value") for key in ("mean_steps", "mean_loss"))
    needed = number(report, "frontier", "fixed_steps_for_equal_loss", "value")
    share = range_of(report, "frontier", "saved_share")
    if steps is None or loss is None or needed is None:
        return ""
    account = name_at(report, "account")
    text = f"They take {num(steps)} {account} on average to a mean loss of {num(loss)}; "
    reached = get(report, "frontier", "equal_loss_reached") is True
    text += (
        f"budgets mixed at random need {num(needed)} for that"
        if reached
        else f"no fixed budget of up to {num(needed)} has so low a loss"
    )
    if share is None:
        return f"{text}."
    sure = f"95 % interval {percent_range(share)}"
    if share.low > 0:
        least = "" if reached else "at least "
        return f"{text}, so {least}{percent(share.value)} of the steps are saved ({sure})."
    if share.high < 0:
        return f"{text}, so nothing is saved: they take {percent(-share.value)} more ({sure})."
    return f"{text}, so it is not sure that anything is saved: {percent(share.value)} ({sure})."


def _skill(report: Mapping[str, Any]) -> str:
    shuffled, skill = number(report, "permutation", "j"), range_of(report, "permutation", "skill")
    if shuffled is None or skill is None:
        return ""
    text = (
        f"Counted in {name_at(report, 'account')}, the same stops dealt to the problems at random "
        f"would cost J = {num(shuffled)}"
    )
    if skill.low > 0:
        return f"{text}: {_range(skill)} is owed to knowing which problem is which."
    if skill.high < 0:
        return f"{text}: fitting the stops to the problems harms, by {_range(skill)}."
    return f"{text}: no skill in telling problems apart is sure ({_range(skill)})."


def _regret(report: Mapping[str, Any]) -> str:
    mean = range_of(report, "regret", "mean")
    levels = {
        number(entry, "level"): number(entry, "value")
        for entry in items(report, "regret", "quantiles")
    }
    half, most = levels.get(0.5), levels.get(0.95)
    if mean is None or half is None or most is None:
        return ""
    return (
        f"The oracle’s J is lower by {_range(mean)} on average; by at most {num(half)} on half of "
        f"the problems, by at most {num(most)} on 95 % of them."
    )


def _reliability(report: Mapping[str, Any]) -> str:
    error = number(report, "reliability", "expected_calibration_error")
    hazard, share = (number(report, "reliability", key) for key in ("mean_hazard", "frequency"))
    if error is None or hazard is None or share is None:
        return ""
    return (
        f"Of the {count(number(report, 'reliability', 'num_cases'))} steps that the oracle reaches "
        f"it stops at {percent(share)}; the hazard says {percent(hazard)} on average and is off by "
        f"{num(error)} (expected calibration error)."
    )


def _opponent(report: Mapping[str, Any]) -> str:
    """The stops beside the best of the rules tuned on the other half."""
    known = {
        str(name): value
        for name in mapping(report, "opponents")
        if (value := number(report, "opponents", name, "j", "value")) is not None
    }
    if not known:
        return ""
    best = min(known, key=lambda name: known[name])
    difference = range_of(report, "opponents", best, "difference")
    who = (
        f"{_called(best)}, the best of {len(known)} rules that see losses alone, each tuned on the "
        "half of the problems on which it is not judged"
    )
    if difference is None:
        return f"J is {num(known[best])} for {who}."
    sure = f"J lower by {_range(Range(-difference[0], -difference[2], -difference[1]))}"
    if difference.high < 0:
        return f"They beat {who}: {sure}."
    if difference.low > 0:
        return f"They are beaten by {who}: J higher by {_range(difference)}."
    return f"They cannot be told from {who}: {sure}."


def _seconds(report: Mapping[str, Any]) -> str:
    per, horizon, equal = (
        range_of(report, "seconds", key)
        for key in ("per_problem", "saved_of_horizon", "saved_of_equal_loss")
    )
    if per is None or horizon is None or equal is None:
        return ""
    decision = number(report, "seconds", "per_decision")
    own = "the stop rule’s own time included" if decision else "the stop rule’s own time not known"
    return (
        f"A problem takes {num(per.value)} s, {own}: {_range(horizon)} s less than the full "
        f"horizon, {_range(equal)} s less than budgets mixed at random take for the same loss."
    )


def _seeds(report: Mapping[str, Any]) -> str:
    number_of = number(report, "seeds", "num")
    if number_of is None:
        return ""

    def over(name: str) -> str:
        mean, sd = (number(report, "seeds", "over_seeds", name, key) for key in ("mean", "sd"))
        return num(mean) if sd is None else f"{num(mean)} ± {num(sd)}"

    failed = [count(number(entry, "seed")) for entry in items(report, "seeds", "failures")]
    return (
        f"Over {count(number_of)} seeds (mean ± standard deviation) J is {over('j')}, the captured "
        f"gain {over('captured_gain')}; "
        + (f"failed: {joined(failed)}." if failed else "none failed.")
    )


def _range(value: Range) -> str:
    return f"{num(value.value)} [{num(value.low)}, {num(value.high)}]"


def _called(name: str) -> str:
    return "the fixed budget" if name == "fixed" else label(name)


def _tiles(report: Mapping[str, Any]) -> list[Tile]:
    gain, share = range_of(report, "captured_gain"), range_of(report, "frontier", "saved_share")
    tiles = []
    if gain is not None:
        tiles.append(Tile(percent(gain.value), "captured gain", f"95 %: {percent_range(gain)}"))
    if share is not None:
        detail = f"95 %: {percent_range(share)}"
        tiles.append(Tile(percent(share.value), "steps saved at equal loss", detail))
    stops = [number(report, "degeneracy", k) for k in ("mean", "sd", "oracle_mean", "oracle_sd")]
    if stops[0] is not None:
        detail = f"oracle {spread(stops[2], stops[3])}" if stops[2] is not None else ""
        tiles.append(
            Tile(spread(stops[0], stops[1]), f"{name_at(report, 'account')} until the stop", detail)
        )
    skill = range_of(report, "permutation", "skill")
    if skill is not None:
        detail = f"95 %: {num(skill.low)} to {num(skill.high)}"
        tiles.append(Tile(num(skill.value), "of J owed to telling problems apart", detail))
    return tiles


def contenders_table(report: Mapping[str, Any], stem: str) -> Table:
    """J and captured gain of the stops, the oracle, budgets and cross-fitted rules."""
    entries: list[tuple[str, Range | None, Range | None, Range | None]] = [
        ("these stops", range_of(report, "j", "rule"), range_of(report, "captured_gain"), None)
    ]
    entries += [
        (
            f"{_called(name).removeprefix('the ')}, cross-fitted",
            range_of(report, "opponents", name, "j"),
            range_of(report, "opponents", name, "captured_gain"),
            range_of(report, "opponents", name, "difference"),
        )
        for name in mapping(report, "opponents")
    ]
    shuffled = number(report, "permutation", "j")
    entries += [
        ("best fixed budget (hindsight)", range_of(report, "j", "fixed"), None, None),
        ("oracle (hindsight)", range_of(report, "j", "oracle"), None, None),
    ]
    rows = [
        [name, num(j.value if j else None), interval(gain), _range(less) if less else ""]
        for name, j, gain, less in entries
    ]
    rows.append(["these stops, dealt at random", num(shuffled), "", ""])
    raw: list[list[Any]] = [
        [name, *(j or _NONE), *(gain or _NONE), *(less or _NONE)] for name, j, gain, less in entries
    ]
    raw.append(["these stops, dealt at random", shuffled, *([None] * 8)])
    columns = [
        f"{head}{end}"
        for head in ("j", "captured_gain", "difference")
        for end in ("", "_low", "_high")
    ]
    return Table(
        title=f"J, counted in {name_at(report, 'account')}",
        columns=["stops", "J", "captured gain", "J of these stops less that"],
        rows=rows,
        data=Data(f"{stem}-contenders", ["stops", *columns], raw),
        strong=0,
        note=(
            "J: mean loss at the stop plus price times cost, lower is better. Cross-fitted: tuned "
            "on one half of the problems and judged on the other. Below 0 in the last column, "
            "these stops are better."
        ),
    )


_NONE = (None, None, None)


def degeneracy_table(reports: Mapping[str, Any], stem: str) -> Table | None:
    """Whether the stops vary as the oracle's do: a line an account."""
    keys = (
        "sd_ratio", "rank_correlation", "share_at_0", "oracle_share_at_0", "share_at_horizon",
        "oracle_share_at_horizon",
    )  # fmt: skip
    rows, raw = [], []
    for account, report in reports.items():
        if not mapping(report, "degeneracy"):
            continue
        mean, sd, oracle_mean, oracle_sd = (
            number(report, "degeneracy", key) for key in ("mean", "sd", "oracle_mean", "oracle_sd")
        )
        ratio = range_of(report, "degeneracy", "sd_ratio")
        numbers = [number(report, "degeneracy", key) for key in keys[1:]]
        rows.append(
            [
                f"counted in {account}",
                spread(mean, sd),
                spread(oracle_mean, oracle_sd),
                interval(ratio) or MISSING,
                num(numbers[0]),
                f"{percent(numbers[1])} / {percent(numbers[2])}",
                f"{percent(numbers[3])} / {percent(numbers[4])}",
            ]
        )
        value = None if ratio is None else ratio.value
        raw.append([account, mean, sd, oracle_mean, oracle_sd, value, *numbers])
    if not rows:
        return None
    return Table(
        title="Do the stops vary as the oracle’s do?",
        columns=[
            "account", "stop", "oracle", "ratio of standard deviations", "rank correlation",
            "at step 0 / oracle", "at the horizon / oracle",
        ],
        rows=rows,
        data=Data(
            f"{stem}-degeneracy",
            ["account", "mean", "sd", "oracle_mean", "oracle_sd", *keys],
            raw,
        ),
        note=(
            "Mean ± standard deviation in steps. A ratio near 0 is a fixed budget in disguise; the "
            "rank correlation (Spearman) is with the oracle’s step, problem by problem."
        ),
    )  # fmt: skip


def seeds_table(report: Mapping[str, Any], stem: str) -> Table | None:
    """Each seed by itself."""
    entries = items(report, "seeds", "by_seed")
    if not entries:
        return None
    failed = {number(entry, "seed") for entry in items(report, "seeds", "failures")}
    keys = ("num_problems", "num_left_out", "j", "fixed_j", "oracle_j", "captured_gain",
            "mean_steps")  # fmt: skip
    rows, raw = [], []
    for entry in entries:
        seed = number(entry, "seed")
        values = [number(entry, key) for key in keys]
        name = f"{count(seed)} (failed)" if seed in failed else count(seed)
        rows.append([name, *map(count, values[:2]), *map(num, values[2:])])
        raw.append([seed, *values])
    return Table(
        title="Seed by seed",
        columns=[
            "seed", "problems", "left out", "J", "its best fixed budget’s", "its oracle’s",
            "captured gain", "mean steps",
        ],
        rows=rows,
        data=Data(f"{stem}-seeds", ["seed", *keys], raw),
        note="A seed fails where its J is above its own best fixed budget’s or is not finite.",
    )  # fmt: skip
