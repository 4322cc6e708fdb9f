"""The log of a run: one JSON object a line, and TensorBoard where it is wanted."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from torch import Tensor

from haltwise._errors import InputError

__all__ = ["RunLog", "read_log"]


@final
class RunLog:
    """Appends records to `log.jsonl`; scalars also go to TensorBoard if asked for, with histograms.

    Args:
        directory: The run directory.
        tensorboard: Whether to write event files (needs the package `tensorboard`).

    Raises:
        InputError: TensorBoard is asked for and not installed.
    """

    def __init__(self, directory: Path, *, tensorboard: bool = False) -> None:
        self._path = directory / "log.jsonl"
        self._writer = None
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise InputError(
                    "TensorBoard is not installed: pip install 'haltwise[tensorboard]'"
                ) from None
            self._writer = SummaryWriter(str(directory / "tensorboard"))

    def write(self, record: Mapping[str, Any]) -> None:
        """Append one record; `record["step"]` is the meta-step it belongs to.

        NaN and infinity, which JSON does not know, are written as null.
        """
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self._writer is not None:
            for name, value in record.items():
                if name != "step" and isinstance(value, (int, float)):
                    self._writer.add_scalar(name, value, record["step"])

    def write_histogram(self, name: str, values: Tensor, step: int) -> None:
        """How `values`, shape [n], are spread after meta-step `step`; for TensorBoard alone."""
        if self._writer is not None:
            self._writer.add_histogram(name, values, step)

    def close(self) -> None:
        """Flush what is pending."""
        if self._writer is not None:
            self._writer.close()


def read_log(directory: Path) -> list[dict[str, Any]]:
    """The records of a run, a torn last line (a killed process) left out."""
    path = directory / "log.jsonl"
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:
            continue
    return records
