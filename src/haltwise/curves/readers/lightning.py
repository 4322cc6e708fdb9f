"""`metrics.csv`, which Lightning's CSVLogger writes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import final

from haltwise.curves.columns import find_column
from haltwise.curves.raw import Keys, RawRuns
from haltwise.curves.readers.base import Reader
from haltwise.curves.readers.csv import header_of, read_table

__all__ = ["READERS", "Lightning"]


@final
class Lightning(Reader):
    """One run a file, `NAME/version_0/metrics.csv`; training and validation have rows apart."""

    def claims(self, path: Path, head: str) -> bool:
        names = header_of(head)
        return (
            path.name == "metrics.csv"
            and "step" in names
            and find_column(names, ("run", "group")) is None
        )

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        found = read_table(paths[0], keys, name=paths[0].absolute().parent.name, is_log=True)
        return replace(found, cost="step", cost_unit="steps")


READERS = {"lightning": Lightning()}
