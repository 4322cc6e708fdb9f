"""`haltwise certify`: have a trained model stop where a risk is certified to be small."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.discovery import configure, lookup
from haltwise._core.errors import CalibrationWarning, InputError, require
from haltwise._core.progress import working
from haltwise._core.settings import price_per_unit
from haltwise.certificates import RISKS, Certificate, largest_loss, require_promise
from haltwise.cli import options
from haltwise.cli.own_model import opened, record_for, replace_weights
from haltwise.cli.places import PATH
from haltwise.cli.printing import write_json
from haltwise.cli.settings import SettingsCommand
from haltwise.cli.train import command_line
from haltwise.curves.readers.files import open_text
from haltwise.interfaces.certify import certify
from haltwise.models.card import Card
from haltwise.report.certificates import certificate_sentences
from haltwise.stop_rules import CostUnit

__all__ = ["command"]


@click.command("certify", cls=SettingsCommand, leaves=options.family_leaves)
@click.argument("run")
@click.option(
    "--risk",
    "kind",
    required=True,
    help="excess: mean excess loss at the stop; forgone: mean loss at the stop above that of going "
    "on to the end, where the least loss is not known; given-up: share of the problems that would "
    "reach the target and are stopped short of it; above: share of problems stopped above the "
    "target; cost: mean cost.",
)
@click.option("--level", type=float, required=True, help="What the risk must not exceed.")
@click.option(
    "--confidence",
    type=float,
    help="Confidence, or probability in the next group; leave it out for the expectation there.",
)
@click.option("--target", type=float, help="Excess loss, for the risks given-up and above.")
@click.option(
    "--bound",
    type=float,
    help="Largest loss that a problem can have, for the risks excess and forgone.",
)
@click.option("--clip", is_flag=True, help="Count larger ones as the bound.")
@options.price_option
@click.option("--unit", help="updates or gradients, what is charged.  [default: the card's]")
@options.family_option
@click.option("--runs", type=PATH, help="Recorded runs to certify on, for a monitor.")
@click.option(
    "--groups",
    type=PATH,
    help="File with the group of each run in --runs, one a line, in the order of their names.",
)
@click.option(
    "--num-problems",
    type=int,
    help="Problems, or processes, to certify on.  [default: 4096, for networks down to 64]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the problems.")
@options.measuring_options
def command(
    run: str,
    kind: str,
    level: float,
    confidence: float | None,
    target: float | None,
    bound: float | None,
    clip: bool,
    price: float | None,
    unit: str | None,
    family: str | None,
    runs: Path | None,
    groups: Path | None,
    num_problems: int | None,
    seed: int,
    json_path: Path | None,
    own: list[type],
    data_dir: Path | None,
    settings: dict[str, Any],
) -> None:
    """Have the model of RUN stop where a risk is certified, on fresh problems or recorded runs.

    RUN is a run directory, its name in runs/ or a weights file. The boldest threshold of its
    halting method that is certified becomes its policy, and the certificate goes on its card. The
    weights file is replaced at once, and the file before is kept beside it as
    NAME.before.safetensors. Where nothing can be certified, nothing is changed.
    """
    chosen = lookup(RISKS, kind, "risk")
    risk = configure(chosen, {} if target is None else {"target": target}, kind)
    charged = None if unit is None else _unit(unit)
    labels = None if groups is None else _labels(groups, runs)
    if price is not None:
        price_per_unit(price)
    with opened(run, own, "certify") as found:
        largest = largest_loss(risk, found.model.card.horizon, bound)
        require_promise(level, confidence, largest, grouped=labels is not None)
        with working("recording", Console(stderr=True)), warnings.catch_warnings():
            warnings.simplefilter("error", CalibrationWarning)
            try:
                recorded = record_for(
                    found.model,
                    run,
                    runs=runs,
                    family=family,
                    settings=settings,
                    num_problems=num_problems,
                    seed=seed,
                    data_dir=data_dir,
                    purpose="certificate",
                )
            except CalibrationWarning as warning:
                raise InputError(
                    f"{warning}; what is certified of the others would not hold for such"
                ) from None
        with working("certifying", Console(stderr=True)):
            outcome = certify(
                found.model,
                recorded,
                risk=risk,
                level=level,
                confidence=confidence,
                group=labels,
                bound=bound,
                clip=clip,
                price=price,
                unit=charged,
            )
        is_certified = isinstance(outcome, Certificate)
        write_json(json_path, {"certified": is_certified, **outcome.to_json()})
        certificate = outcome.require()
        before = replace_weights(found, _certified(found.model.card, certificate))
    for sentence in certificate_sentences(certificate):
        click.echo(sentence)
    click.echo(f"{found.path} (before: {before})")


def _certified(card: Card, certificate: Certificate) -> Card:
    """The card with this stop and its certificate, and the command that put them there."""
    calibration = {**card.provenance.get("calibration", {}), "command": command_line()}
    provenance = {**card.provenance, "calibration": calibration}
    return replace(card.with_certificate(certificate), provenance=provenance)


def _unit(name: str) -> CostUnit:
    names = [unit.value for unit in CostUnit]
    require(name in names, f"--unit must be {' or '.join(names)}, got {name!r}")
    return CostUnit(name)


def _labels(path: Path, runs: Path | None) -> list[str]:
    require(runs is not None, "--groups are those of --runs; name their directory")
    with open_text(path) as file:
        return [line.strip() for line in file]
