"""Trials of Ray Tune: `result.json` in the folder of each."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from haltwise.curves.raw import Keys, RawRuns
from haltwise.curves.readers.jsonl import JsonLines
from haltwise.curves.readers.run_folder import RunFolderReader

__all__ = ["READERS", "Ray"]

_RESULTS, _PARAMS = "result.json", "params.json"


@final
class Ray(RunFolderReader):
    """One trial a folder; `progress.csv` and event files in it say the same once more."""

    def run_folder(self, path: Path) -> Path | None:
        folders = path.absolute().parents
        is_trial = (
            all((folder / name).is_file() for name in (_RESULTS, _PARAMS)) for folder in folders
        )
        return next(
            (folder for folder, found in zip(folders, is_trial, strict=True) if found), None
        )

    def logs(self, folder: Path, paths: Sequence[Path]) -> list[Path]:
        return [folder / _RESULTS]

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        found = JsonLines().read(paths, keys)
        name = paths[0].absolute().parent.name
        labels = [{**label, "run": name} for label in found.labels]
        return replace(found, labels=labels, cost="training_iteration")


READERS = {"ray": Ray()}
