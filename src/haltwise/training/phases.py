"""The phases of a training: the objective that one meta-step differentiates, and how."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, final

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise._core.tensors import kind_of
from haltwise.halting.methods import HaltingExamples
from haltwise.halting.objectives import LOSSES_OF_STEPS
from haltwise.models.files import Model, halting_of
from haltwise.models.halting_model import HaltingModel
from haltwise.training.gradients import BoundEstimator, Estimate
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import Source

__all__ = ["HaltingPhase", "JointPhase", "MetaObjective", "Phase"]


@final
class MetaObjective:
    """What is minimised, per problem: the halting method's objective, and the rule's mean loss.

    Args:
        model: Whose outputs are judged.
        price: The default price, in which losses are counted.
        losses: How losses of steps count, a name in `LOSSES_OF_STEPS`.
        sum_weight: Weight of the mean loss beside the halting objective.
    """

    def __init__(
        self, model: HaltingModel, *, price: float, losses: str, sum_weight: float
    ) -> None:
        self._model = model
        self._price, self._sum_weight = price, sum_weight
        self._losses_of_steps = LOSSES_OF_STEPS[losses]

    def joint(
        self,
        excess: Tensor,
        outputs: Mapping[str, Tensor],
        price: Tensor,
        generator: torch.Generator,
    ) -> Tensor:
        """The objective of rule and halter together, shape [B]; see `halting`."""
        losses = self.losses(excess)
        if not self._model.halts:
            return losses
        halting = self.halting(excess, outputs, price, None, generator)
        return halting + self._sum_weight * losses

    def losses(self, excess: Tensor) -> Tensor:
        """The rule's alone, over steps 1..T, shape [B]."""
        return self._losses_of_steps(excess, self._price)

    def halting(
        self,
        excess: Tensor,
        outputs: Mapping[str, Tensor],
        price: Tensor,
        progress: float | None,
        generator: torch.Generator,
    ) -> Tensor:
        """The halter's alone, shape [B]; see `HaltingExamples`."""
        method = self._model.method
        initial = self._model.initial(price) if method.has_initial else {}
        found: object = method.objective(
            HaltingExamples(excess, outputs, initial, price, progress, generator)
        )
        if isinstance(found, Tensor) and found.shape == price.shape:
            return found
        raise InputError(
            f"{type(method).__name__}.objective must return a tensor of shape {list(price.shape)}, "
            f"one number for each item, got {kind_of(found)}; "
            "haltwise.testing.check_halting_method says what else a halting method must keep"
        )


@dataclass(eq=False)
class Phase(ABC):
    """A stretch of meta-steps with one objective."""

    name: ClassVar[str]
    left_out_name: ClassVar[str]
    """Stream under which items that were not finite are counted."""
    counts_anew: ClassVar[bool]
    """Whether every meta-step leaves out items of its own, which add up."""

    settings: TrainingSettings
    device: torch.device | str
    source: Source
    objective: MetaObjective
    num_steps: int = field(init=False)
    batch_size: int = field(init=False)

    @abstractmethod
    def differentiate(self, shard: int, step: int) -> Estimate:
        """Add the gradient of a virtual shard to the model's `.grad`, after `step` steps."""

    def path(self, shard: int) -> tuple[int, ...]:
        """The end of the path of a shard's streams; a single shard needs no number."""
        return (shard,) if self.settings.run.num_shards > 1 else ()

    def draw_prices(self, num: int, generator: torch.Generator) -> Tensor:
        """Prices, log-uniform around the default, shape [num]."""
        exponent = 2 * torch.rand(num, generator=generator, dtype=torch.float32) - 1
        return (self.settings.price * self.settings.price_range**exponent).to(self.device)


@final
@dataclass(eq=False)
class JointPhase(Phase):
    """Update rule and halter together, on fresh problems."""

    name, left_out_name, counts_anew = "joint", "train", True

    estimator: BoundEstimator

    def __post_init__(self) -> None:
        self.num_steps = self.settings.joint.num_steps
        self.batch_size = self.settings.joint.batch_size

    def differentiate(self, shard: int, step: int) -> Estimate:
        settings, joint = self.settings, self.settings.joint
        size = joint.batch_size // settings.run.num_shards
        generator = stream(settings.seed, "train", step, *self.path(shard))
        batch = self.source.sample(size, generator)
        assert batch is not None
        price = self.draw_prices(size, generator)
        warm = step >= joint.warmup * joint.num_steps

        def objective(excess: Tensor, outputs: Mapping[str, Tensor], price: Tensor) -> Tensor:
            if warm:
                return self.objective.joint(excess, outputs, price, generator)
            return self.objective.losses(excess)

        estimate: object = self.estimator.accumulate(
            batch, price, objective, joint.batch_size, generator
        )
        return _sound(self.estimator, estimate)


def _sound(estimator: BoundEstimator, estimate: object) -> Estimate:
    """What an estimator returned, refused where it says not what it was estimated from."""
    if (
        isinstance(estimate, Estimate)
        and isinstance(estimate.losses, Tensor)
        and estimate.losses.ndim == 1
    ):
        return estimate
    found = estimate.losses if isinstance(estimate, Estimate) else estimate
    raise InputError(
        f"{type(estimator).__name__}.accumulate must return an Estimate(losses, num_left_out), the "
        f"losses of the problems used in shape [n], got {kind_of(found)}"
    )


@final
@dataclass(eq=False)
class HaltingPhase(Phase):
    """The halter alone, on recorded trajectories: no gradient of the optimizee is evaluated."""

    name, left_out_name, counts_anew = "halting", "recorded", False

    model: Model

    def __post_init__(self) -> None:
        self.halting = halting_of(self.model)
        self.num_steps = self.settings.halting.num_steps if self.halting.halts else 0
        self.batch_size = self.settings.halting.batch_size

    def differentiate(self, shard: int, step: int) -> Estimate:
        settings, own = self.settings, self.settings.halting
        num_shards = settings.run.num_shards
        key: tuple[str | int, ...] = ("recorded", *self.path(shard))
        recorded = self.source.take(self.model, own.num_recorded // num_shards, *key)
        generator = stream(settings.seed, "head", step, *self.path(shard))
        size = own.batch_size // num_shards
        index = torch.randint(recorded.num_items, (size,), generator=generator)
        chosen = recorded.select(index.to(self.device))
        price = self.draw_prices(size, generator)
        outputs = self.halting(chosen.known("signals"), chosen.shown_readouts(), price)
        progress = step / own.num_steps
        losses = self.objective.halting(chosen.excess, outputs, price, progress, generator)
        require(
            losses.requires_grad,
            f"the objective of {type(self.halting.method).__name__} does not depend on the outputs "
            "that it is given, so nothing is learned; compute it of them, without detach()",
        )
        weighed = losses * (price / settings.price) ** own.price_exponent
        (weighed.sum() / own.batch_size).backward()
        return Estimate(weighed.detach(), self.source.num_left_out[key])
