"""StopBench as tables, figures and one page."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from haltwise._core.errors import require
from haltwise.bench.domain import Question
from haltwise.bench.records import (
    BenchCase,
    BenchCell,
    BenchRecord,
    captured,
    failed_share,
    lead,
    lost,
    saved,
)
from haltwise.bench.run import GIVEN, REFERENCE
from haltwise.evaluation import Interval
from haltwise.report.figures import rule_strip
from haltwise.report.formats import (
    MISSING,
    Saving,
    as_given,
    count,
    counted,
    joined,
    num,
    percent,
    percent_estimate,
    saving,
)
from haltwise.report.page import Column, Facts, Section, Table, write_page
from haltwise.report.palette import rule_name

__all__ = ["bench_tables", "headline", "judged_rule", "write_bench"]

_OURS = "learned"
_STAND_IN = "boosted-trees"  # judged where there is no learned rule
_FEW = 5  # groups, below which hardly anything is sure

_ASKED = {
    Question.STOP: "Stopping early",
    Question.GIVE_UP: "Giving up",
}
_FOUND = {
    Question.STOP: "captured gain, mean over prices",
    Question.GIVE_UP: "cost saved / successes lost where {key} may be",
}


class Duel(NamedTuple):
    """The judged rule beside the best of the others, in one case at one price or level."""

    case: BenchCase
    key: str
    own: float
    best: str
    other: float
    ahead: Interval


def judged_rule(record: BenchRecord, asked: str | None = None) -> str:
    """The rule whose wins and losses are listed.

    Raises:
        InputError: The one asked for was not run.
    """
    known = [rule for question in Question for rule in record.rules(question)]
    require(bool(known), "no rule applies to any case, so there is nothing to show; name others")
    require(
        asked is None or asked in known,
        f"no rule {asked!r} was run; those are {', '.join(dict.fromkeys(known))}",
    )
    wanted = [asked] if asked is not None else [GIVEN, _OURS, _STAND_IN]
    return next((rule for rule in wanted if rule in known), known[0])


def write_bench(record: BenchRecord, judged: str, path: Path) -> Path:
    """Write the page of a bench.

    Args:
        record: All that was measured.
        judged: See `judged_rule`.
        path: Where the page goes; it holds everything and makes no request.

    Raises:
        InputError: The page cannot be written.
    """
    few = [case.domain for case in record.cases.values() if len(case.groups) < _FEW]
    warnings = [f"{name} is left out: {why}." for name, why in record.skipped.items()]
    if few:
        warnings.append(
            f"Fewer than {_FEW} groups, so hardly any lead is sure: {joined(sorted(set(few)))}."
        )
    duels = _duels(record, judged)
    wins = sum(duel.ahead.low > 0 for duel in duels)
    losses = sum(duel.ahead.high < 0 for duel in duels)
    top = Section(
        anchor="bench",
        title="StopBench",
        subtitle=f"{counted(len(record.cases), 'case')} of "
        f"{count(max(case.num_runs for case in record.cases.values()))} runs at most",
        headline=headline(record, judged),
        verdict="gain" if wins > losses else "loss" if losses > wins else "unclear",
        sentences=[*_sentences(record), _duel_sentence(duels, judged)],
        warnings=warnings,
        blocks=[
            *bench_tables(record, judged),
            *(rule_strip(record, question, judged) for question in Question if record.of(question)),
        ],
    )
    details = [_details(record, name, case, judged) for name, case in record.cases.items()]
    settings = Section(
        anchor="settings",
        title="Settings",
        blocks=[Facts("What all cases have in common", [*record.settings.items()])],
    )
    return write_page(path, "StopBench", [top, *details, settings])


def bench_tables(record: BenchRecord, judged: str) -> list[Table]:
    """Every rule in every case, and where the judged rule is behind and ahead."""
    found = [_overview(record, question, judged) for question in Question if record.of(question)]
    duels = _duels(record, judged)
    for word, chosen in (
        ("behind", [duel for duel in duels if duel.ahead.value < 0]),
        ("level", [duel for duel in duels if duel.ahead.value == 0]),
        ("ahead", [duel for duel in duels if duel.ahead.value > 0]),
    ):
        rows = [
            [f"{d.case.domain}, {_at(d.case, d.key)}", d.own, rule_name(d.best), d.other, d.ahead]
            for d in sorted(chosen, key=lambda duel: duel.ahead.value, reverse=word == "ahead")
        ]
        if rows:
            found.append(
                Table(
                    f"bench-{word}",
                    f"{_capital(rule_name(judged))}: {word}",
                    [
                        Column("case", str),
                        Column("its figure", percent),
                        Column("best other rule", str),
                        Column("that one's", percent),
                        Column("ahead by", percent_estimate),
                    ],
                    rows,
                    note=_duel_note([duel.case for duel in chosen]),
                )
            )
    return found


def headline(record: BenchRecord, judged: str) -> str:
    """How often the judged rule is ahead of every other."""
    duels = _duels(record, judged)
    wins = sum(duel.ahead.value > 0 for duel in duels)
    sure = sum(duel.ahead.low > 0 for duel in duels)
    if not duels:
        alone = all(len(record.rules(question)) < 2 for question in Question)
        return f"{_capital(rule_name(judged))}: " + (
            "there is no other rule to compare with"
            if alone
            else "no rule could gain anything over the best fixed budget"
        )
    return (
        f"{_capital(rule_name(judged))}: ahead of the best other rule in {wins} of "
        f"{counted(len(duels), 'comparison')}, for sure in {sure}"
    )


def _capital(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}"


def _duel_note(cases: Sequence[BenchCase]) -> str:
    """What the figures of these cases are."""
    asked = {case.question for case in cases}
    found = [
        " or ".join(
            words
            for question, words in (
                (Question.STOP, "captured gain"),
                (Question.GIVE_UP, "the share of cost saved"),
            )
            if question in asked
        ),
        "the best other rule is that of all which did best on the test runs, in hindsight",
    ]
    if Question.GIVE_UP in asked:
        found.append(
            "to give up, a rule that loses more successes than allowed, for sure or in every "
            "group, saves none"
        )
    if any(case.question is Question.STOP and case.given_price is None for case in cases):
        found.append("prices are of a whole budget, in typical gains of a run")
    if any(case.given_price is not None for case in cases):
        found.append("the price of stops that were given is of a unit of cost, as it was given")
    return " ".join(f"{_capital(each)}." for each in found)


def _sentences(record: BenchRecord) -> list[str]:
    runs = sum(case.num_runs for case in record.cases.values())
    return [
        f"{counted(runs, 'run')} in {counted(len(record.cases), 'case')}. Whole groups of runs are "
        "held out in turn; settings and levels of every rule are chosen on the other groups "
        "alone, by cross-fitting where a rule learns. Where runs are scored by a column of their "
        "own, no rule sees it.",
        "Stopping early returns the best point so far and pays for what was spent; the captured "
        "gain is 0 for the best budget that is alike for all runs, in hindsight, and 100 % for the "
        "oracle. Losses are counted in the typical gain of a task, prices are of a whole budget.",
        "Giving up saves the cost of runs that would not have met their target; at most so many "
        "of the successes may be lost. That share was kept on the runs that rules were tuned on, "
        "and may be exceeded on the groups held out: both are shown.",
    ]


def _duel_sentence(duels: Sequence[Duel], judged: str) -> str:
    behind = sum(duel.ahead.high < 0 for duel in duels)
    if not duels:
        return "Nothing is compared."
    return (
        f"{_capital(rule_name(judged))}: behind for sure in {behind} of "
        f"{counted(len(duels), 'comparison')}, each with the rule that did best there of all "
        "others."
    )


def _overview(record: BenchRecord, question: Question, judged: str) -> Table:
    cases = record.of(question)
    rows: list[list[Any]] = []
    merits = {}
    for rule in record.rules(question):
        cells = [(case, record.cell(name, rule)) for name, case in cases.items()]
        rows.append([rule, *(None if cell is None else _mean(c, cell) for c, cell in cells)])
        merits[rule] = tuple(
            fmean(of(case, cell) for case, cell in cells if cell is not None)
            for of in (_merit, _demerit)
        )
    rows.sort(key=lambda row: merits[row[0]], reverse=True)
    if question is Question.STOP:
        rows += [["oracle", *[1.0] * len(cases)], ["fixed", *[0.0] * len(cases)]]
    else:
        rows.append(["oracle", *(Saving(failed_share(case), 0.0) for case in cases.values())])
    show = percent if question is Question.STOP else saving
    key = next(iter(cases.values())).keys[-1]
    return Table(
        f"bench-{question}",
        f"{_ASKED[question]}: {_FOUND[question].format(key=percent(float(key)))}",
        [Column("rule", rule_name), *(Column(case.domain, show) for case in cases.values())],
        rows,
        note=(
            "A stop returns the best point so far. Rules are ordered by their mean over the "
            "domains they apply to, each counted between none and all; of those alike, by how far "
            "they are below none."
            if question is Question.STOP
            else "Rules are ordered by their mean over the domains they apply to, each counted "
            "between none and all, and as none where more successes than allowed are lost for "
            "sure, or in every group."
        ),
        strong=next((i for i, row in enumerate(rows) if row[0] == judged), None),
    )


def _mean(case: BenchCase, cell: BenchCell) -> float | Saving:
    if case.question is Question.STOP:
        return fmean(_figure(case, cell, key) for key in case.keys)
    key = case.keys[-1]
    return Saving(saved(case, cell, key).value, lost(case, cell, key).value)


def _merit(case: BenchCase, cell: BenchCell) -> float:
    keys = case.keys if case.question is Question.STOP else case.keys[-1:]
    value = fmean(_figure(case, _counted(case, cell, key), key) for key in keys)
    return min(max(value, 0.0), 1.0) if math.isfinite(value) else 0.0


def _demerit(case: BenchCase, cell: BenchCell) -> float:
    """How far it is below none, 0 or less: what orders rules that are not worth anything."""
    if case.question is Question.STOP:
        value = fmean(_figure(case, cell, key) for key in case.keys)
        return min(value, 0.0) if math.isfinite(value) else 0.0
    return -lost(case, cell, case.keys[-1]).value


def _duels(record: BenchRecord, judged: str) -> list[Duel]:
    found = []
    for name, case in record.cases.items():
        cells = {
            rule: cell
            for rule in record.rules(case.question)
            if rule != REFERENCE and (cell := record.cell(name, rule))
        }
        if judged not in cells:
            continue
        for key in case.keys:
            others = {rule: _counted(case, cell, key) for rule, cell in cells.items()}
            own = others.pop(judged)
            figures = {rule: _figure(case, cell, key) for rule, cell in others.items()}
            known = [rule for rule, figure in figures.items() if math.isfinite(figure)]
            if known:
                best = max(known, key=figures.__getitem__)
                ahead = lead(case, own, others[best], key)
                found.append(Duel(case, key, _figure(case, own, key), best, figures[best], ahead))
    return found


def _figure(case: BenchCase, cell: BenchCell, key: str) -> float:
    return (captured if case.question is Question.STOP else saved)(case, cell, key).value


def _counted(case: BenchCase, cell: BenchCell, key: str) -> BenchCell:
    """The cell as it counts: it saves none where it loses more successes than it may.

    That is where it does so for sure, or in every group: of two groups nothing is ever sure.
    """
    if case.question is Question.STOP:
        return cell
    allowed, losses = float(key), cell.sums[f"lost@{key}"]
    by_group = zip(losses, case.sums["successes"], strict=True)
    more = [gone > allowed * all_ for gone, all_ in by_group if all_ > 0]
    if not (lost(case, cell, key).low > allowed or (more and all(more))):
        return cell
    name = f"saved@{key}"
    return replace(cell, sums={**cell.sums, name: [0.0] * len(cell.sums[name])})


def _at(case: BenchCase, key: str) -> str:
    if case.question is Question.STOP:
        price = float(f"{float(key):.3g}") if case.given_price is None else case.given_price
        return f"stop, price {as_given(price)}"
    return f"give up, {percent(float(key))} lost"


def _details(record: BenchRecord, name: str, case: BenchCase, judged: str) -> Section:
    rules = [rule for rule in record.rules(case.question) if record.cell(name, rule)]
    rows: list[list[Any]] = []
    for rule in rules:
        cell = record.cell(name, rule)
        assert cell is not None
        row: list[Any] = [rule]
        for key in case.keys:
            if case.question is Question.STOP:
                row.append(captured(case, cell, key))
            else:
                row += [saved(case, cell, key), lost(case, cell, key)]
        chosen = cell.settings.get(case.keys[-1], [MISSING])[0]
        rows.append([*row, chosen, cell.seconds])
    rows.sort(key=lambda row: -row[1].value if math.isfinite(row[1].value) else math.inf)
    columns = [Column("rule", rule_name)]
    for key in case.keys:
        at = _at(case, key).partition(", ")[2]
        if case.question is Question.STOP:
            columns.append(Column(at, percent_estimate))
        else:
            allowed = percent(float(key))
            columns.append(Column(f"saved where {allowed} may be lost", percent_estimate))
            columns.append(Column("lost", percent_estimate))
    columns += [Column("setting in the first fold", None), Column("seconds", num)]
    left = ""
    if case.num_left_out:
        left = f" Left out: {counted(case.num_left_out, 'run')} that could not be judged."
    met = ""
    if case.question is Question.GIVE_UP:
        met = (
            f" {percent(sum(case.sums['successes']) / case.num_runs)} of the runs met their "
            f"target; those that did not took {percent(failed_share(case))} of the cost."
        )
    table = Table(
        f"bench-{case.domain}-{case.question}",
        "Captured gain" if case.question is Question.STOP else "Cost saved and successes lost",
        columns,
        rows,
        note=f"{counted(case.num_runs, 'run')} of {counted(len(case.groups), 'group')}.{met}{left} "
        f"Brackets hold 95 % intervals, whole groups left out in turn.{_price_note(case)}",
        strong=next((i for i, row in enumerate(rows) if row[0] == judged), None),
    )
    asked = _ASKED[case.question].lower()
    return Section(f"{case.domain}-{case.question}", f"{case.title}: {asked}", blocks=[table])


def _price_note(case: BenchCase) -> str:
    """What a price that was given comes to in the units of all others."""
    if case.given_price is None:
        return ""
    return (
        f" The price of a unit of cost, {as_given(case.given_price)}, makes a price of "
        f"{num(float(case.keys[0]))} of a whole budget, in typical gains of a run."
    )
