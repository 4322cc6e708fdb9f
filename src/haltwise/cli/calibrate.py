"""`haltwise calibrate`: choose the stop policies of a trained model anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.progress import working
from haltwise._core.random import stream
from haltwise.cli import options
from haltwise.cli.own_model import opened, record_for, replace_weights
from haltwise.cli.places import PATH
from haltwise.cli.printing import print_table, write_json
from haltwise.cli.settings import SettingsCommand
from haltwise.cli.train import command_line
from haltwise.models.card import Card
from haltwise.models.files import halting_of
from haltwise.models.first_rounds import FirstRounds
from haltwise.report.formats import num
from haltwise.report.page import Column, Table
from haltwise.report.palette import rule_name
from haltwise.stop_rules import StopPolicy
from haltwise.training.validation import Calibrated, calibrate_policies, measure_scales

__all__ = ["command"]

_FEWEST = 50  # items to choose on


@click.command("calibrate", cls=SettingsCommand, leaves=options.family_leaves)
@click.argument("run")
@options.family_option
@click.option("--runs", type=PATH, help="Recorded runs to choose on, for a monitor.")
@click.option(
    "--num-problems",
    type=int,
    help="Problems, or processes, to choose on.  [default: 4096, for networks down to 64]",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the problems.")
@options.measuring_options
def command(
    run: str,
    family: str | None,
    runs: Path | None,
    num_problems: int | None,
    seed: int,
    json_path: Path | None,
    own: list[type],
    data_dir: Path | None,
    settings: dict[str, Any],
) -> None:
    """Choose anew when the model of RUN stops, on fresh problems or recorded runs.

    RUN is a run directory, its name in runs/ or a weights file. Its own policies, all thresholds
    of its halting method and tuned simple rules are tried over its prices, and the best go on its
    card, with the scales of the problems; certificates are taken off it. The weights file is
    replaced at once, nothing else is changed, and the file before is kept beside it as
    NAME.before.safetensors.
    """
    with opened(run, own, "calibrate") as found:
        card, halting = found.model.card, halting_of(found.model)
        with working("recording", Console(stderr=True)):
            recorded = record_for(
                found.model,
                run,
                runs=runs,
                family=family,
                settings=settings,
                num_problems=num_problems,
                seed=seed,
                data_dir=data_dir,
                purpose="recalibration",
            )
        num_items = recorded.num_items
        require(
            num_items >= _FEWEST,
            f"calibration needs at least {_FEWEST} items, got {num_items}; record more",
        )
        with working("calibrating", Console(stderr=True)):
            chosen = calibrate_policies(card, halting, recorded, card.policies)
            kept = {**chosen.to_json(), "num_items": num_items, "command": command_line()}
            provenance = {**card.provenance, "calibration": kept}
            new = replace(card, policies=chosen.policies, certificates=(), provenance=provenance)
            scales = measure_scales(new, halting, recorded, stream(seed, "scales"))
            if scales is None and family is None:  # too few problems, those trained on were many
                scales = card.scales
            rounds = None if scales else FirstRounds.of(recorded) or card.first_rounds
            new = replace(new, scales=scales, first_rounds=rounds)
        before = replace_weights(found, new)
    write_json(json_path, kept)
    print_table(_table(card, chosen, num_items))
    click.echo(f"{found.path} (before: {before})")


def _table(card: Card, found: Calibrated, num_items: int) -> Table:
    """The policies before and now, with their J on the items they were chosen on."""
    rows: list[list[Any]] = []
    for unit, policy in found.policies.items():
        scores = found.scores[unit]
        if unit in card.policies:
            rows.append([_words(card.policies[unit]), "before", unit.value, scores["held"]])
        chosen = next(iter(scores))
        kind = "kept" if chosen == "held" else rule_name(chosen)
        rows.append([_words(policy), kind, unit.value, scores[chosen]])
    columns = [Column(heading, str) for heading in ("stops where", "stop rule", "counted in")]
    return Table(
        "calibration",
        "Stop policies, before and now",
        [*columns, Column("J in prices", num)],
        rows,
        note=f"J is the mean over the prices of validation and over the {num_items:,} items that "
        f"the policies were chosen on. What this model pays for is counted in {card.unit.value}.",
    )


def _words(policy: StopPolicy) -> str:
    return f"{' or '.join(policy.rule.reasons)}; returns {policy.returns.value}"
