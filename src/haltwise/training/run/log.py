"""The log of a run: one JSON object a line, and TensorBoard where it is wanted."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor

from haltwise._core.errors import InputError
from haltwise._core.files import read_bytes, write_atomically
from haltwise._core.json import to_json

__all__ = ["LOG", "RunLog", "read_log"]

LOG = "log.jsonl"
"""The file of a run's directory."""


@final
class RunLog:
    """Appends records to `log.jsonl`; scalars also go to TensorBoard if asked for, with histograms.

    Args:
        directory: The run directory.
        tensorboard: Whether to write event files (needs the package `tensorboard`).
        keep: Number of records of an interrupted run to keep, if any; it goes on after them.
        step: The meta-step at which that run goes on.

    Raises:
        InputError: TensorBoard is asked for and not installed, or the log cannot be written.
    """

    def __init__(
        self,
        directory: Path,
        *,
        tensorboard: bool = False,
        keep: int | None = None,
        step: int | None = None,
    ) -> None:
        self._path = directory / LOG
        self._writer = None
        self.num_records = 0
        """Written so far, those kept included."""
        if keep is not None:
            kept = read_log(directory)[:keep]
            lines = "".join(f"{json.dumps(record)}\n" for record in kept)
            write_atomically(self._path, lines.encode())
            self.num_records = len(kept)
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "TensorBoard is not installed: pip install 'haltwise[tensorboard]'"
                ) from None
            self._writer = SummaryWriter(
                str(directory / "tensorboard"), purge_step=None if step is None else step + 1
            )

    def write(self, record: Mapping[str, Any], halting_steps: Tensor | None = None) -> None:
        """Append one record; `record["step"]` is the meta-step it belongs to.

        NaN and infinity, which JSON does not know, are written as null. TensorBoard also shows how
        the halting steps, shape [n], are spread.

        Raises:
            InputError: The log cannot be written.
        """
        record = to_json(record)
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error
        self.num_records += 1
        if self._writer is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, record["step"])
            if halting_steps is not None:
                self._writer.add_histogram("halting_step", halting_steps, record["step"])

    def close(self) -> None:
        """Flush what is pending."""
        if self._writer is not None:
            self._writer.close()


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The records of a run, a torn last line (a killed process) left out."""
    path = directory / LOG
    if not path.exists():
        return []
    records = []
    for line in read_bytes(path).decode(errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            records.append(record)
    return records
