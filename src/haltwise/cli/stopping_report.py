"""`haltwise stopping-report`: judge stops that are given with their losses."""

import io
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.files import most_content, read_bytes
from haltwise.cli.options import PATH, json_option
from haltwise.cli.printing import print_table, say, write_json
from haltwise.evaluation import stopping_report
from haltwise.report import write_stopping_report
from haltwise.report.stopping import headline, rules_table, sentences, warnings
from haltwise.stop_rules import CostUnit

__all__ = ["command"]

_NEEDED = ("losses", "stops")
_INTEGERS = ("stops", "returned", "groups")
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
@json_option
@click.option("--html", "html_path", type=PATH, help="Write a page here.")
def command(
    traces: Path, price: float, unit: str, json_path: Path | None, html_path: Path | None
) -> None:
    """Judge the stops in TRACES, an .npz file.

    Its arrays: losses [n, T+1], the loss after 0..T steps; stops [n], integers 0..T. Optional:
    returned [n], the step whose iterate each item returns; hazards [n, T], the probability of
    stopping at t once there; observed [n, T+1], the losses that baselines see; groups [n],
    integers: the run or seed that an item belongs to.
    """
    record = stopping_report(**_load(traces), price=price, unit=CostUnit(unit))
    write_json(json_path, record)
    if html_path is not None:
        write_stopping_report(record, html_path, traces.stem)
    print_table(rules_table(record, wide=False))
    say(" ".join((f"{headline(record)}.", *sentences(record))))
    for warning in warnings(record):
        say(f"Warning: {warning}")


def _load(path: Path) -> dict[str, Any]:
    """The arrays of an .npz file; nothing in it is ever executed."""
    content = read_bytes(path)
    try:
        file = np.load(io.BytesIO(content), allow_pickle=False)
        is_archive = isinstance(file, np.lib.npyio.NpzFile)
        names = file.files if is_archive else []
        if is_archive:
            size = sum(entry.file_size for entry in file.zip.infolist())
            found = {}
            if size <= most_content(len(content)):
                found = {name: file[name] for name in _ARRAYS if name in names}
    except Exception as error:
        raise InputError(
            f"{path} is no .npz file of plain arrays ({error or type(error).__name__}); write it "
            "with numpy.savez"
        ) from None
    require(is_archive, f"{path} holds a single array; write an .npz file with numpy.savez")
    missing = [name for name in _NEEDED if name not in names]
    require(
        not missing,
        f"{path} has no array {' and no '.join(missing)}, only {', '.join(names) or 'nothing'}; "
        "write it with numpy.savez",
    )
    require(
        bool(found),
        f"{path} holds {size} bytes, too many for so small a file; if that is right, write it with "
        "numpy.savez",
    )
    return {name: _tensor(name, array) for name, array in found.items()}


def _tensor(name: str, array: NDArray[np.generic]) -> Tensor:
    """Integers of 64 bits, or numbers in double precision."""
    kinds, what, kind = (
        ("iu", "integers", int) if name in _INTEGERS else ("fiu", "real numbers", float)
    )
    require(
        array.dtype.kind in kinds,
        f"{name} must be {what}, got {array.dtype}; convert with {name}.astype({kind.__name__})",
    )
    return torch.from_numpy(array.astype(np.int64 if kind is int else np.float64))
