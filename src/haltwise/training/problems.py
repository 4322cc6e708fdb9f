"""What a run learns from: problems of families, or recorded runs of somebody's loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise._core.tensors import map_tensors
from haltwise.stop_rules.accounts import CostUnit, ReturnedIterate
from haltwise.halting.halter import AFTER, BEFORE
from haltwise.recordings.runs import RecordedRuns
from haltwise.update_rules import UpdateRule
from haltwise.tasks import TaskBatch, family
from haltwise.training.config import TrainingConfig
from haltwise.rollout.record import Recording, record

__all__ = ["FamilyProblems", "Problems", "RecordedProblems", "Report", "Stops", "problems_of"]

Report = Callable[[int, int], None]
"""What is told how many of how many problems are done."""

_RECORDED_COORDINATES = 2**18  # that are recorded at once: their state fills some 80 MiB


class Stops(NamedTuple):
    """How stops are judged in training: when decided, how counted, what is returned."""

    output: int
    account: CostUnit
    recall: ReturnedIterate


class Problems(ABC):
    """Where the problems of a run come from."""

    stops: Stops

    @property
    @abstractmethod
    def description(self) -> dict[str, Any]:
        """What of them stands on the card beside the configuration, as JSON."""

    @abstractmethod
    def sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch | None:
        """Fresh problems; None where all there is was recorded."""

    @abstractmethod
    def record(
        self, rule: UpdateRule, name: str, num_problems: int, *path: int, report: Report | None = None
    ) -> Recording:
        """What problems went through, whether they stayed finite or not.

        Args:
            rule: What moved the parameters.
            name: Of the stream: recorded, validation or calibration.
            num_problems: How many are wanted; of what was recorded there are as many as there are.
            path: Further down the stream.
            report: Told how far it is, where that takes long.
        """


@final
class FamilyProblems(Problems):
    """Problems of the configuration's family, and recordings of those that it is mixed with.

    Raises:
        InputError: A family is unknown, or has no such settings.
    """

    def __init__(
        self,
        config: TrainingConfig,
        device: torch.device | str,
        data_dir: Path | str | None = None,
    ) -> None:
        self.family = family(config.family, config.family_settings, data_dir=data_dir)
        self._mixed_with = {name: family(name, data_dir=data_dir) for name in config.mixed_with}
        self._horizon, self._seed, self._device = config.horizon, config.seed, device
        learned = config.posterior in ("stick-breaking", "both")
        self.stops = Stops(BEFORE, CostUnit.GRADIENTS, ReturnedIterate.LEARNED if learned else ReturnedIterate.NEXT)

    @property
    def description(self) -> dict[str, Any]:
        return {"family_settings": asdict(self.family)}

    def sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        return self.family.sample(num_problems, generator, device=self._device)

    def record(
        self, rule: UpdateRule, name: str, num_problems: int, *path: int, report: Report | None = None
    ) -> Recording:
        share = max(1, num_problems // (1 + len(self._mixed_with)))
        key: tuple[str | int, ...] = (name, *path)
        batches = [self.sample(share, stream(self._seed, *key))]
        for other, mixed in self._mixed_with.items():
            batches.append(
                mixed.sample(share, stream(self._seed, *key, other), device=self._device)
            )
        index = torch.arange(share, device=self._device)
        recordings: list[Recording] = []
        done = 0
        for batch in batches:
            for part in index.split(max(1, _RECORDED_COORDINATES // batch.dim)):
                recordings.append(record(rule, batch.select(part), self._horizon))
                done += len(part)
                if report is not None:
                    report(done, share * len(batches))
        return Recording.join(recordings)


@final
class RecordedProblems(Problems):
    """Runs of a loop that were recorded before; a stop leaves the loop where it is.

    Raises:
        InputError: There are no such runs, or too few.
    """

    stops = Stops(AFTER, CostUnit.UPDATES, ReturnedIterate.CURRENT)

    def __init__(self, config: TrainingConfig, device: torch.device | str) -> None:
        assert config.runs is not None
        runs = RecordedRuns.load(config.runs, config.horizon)
        runs = runs.keeping_best() if config.keeps_best else runs
        self._reads = runs.reads

        def place(value: Tensor) -> Tensor:
            return value.to(device)

        self._parts = {
            name: map_tensors(part, place) for name, part in runs.split(config.seed).items()
        }

    @property
    def description(self) -> dict[str, Any]:
        return {"reads": self._reads}

    def sample(self, num_problems: int, generator: torch.Generator) -> None:
        return None

    def record(
        self, rule: UpdateRule, name: str, num_problems: int, *path: int, report: Report | None = None
    ) -> Recording:
        return self._parts[name]


def problems_of(
    config: TrainingConfig, device: torch.device | str, data_dir: Path | str | None = None
) -> Problems:
    """What a run of this configuration learns from."""
    if config.runs is not None:
        return RecordedProblems(config, device)
    return FamilyProblems(config, device, data_dir)
