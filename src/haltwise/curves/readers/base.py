"""The contract of a format of recorded runs."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from haltwise.curves.raw import Keys, RawRuns
from haltwise.curves.readers.files import common_folder

__all__ = ["Reader"]


class Reader(ABC):
    """Reads one format: a source of it is a file, or several files that belong together."""

    is_general: ClassVar[bool] = False
    """Whether the format is asked last, since more special ones are written in it."""

    @abstractmethod
    def claims(self, path: Path, head: str) -> bool:
        """Whether a file is of this format.

        Args:
            path: The file.
            head: Its first characters, decompressed; whatever is no text in it is replaced.
        """

    def sources(self, paths: Sequence[Path]) -> list[list[Path]]:
        """Put together which files of a folder make one source; here each is one."""
        return [[path] for path in paths]

    def folder(self, paths: Sequence[Path]) -> Path:
        """The folder in which a source lies."""
        return common_folder(paths)

    @abstractmethod
    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        """The runs of one source.

        Args:
            paths: Its files.
            keys: What tells runs apart, for formats that are tables.

        Raises:
            InputError: A file is not what it claims to be, or corrupt.
        """
