"""`haltwise stopping-report`: how good anybody's stops are, from losses and stops alone."""

import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from torch import Tensor

from haltwise import report as pages
from haltwise._core.errors import InputError, require
from haltwise._core.files import write_atomically
from haltwise.evaluation import CostUnit
from haltwise.evaluation import stopping_report as judge
from haltwise.report.stopping import conclusion, contenders_table, degeneracy_table, warnings
from haltwise.report.tables import Table as Contents

__all__ = ["stopping_report"]


@click.command("stopping-report")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option("--price", type=float, required=True, help="Of a step, in units of the loss.")
@click.option(
    "--prices",
    metavar="C,C,...",
    help="Also judge the stops at these.  [default: price x 1/4, 1/2, 1, 2, 4]",
)
@click.option(
    "--account",
    default=CostUnit.UPDATES.value,
    show_default=True,
    type=click.Choice([account.value for account in CostUnit]),
    help="updates: a stop at t costs t. gradients: it costs t + 1 and ends at theta_{t+1}.",
)
@click.option(
    "--seed-array",
    metavar="NAME",
    help="Array with each problem's seed.  [default: seeds, if there]",
)
@click.option("--seconds-per-step", type=float, help="Wall-clock time of a step of one problem.")
@click.option(
    "--seconds-per-decision",
    type=float,
    default=0.0,
    help="Wall-clock time of asking the stop rule once.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here."
)
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a page here.")
def stopping_report(
    traces: Path,
    price: float,
    prices: str | None,
    account: str,
    seed_array: str | None,
    seconds_per_step: float | None,
    seconds_per_decision: float,
    json_path: Path | None,
    html_path: Path | None,
) -> None:
    """Judge the stops in TRACES, an .npz file.

    Its arrays: losses [n, T+1], the loss after 0..T steps; stops [n], integers 0..T. Optional:
    hazards [n, T], the probability of stopping at t once there; observed [n, T+1], the losses that
    opponents see; seeds [n], integers: the run or seed that a problem belongs to.
    """
    arrays = _load(traces, ("losses", "stops", *([seed_array] if seed_array else [])))
    report = judge(
        _numbers(arrays, "losses"),
        _integers(arrays, "stops"),
        price=price,
        prices=None if prices is None else _prices(prices),
        account=CostUnit(account),
        hazards=_numbers(arrays, "hazards") if "hazards" in arrays else None,
        observed=_numbers(arrays, "observed") if "observed" in arrays else None,
        seeds=_integers(arrays, seed_array or "seeds") if seed_array or "seeds" in arrays else None,
        seconds_per_step=seconds_per_step,
        seconds_per_decision=seconds_per_decision,
    )
    if json_path is not None:
        write_atomically(json_path, (json.dumps(report, indent=1) + "\n").encode())
    if html_path is not None:
        pages.write_stopping_report(report, html_path, traces.stem)
    console = Console()
    console.print(_drawn(contenders_table(report, "")))
    variation = degeneracy_table({account: report}, "")
    if variation is not None:
        console.print(_turned(variation))
    console.print(conclusion(report), markup=False, highlight=False)
    for warning in warnings(report):
        console.print(f"Warning: {warning}", markup=False, highlight=False)


def _load(path: Path, needed: tuple[str, ...]) -> Mapping[str, NDArray[np.generic]]:
    """The arrays of an .npz file; nothing in it is ever executed."""
    try:
        # Opened here, since numpy leaves broken archives open.
        with path.open("rb") as content:
            file = np.load(content, allow_pickle=False)
            require(
                isinstance(file, np.lib.npyio.NpzFile),
                f"{path} holds a single array; write an .npz file with numpy.savez",
            )
            names = [name for name in file.files if name in {*needed, *_OPTIONAL}]
            missing = [name for name in needed if name not in names]
            require(
                not missing,
                f"{path} has no array {' and no '.join(missing)}, only "
                f"{', '.join(file.files) or 'nothing'}; write it with numpy.savez",
            )
            return {name: file[name] for name in names}
    except FileNotFoundError:
        raise InputError(f"there is no file {path}") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path} is no .npz file of plain arrays ({error}); write it with numpy.savez"
        ) from None


_OPTIONAL = ("hazards", "observed", "seeds")


def _numbers(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Tensor:
    array = arrays[name]
    require(
        array.dtype.kind in "fiu",
        f"{name} must be real numbers, got {array.dtype}; convert with {name}.astype(float)",
    )
    return torch.from_numpy(array.astype(np.float64))


def _integers(arrays: Mapping[str, NDArray[np.generic]], name: str) -> Tensor:
    array = arrays[name]
    require(
        array.dtype.kind in "iu",
        f"{name} must be integers, got {array.dtype}; convert with {name}.astype(int)",
    )
    return torch.from_numpy(array.astype(np.int64))


def _prices(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise InputError(
            f"--prices must be numbers with commas between, such as 0.01,0.05; got {text!r}"
        ) from None


def _drawn(contents: Contents) -> Table:
    """A table of the page, on the terminal."""
    table = Table(
        title=contents.title, title_justify="left", caption=contents.note, caption_justify="left"
    )
    for place, column in enumerate(contents.columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=place > 0)
    for place, row in enumerate(contents.rows):
        table.add_row(*row, style="bold" if place == contents.strong else None)
    return table


def _turned(contents: Contents) -> Table:
    """A table of one line, its columns below each other."""
    table = Table(title=contents.title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for column, cell in zip(contents.columns[1:], contents.rows[0][1:], strict=True):
        table.add_row(column, cell)
    return table
