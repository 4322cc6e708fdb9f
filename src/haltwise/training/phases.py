"""The phases of a training: what one meta-step differentiates."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, final

import torch
from torch import Tensor

from haltwise._core.random import stream
from haltwise.models.files import Model
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.training.gradients import BoundEstimator
from haltwise.training.objective import MetaObjective
from haltwise.training.recordings import Recordings
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import Source

__all__ = ["HaltingPhase", "JointPhase", "Phase", "ShardResult", "halting_of"]


class ShardResult(NamedTuple):
    """The result of differentiating one virtual shard.

    Attributes:
        loss: Sum of the items' losses over the size of the whole meta-step.
        num_used: Items used.
        num_left_out: Items left out because they were not finite.
    """

    loss: Tensor
    num_used: int
    num_left_out: int


def halting_of(model: Model) -> HaltingModel:
    """The halting model of a model."""
    return model.halting if isinstance(model, OptimizerModel) else model


class Phase(ABC):
    """A stretch of meta-steps with one objective.

    Args:
        settings: Settings of the run.
        device: Where to compute.
    """

    name: str
    num_steps: int
    batch_size: int
    left_out_name: str
    """Stream under which items that were not finite are counted."""
    counts_anew: bool
    """Whether every meta-step leaves out items of its own, which add up."""

    def __init__(self, settings: TrainingSettings, device: torch.device | str) -> None:
        self.settings, self._device = settings, device

    @abstractmethod
    def differentiate(self, shard: int, step: int) -> ShardResult:
        """Add the gradient of a virtual shard to the model's `.grad`.

        Args:
            shard: Number of the shard.
            step: Steps of this phase that are done.
        """

    def _stream(self, shard: int, *path: str | int) -> torch.Generator:
        """The generator of a virtual shard; a single one needs no number."""
        several = self.settings.run.num_shards > 1
        return stream(self.settings.seed, *path, *([shard] if several else []))

    def _draw_prices(self, num: int, generator: torch.Generator) -> Tensor:
        exponent = 2 * torch.rand(num, generator=generator) - 1
        return (self.settings.price * self.settings.price_range**exponent).to(self._device)


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
        super().__init__(settings, device)
        self._source, self._objective, self._estimator = source, objective, estimator
        self.num_steps, self.batch_size = settings.joint.num_steps, settings.joint.batch_size

    def differentiate(self, shard: int, step: int) -> ShardResult:
        joint = self.settings.joint
        size = joint.batch_size // self.settings.run.num_shards
        generator = self._stream(shard, "train", step)
        batch = self._source.sample(size, generator)
        assert batch is not None
        price = self._draw_prices(size, generator)
        warm = step >= joint.warmup * joint.num_steps

        def objective(excess: Tensor, outputs: Mapping[str, Tensor], price: Tensor) -> Tensor:
            if warm:
                return self._objective.joint(excess, outputs, price, generator)
            return self._objective.losses(excess)

        estimate = self._estimator.accumulate(batch, price, objective, joint.batch_size, generator)
        losses = estimate.losses
        return ShardResult(losses.sum() / joint.batch_size, len(losses), estimate.num_left_out)


@final
class HaltingPhase(Phase):
    """The halter alone, on recorded trajectories: no gradient of the optimizee is evaluated."""

    name, left_out_name, counts_anew = "halting", "recorded", False

    def __init__(
        self,
        settings: TrainingSettings,
        device: torch.device | str,
        model: Model,
        objective: MetaObjective,
        recordings: Recordings,
    ) -> None:
        super().__init__(settings, device)
        self._halting, self._objective = halting_of(model), objective
        self._recordings = recordings
        self.num_steps = settings.halting.num_steps if self._halting.halts else 0
        self.batch_size = settings.halting.batch_size

    def differentiate(self, shard: int, step: int) -> ShardResult:
        settings, own = self.settings, self.settings.halting
        num_shards = settings.run.num_shards
        path = (shard,) if num_shards > 1 else ()
        recorded = self._recordings.take("recorded", own.num_recorded // num_shards, *path)
        generator = self._stream(shard, "head", step)
        size = own.batch_size // num_shards
        index = torch.randint(recorded.num_items, (size,), generator=generator)
        chosen = recorded.select(index.to(self._device))
        price = self._draw_prices(size, generator)
        outputs = self._halting(chosen.known("signals"), chosen.shown_readouts(), price)
        losses = self._objective.halting(
            chosen.excess, outputs, price, step / own.num_steps, generator
        )
        weighed = losses * (price / settings.price) ** own.price_exponent
        loss = weighed.sum() / own.batch_size
        loss.backward()
        num_left_out = self._recordings.num_left_out.get(("recorded", *path), 0)
        return ShardResult(loss.detach(), size, num_left_out)
