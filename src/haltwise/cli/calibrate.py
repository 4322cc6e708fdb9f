"""`haltwise calibrate`: choose the stop policies of a trained model anew."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.files import read_bytes, write_atomically
from haltwise._core.random import stream
from haltwise.cli import options
from haltwise.cli.printing import print_table, write_json
from haltwise.cli.settings import SettingsCommand
from haltwise.cli.train import command_line
from haltwise.models import loading
from haltwise.models.card import Card, Choice
from haltwise.models.files import Model, halting_of, read_model, save_model
from haltwise.processes.trajectory import Trajectory
from haltwise.recordings.runs import RecordedRuns
from haltwise.report.formats import num
from haltwise.report.page import Column, Table
from haltwise.report.palette import rule_name
from haltwise.stop_rules import StopPolicy
from haltwise.training import TrainingSettings
from haltwise.training.run.directory import RunDirectory
from haltwise.training.sources import FamilySource, source_of
from haltwise.training.validation import Calibrated, calibrate_policies, measure_scales

__all__ = ["command"]

_FEWEST = 50  # items to choose on
_COORDINATES = 2**18  # of all problems together, unless told otherwise


@click.command("calibrate", cls=SettingsCommand, leaves=options.family_leaves)
@click.argument("run")
@options.family_option
@click.option("--runs", type=options.PATH, help="Recorded runs to choose on, for a monitor.")
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
    card, with the scales of the problems. The weights file is replaced at once, nothing else is
    changed, and the file before is kept beside it as NAME.before.safetensors.
    """
    require(
        run not in loading.names(),
        f"{run} comes with the package and stays as it is; copy {loading.find(run)} to a "
        "directory of yours and calibrate the copy",
    )
    path = loading.find(run)
    directory = RunDirectory(path.parent, 1)
    if (path.parent / "config.json").exists():
        directory.lock()
    model = read_model(path, own)
    card, halting = model.card, halting_of(model)
    require(halting.halts, f"{run} was trained without halting; there is no stop to calibrate")
    require(
        runs is None or (card.family is None and family is None and not settings),
        f"--runs are for monitors, and {run} was trained on problems; name a --family"
        if card.family is not None
        else "give --runs or --family, not both",
    )
    with Console(stderr=True).status("recording"):
        if runs is None:
            recorded = _fresh(model, family, settings, num_problems, seed, data_dir)
        else:
            recorded = _of_runs(card, runs)
    num_items = recorded.num_items
    require(
        num_items >= _FEWEST,
        f"calibration needs at least {_FEWEST} items, got {num_items}; record more",
    )
    with Console(stderr=True).status("calibrating"):
        found = calibrate_policies(card, halting, recorded, card.policies)
        kept = {**found.to_json(), "num_items": num_items, "command": command_line()}
        provenance = {**card.provenance, "calibration": kept}
        new = replace(card, policies=found.policies, provenance=provenance)
        scales = measure_scales(new, halting, recorded, stream(seed, "scales"))
        if scales is None and family is None:  # too few problems, but those trained on were many
            scales = card.scales
        new = replace(new, scales=scales)
    before = _free(path)
    write_atomically(before, read_bytes(path))
    save_model(path, model.state_dict(), new)
    directory.unlock()
    write_json(json_path, kept)
    print_table(_table(card, found, num_items))
    click.echo(f"{path} (before: {before})")


def _fresh(
    model: Model,
    family: str | None,
    settings: dict[str, Any],
    num: int | None,
    seed: int,
    data_dir: Path | None,
) -> Trajectory:
    """Record fresh problems or processes, of the family trained on or the one named."""
    card = model.card
    source = source_of(
        TrainingSettings(
            family=options.family_choice(card, family, settings),
            rule=card.rule or Choice("none"),
            horizon=card.horizon,
            seed=seed,
        ),
        "cpu",
        data_dir,
    )
    if num is None:
        dim = source.family.dim if isinstance(source, FamilySource) else 1
        num = min(4096, max(64, _COORDINATES // dim))
    return source.take(model, num, "recalibration")


def _of_runs(card: Card, directory: Path) -> Trajectory:
    """Load recorded runs of the loop that the model stops."""
    runs = RecordedRuns.load(directory, card.horizon)
    require(
        runs.observed == card.observed,
        f"the model watches {card.observed}, but the runs in {directory} were recorded with "
        f"{runs.observed}; record some as those it was trained on",
    )
    return (runs.keeping_best() if card.keeps_best else runs).trajectory


def _free(path: Path) -> Path:
    """The name under which the file before is kept; none of those kept is overwritten."""
    number, stem = 1, f"{path.stem}.before"
    while (kept := path.with_name(f"{stem}.safetensors")).exists():
        number += 1
        stem = f"{path.stem}.before-{number}"
    return kept


def _table(card: Card, found: Calibrated, num_items: int) -> Table:
    """The policies before and now, and what they cost on the items they were chosen on."""
    rows: list[list[Any]] = []
    for unit, policy in found.policies.items():
        scores = found.scores[unit]
        if unit in card.policies:
            rows.append([_words(card.policies[unit]), "before", unit.value, scores["held"]])
        chosen = next(iter(scores))
        kind = "kept" if chosen == "held" else rule_name(chosen)
        rows.append([_words(policy), kind, unit.value, scores[chosen]])
    columns = [Column(heading, str) for heading in ("stops where", "stop rule", "cost")]
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
