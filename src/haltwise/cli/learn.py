"""`haltwise learn`: learn from recorded runs when to give one up, or to stop it early."""

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from rich.console import Console

from haltwise._core.errors import require
from haltwise._core.files import make_directory
from haltwise._core.progress import working
from haltwise._core.settings import price_per_unit
from haltwise._core.version import __version__
from haltwise.cli import options
from haltwise.cli.curve_options import curve_options, given_options, read_curves, successes
from haltwise.cli.places import PathType
from haltwise.cli.printing import print_table, say, write_json
from haltwise.curves.curves import Curves
from haltwise.curves.learning import EndedEarly, Learned, learn
from haltwise.curves.shipped import PRETRAINED, load_curve_model
from haltwise.curves.stopping import learn_to_stop
from haltwise.evaluation.give_up import GiveUpRecord, judge_learned, judge_sizes, with_targets
from haltwise.evaluation.stop_early import judge_learned_stop
from haltwise.report.give_up import levels_table, write_give_up
from haltwise.report.stop_early import ways_table, write_stop_early

__all__ = ["command"]

_FILES = ("model.safetensors", "record.json", "report.html")
_OUT = PathType(is_directory=True, files=_FILES, is_new=True)


@click.command("learn")
@click.argument("logs")
@curve_options
@click.option(
    "--stop-early",
    is_flag=True,
    help="Learn when another step is not worth --price, in place of which runs will fail. No "
    "target is needed, and some dozens of runs do.",
)
@click.option(
    "--price",
    type=float,
    help="What a unit of cost is worth, where a success is worth --value-of-success; adds what "
    "giving up at that price does. With --stop-early, what a unit of cost must gain, in units of "
    "the metric.",
)
@click.option(
    "--value-of-success",
    type=float,
    default=1.0,
    show_default=True,
    help="What a success is worth, in the same money as --price.",
)
@click.option(
    "--ended-early",
    type=click.Choice(["failures", "left out"]),
    default="failures",
    show_default=True,
    help="What runs count as that ended before their budget without success.",
)
@click.option(
    "--pretrained/--no-pretrained",
    "pretrained",
    default=True,
    show_default=True,
    help="Whether the forecast that comes with the package may help where runs are few.",
)
@click.option(
    "--sizes/--no-sizes",
    default=True,
    show_default=True,
    help="Whether to try what fewer past runs would have been worth; it takes as long again.",
)
@click.option("--seed", default=0, show_default=True, help="Seed of folds and trees.")
@click.option("--out", type=_OUT, required=True, help="Directory of model and report.")
@options.curves_directory
@options.threads_option
def command(
    logs: str,
    reading: dict[str, Any],
    stop_early: bool,
    price: float | None,
    value_of_success: float,
    ended_early: EndedEarly,
    pretrained: bool,
    sizes: bool,
    seed: int,
    out: Path,
    data_dir: Path | None,
) -> None:
    """Learn from the recorded runs in LOGS when to give one up.

    LOGS is a file or a folder: CSV, JSON lines, TensorBoard, trainer_state.json, an export of
    Weights & Biases and others. Runs with few chances to meet their target are given up; how few,
    is chosen on groups that a forecast has not seen. Writes OUT/model.safetensors, for
    `haltwise watch` and `haltwise.RunMonitor`, and OUT/report.html, which says what it would have
    saved and lost.

    With --stop-early runs are stopped where another step is not worth its price; record runs that
    are longer than they should be.
    """
    path = out / "model.safetensors"
    require(not path.exists(), f"there is a model {path} already; choose another --out")
    for other in (out / name for name in _FILES):
        require(
            not other.exists(),
            f"there is no model in {out}, but {other} would be overwritten; move it or choose "
            "another --out",
        )
    require(
        price is not None or not stop_early,
        "--stop-early needs --price, what a unit of cost must gain, in units of the metric",
    )
    value = price_per_unit(value_of_success, "--value-of-success")
    if price is not None:  # before the learning, which takes long
        price_per_unit(price_per_unit(price) / value, "--price / --value-of-success")
    _require_use(reading, stop_early=stop_early, price=price)
    curves = read_curves(logs, reading, data_dir)
    say(f"{curves.num_runs} runs of {len(set(curves.group))} groups")
    if stop_early and price is not None:
        _learn_to_stop(curves, price, seed, path)
        return
    base = load_curve_model(PRETRAINED).forecast if pretrained else None
    with working("learning", Console(stderr=True)) as announce:
        learned = learn(
            with_targets(curves),
            base=base,
            ended_early=ended_early,
            seed=seed,
            progress=announce,
            provenance=_provenance(),
        )
        record = judge_learned(learned, None if price is None else price / value)
    make_directory(out)
    learned.model.save(path, new=True)
    page = _write(out, record, learned)
    print_table(levels_table(record))
    if sizes:  # an interrupt costs these alone
        with working("trying fewer runs", Console(stderr=True)) as announce:
            record = judge_sizes(record, learned, base, announce)
        page = _write(out, record, learned)
    say(path)
    say(page)


def _write(out: Path, record: GiveUpRecord, learned: Learned) -> Path:
    """Write the figures of a model beside it, and a page of them, whose path is returned."""
    write_json(out / "record.json", record.to_json())
    return write_give_up(out / "report.html", record, learned)


def _require_use(reading: Mapping[str, Any], *, stop_early: bool, price: float | None) -> None:
    """Refuse options that would make no difference."""
    context = click.get_current_context()
    typed = {
        name: context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        for name in ("value_of_success", "ended_early", "pretrained", "sizes")
    }
    if stop_early:
        others = given_options({**successes(reading), **typed})
        require(
            not others,
            f"{' and '.join(others)} cannot go with --stop-early, which asks for no success",
        )
    require(
        price is not None or not typed["value_of_success"],
        "--value-of-success is what a --price is set against; give one, too",
    )


def _learn_to_stop(curves: Curves, price: float, seed: int, path: Path) -> None:
    with working("learning", Console(stderr=True)):
        learned = learn_to_stop(curves, price, seed=seed, provenance=_provenance())
        record = judge_learned_stop(learned)
    make_directory(path.parent)
    learned.model.save(path, new=True)
    write_json(path.parent / "record.json", record)
    page = write_stop_early(path.parent / "report.html", record, learned.model.card)
    print_table(ways_table(record))
    if learned.model.card.level is None:
        say("nothing learned was better than going on to the end, so this model stops no run")
    say(path)
    say(page)


def _provenance() -> dict[str, str]:
    return {"command": shlex.join(sys.argv[1:]), "version": __version__}
