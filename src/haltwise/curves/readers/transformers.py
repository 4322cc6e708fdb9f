"""`trainer_state.json`, which the Trainer of Hugging Face's transformers writes."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from haltwise._core.errors import InputError
from haltwise.curves.cells import parse_number
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.files import open_text, parse_json
from haltwise.curves.readers.jsonl import flat

__all__ = ["READERS", "Transformers"]

_NAME = "trainer_state.json"
_CHECKPOINT = re.compile(r"checkpoint-\d+", re.ASCII)
_SUMMARY = "train_runtime"  # in the entry at the end of training, which is no point


@final
class Transformers(Reader):
    """The `log_history` of a run; of several checkpoints of a run the last has the others'."""

    def claims(self, path: Path, head: str) -> bool:
        return path.name == _NAME or (path.suffix == ".json" and '"log_history"' in head)

    def sources(self, paths: Sequence[Path]) -> list[list[Path]]:
        found: dict[Path, list[Path]] = {}
        for path in paths:
            run = _run_of(path) if path.name == _NAME else path
            found.setdefault(run, []).append(path)
        return list(found.values())

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        states = ((_read_state(path), path) for path in paths)
        state, path = max(states, key=lambda state: _number(state[0].get("global_step")))
        history = [dict(flat(entry)) for entry in state["log_history"] if _SUMMARY not in entry]
        names = dict.fromkeys(name for entry in history for name in entry)
        columns = {
            name: np.array([_number(entry.get(name)) for entry in history]) for name in names
        }
        if "step" not in columns:
            raise NothingRecordedError(
                f"the log_history of {path} has no entry with a step; was anything logged?"
            )
        limits = {"step": "max_steps", "epoch": "num_train_epochs"}
        budgets = {
            cost: np.array([most if (most := _number(state.get(key))) > 0 else np.nan])
            for cost, key in limits.items()
        }
        return RawRuns(
            [columns],
            [{"run": _run_of(path).name}],
            cost="step",
            metric="eval_loss" if "eval_loss" in columns else "loss",
            direction="min",
            cost_unit="steps",
            budgets=budgets,
        )


def _run_of(path: Path) -> Path:
    """The folder of a run, above those of its checkpoints."""
    folder = path.absolute().parent
    return folder.parent if _CHECKPOINT.fullmatch(folder.name) else folder


def _read_state(path: Path) -> dict[str, Any]:
    with open_text(path) as file:
        state = parse_json(file.read(), str(path))
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(entry, dict) for entry in history):
        raise InputError(f"{path} has no log_history, a list of objects; restore it from a copy")
    return dict(state)


def _number(value: Any) -> float:
    try:
        return parse_number(str(value)) if isinstance(value, int | float) else np.nan
    except ValueError:  # too large
        return np.nan


READERS = {"transformers": Transformers()}
