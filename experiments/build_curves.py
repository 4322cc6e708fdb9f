"""Build archives of public learning curves from clones of their repositories.

    git clone https://github.com/KellerJordan/modded-nanogpt
    git -C modded-nanogpt checkout f411b3d3
    python experiments/build_curves.py nanogpt modded-nanogpt nanogpt.npz
    git clone https://github.com/nicholaslourie/opda
    git -C opda checkout 9529a34b
    python experiments/build_curves.py opda opda opda.npz

`haltwise.curves.read` takes what is written. The commit that is checked out is the checksum of the
source, and another is refused unless `--any-commit` is given; the SHA-256 of the arrays is printed.
modded-nanogpt is under the MIT licence; OPDA under CC BY-SA 4.0, (c) 2023-2025 Nicholas Lourie, so
what is made of it must carry that licence too.
"""

import hashlib
import json
import re
import subprocess
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from haltwise import InputError
from haltwise._core.errors import require

Arrays = dict[str, npt.NDArray[Any]]

_VALIDATION = re.compile(
    rb"^(?:step|s):(\d+)(?:/(\d+))? (?:val[ _]loss:|tel:)([0-9.]+|nan)(?: train_time:(\d+)ms)?",
    re.MULTILINE,
)
_FEWEST = 5  # validations of a run
_FOLDER = "records"


def build_nanogpt(clone: Path) -> Arrays:
    """Validation losses in the logs of modded-nanogpt, below `records/`.

    A log in which the steps begin again holds several runs. Curves that are there already and those
    with fewer than five validations are left out.
    """
    runs: list[npt.NDArray[np.float32]] = []
    num_steps, records, logs = [], [], []
    seen: set[bytes] = set()
    for path in sorted((clone / _FOLDER).rglob("*")):
        if path.suffix not in {".txt", ".log"} or not path.is_file():
            continue
        points = [
            [float(entry) if entry else np.nan for entry in match.groups()]
            for match in _VALIDATION.finditer(path.read_bytes())
        ]
        starts = [0, *(at for at in range(1, len(points)) if points[at][0] <= points[at - 1][0])]
        for first, last in pairwise([*starts, len(points)]):
            step, most, loss, milliseconds = np.array(points[first:last]).T
            run = np.stack([step, loss, milliseconds / 1000], 1).astype(np.float32)
            if len(run) < _FEWEST or run[:, :2].tobytes() in seen:
                continue
            seen.add(run[:, :2].tobytes())
            runs.append(run)
            num_steps.append(-1 if np.isnan(most[-1]) else int(most[-1]))
            records.append(path.parent.relative_to(clone / _FOLDER).as_posix())
            logs.append(path.name)
    require(len(runs) > 0, f"no log in {clone / _FOLDER} has {_FEWEST} validations")
    return {
        "column": np.array(["step", "val_loss", "train_seconds"]),
        "value": np.concatenate(runs),
        "offset": np.cumsum([0, *map(len, runs)]),
        "num_steps": np.array(num_steps, np.int32),
        "record": np.array(records),
        "log": np.array(logs),
    }


def build_opda(clone: Path) -> Arrays:
    """The results of all models of OPDA that are in its clone, below `data/`."""
    arrays: Arrays = {}
    for path in sorted((clone / "data").glob("*/*.results.jsonl")):
        entries = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        model = re.sub(r"\W", "_", path.name.removesuffix(".results.jsonl"))
        columns, runs = _opda_curves(entries)
        settings = [
            name
            for name, value in entries[0].items()
            if isinstance(value, int | float) and not name.startswith("learning_curve")
        ]
        arrays |= {
            f"{model}_column": np.array(columns),
            f"{model}_offset": np.cumsum([0, *map(len, runs)]),
            f"{model}_value": np.concatenate(runs),
            f"{model}_config_name": np.array(settings),
            f"{model}_config": np.array(
                [[float(entry[name]) for name in settings] for entry in entries]
            ),
        }
    require(len(arrays) > 0, f"there are no results of OPDA in {clone / 'data'}")
    return arrays


def _opda_curves(
    entries: list[dict[str, Any]],
) -> tuple[list[str], list[npt.NDArray[np.float32]]]:
    """The columns and the curves of one model: by epoch, or by step for each part of the data."""
    if "learning_curves" in entries[0]:
        parts = list(entries[0]["learning_curves"])
        columns = ["step", *(f"accuracy_{part}" for part in parts)]
        rows = [
            [
                (first[0], *(point[1] for point in (first, *rest)))
                for first, *rest in zip(*(entry["learning_curves"][p] for p in parts), strict=True)
            ]
            for entry in entries
        ]
    else:
        names = list(next(e for e in entries if e["learning_curve"])["learning_curve"][0])
        names = ["epoch", *(name for name in names if name != "epoch")]
        columns = ["seconds" if name == "time" else name for name in names]
        rows = [
            [tuple(point[name] for name in names) for point in entry["learning_curve"]]
            for entry in entries
        ]
    return columns, [np.array(run, np.float32).reshape(-1, len(columns)) for run in rows]


BUILDERS: dict[str, tuple[Callable[[Path], Arrays], str]] = {
    "nanogpt": (build_nanogpt, "f411b3d3"),
    "opda": (build_opda, "9529a34b"),
}


def checked_out(clone: Path) -> str:
    """The commit of a clone."""
    found = subprocess.run(
        ["git", "-C", str(clone), "rev-parse", "HEAD"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        raise InputError(f"{clone} is no clone of a repository: {found.stderr.strip()}")
    return found.stdout.strip()


@click.command(help=__doc__.partition("\n")[0])
@click.argument("name", type=click.Choice(list(BUILDERS)))
@click.argument("clone", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option("--any-commit", is_flag=True, help="Take another commit than the one that is named.")
def main(name: str, clone: Path, out: Path, any_commit: bool) -> None:  # noqa: D103
    build, due = BUILDERS[name]
    commit = checked_out(clone)
    if not any_commit and not commit.startswith(due):
        raise click.ClickException(f"{clone} is at {commit}; check out {due}, or give --any-commit")
    arrays = build(clone)
    np.savez_compressed(out, **arrays)  # type: ignore[arg-type]
    checksum = hashlib.sha256()
    for key, array in sorted(arrays.items()):
        checksum.update(repr((key, array.dtype.str, array.shape)).encode() + array.tobytes())
    click.echo(f"{out}: commit {commit}, arrays sha256 {checksum.hexdigest()}")


if __name__ == "__main__":
    main()
