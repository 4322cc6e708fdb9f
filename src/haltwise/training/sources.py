"""The sources of what a run learns from: problems, processes, or recorded runs of a loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise._core.files import digest
from haltwise._core.random import stream
from haltwise._core.tensors import map_tensors
from haltwise.models.files import Model
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.base import ProcessFamily
from haltwise.processes.observation import Observed
from haltwise.processes.trajectory import Trajectory
from haltwise.recordings.runs import RecordedRuns
from haltwise.rollout.record import record, record_process
from haltwise.stop_rules import CostUnit
from haltwise.tasks import TaskBatch, TaskFamily, family
from haltwise.training.families import find_family
from haltwise.training.settings import TrainingSettings

__all__ = ["FamilySource", "ProcessSource", "RecordedSource", "Report", "Source", "source_of"]

Report = Callable[[int, int], None]
"""Called with how many of how many problems are recorded."""

_RECORDED_COORDINATES = 2**18  # recorded at once: their state fills some 80 MiB


class Source(ABC):
    """The source of a run's trajectories."""

    unit: CostUnit
    """What a stop is charged for."""
    observed: Observed = "gradients"
    """What is observed of the process."""

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What identifies the source beside the settings, as JSON values by name."""

    def sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch | None:
        """Draw fresh problems for the update rule; None where there is no rule to train."""
        del num_problems, generator
        return None

    @abstractmethod
    def record(
        self, model: Model, name: str, num_items: int, *path: int, report: Report | None = None
    ) -> Trajectory:
        """Record trajectories, whether they stay finite or not.

        Args:
            model: The model, whose update rule moves the parameters.
            name: Name of the stream: recorded, validation or calibration.
            num_items: Number of items wanted; recorded runs are as many as there are.
            path: The rest of the stream's path.
            report: Called with the progress, where recording takes long.
        """


@final
class FamilySource(Source):
    """Problems of a family, and recordings of those that it is mixed with.

    Raises:
        InputError: A family to mix with is unknown, or there is no update rule.
    """

    unit = CostUnit.GRADIENTS

    def __init__(
        self,
        own: TaskFamily,
        settings: TrainingSettings,
        device: torch.device | str,
        data_dir: Path | str | None = None,
    ) -> None:
        require(
            settings.rule.name != "none",
            f"problems of {settings.family.name} are moved by an update rule, and rule is none; "
            "name one",
        )
        self.family = own
        self._mixed_with = {name: family(name, data_dir=data_dir) for name in settings.mixed_with}
        self._horizon, self._seed, self._device = settings.horizon, settings.seed, device

    @property
    def description(self) -> dict[str, Any]:
        return {"family_settings": asdict(self.family)}

    def sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        return self.family.sample(num_problems, generator, device=self._device)

    def record(
        self, model: Model, name: str, num_items: int, *path: int, report: Report | None = None
    ) -> Trajectory:
        assert isinstance(model, OptimizerModel)
        share = max(1, num_items // (1 + len(self._mixed_with)))
        key: tuple[str | int, ...] = (name, *path)
        batches = [self.sample(share, stream(self._seed, *key))]
        for other, mixed in self._mixed_with.items():
            batches.append(
                mixed.sample(share, stream(self._seed, *key, other), device=self._device)
            )
        index = torch.arange(share, device=self._device)
        parts: list[Trajectory] = []
        done = 0
        for batch in batches:
            for part in index.split(max(1, _RECORDED_COORDINATES // batch.dim)):
                parts.append(record(model.rule, batch.select(part), self._horizon))
                done += len(part)
                if report is not None:
                    report(done, share * len(batches))
        return Trajectory.join(parts)


@final
class ProcessSource(Source):
    """Processes of a family: only when to halt them is learned.

    Raises:
        InputError: The settings name an update rule.
    """

    unit = CostUnit.UPDATES
    observed: Observed = "loss"

    def __init__(
        self, own: ProcessFamily, settings: TrainingSettings, device: torch.device | str
    ) -> None:
        _require_no_rule(settings, "processes move by themselves")
        self.family = own
        self._horizon, self._seed, self._device = settings.horizon, settings.seed, device

    @property
    def description(self) -> dict[str, Any]:
        return {"family_settings": asdict(self.family)}

    def record(
        self, model: Model, name: str, num_items: int, *path: int, report: Report | None = None
    ) -> Trajectory:
        generator = stream(self._seed, name, *path)
        process = self.family.sample(num_items, generator, device=self._device)
        return record_process(process, self._horizon)


@final
class RecordedSource(Source):
    """Recorded runs of a loop; a stop leaves the loop where it is.

    Raises:
        InputError: There are no such runs, or too few.
    """

    unit = CostUnit.UPDATES

    def __init__(self, settings: TrainingSettings, device: torch.device | str) -> None:
        assert settings.runs is not None
        _require_no_rule(settings, "recorded runs have been moved already")
        runs = RecordedRuns.load(settings.runs, settings.horizon)
        runs = runs.keeping_best() if settings.keeps_best else runs
        self.observed = runs.observed
        recorded = vars(runs.trajectory)
        tensors = {name: value for name, value in recorded.items() if isinstance(value, Tensor)}
        self._digest = digest(tensors, "")

        def place(value: Tensor) -> Tensor:
            return value.to(device)

        self._parts = {
            name: map_tensors(part, place) for name, part in runs.split(settings.seed).items()
        }

    @property
    def description(self) -> dict[str, Any]:
        return {"observed": self.observed, "recordings": self._digest}

    def record(
        self, model: Model, name: str, num_items: int, *path: int, report: Report | None = None
    ) -> Trajectory:
        return self._parts[name]


def source_of(
    settings: TrainingSettings, device: torch.device | str, data_dir: Path | str | None = None
) -> Source:
    """Make the source that settings name.

    Raises:
        InputError: A family is unknown, there are no such runs, or other settings do not fit.
    """
    if settings.runs is not None:
        return RecordedSource(settings, device)
    own = find_family(settings.family, data_dir)
    if isinstance(own, ProcessFamily):
        return ProcessSource(own, settings, device)
    return FamilySource(own, settings, device, data_dir)


def _require_no_rule(settings: TrainingSettings, why: str) -> None:
    """Refuse settings of what an update rule and its problems would need."""
    require(
        settings.rule.name == "none",
        f"{why}, so there is no update rule to train; drop rule {settings.rule.name!r}",
    )
    require(not settings.mixed_with, f"{why}; drop mixed_with, which names families of problems")
