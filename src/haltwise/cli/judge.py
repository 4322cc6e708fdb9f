"""`haltwise judge`: judge a model that gives runs up on runs that it has not seen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from haltwise._core.errors import require
from haltwise.certificates import Certificate
from haltwise.cli import options
from haltwise.cli.curve_options import curve_options, read_curves
from haltwise.cli.printing import print_table, say, write_json
from haltwise.curves.certify import certify_curves
from haltwise.curves.model import CurveModel
from haltwise.curves.shipped import PRETRAINED, find_curve_model, load_curve_model
from haltwise.evaluation.give_up import judge_curves, with_targets
from haltwise.report.give_up import levels_table

__all__ = ["command"]


@click.command("judge")
@click.argument("model")
@click.argument("file")
@curve_options
@click.option(
    "--certify",
    "level",
    type=float,
    help="Certify the level that gives up at most this share of the successes of the next group; "
    "FILE must hold other runs than MODEL was learned on.",
)
@click.option(
    "--confidence",
    type=float,
    help="Probability of that in the next group; leave it out for the expectation there.",
)
@click.option(
    "--adopt", is_flag=True, help="Write the certificate to the card of MODEL, a file of yours."
)
@options.json_option
@options.data_directory
@options.threads_option
def command(
    model: str,
    file: str,
    reading: dict[str, Any],
    level: float | None,
    confidence: float | None,
    adopt: bool,
    json_path: Path | None,
    data_dir: Path | None,
) -> None:
    """Judge MODEL on the recorded runs in FILE, at the levels that it remembers.

    MODEL is `training-runs`, which comes with the package, a directory that `haltwise learn` wrote,
    or a weights file. FILE is a file or a folder of any format that `haltwise learn` takes.
    """
    require(
        not adopt or (level is not None and model != PRETRAINED),
        "--adopt writes a certificate (--certify LEVEL) to a model of yours; copy one that comes "
        "with the package first",
    )
    rule, curves = load_curve_model(model), with_targets(read_curves(file, reading, data_dir))
    record = judge_curves(rule, curves)
    document = record.to_json()
    print_table(levels_table(record))
    if level is not None:
        found = certify_curves(rule, curves, level=level, confidence=confidence)
        document["certificate"] = found.to_json()
        say(found)
        if isinstance(found, Certificate):
            say(f"give runs up below a score of {found.score_level}; {found.assumption}")
            if adopt:
                certified = replace(rule.card, certificates=(*rule.card.certificates, found))
                path = find_curve_model(model)
                CurveModel(rule.forecast, certified).save(path)
                say(path)
    write_json(json_path, document)
