"""The trajectories that a halter learns from, each stream of them recorded once."""

from typing import final

from haltwise._core.errors import require
from haltwise.models.files import Model
from haltwise.processes.trajectory import Trajectory
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import Report, Source

__all__ = ["Recordings"]


@final
class Recordings:
    """Trajectories of the final update rule by stream, without those that are not finite.

    Args:
        settings: Settings of the run.
        source: Source of the trajectories.
        model: The model, whose update rule must be final at the first call of `take`.
    """

    def __init__(self, settings: TrainingSettings, source: Source, model: Model) -> None:
        self._settings, self._source, self._model = settings, source, model
        self._kept: dict[tuple[str | int, ...], Trajectory] = {}
        self.num_left_out: dict[tuple[str | int, ...], int] = {}
        """Items of each stream that were not finite."""
        self.report: Report | None = None
        """Called with the progress of a recording, if set."""

    def take(self, name: str, num_items: int, *path: int) -> Trajectory:
        """The trajectories of a stream, recorded at the first call.

        Args:
            name: Name of the stream: recorded, validation or calibration.
            num_items: Number of items to record.
            path: The rest of the stream's path.

        Raises:
            InputError: None stayed finite.
        """
        key: tuple[str | int, ...] = (name, *path)
        if key not in self._kept:
            recorded = self._source.record(self._model, name, num_items, *path, report=self.report)
            finite = recorded.finite.nonzero().squeeze(1)
            require(len(finite) > 0, self.none_finite(num_items))
            self._kept[key] = recorded.select(finite)
            self.num_left_out[key] = recorded.num_items - len(finite)
        return self._kept[key]

    def none_finite(self, num_items: int) -> str:
        """Word the message that no problem stayed finite."""
        settings = self._settings
        what = f"problems of {settings.family.name}" if settings.runs is None else "recorded runs"
        return (
            f"not one of {num_items} {what} stays finite for {settings.horizon} steps; choose a "
            "smaller learning rate or horizon"
        )
