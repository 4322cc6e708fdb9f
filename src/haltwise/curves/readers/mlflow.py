"""Runs of MLflow: its database `mlflow.db`, or the files of the folder `mlruns`."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import final

import numpy as np

from haltwise._core.errors import InputError, require
from haltwise.curves.cells import parse_number
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.databases import has_tables, opened_database
from haltwise.curves.readers.files import open_text
from haltwise.curves.readers.run_folder import MetricPoints, RunFolderReader, joined

__all__ = ["READERS", "MLflow"]

_INFINITE = 1.797e308  # databases hold this in its place
_TABLES = {
    "experiments": "experiment_id name",
    "runs": "run_uuid name experiment_id lifecycle_stage",
    "params": "key value run_uuid",
    "metrics": "key value timestamp run_uuid step is_nan",
}


@final
class MLflow(RunFolderReader):
    """Metrics by name; parameters are labels, `params.lr`, as in `mlflow.search_runs`."""

    def claims(self, path: Path, head: str) -> bool:
        return super().claims(path, head) or has_tables(path, head, **_TABLES)

    def run_folder(self, path: Path) -> Path | None:
        folders = path.absolute().parents
        return next((each for each in folders if all((each / n).exists() for n in _FILES)), None)

    def sources(self, paths: Sequence[Path]) -> list[list[Path]]:
        databases = [[path] for path in paths if self.run_folder(path) is None]
        return super().sources(paths) + databases

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        folder = self.run_folder(paths[0])
        found = _read_database(paths[0]) if folder is None else [_read_folder(folder, paths)]
        runs = [joined(series) for _, series in found if series]
        if not runs:
            raise NothingRecordedError(f"{folder or paths[0]} has no metrics")
        labels = [labels for labels, series in found if series]
        return RawRuns(runs, labels, task="experiment", cost="step", cost_unit="steps")


Run = tuple[dict[str, str], Mapping[str, MetricPoints]]
"""Labels of a run, and its metrics."""

_FILES = ("meta.yaml", "metrics", "params", "tags")


def _read_database(path: Path) -> list[Run]:
    with opened_database(path) as database:
        labels = {
            identity: {"run": name or identity, "run_id": identity, "experiment": experiment}
            for identity, name, experiment in database.execute(
                "SELECT run_uuid, runs.name, experiments.name FROM runs JOIN experiments "
                "USING (experiment_id) WHERE runs.lifecycle_stage = 'active' ORDER BY start_time"
            )
        }
        for identity, name, value in database.execute("SELECT run_uuid, key, value FROM params"):
            if identity in labels:
                labels[identity][f"params.{name}"] = str(value)
        points: dict[str, dict[str, list[tuple[float, float, float]]]] = {}
        for identity, name, *point, is_nan in database.execute(
            "SELECT run_uuid, key, timestamp, step, value, is_nan FROM metrics "
            "ORDER BY timestamp, step, rowid"
        ):
            time, step, value = map(float, point)
            infinite = np.copysign(np.inf, value) if abs(value) > _INFINITE else value
            number = np.nan if is_nan else float(infinite)
            points.setdefault(identity, {}).setdefault(name, []).append((time, step, number))
    return [(label, _series(points.get(identity, {}))) for identity, label in labels.items()]


def _read_folder(folder: Path, paths: Iterable[Path]) -> Run:
    labels = {"run": folder.name, "folder": f"{folder.parent.name}/{folder.name}"}
    labels |= {"run_id": folder.name, "experiment": folder.parent.name}
    points: dict[str, list[tuple[float, float, float]]] = {}
    for path in paths:
        inner = path.absolute().relative_to(folder)
        kind, name = inner.parts[0], Path(*inner.parts[1:]).as_posix()
        if kind == "metrics":
            points[name] = [_point(line, path) for line in _lines(path)]
        elif kind == "params":
            labels[f"params.{name}"] = "".join(_lines(path))
        elif (kind, name) == ("tags", "mlflow.runName"):
            labels["run"] = "".join(_lines(path))
    return labels, _series(points)


def _lines(path: Path) -> list[str]:
    with open_text(path) as file:
        return file.read().splitlines()


def _point(line: str, path: Path) -> tuple[float, float, float]:
    cells = line.split()
    try:
        time, value, step = map(parse_number, [*cells, "0"][:3])
    except ValueError:
        raise InputError(
            f"{path} holds {line[:60]!r}, not a time, a value and a step; mend this line"
        ) from None
    require(len(cells) in (2, 3), f"{path} holds {line[:60]!r}; mend this line")
    return time, step, value


def _series(points: Mapping[str, Sequence[tuple[float, float, float]]]) -> dict[str, MetricPoints]:
    """The metrics, with seconds since the first of the run; those of the machine are left out."""
    kept = {n: each for n, each in points.items() if each and not n.startswith("system/")}
    first = min((time for each in kept.values() for time, *_ in each), default=0.0)
    return {
        name: MetricPoints(
            [step for _, step, _ in each],
            [value for *_, value in each],
            [(time - first) / 1000 for time, *_ in each],
        )
        for name, each in kept.items()
    }


READERS = {"mlflow": MLflow()}
