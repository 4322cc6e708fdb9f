"""`haltwise judge`: judge a model that stops runs on runs that it has not seen."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.progress import working
from haltwise.certificates import Certificate, require_promise
from haltwise.cli import options
from haltwise.cli.curve_options import (
    curve_options,
    given_options,
    learned_on,
    read_curves,
    successes,
)
from haltwise.cli.places import PAGE, PATH
from haltwise.cli.printing import print_stopping, print_table, say, write_json
from haltwise.curves.certify import certify_curves
from haltwise.curves.learning import with_room
from haltwise.curves.model import CurveModel
from haltwise.curves.shipped import (
    PRETRAINED,
    find_curve_model,
    is_curve_model,
    load_curve_rule,
)
from haltwise.curves.stop_model import StopModel
from haltwise.evaluation import judge_runs
from haltwise.evaluation.give_up import judge_curves, with_targets
from haltwise.evaluation.stop_early import judge_stops
from haltwise.models.loading import load_halting
from haltwise.recordings.runs import RecordedRuns
from haltwise.report import write_stopping_report
from haltwise.report.give_up import levels_table
from haltwise.report.stop_early import ways_table

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
@click.option(
    "--tuning-runs",
    type=PATH,
    help="For a monitor: recordings on which the rules beside it are tuned, such as those it was "
    "trained on.",
)
@click.option("--price", type=float, help="For a monitor: price of a round.  [default: the card's]")
@click.option("--html", "html_path", type=PAGE, help="For a monitor: write a page here, too.")
@options.json_option
@options.curves_directory
@options.threads_option
def command(
    model: str,
    file: str,
    reading: dict[str, Any],
    level: float | None,
    confidence: float | None,
    adopt: bool,
    tuning_runs: Path | None,
    price: float | None,
    html_path: Path | None,
    json_path: Path | None,
    data_dir: Path | None,
) -> None:
    """Judge MODEL on the recorded runs in FILE, which it has not seen.

    MODEL is `training-runs`, which comes with the package, a directory that `haltwise learn` wrote,
    or a weights file. One that gives runs up is judged at the levels that it remembers, one that
    stops them early at its price. FILE is a file or a folder of any format that `haltwise learn`
    takes.

    Or MODEL is a monitor, a directory that `haltwise train-monitor` wrote, FILE the directory of
    what haltwise.HaltingMonitor.recording wrote, and --tuning-runs another.
    """
    certifying = {"certify": level, "confidence": confidence, "adopt": adopt}
    if tuning_runs is not None:
        others = given_options({**reading, **certifying})
        require(
            not others,
            f"{' and '.join(others)} cannot go with --tuning-runs, by which a monitor is judged; "
            "its recordings have a form of their own, and haltwise certify certifies it",
        )
        _judge_monitor(model, Path(file), tuning_runs, price, html_path, json_path)
        return
    require(
        price is None and html_path is None,
        "--price and --html are for monitors; give --tuning-runs, too",
    )
    require(
        not adopt or (level is not None and model != PRETRAINED),
        "--adopt writes a certificate (--certify LEVEL) to a model of yours; copy one that comes "
        "with the package first",
    )
    require(
        level is not None or confidence is None,
        "--confidence is that of a certificate; give --certify LEVEL, too",
    )
    if level is not None:
        require_promise(level, confidence)
    require(
        is_curve_model(model),
        f"there is no model {model} of recorded curves; name {PRETRAINED}, or a directory that "
        "haltwise learn wrote; a monitor is judged with --tuning-runs",
    )
    learned = load_curve_rule(model)
    if isinstance(learned, StopModel):
        others = given_options({**certifying, **successes(reading)})
        require(
            not others,
            f"{' and '.join(others)} cannot be given here: {model} stops runs early, whether they "
            "succeed or not",
        )
    curves = read_curves(file, reading, data_dir, learned_on(model, learned))
    if isinstance(learned, StopModel):
        with working("judging", Console(stderr=True)):
            stopped = judge_stops(learned, curves)
        print_table(ways_table(stopped))
        write_json(json_path, stopped)
        return
    rule, curves = learned, with_room(with_targets(curves))
    with working("judging", Console(stderr=True)):
        record = judge_curves(rule, curves)
    document = record.to_json()
    print_table(levels_table(record))
    found = None
    if level is not None:
        with working("certifying", Console(stderr=True)):
            found = certify_curves(rule, curves, level=level, confidence=confidence)
        document["certificate"] = found.to_json()
        say(found)
        if isinstance(found, Certificate):
            say(f"give runs up below a score of {found.score_level}; {found.assumption}")
    write_json(json_path, document)
    if adopt and found is not None:
        found = found.require()
        certified = replace(rule.card, certificates=(*rule.card.certificates, found))
        path = find_curve_model(model)
        CurveModel(rule.forecast, certified).save(path)
        say(path)


def _judge_monitor(
    model: str,
    test_runs: Path,
    tuning_runs: Path,
    price: float | None,
    html_path: Path | None,
    json_path: Path | None,
) -> None:
    require(
        test_runs.resolve() != tuning_runs.resolve(),
        f"--tuning-runs {tuning_runs} are the runs to judge by, which would flatter what is tuned "
        "on them; record others",
    )
    halting = load_halting(model)
    test, tuning = (
        RecordedRuns.load(runs, halting.card.horizon) for runs in (test_runs, tuning_runs)
    )
    charged = halting.card.price if price is None else price
    with working("judging", Console(stderr=True)):
        record = judge_runs(halting, test, tuning, price=charged)
    write_json(json_path, record)
    print_stopping(record)
    if html_path is not None:
        title = f"{options.model_name(model)} on {test_runs.resolve().name}"
        say(write_stopping_report(record, html_path, title))
