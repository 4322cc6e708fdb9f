"""The phases of a training: what one meta-step differentiates."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise.models.files import Model, halting_of
from haltwise.training.gradients import BoundEstimator, Estimate
from haltwise.training.objective import MetaObjective
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import Source

__all__ = ["HaltingPhase", "JointPhase", "Phase"]


class Phase(ABC):
    """A stretch of meta-steps with one objective."""

    name: str
    num_steps: int
    batch_size: int
    left_out_name: str
    """Stream under which items that were not finite are counted."""
    counts_anew: bool
    """Whether every meta-step leaves out items of its own, which add up."""

    def __init__(
        self,
        settings: TrainingSettings,
        device: torch.device | str,
        source: Source,
        objective: MetaObjective,
    ) -> None:
        self._settings, self._device = settings, device
        self._source, self._objective = source, objective

    @abstractmethod
    def differentiate(self, shard: int, step: int) -> Estimate:
        """Add the gradient of a virtual shard to the model's `.grad`, after `step` steps."""

    def _path(self, shard: int) -> tuple[int, ...]:
        """The end of the path of a shard's streams; a single shard needs no number."""
        return (shard,) if self._settings.run.num_shards > 1 else ()

    def _draw_prices(self, num: int, generator: torch.Generator) -> Tensor:
        exponent = 2 * torch.rand(num, generator=generator) - 1
        return (self._settings.price * self._settings.price_range**exponent).to(self._device)


@final
class JointPhase(Phase):
    """Update rule and halter together, on fresh problems."""

    name, left_out_name, counts_anew = "joint", "train", True

    def __init__(
        self,
        settings: TrainingSettings,
        device: torch.device | str,
        source: Source,
        objective: MetaObjective,
        estimator: BoundEstimator,
    ) -> None:
        super().__init__(settings, device, source, objective)
        self._estimator = estimator
        self.num_steps, self.batch_size = settings.joint.num_steps, settings.joint.batch_size

    def differentiate(self, shard: int, step: int) -> Estimate:
        joint = self._settings.joint
        size = joint.batch_size // self._settings.run.num_shards
        generator = stream(self._settings.seed, "train", step, *self._path(shard))
        batch = self._source.sample(size, generator)
        assert batch is not None
        price = self._draw_prices(size, generator)
        warm = step >= joint.warmup * joint.num_steps

        def objective(excess: Tensor, outputs: Mapping[str, Tensor], price: Tensor) -> Tensor:
            if warm:
                return self._objective.joint(excess, outputs, price, generator)
            return self._objective.losses(excess)

        return self._estimator.accumulate(batch, price, objective, joint.batch_size, generator)


@final
class HaltingPhase(Phase):
    """The halter alone, on recorded trajectories: no gradient of the optimizee is evaluated."""

    name, left_out_name, counts_anew = "halting", "recorded", False

    def __init__(
        self,
        settings: TrainingSettings,
        device: torch.device | str,
        source: Source,
        objective: MetaObjective,
        model: Model,
    ) -> None:
        super().__init__(settings, device, source, objective)
        self._model, self._halting = model, halting_of(model)
        self.num_steps = settings.halting.num_steps if self._halting.halts else 0
        self.batch_size = settings.halting.batch_size

    def differentiate(self, shard: int, step: int) -> Estimate:
        settings, own = self._settings, self._settings.halting
        num_shards = settings.run.num_shards
        key = ("recorded", *self._path(shard))
        recorded = self._source.take(self._model, own.num_recorded // num_shards, *key)
        generator = stream(settings.seed, "head", step, *self._path(shard))
        size = own.batch_size // num_shards
        index = torch.randint(recorded.num_items, (size,), generator=generator)
        chosen = recorded.select(index.to(self._device))
        price = self._draw_prices(size, generator)
        outputs = self._halting(chosen.known("signals"), chosen.shown_readouts(), price)
        losses = self._objective.halting(
            chosen.excess, outputs, price, step / own.num_steps, generator
        )
        weighed = losses * (price / settings.price) ** own.price_exponent
        (weighed.sum() / own.batch_size).backward()
        return Estimate(weighed.detach(), self._source.num_left_out[key])
