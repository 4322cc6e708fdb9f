"""`haltwise stopping-report`: judge stops that are given with their losses."""

import zipfile
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from haltwise import report as pages
from haltwise._core.errors import InputError, require
from haltwise.cli.printing import print_table, write_json
from haltwise.evaluation import stopping_report as judge
from haltwise.report.stopping import headline, rules_table, sentences, warnings
from haltwise.stop_rules import CostUnit

__all__ = ["stopping_report"]

_OPTIONAL = ("returned", "hazards", "observed", "groups")


@click.command("stopping-report")
@click.argument("traces", type=click.Path(path_type=Path))
@click.option("--price", type=float, required=True, help="Price of a step, in units of the loss.")
@click.option(
    "--unit",
    default=CostUnit.UPDATES.value,
    show_default=True,
    type=click.Choice([unit.value for unit in CostUnit]),
    help="updates: a stop at t costs t. gradients: it costs t + 1 and ends at theta_{t+1}.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write every figure here."
)
@click.option("--html", "html_path", type=click.Path(path_type=Path), help="Write a page here.")
def stopping_report(
    traces: Path, price: float, unit: str, json_path: Path | None, html_path: Path | None
) -> None:
    """Judge the stops in TRACES, an .npz file.

    Its arrays: losses [n, T+1], the loss after 0..T steps; stops [n], integers 0..T. Optional:
    returned [n], the step whose iterate each item returns; hazards [n, T], the probability of
    stopping at t once there; observed [n, T+1], the losses that baselines see; groups [n],
    integers: the run or seed that an item belongs to.
    """
    arrays = _load(traces, ("losses", "stops"))
    record = judge(
        _numbers(arrays, "losses"),
        _integers(arrays, "stops"),
        price=price,
        unit=CostUnit(unit),
        returned=_integers(arrays, "returned") if "returned" in arrays else None,
        hazards=_numbers(arrays, "hazards") if "hazards" in arrays else None,
        observed=_numbers(arrays, "observed") if "observed" in arrays else None,
        groups=_integers(arrays, "groups") if "groups" in arrays else None,
    )
    if json_path is not None:
        write_json(json_path, record)
    if html_path is not None:
        pages.write_stopping_report(record, html_path, traces.stem)
    print_table(rules_table(record, wide=False))
    click.echo(" ".join((f"{headline(record)}.", *sentences(record))))
    for warning in warnings(record):
        click.echo(f"Warning: {warning}")


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
