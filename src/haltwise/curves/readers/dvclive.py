"""What DVCLive writes: `plots/metrics/train/loss.tsv` and others below the folder of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import final

from haltwise._core.errors import require
from haltwise.curves.raw import Keys, NothingRecordedError, RawRuns
from haltwise.curves.readers.csv import read_table
from haltwise.curves.readers.run_folder import MetricPoints, RunFolderReader, joined

__all__ = ["READERS", "DvcLive"]


@final
class DvcLive(RunFolderReader):
    """A file a metric, which its path names; all of a folder are one run."""

    def run_folder(self, path: Path) -> Path | None:
        own = path.absolute()
        places = [n for n in range(len(own.parts) - 2) if own.parts[n : n + 2] == _METRICS]
        if places and path.suffix == _SUFFIX:
            return Path(*own.parts[: places[-1]])
        is_summary = path.name in _SUMMARIES and own.parent.joinpath(*_METRICS).is_dir()
        return own.parent if is_summary else None

    def read(self, paths: Sequence[Path], keys: Keys) -> RawRuns:
        folder = self.run_folder(paths[0])
        assert folder is not None
        series: dict[str, MetricPoints] = {}
        for path in (each for each in paths if each.suffix == _SUFFIX):
            (table,) = read_table(path, None, is_log=True).runs
            name = path.stem
            require(
                {"step", name} <= table.keys(),
                f"{path} has no columns step and {name}; restore it from a copy",
            )
            metric = path.absolute().relative_to(folder.joinpath(*_METRICS)).with_suffix("")
            series[metric.as_posix()] = MetricPoints(table["step"].tolist(), table[name].tolist())
        if not series:
            raise NothingRecordedError(f"{folder} has no metrics")
        return RawRuns([joined(series)], [{"run": folder.name}], cost="step", cost_unit="steps")


_METRICS = ("plots", "metrics")
_SUFFIX = ".tsv"
_SUMMARIES = ("metrics.json", "params.yaml")  # beside them

READERS = {"dvclive": DvcLive()}
