"""`haltwise stopping-report`: judge stops that are given with their losses."""

import warnings
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from haltwise._core.arrays import array_names, read_arrays
from haltwise._core.errors import DataWarning, require, warn
from haltwise._core.progress import working
from haltwise.cli.options import direction_option, json_option
from haltwise.cli.places import PAGE, PATH
from haltwise.cli.printing import print_table, print_warnings, say, write_json
from haltwise.curves.curves import Direction
from haltwise.evaluation import stopping_report
from haltwise.report import write_stopping_report
from haltwise.report.stopping import headline, rules_table, sentences
from haltwise.stop_rules import CostUnit

__all__ = ["command"]

_NEEDED = ("losses", "stops")
_ARRAYS = (*_NEEDED, "returned", "hazards", "observed", "groups")


@click.command("stopping-report")
@click.argument("traces", type=PATH)
@click.option("--price", type=float, required=True, help="Price of a step, in units of the loss.")
@click.option(
    "--unit",
    default=CostUnit.UPDATES.value,
    show_default=True,
    type=click.Choice([unit.value for unit in CostUnit]),
    help="updates: a stop at t costs t. gradients: it costs t + 1 and ends at theta_{t+1}.",
)
@direction_option
@json_option
@click.option("--html", "html_path", type=PAGE, help="Write a page here.")
def command(
    traces: Path,
    price: float,
    unit: str,
    direction: Direction,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Judge the stops in TRACES, an .npz file.

    Its arrays: losses [n, T+1], the loss after 0..T steps; stops [n], integers 0..T. Optional:
    returned [n], the step whose iterate each item returns; hazards [n, T], the probability of
    stopping at t once there; observed [n, T+1], the losses that baselines see; groups [n],
    integers: the run or seed that an item belongs to.
    """
    arrays = _load(traces)
    with working("judging", Console(stderr=True)), warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)  # the record has it, too
        record = stopping_report(**arrays, price=price, unit=CostUnit(unit), direction=direction)
    write_json(json_path, record)
    if html_path is not None:
        write_stopping_report(record, html_path, traces.stem)
    print_warnings(record)
    print_table(rules_table(record, wide=False))
    say(" ".join((f"{headline(record)}.", *sentences(record))))


def _load(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file; nothing in it is ever executed."""
    found, there = read_arrays(path, _ARRAYS), array_names(path)
    missing = [name for name in _NEEDED if name not in found]
    require(
        not missing,
        f"{path} has no array {' and no '.join(missing)}, only "
        f"{', '.join(there) or 'nothing'}; write it with numpy.savez",
    )
    unknown = [name for name in there if name not in _ARRAYS]
    if unknown:
        warn(
            f"{path} has arrays that are not used, {', '.join(unknown)}; those that can be are "
            f"{', '.join(_ARRAYS)}",
            DataWarning,
        )
    return found
