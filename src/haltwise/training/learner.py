"""What learns in a run: the model, its phases and its meta-optimizer, one meta-step at a time."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, final

import torch
from torch import Tensor, nn

from haltwise._core.discovery import configure
from haltwise._core.errors import require
from haltwise._core.json import from_json, to_json
from haltwise._core.nested_settings import Choice
from haltwise._core.random import stream
from haltwise._core.settings import require_types
from haltwise._core.tensors import kind_of, require_like, widest
from haltwise._core.workers import Workers
from haltwise.models.card import Card
from haltwise.models.files import build_model, halting_of
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.training.choices import CHOICES
from haltwise.training.gradients import BoundEstimator
from haltwise.training.optimization import MOMENTS, MetaAdam
from haltwise.training.phases import HaltingPhase, JointPhase, MetaObjective, Phase
from haltwise.training.settings import TrainingSettings
from haltwise.training.sharding import differentiate_shards
from haltwise.training.sources import Source

__all__ = ["Counters", "Learner", "TrainingState"]

_SKIPPED = 20  # meta-steps in a row without a finite gradient are a divergence, too
_ROLLBACK_FACTOR = 0.3  # of the learning rate


@final
@dataclass
class Counters:
    """What a run counts, over interruptions and rollbacks; changed in place."""

    seconds: float = 0.0
    """Time spent on meta-steps."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Problems left out because they were not finite, by stream."""
    num_skipped: int = 0
    """Meta-steps without an update, for the meta-gradient was not finite."""
    skipped_in_a_row: int = 0
    """The last of them."""
    num_rollbacks: int = 0
    """Returns to the last good state in the present phase."""


@final
class TrainingState(NamedTuple):
    """The state after a validation: enough to go on to the same bits.

    Attributes:
        step: Meta-steps done.
        phase: Name of the phase.
        diverged: Whether the last validation found the training diverged.
        metrics: Of the last validation.
        tensors: Copies of the weights and of Adam's moments, under dotted names.
    """

    step: int
    phase: str
    diverged: bool
    metrics: dict[str, float]
    tensors: dict[str, Tensor]

    def to_json(self) -> dict[str, Any]:
        """Everything but the tensors as a JSON object, which knows no NaN."""
        document: dict[str, Any] = to_json(self._asdict())
        del document["tensors"]
        return document


@final
class Learner:
    """A new model, made with the classes `own` of the user's, and all that changes its weights.

    Raises:
        InputError: There is nothing to train, or fewer shards than workers.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        source: Source,
        own: list[type],
        device: torch.device | str,
        workers: Workers,
    ) -> None:
        workers.shards(settings.run.num_shards)  # refuses too many workers
        self._settings, self._workers, self._device = settings, workers, device
        card = _blank_card(settings, source)
        self.model = build_model(card, stream(settings.seed, "weights"), own)
        self.model.to(device)
        self.halting = halting_of(self.model)
        self.parameters = dict(self.model.named_parameters())
        self._rule_parameters: list[nn.Parameter] = []
        if isinstance(self.model, OptimizerModel):
            self._rule_parameters = self.model.rule_parameters()
        self.phases = self._make_phases(source)
        """In their order; the last may have no steps."""
        self.num_steps = sum(phase.num_steps for phase in self.phases)
        """Meta-steps of the whole run: those of rule and halter together, then of the halter."""
        require(
            self.num_steps >= 1,
            f"there is nothing to train: rule {settings.rule.name} has no weights or no joint "
            f"meta-steps, and method {settings.method.name!r} no steps for a halter alone; train "
            "a halter with --preset act, or set --joint.num-steps",
        )
        self.step, self.counters = 0, Counters()
        self.begin_phase(self.phases[0])

    def _make_phases(self, source: Source) -> list[Phase]:
        settings, device = self._settings, self._device
        objective = MetaObjective(
            self.halting,
            price=settings.price,
            losses=settings.joint.losses,
            sum_weight=settings.joint.sum_weight,
        )
        name, own = settings.joint.estimator.name, settings.joint.estimator.settings
        estimator = configure(CHOICES["joint.estimator"].find(name), own, name)
        phases: list[Phase] = []
        if self._rule_parameters and settings.joint.num_steps:
            bound = estimator.bind(self.model, settings.horizon)
            require(
                isinstance(bound, BoundEstimator),
                f"{name}.bind must return a BoundEstimator, got {kind_of(bound)}",
            )
            phases.append(JointPhase(settings, device, source, objective, bound))
        phases.append(HaltingPhase(settings, device, source, objective, self.model))
        return phases

    @property
    def num_done(self) -> int:
        """Steps of the present phase that are done."""
        before = self.phases[: self.phases.index(self.phase)]
        return self.step - sum(phase.num_steps for phase in before)

    @property
    def learning_rate(self) -> float:
        """Adam's learning rate before the cosine, lowered by every rollback."""
        factor: float = _ROLLBACK_FACTOR**self.counters.num_rollbacks
        return self._settings.adam.learning_rate * factor

    @property
    def is_diverging(self) -> bool:
        """Whether weights are not finite, or gradients have not been for many meta-steps."""
        return self.counters.skipped_in_a_row >= _SKIPPED or not all(
            bool(weight.isfinite().all()) for weight in self.parameters.values()
        )

    def begin_phase(self, phase: Phase) -> None:
        """Let the parameters learn that the phase trains, with a new meta-optimizer."""
        self.phase = phase
        self.counters.num_rollbacks = self.counters.skipped_in_a_row = 0
        for weight in self._rule_parameters:
            weight.requires_grad_(phase.name == "joint")
        parts = (self._rule_parameters, self.halting.parameters())
        groups = [[weight for weight in part if weight.requires_grad] for part in parts]
        self.adam = MetaAdam(self._settings.adam, groups)

    def meta_step(self, *, interrupt: bool) -> tuple[float, bool]:
        """Take one step on the gradients of all virtual shards; `interrupt` asks to end the run.

        Returns:
            The loss before the step per problem, NaN where the gradient is not finite and no step
            was taken, and whether any worker is to end the run.
        """
        phase, counters = self.phase, self.counters
        loss, num_left_out, interrupted = differentiate_shards(
            phase,
            self.num_done,
            self.adam.learning,
            self._workers,
            self._settings.run.num_shards,
            interrupt=interrupt,
        )
        before = counters.left_out.get(phase.left_out_name, 0) if phase.counts_anew else 0
        counters.left_out[phase.left_out_name] = before + num_left_out
        is_finite = self.adam.step(loss, self.num_done, phase.num_steps, self.learning_rate)
        self.step += 1
        if is_finite:
            counters.skipped_in_a_row = 0
            return loss, interrupted
        counters.num_skipped += 1
        counters.skipped_in_a_row += 1
        return math.nan, interrupted

    def snapshot(self, *, diverged: bool, metrics: dict[str, float]) -> TrainingState:
        """Copy the present state, with what the last validation found."""
        tensors: dict[str, Tensor] = {}
        for name, value in self.parameters.items():
            tensors[f"weights.{name}"] = value
            for key, moment in self.adam.state.get(value, {}).items():
                tensors[f"adam.{key}.{name}"] = moment
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        return TrainingState(self.step, self.phase.name, diverged, metrics, copies)

    def stored(self, document: Mapping[str, Any], tensors: dict[str, Tensor]) -> TrainingState:
        """The state that `TrainingState.to_json` and its tensors were written of.

        Raises:
            InputError: The tensors do not fit the parameters.
        """
        like: dict[str, Tensor] = {}
        for name, value in self.parameters.items():
            like[f"weights.{name}"] = value
            if f"adam.step.{name}" in tensors:
                like |= {f"adam.{key}.{name}": value for key in MOMENTS}
                like[f"adam.step.{name}"] = torch.zeros((), dtype=torch.float32)
        require_like(tensors, like)
        placed = {
            name: value if name.startswith("adam.step.") else value.to(self._device)
            for name, value in tensors.items()
        }
        plain = {name: document[name] for name in ("step", "phase", "diverged")}
        require_types(TrainingState, plain)
        metrics = from_json(dict[str, float], document["metrics"])
        return TrainingState(**plain, metrics=metrics, tensors=placed)

    def take_up(self, state: TrainingState) -> None:
        """Go on from a state of the present phase."""
        self.step = state.step
        self.adam.state.clear()
        for name, value in self.parameters.items():
            value.data.copy_(state.tensors[f"weights.{name}"])
            if f"adam.step.{name}" in state.tensors:
                self.adam.state[value] = {
                    key: state.tensors[f"adam.{key}.{name}"].clone() for key in MOMENTS
                }

    def roll_back(self, state: TrainingState) -> None:
        """Return to a state of this phase, to go on with a lower learning rate."""
        self.take_up(state)
        self.counters.num_rollbacks += 1
        self.counters.skipped_in_a_row = 0

    def agree(self, *judged: float) -> list[float]:
        """Follow the first worker in its judgement, weights and moments.

        Replicas are equal to the bit on machines of one type, and kept together on others.
        """
        numbers = torch.tensor(judged, dtype=widest(self._device), device=self._device)
        moments = [state[key] for state in self.adam.state.values() for key in MOMENTS[1:]]
        weights = [weight.data for weight in self.parameters.values()]
        self._workers.follow_first(numbers, *weights, *moments)
        return numbers.tolist()


def _blank_card(settings: TrainingSettings, source: Source) -> Card:
    """Describe what the model is made of and trained for, before any training."""
    family = None
    if settings.runs is None:
        family = Choice(settings.family.name, source.description["family_settings"])
    return Card(
        method=settings.method,
        price=settings.price,
        horizon=settings.horizon,
        rule=None if settings.rule.name == "none" or source.engine is not None else settings.rule,
        engine=source.engine,
        halter=settings.halter,
        price_range=settings.price_range,
        unit=source.unit,
        observed=source.observed,
        readout_size=source.readout_size,
        keeps_best=settings.keeps_best,
        maximizes=source.maximizes,
        seen=source.seen,
        family=family,
    )
