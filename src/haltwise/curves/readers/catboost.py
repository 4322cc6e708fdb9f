"""What CatBoost writes of a training: `catboost_info/catboost_training.json`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import numpy as np

from haltwise._core.errors import refusing_others
from haltwise.curves.cells import measured
from haltwise.curves.columns import Direction, direction_of
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.files import open_text, parse_json
from haltwise.curves.readers.run_folder import RunFolderReader

__all__ = ["READERS", "CatBoost"]

_NAME = "catboost_training.json"
_DIRECTIONS: dict[str, Direction] = {"Min": "min", "Max": "max"}


@final
class CatBoost(RunFolderReader):
    """One training a folder; the other files in it say the same once more.

    Columns are called as CatBoost's callbacks know them, DATA-METRIC.
    """

    def run_folder(self, path: Path) -> Path | None:
        folders = path.absolute().parents[:2]  # event files lie in folders of their own
        return next((each for each in folders if (each / _NAME).is_file()), None)

    def logs(self, folder: Path, paths: Sequence[Path]) -> list[Path]:
        return [folder / _NAME]

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        path = paths[0]
        with open_text(path) as file:
            written = parse_json(file.read(), str(path))
        with refusing_others(f"{path} is no log of a training of CatBoost; restore it from a copy"):
            meta, rounds = written["meta"], written["iterations"]
            if not rounds:
                raise NothingRecordedError(f"{path} holds no rounds")
            sets = _sets(meta)
            names = {
                (data, place): f"{name}-{metric['name']}"
                for data, (name, kind) in sets.items()
                for place, metric in enumerate(meta[f"{kind}_metrics"])
            }
            columns = {
                name: np.array([_value(each, *where) for each in rounds])
                for where, name in names.items()
            }
            columns["iteration"] = np.array([each["iteration"] + 1.0 for each in rounds])
            columns["seconds"] = np.array([float(each["passed_time"]) for each in rounds])
            judged = [data for data, (_, kind) in sets.items() if kind == "test"]
            metric = meta["test_metrics" if judged else "learn_metrics"][0]
            is_known = direction_of(metric["name"]) is not None
            return RawRuns(
                [columns],
                [{"run": path.absolute().parent.name}],
                cost="iteration",
                metric=names[judged[0] if judged else meta["learn_sets"][0], 0],
                direction=None if is_known else _DIRECTIONS.get(metric["best_value"]),
                budgets={"iteration": np.array([float(meta["iteration_count"])])},
            )


def _sets(meta: Any) -> dict[str, tuple[str, str]]:
    """What callbacks call the sets of data, and whether each is one to learn from or to test."""
    tests = meta["test_sets"]
    numbered = [f"validation_{place}" for place in range(len(tests))]
    own = numbered if len(tests) > 1 else ["validation"]
    found = {name: (name, "learn") for name in meta["learn_sets"]}
    return found | {name: (mine, "test") for name, mine in zip(tests, own, strict=False)}


def _value(entry: Any, data: str, place: int) -> float:
    """A metric of a round, missing where it was not computed."""
    values = entry.get(data, [])
    value = values[place] if place < len(values) else None
    return np.nan if value is None else float(measured(np.array(float(value))))


READERS = {"catboost": CatBoost()}
