"""What learns in a run: the model, its phases and its meta-optimizer, one meta-step at a time."""

import math
from typing import final

import torch
from torch import Tensor, nn

from haltwise._core.errors import require
from haltwise._core.random import stream
from haltwise._core.workers import Workers
from haltwise.models.files import build_model
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.training.best import blank_card
from haltwise.training.choices import make_estimator
from haltwise.training.objective import MetaObjective
from haltwise.training.optimization import MetaAdam
from haltwise.training.phases import HaltingPhase, JointPhase, Phase, halting_of
from haltwise.training.recordings import Recordings
from haltwise.training.run.state import Counters, TrainingState
from haltwise.training.settings import TrainingSettings
from haltwise.training.sharding import differentiate_shards
from haltwise.training.sources import Source

__all__ = ["Learner"]

_SKIPPED = 20  # meta-steps in a row without a finite gradient are a divergence, too
_ROLLBACK_FACTOR = 0.3  # of the learning rate


@final
class Learner:
    """A new model and all that changes its weights.

    Args:
        settings: Settings of the run.
        source: Source of its trajectories.
        own: Classes of your own that the settings name.
        device: Where to compute.
        workers: The processes that share the run.

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
        card = blank_card(settings, source)
        self.model = build_model(card, stream(settings.seed, "weights"), own)
        self.model.to(device)
        self.halting = halting_of(self.model)
        self.parameters = dict(self.model.named_parameters())
        self.recordings = Recordings(settings, source, self.model)
        self.phases = self._make_phases(source, own)
        """In their order; the last may have no steps."""
        require(
            self.num_steps >= 1,
            f"there is nothing to train: rule {settings.rule.name} has no weights or no joint "
            f"meta-steps, and method {settings.method.name!r} no steps for a halter alone; train "
            "a halter with --preset act, or set --joint.num-steps",
        )
        self.step, self.counters = 0, Counters()
        self.begin_phase(self.phases[0])

    def _make_phases(self, source: Source, own: list[type]) -> list[Phase]:
        settings, device = self._settings, self._device
        objective = MetaObjective(
            self.halting,
            horizon=settings.horizon,
            price=settings.price,
            sum_weight=settings.joint.sum_weight,
        )
        estimator = make_estimator(settings.joint.estimator, own)
        phases: list[Phase] = []
        if self._rule_parameters() and settings.joint.num_steps:
            assert isinstance(self.model, OptimizerModel)
            bound = estimator.bind(self.model, settings.horizon)
            phases.append(JointPhase(settings, device, source, objective, bound))
        phases.append(HaltingPhase(settings, device, self.model, objective, self.recordings))
        return phases

    def _rule_parameters(self) -> list[nn.Parameter]:
        return self.model.rule_parameters() if isinstance(self.model, OptimizerModel) else []

    @property
    def num_steps(self) -> int:
        """Meta-steps of the whole run: those of rule and halter together, then of the halter."""
        return sum(phase.num_steps for phase in self.phases)

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
        for weight in self._rule_parameters():
            weight.requires_grad_(phase.name == "joint")
        halter = self.halting.halter
        parts = [self._rule_parameters(), [] if halter is None else list(halter.parameters())]
        self.adam = MetaAdam(
            self._settings.adam,
            [[weight for weight in part if weight.requires_grad] for part in parts],
            [value for value in self.parameters.values() if value.requires_grad],
        )

    def meta_step(self, *, interrupt: bool) -> tuple[float, bool]:
        """Take one step on the gradients of all virtual shards.

        Args:
            interrupt: Whether this worker is to end the run.

        Returns:
            The loss before the step per problem, NaN where the gradient is not finite and no step
            was taken, and whether any worker is to end the run.
        """
        phase, counters = self.phase, self.counters
        found = differentiate_shards(
            phase,
            self.num_done,
            self.adam.learning,
            self._workers,
            self._settings.run.num_shards,
            interrupt=interrupt,
        )
        before = counters.left_out.get(phase.left_out_name, 0) if phase.counts_anew else 0
        counters.left_out[phase.left_out_name] = before + found.num_left_out
        is_finite = self.adam.step(found.loss, self.num_done, phase.num_steps, self.learning_rate)
        self.step += 1
        if is_finite:
            counters.skipped_in_a_row = 0
            return found.loss, found.interrupted
        counters.num_skipped += 1
        counters.skipped_in_a_row += 1
        return math.nan, found.interrupted

    def roll_back(self, state: TrainingState) -> None:
        """Return to a state of this phase, to go on with a lower learning rate."""
        self.take_up(state)
        self.counters.num_rollbacks += 1
        self.counters.skipped_in_a_row = 0

    def take_up(self, state: TrainingState) -> None:
        """Go on from a state of the present phase."""
        self.step = state.step
        state.put(self.parameters, self.adam)

    def snapshot(self, *, diverged: bool, metrics: dict[str, float]) -> TrainingState:
        """Copy the present state, with what the last validation found."""
        return TrainingState.take(
            self.step,
            self.phase.name,
            diverged=diverged,
            metrics=metrics,
            parameters=self.parameters,
            adam=self.adam,
        )

    def agree(self, *judged: float) -> list[float]:
        """Follow the first worker in its judgement, weights and moments.

        Replicas are equal to the bit on machines of one type, and kept together on others.
        """
        numbers = torch.tensor(judged, dtype=torch.float64, device=self._device)
        moments: list[Tensor] = [
            value
            for state in self.adam.state.values()
            for key, value in state.items()
            if key != "step"
        ]
        weights = [weight.data for weight in self.parameters.values()]
        self._workers.follow_first(numbers, *weights, *moments)
        return numbers.tolist()
