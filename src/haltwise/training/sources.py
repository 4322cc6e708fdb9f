"""The sources of what a run learns from: problems, processes, or recorded runs of a loop."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from haltwise._core.discovery import configure
from haltwise._core.errors import require
from haltwise._core.files import digest
from haltwise._core.plugins import is_file
from haltwise._core.random import stream
from haltwise._core.seen import marks_of
from haltwise._core.tensors import map_tensors, widest
from haltwise.engines import Engine
from haltwise.engines.named import choice_of, engine_of, own_kinds
from haltwise.engines.process import Descents, EngineProcess
from haltwise.models.card import Choice
from haltwise.models.files import Model
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.processes.base import ProcessFamily, advanced, begun
from haltwise.processes.observation import Observed
from haltwise.processes.trajectory import Trajectory
from haltwise.processes.trial import require_usable
from haltwise.recordings.runs import RecordedRuns, warn_of_rounding
from haltwise.rollout.record import record, record_process
from haltwise.stop_rules import CostUnit
from haltwise.tasks import TaskBatch, TaskFamily, family
from haltwise.training.presets import process_family
from haltwise.training.settings import TrainingSettings

__all__ = ["FamilySource", "ProcessSource", "RecordedSource", "Source", "descents_of", "source_of"]

_RECORDED_COORDINATES = 2**18  # recorded at once: their state fills some 80 MiB


class Source(ABC):
    """The source of a run's trajectories; each stream of them is recorded once."""

    unit: CostUnit
    """What a stop is charged for."""
    observed: Observed = "gradients"
    """What is observed of the process."""
    readout_size: int = 0
    """R, how many numbers a process without an update rule shows of its inner state."""
    maximizes: bool = False
    """Whether the loss is the negative of a metric that is better the higher it is."""
    seen: str = ""
    """Marks of recorded runs, by which others tell whether they judge by these."""
    engine: Choice | None = None
    """What moves the problems where that is an engine of `haltwise.solve`."""
    description: dict[str, Any]
    """What identifies the source beside the settings, as JSON values by name."""

    def __init__(self, settings: TrainingSettings, device: torch.device | str) -> None:
        self._settings, self._device = settings, device
        self._kept: dict[tuple[str | int, ...], Trajectory] = {}
        self.num_left_out: dict[tuple[str | int, ...], int] = {}
        """Items of each recorded stream that were not finite."""
        self.report: Callable[[int, int], None] | None = None
        """Called with how many of how many problems are recorded, if set."""

    def sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch | None:
        """Draw fresh problems of one family for the update rule; None where nothing trains one."""
        del num_problems, generator
        return None

    def sample_each(self, num_problems: int, *key: str | int) -> list[TaskBatch]:
        """Draw the problems of a stream, an equal share of each family; none as in `sample`."""
        del num_problems, key
        return []

    def take(self, model: Model, num_items: int, *key: str | int) -> Trajectory:
        """The trajectories of a stream, without those that are not finite.

        Args:
            model: The model, whose update rule is final when a stream is first taken.
            num_items: Number of items to record; recorded runs are as many as there are.
            key: The stream's name (recorded, validation or calibration), and the rest of its path.

        Raises:
            InputError: None stayed finite.
        """
        if key not in self._kept:
            recorded = self._record(model, num_items, *key)
            finite = recorded.finite.nonzero().squeeze(1)
            require(len(finite) > 0, self.none_finite(num_items))
            self._kept[key] = recorded.select(finite)
            self.num_left_out[key] = recorded.num_items - len(finite)
        return self._kept[key]

    def typical(self, model: Model, num_items: int) -> Trajectory:
        """Items from which it is told what such items look like."""
        return self.take(model, num_items, "calibration")

    @abstractmethod
    def _record(self, model: Model, num_items: int, *key: str | int) -> Trajectory:
        """Record a stream, whether its items stay finite or not."""

    def none_finite(self, num_items: int) -> str:
        """Word the message that no item stayed finite."""
        own = self._settings
        what = f"problems of {own.family.name}" if own.runs is None else "recorded runs"
        return (
            f"not one of {num_items} {what} stays finite for {own.horizon} steps; choose a "
            "smaller learning rate or horizon"
        )

    def _require_no_rule(self, why: str) -> None:
        """Refuse settings of what an update rule and its problems would need."""
        rule, mixed_with = self._settings.rule.name, self._settings.mixed_with
        require(rule == "none", f"{why}, so there is no update rule to train; drop rule {rule!r}")
        require(not mixed_with, f"{why}; drop mixed_with, which names families of problems")


@final
class FamilySource(Source):
    """Problems of a family and of those that it is mixed with."""

    unit = CostUnit.GRADIENTS
    _engine: Engine | None = None

    def __init__(
        self,
        own: TaskFamily,
        settings: TrainingSettings,
        device: torch.device | str,
        data_dir: Path | str | None,
    ) -> None:
        super().__init__(settings, device)
        require(
            settings.rule.name != "none",
            f"problems of {settings.family.name} are moved by an update rule, and rule is none; "
            "name one",
        )
        self.family = own
        self._mixed_with = {name: family(name, data_dir=data_dir) for name in settings.mixed_with}
        if settings.rule.name in own_kinds():
            self._engine = engine_of(settings.rule)
            self.engine, self.unit = choice_of(self._engine), CostUnit.UPDATES
        self.description = {"family_settings": asdict(own)}

    def sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        own = self.family
        if self._mixed_with:
            families = [own, *self._mixed_with.values()]
            own = families[int(torch.randint(len(families), (), generator=generator))]
        return own.sample(num_problems, generator, device=self._device)

    def sample_each(self, num_problems: int, *key: str | int) -> list[TaskBatch]:
        share = max(1, num_problems // (1 + len(self._mixed_with)))
        families = [(self.family, key)]
        families += [(other, (*key, name)) for name, other in self._mixed_with.items()]
        # Engines are meant for float64: at the end of a descent float32 has rounding alone.
        dtype = torch.float32 if self._engine is None else widest(self._device)
        return [
            each.sample(share, stream(self._settings.seed, *path), dtype=dtype, device=self._device)
            for each, path in families
        ]

    def _record(self, model: Model, num_items: int, *key: str | int) -> Trajectory:
        horizon, batches = self._settings.horizon, self.sample_each(num_items, *key)
        num = sum(batch.num_problems for batch in batches)
        parts: list[Trajectory] = []
        done = 0
        for batch in batches:
            index = torch.arange(batch.num_problems, device=self._device)
            for part in index.split(max(1, _RECORDED_COORDINATES // batch.dim)):
                chosen = batch.select(part)
                if self._engine is None:
                    assert isinstance(model, OptimizerModel)
                    parts.append(record(model.rule, chosen, horizon))
                else:
                    refusal = self._engine.refusal(chosen)
                    require(refusal is None, f"rule {self._settings.rule.name}: {refusal}")
                    recorded = record_process(EngineProcess(self._engine, chosen), horizon)
                    parts.append(map_tensors(recorded, Tensor.float))
                done += len(part)
                if self.report is not None:
                    self.report(done, num)
        return Trajectory.join(parts)


@final
class ProcessSource(Source):
    """Processes of a family: only when to halt them is learned."""

    unit = CostUnit.UPDATES
    observed: Observed = "loss"

    def __init__(
        self, own: ProcessFamily, settings: TrainingSettings, device: torch.device | str
    ) -> None:
        super().__init__(settings, device)
        self._require_no_rule("processes move by themselves")
        self.family = own
        self.description = {"family_settings": asdict(own)}
        process = own.sample(1, stream(settings.seed, "shown"), device=device)
        readout = advanced(process, 0, begun(process)).observation.readout
        self.readout_size = 0 if readout is None else readout.shape[-1]

    def _record(self, model: Model, num_items: int, *key: str | int) -> Trajectory:
        generator = stream(self._settings.seed, *key)
        process = self.family.sample(num_items, generator, device=self._device)
        return record_process(process, self._settings.horizon)


@final
class RecordedSource(Source):
    """Recorded runs of a loop; a stop leaves the loop where it is."""

    unit = CostUnit.UPDATES

    def __init__(self, settings: TrainingSettings, device: torch.device | str) -> None:
        super().__init__(settings, device)
        assert settings.runs is not None
        self._require_no_rule("recorded runs have been moved already")
        runs = RecordedRuns.load(settings.runs, settings.horizon)
        runs = runs.keeping_best() if settings.keeps_best else runs
        warn_of_rounding(runs.trajectory.loss, settings.price)
        self.observed, self.maximizes = runs.observed, runs.maximizes
        self.engine, self.seen = runs.engine, marks_of(runs.trajectory.loss)
        self._all = runs.trajectory
        recorded = vars(runs.trajectory)
        tensors = {name: value for name, value in recorded.items() if isinstance(value, Tensor)}
        self.description = {"observed": runs.observed, "recordings": digest(tensors, "")}
        self._parts = {
            name: map_tensors(part, lambda value: value.to(device))
            for name, part in runs.split(settings.seed).items()
        }

    def typical(self, model: Model, num_items: int) -> Trajectory:
        return self._all  # a quarter may be ten

    def _record(self, model: Model, num_items: int, *key: str | int) -> Trajectory:
        return self._parts[str(key[0])]


def descents_of(engine: Choice, problems: TaskFamily) -> ProcessFamily:
    """Problems of a family under the engine that a card names, as processes to judge its stops."""
    return Descents(engine_of(engine), problems)


def source_of(
    settings: TrainingSettings, device: torch.device | str, data_dir: Path | str | None = None
) -> Source:
    """Make the source that settings name.

    Raises:
        InputError: A family is unknown, there are no such runs or too few, or other settings, such
            as an update rule where nothing is moved by one, do not fit.
    """
    if settings.runs is not None:
        return RecordedSource(settings, device)
    name, own = settings.family.name, settings.family.settings
    processes = process_family(name)
    if processes is not None:
        made = configure(processes, own, name)
        if is_file(name):
            require_usable(made, name)
        return ProcessSource(made, settings, device)
    return FamilySource(family(name, own, data_dir=data_dir), settings, device, data_dir)
