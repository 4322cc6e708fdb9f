"""Evaluations on disk: a JSON summary and the per-problem arrays behind it."""

import json
import re
from pathlib import Path
from typing import Any

from haltwise._core.errors import InputError
from haltwise._core.files import (
    load_tensors,
    make_directory,
    read_json,
    save_tensors,
    write_atomically,
)
from haltwise.evaluation.evaluate import Evaluation

__all__ = ["HEADS", "load_heads", "load_records", "save_record"]

HEADS = "heads.json"
"""Where `haltwise study --head` is told to write for the report to show it."""


def save_record(evaluation: Evaluation, directory: Path) -> Path:
    """Write an evaluation into `directory`.

    As `evaluation-OPTIMIZER-FAMILY-PRICE-HORIZON-SEED.json` and `.safetensors`.

    Returns:
        The path of the JSON file.

    Raises:
        InputError: The directory cannot be written.
    """
    make_directory(directory)
    summary = evaluation.summary
    parts = [f"{summary['price']:g}", summary["horizon"], summary["seed"]]
    named = ["evaluation", summary["optimizer"], summary["family"], *map(str, parts)]
    stem = re.sub(r"[^\w.+-]", "_", "-".join(named))
    save_tensors(directory / f"{stem}.safetensors", evaluation.arrays, {"record": stem})
    path = directory / f"{stem}.json"
    write_atomically(path, (json.dumps(summary, indent=1) + "\n").encode())
    return path


def load_records(directory: Path) -> list[Evaluation]:
    """Every evaluation in `directory`, in the order of file names.

    Raises:
        InputError: There is none, or a file is corrupt.
    """
    records = []
    for path in sorted(directory.glob("evaluation-*.json")):
        summary = read_json(path)
        arrays, _ = load_tensors(path.with_suffix(".safetensors"))
        records.append(Evaluation(summary, arrays))
    if not records:
        raise InputError(
            f"{directory} holds no evaluation; run `haltwise evaluate {directory}` first"
        )
    return records


def load_heads(directory: Path) -> dict[str, Any]:
    """What `haltwise study --head` wrote into `directory`, empty if it did not.

    Raises:
        InputError: The file is corrupt.
    """
    path = directory / HEADS
    if not path.exists():
        return {}
    return read_json(path)
