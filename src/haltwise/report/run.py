"""The page of a run: its card, its training, every evaluation and the study found in it."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from haltwise._core.errors import InputError
from haltwise.evaluation import EvaluationRecord, StudyRecord
from haltwise.evaluation.records import HeldOutRecord, load_evaluations, load_study
from haltwise.models.card import Card
from haltwise.models.loading import card_of, names
from haltwise.report.certificates import certificate_sentences
from haltwise.report.figures import loss_curves, training
from haltwise.report.formats import (
    Spread,
    as_given,
    card_facts,
    count,
    facts,
    interval,
    joined,
    num,
    percent,
    percent_estimate,
    short,
    slug,
    spread,
)
from haltwise.report.page import Column, Facts, Section, Table, write_page
from haltwise.report.stopping import (
    headline,
    rules_table,
    sentences,
    stopping_figures,
    verdict,
    warnings,
)
from haltwise.report.studies import study_section
from haltwise.stop_rules import CostUnit
from haltwise.training.run.log import read_log

__all__ = ["optimizers_table", "write_report"]

_UNIT = CostUnit.GRADIENTS
"""The unit of the key figures: users pay for gradients."""


def write_report(run: Path, path: Path, own: Iterable[type] = ()) -> Path:
    """Write one HTML page about the evaluations in a run directory and how it was trained.

    Args:
        run: Directory with evaluations; with weights, a training log and a study, if there are any.
        path: Where the page goes; it holds everything and makes no request.
        own: Classes of your own that the card may name; see `haltwise.load`.

    Raises:
        InputError: There is no evaluation, a file is corrupt, or the page cannot be written.
    """
    evaluations, study = load_evaluations(run), load_study(run)
    cards = _cards(run, [record for record, _ in evaluations], own)
    try:
        parts = _parts(run, evaluations, study, cards)
    except InputError:  # it says which file
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(
            f"the records in {run} do not fit together ({error!r}); evaluate it again"
        ) from error
    return write_page(path, run.resolve().name, parts)


def _parts(
    run: Path,
    evaluations: list[tuple[EvaluationRecord, dict[str, Tensor]]],
    study: StudyRecord | None,
    cards: Mapping[str, Card],
) -> list[Section]:
    sections = [
        _evaluation(record, arrays, place) for place, (record, arrays) in enumerate(evaluations, 1)
    ]
    return [
        _overview(cards, [record for record, _ in evaluations], sections),
        *sections,
        *_certificates(cards),
        *([] if study is None else [study_section(study)]),
        *_provenance(run, cards),
    ]


def _cards(run: Path, records: list[EvaluationRecord], own: Iterable[type]) -> dict[str, Card]:
    """The card of the weights in the directory, or of the shipped models evaluated in it."""
    if (run / "best.safetensors").exists():
        return {run.resolve().name: card_of(run, own)}
    shipped = sorted({record.optimizer for record in records} & set(names()))
    return {name: card_of(name) for name in shipped}


def _overview(
    cards: Mapping[str, Card], records: list[EvaluationRecord], sections: list[Section]
) -> Section:
    """What was trained, and every evaluation in a line."""
    described = [_description(name, card) for name, card in cards.items()]
    rows = []
    for record in records:
        stopping = record.stopping[_UNIT]
        stops, frontier = stopping.stops, stopping.frontier
        reached = min(frontier.mean_excess) <= stops.mean_excess
        rows.append(
            [
                f"{short(record.optimizer)} on {short(record.family)}",
                record.price,
                record.horizon,
                record.seed,
                stops.gain,
                frontier.saved if reached else None,
                Spread(stops.mean_cost, stops.sd_cost),
                stopping.fixed_budget,
            ]
        )
    table = Table(
        "evaluations",
        f"Evaluations, counted in {_UNIT.value}",
        [
            Column("evaluation", str),
            Column("price", as_given),
            Column("horizon", count),
            Column("seed", str),
            Column("captured gain", percent_estimate),
            Column("saved at equal excess", percent_estimate),
            Column("cost", spread),
            Column("best fixed budget", count),
        ],
        rows,
        links=[f"#{section.anchor}" for section in sections],
    )
    return Section(
        anchor="what", title="What it is", sentences=described, blocks=[table] if rows[1:] else []
    )


def _description(name: str, card: Card) -> str:
    """A card in a sentence."""
    moved = "stops a loop" if card.engine is None else f"stops {card.engine.name}"
    if card.rule is not None:
        moved = f"moves parameters by {card.rule.name}"
    problems = "recorded runs" if card.family is None else card.family.name
    prices = f"{as_given(card.price)} per step"
    if card.price_range > 1:
        low, high = card.price / card.price_range, card.price * card.price_range
        prices += f" (prices of {num(low)} to {num(high)} were seen)"
    return short(
        f"{name} {moved} and learned by {card.method.name} when to stop, on {problems} of up to "
        f"{card.horizon} steps, at a price of {prices}."
    )


def _evaluation(record: EvaluationRecord, arrays: Mapping[str, Tensor], place: int) -> Section:
    stopping, anchor = record.stopping[_UNIT], f"evaluation-{place}"
    stem = slug(f"{place}-{short(record.family)}-{as_given(record.price)}")
    costs = {
        rule: steps
        for rule, steps in (
            (stopping.judged, arrays.get(f"cost.{_UNIT.value}.{stopping.judged}")),
            ("oracle", arrays.get("oracle")),
        )
        if steps is not None
    }
    settings = {
        "family settings": record.family_settings,
        "problems": record.num_problems,
        "horizon": record.horizon,
        "environment": record.environment,
        "policies": {
            unit.value: {rule: stops.policy for rule, stops in judged.rules.items()}
            for unit, judged in record.stopping.items()
        },
    }
    return Section(
        anchor=anchor,
        title=f"{short(record.optimizer)} on {short(record.family)}",
        subtitle=f"price {as_given(record.price)} per step, problems of seed {record.seed}",
        headline=headline(stopping),
        verdict=verdict(stopping),
        sentences=[*sentences(stopping), _executed(record)],
        warnings=_warnings(record),
        blocks=[
            *stopping_figures(stopping, stem, costs),
            loss_curves(record, stem),
            *(rules_table(record.stopping[unit], stem) for unit in (_UNIT, CostUnit.UPDATES)),
            optimizers_table(record, stem),
            Facts("How it was evaluated", facts(settings)),
        ],
    )


def _executed(record: EvaluationRecord) -> str:
    run = record.execution
    outcomes = [
        f"{count(number)} {name.replace('_', ' ')}" for name, number in run.outcomes.items()
    ]
    text = (
        f"Solved for real, halted problems leaving the batch: {count(run.num_gradients)} gradients "
        f"in {num(run.seconds)} s, where the best fixed budget takes "
        f"{count(run.num_gradients_fixed)} in {num(run.seconds_fixed)} s ({joined(outcomes)})."
    )
    if run.held_out is not None:
        text += f" On the test examples the networks come to a loss of {num(run.held_out.loss)}"
        accuracy = _accuracy(run.held_out)
        text += "." if accuracy is None else f" and an accuracy of {percent(accuracy)}."
    return text


def _accuracy(held_out: HeldOutRecord | None) -> float | None:
    """That on the test examples, if their targets are classes."""
    return None if held_out is None or math.isnan(held_out.accuracy) else held_out.accuracy


def _warnings(record: EvaluationRecord) -> list[str]:
    found = warnings(record.stopping[_UNIT])
    for name, curve in record.curves.items():
        if curve.at_edge:
            found.append(
                f"The learning rate of {name}, {as_given(curve.learning_rate)}, lies at the edge "
                "of the grid: a wider one might serve it better."
            )
    lost = {short(name): curve.num_nonfinite for name, curve in record.curves.items()}
    diverged = [f"{name} on {count(number)}" for name, number in lost.items() if number]
    if diverged:
        found.append(f"Losses that are not finite: {joined(diverged)} problems.")
    return found


def optimizers_table(record: EvaluationRecord, stem: str = "", *, wide: bool = True) -> Table:
    """Every optimizer: its losses if nothing stops it, its own stops if it has any."""
    stopping = {record.optimizer: record.stopping, **record.others}
    own, what = record.stopping[_UNIT].stops, record.stopping[_UNIT].excess_name
    rows: list[list[Any]] = []
    for name, curve in record.curves.items():
        stops = stopping[name][_UNIT].stops if name in stopping else None
        reached = (step for step, mean in enumerate(curve.mean) if mean <= own.mean_excess)
        rows.append(
            [
                short(name),
                None if math.isnan(curve.learning_rate) else curve.learning_rate,
                math.fsum(curve.mean[1:]),
                curve.mean[-1],
                float(np.interp(own.mean_cost, range(len(curve.mean)), curve.mean)),
                next(reached, None),
                None if stops is None else stops.j,
                None if stops is None else Spread(stops.mean_cost, stops.sd_cost),
                None if stops is None else stops.gain,
                _accuracy(curve.held_out),
            ]
        )
    last = Column("test accuracy", percent if any(row[-1] is not None for row in rows) else None)
    return Table(
        f"{stem}-optimizers",
        "Optimizers",
        [
            Column("optimizer", str),
            Column("learning rate", as_given),
            Column(f"sum of mean {what}, steps 1 to {record.horizon}", num if wide else None),
            Column(f"mean {what} at the last step"),
            Column(f"mean {what} after {num(own.mean_cost)} steps", num if wide else None),
            Column(f"steps to a mean {what} of {num(own.mean_excess)}", count),
            Column("J of its own stops", interval),
            Column(f"their cost, {_UNIT.value}", spread if wide else None),
            Column("their captured gain", percent_estimate if wide else None),
            last,
        ],
        rows,
        note=f"If nothing stops it; {num(own.mean_cost)} and {num(own.mean_excess)} are what "
        f"{short(record.optimizer)} takes and leaves on average where it stops itself. Learning "
        "rates are tuned on other problems. J can be compared between optimizers; the captured "
        "gain of each is over its own best fixed budget.",
        strong=0,
    )


def _certificates(cards: Mapping[str, Card]) -> list[Section]:
    """What is certified of the stops on the cards."""
    sentences = [
        f"{short(name)}. {' '.join(certificate_sentences(certificate))}"
        for name, card in cards.items()
        for certificate in card.certificates
    ]
    section = Section(anchor="certificates", title="Certificates", sentences=sentences)
    return [section] if sentences else []


def _provenance(run: Path, cards: Mapping[str, Card]) -> list[Section]:
    trained = training(read_log(run))
    blocks: list[Any] = [] if trained is None else [trained]
    blocks += [
        Facts(f"Card of {short(name)}", card_facts(replace(card, certificates=()).to_json()))
        for name, card in cards.items()
    ]
    return [Section(anchor="training", title="Training", blocks=blocks)] if blocks else []
