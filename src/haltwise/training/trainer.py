"""Training, resumable at every validation.

First update rule and halter together: unroll, score, backpropagate, step. Then the halter by
itself, on recorded trajectories of the final rule, which costs no gradients of the optimizee. A
hand-designed rule has nothing to learn, so its halter goes straight to the second phase.

Every random stream is a function of the seed, the step and the virtual shard, and the gradients of
the shards are summed in their order: neither interruptions nor the number of workers change a bit.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.nested_settings import Choice
from haltwise._core.random import stream
from haltwise._core.tensors import nested_state, require_like, sub_state
from haltwise._core.version import __version__
from haltwise._core.workers import Workers
from haltwise.models.card import Card
from haltwise.models.files import build_model
from haltwise.models.loading import load, load_halting
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.stop_rules import RETURNABLE, CostUnit, FixedBudget, StopPolicy
from haltwise.training.gradients import estimators
from haltwise.training.objective import MetaObjective
from haltwise.training.optimization import MetaAdam
from haltwise.training.own import make_own, own_classes
from haltwise.training.phases import HaltingPhase, JointPhase, Phase, halting_of
from haltwise.training.recordings import Recordings
from haltwise.training.run.directory import Checkpoint, RunDirectory, differences
from haltwise.training.run.log import RunLog
from haltwise.training.run.state import TrainingState, finite_only
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import Report, source_of
from haltwise.training.validation import calibrate_policies, validate

__all__ = ["Progress", "Trainer"]

_SKIPPED = 20  # meta-steps in a row without a finite gradient are a divergence, too
_ROLLBACK_FACTOR = 0.3  # of the learning rate

Best = tuple[dict[str, Tensor], Card]
"""The best weights so far and their card."""


@final
@dataclass(frozen=True)
class Progress:
    """Where a run stands after a meta-step.

    Attributes:
        step: Meta-steps done.
        loss: The objective on the last batch, per problem.
        price_adjusted_loss: J = excess loss at the stop + price * steps on the validation
            problems at the default price, of the last validation; NaN where no halting is learned.
        mean_halting_step: On the same problems.
        mean_loss: Mean excess loss over steps 1..T on the validation problems.
        num_nonfinite: Problems left out so far because their loss or gradient was not finite.
        num_skipped: Meta-steps without an update, for the meta-gradient was not finite.
        num_rollbacks: Returns to the last good state in this phase, since training had diverged.
    """

    step: int
    loss: float
    price_adjusted_loss: float
    mean_halting_step: float
    mean_loss: float
    num_nonfinite: int
    num_skipped: int
    num_rollbacks: int


@final
class Trainer:
    """One training run and its directory.

    `run()` yields progress after every meta-step and may be left at any time; what was done up to
    the last checkpoint is kept, and `Trainer.resume` goes on from there to the same weights that
    an uninterrupted run reaches.

    Args:
        settings: What to train.
        directory: Created if missing.
        device: Where to compute.
        tensorboard: Whether to write TensorBoard event files.
        command: What started the run, for the card.
        workers: The processes that share the run; they need one file system.
        data_dir: Directory of the family's data files, see `haltwise.tasks.family`.

    Raises:
        InputError: The family is unknown, or the directory holds a run already or is not writable.
    """

    def __init__(
        self,
        settings: TrainingSettings,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        tensorboard: bool = False,
        command: str = "",
        workers: Workers | None = None,
        data_dir: Path | str | None = None,
    ) -> None:
        self._set_up(settings, directory, device, workers, data_dir)
        held = RunDirectory.holds_run(directory)
        self._workers.wait()  # until all have looked
        require(not held, f"{directory} holds a run already; resume it or choose another directory")
        self._command = command
        self._begin()
        if self._workers.is_first:
            self._files.create({"settings": settings.to_json(), "command": command})
            self._log = RunLog(directory, tensorboard=tensorboard)

    @classmethod
    def resume(
        cls,
        directory: Path,
        *,
        settings: TrainingSettings | None = None,
        device: torch.device | str = "cpu",
        tensorboard: bool = False,
        workers: Workers | None = None,
        data_dir: Path | str | None = None,
    ) -> Self:
        """The run in `directory`, at its last checkpoint.

        Args:
            directory: Of the run.
            settings: If given, what the run must be of.
            device: Where to compute.
            tensorboard: Whether to write TensorBoard event files.
            workers: The processes that share the run.
            data_dir: Directory of the family's data files.

        Warns:
            CheckpointWarning: The newest checkpoint is corrupt and the one before was taken.

        Raises:
            InputError: There is no run, its files are corrupt, or it is of other settings.
        """
        document = RunDirectory.read(directory)
        try:
            written = TrainingSettings.from_json(document.get("settings", {}))
        except InputError as error:
            raise InputError(f"the config.json of {directory} is damaged: {error}") from None
        if settings is not None:
            _refuse_drift(directory, written.to_json(), settings.to_json())
        trainer = cls.__new__(cls)
        trainer._set_up(written, directory, device, workers, data_dir)
        trainer._command = str(document.get("command", ""))
        first = trainer._workers.is_first
        newest = None
        if first:
            trainer._files.clean()
            newest = trainer._files.newest()
        step = torch.tensor(-1 if newest is None else newest[0], device=device)
        trainer._workers.follow_first(step)
        if not first and step >= 0:
            newest = trainer._files.load(int(step))
        num_records = 0
        if newest is None:
            trainer._begin()
        else:
            num_records = trainer._restore(newest[1])
        if first:
            trainer._log = RunLog(
                directory, tensorboard=tensorboard, keep=num_records, step=trainer._step
            )
        return trainer

    def _set_up(
        self,
        settings: TrainingSettings,
        directory: Path,
        device: torch.device | str,
        workers: Workers | None,
        data_dir: Path | str | None,
    ) -> None:
        self.settings, self.directory, self._device = settings, directory, device
        self._workers = workers or Workers()
        self._shards = self._workers.shards(settings.run.num_shards)
        self._files = RunDirectory(directory, settings.run.num_checkpoints)
        self.source = source_of(settings, device, data_dir)
        self._own = own_classes(settings)
        self.model = build_model(self._blank_card(), stream(settings.seed, "weights"), self._own)
        self.model.to(device)
        self._halting = halting_of(self.model)
        self._parameters = dict(self.model.named_parameters())
        self._recordings = Recordings(settings, self.source, self.model)
        self._phases = self._make_phases()
        require(
            self.num_steps >= 1,
            f"there is nothing to train: rule {settings.rule.name} has no weights or no joint "
            f"meta-steps, and method {settings.method.name!r} no steps for a halter alone; train "
            "a halter with --preset act, or set --joint.num-steps",
        )
        generator = stream(settings.seed, "validation")
        self._validation = self.source.sample(settings.validation.num_problems, generator)
        self._step, self._seconds = 0, 0.0
        self._left_out: dict[str, int] = {}  # problems that were not finite, by stream
        self._num_skipped, self._skipped_in_a_row = 0, 0
        self._diverged = False
        self._metrics: dict[str, float] = {}
        self._halting_steps: Tensor | None = None
        self._best: Best | None = None
        self._best_score = (math.inf, math.inf)  # problems that failed, then the score itself
        self._is_exported = True
        self._interrupt, self.interrupted = False, False
        self._begin_phase(self._phases[0])

    def _make_phases(self) -> list[Phase]:
        """The phases in order; the first may have no steps."""
        settings, device = self.settings, self._device
        objective = MetaObjective(
            self._halting,
            horizon=settings.horizon,
            price=settings.price,
            sum_weight=settings.joint.sum_weight,
        )
        phases: list[Phase] = []
        if self._rule_parameters() and settings.joint.num_steps:
            assert isinstance(self.model, OptimizerModel)
            choice = settings.joint.estimator
            estimator = make_own(estimators(), choice, "gradient estimator", self._own)
            bound = estimator.bind(self.model, settings.horizon)
            phases.append(JointPhase(settings, device, self.source, objective, bound))
        phases.append(HaltingPhase(settings, device, self.model, objective, self._recordings))
        return phases

    def _rule_parameters(self) -> list[torch.nn.Parameter]:
        return self.model.rule_parameters() if isinstance(self.model, OptimizerModel) else []

    def _begin(self) -> None:
        """Take over trained parts, if that is wanted, and measure what there is to begin with."""
        if self.settings.rule_from is not None:
            assert isinstance(self.model, OptimizerModel)
            _take_over(self.settings.rule_from, "rule", load, self.model.rule)
        if self.settings.halter_from is not None:
            _take_over(self.settings.halter_from, "halter", load_halting, self._halting.halter)
        self._validate()
        if self._phase.name == "halting":  # an untrained halter is no contender
            self._best_score = (math.inf, math.inf)
        self._good = self._snapshot()

    def _begin_phase(self, phase: Phase) -> None:
        """Let those parameters learn that the phase trains."""
        self._phase, self._num_rollbacks = phase, 0
        for weight in self._rule_parameters():
            weight.requires_grad_(phase.name == "joint")
        halter = self._halting.halter
        self._adam = MetaAdam(
            self.settings.adam,
            [self._rule_parameters(), [] if halter is None else list(halter.parameters())],
            [value for value in self._parameters.values() if value.requires_grad],
        )

    # ---------------------------------------------------------------------------------- progress

    @property
    def step(self) -> int:
        """Meta-steps done."""
        return self._step

    @property
    def num_steps(self) -> int:
        """Meta-steps of the whole run: those of rule and halter together, then of the halter."""
        return sum(phase.num_steps for phase in self._phases)

    @property
    def num_nonfinite(self) -> int:
        """Problems left out so far because their loss or gradient was not finite."""
        return sum(self._left_out.values())

    @property
    def num_skipped(self) -> int:
        """Meta-steps without an update so far, for the meta-gradient was not finite."""
        return self._num_skipped

    def report_recording(self, report: Report) -> None:
        """Have the progress of recordings, which may take long, reported to a function."""
        self._recordings.report = report

    def interrupt(self) -> None:
        """Have `run` end after the meta-step it is in, with a checkpoint, at every worker."""
        self._interrupt = True

    # -------------------------------------------------------------------------------------- loop

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every meta-step.

        Raises:
            InputError: Training diverges again and again, or nothing can be written.
        """
        started = time.perf_counter()
        while self._step < self.num_steps and not self.interrupted:
            if self._phase is not self._phases[-1] and self._done >= self._phase.num_steps:
                self._go_on()
            loss = self._meta_step()
            self._step += 1
            ends = self._done == self._phase.num_steps
            if ends or self._step % self.settings.validation.every == 0:
                now = time.perf_counter()
                self._seconds, started = self._seconds + now - started, now
                self._validate()
                if self._diverged and not self._good.diverged:
                    self._roll_back()
                else:
                    self._good = self._snapshot()
                    self._write_log({"step": self._step, "loss": loss, **self._metrics})
                    if self._workers.is_first and self._halting_steps is not None:
                        self._log.write_histogram("halting_step", self._halting_steps, self._step)
                self.save()
            yield Progress(
                self._step,
                loss,
                self._metrics["price_adjusted_loss"],
                self._metrics["mean_halting_step"],
                self._metrics["mean_loss"],
                self.num_nonfinite,
                self._num_skipped,
                self._num_rollbacks,
            )
        if self.interrupted:
            self.save()
        else:
            self._calibrate()
        if self._workers.is_first:
            self._log.close()

    @property
    def _done(self) -> int:
        """Steps of the present phase that are done."""
        before = self._phases[: self._phases.index(self._phase)]
        return self._step - sum(phase.num_steps for phase in before)

    def _go_on(self) -> None:
        """Freeze the best rule for the next phase, which is scored apart."""
        if self._best is None:
            raise InputError(self._recordings.none_finite(self.settings.validation.num_problems))
        self.model.load_state_dict(self._best[0])
        self._best_score = (math.inf, math.inf)
        self._begin_phase(self._phases[self._phases.index(self._phase) + 1])
        self._skipped_in_a_row = 0
        self._good = self._snapshot()

    def _roll_back(self) -> None:
        """Return to the last good state, to go on with a lower learning rate.

        Raises:
            InputError: That has been tried as often as it may.
        """
        tried = self.settings.adam.learning_rate * _ROLLBACK_FACTOR**self._num_rollbacks
        require(
            self._num_rollbacks < self.settings.run.max_rollbacks,
            f"meta-training diverged at step {self._step}, now with learning rate {tried:g} after "
            f"{self._num_rollbacks} rollbacks; the best weights so far are kept in "
            f"{self.directory}; begin again with a lower --adam.learning-rate or --horizon",
        )
        self._num_rollbacks += 1
        self._write_log(
            {
                "step": self._step,
                "event": "rollback",
                "to_step": self._good.step,
                "learning_rate": tried * _ROLLBACK_FACTOR,
            }
        )
        self._take_up(self._good)
        self._skipped_in_a_row = 0

    def _write_log(self, entry: dict[str, Any]) -> None:
        if self._workers.is_first:
            self._log.write(entry)

    def _meta_step(self) -> float:
        """One step on the gradients of all virtual shards; the loss before it, per problem."""
        phase, learning = self._phase, self._adam.learning
        sizes = [weight.numel() for weight in learning]
        # A row a shard: gradients, whether each weight has one, and four numbers.
        num_shards = self.settings.run.num_shards
        rows = torch.zeros(num_shards, sum(sizes) + len(sizes) + 4, device=self._device)
        for shard in self._shards:
            self._adam.zero_grad()
            result = phase.differentiate(shard, self._done)
            gradients = [weight.grad for weight in learning]
            rows[shard] = torch.cat(
                [
                    *(
                        weight.new_zeros(weight.numel()) if gradient is None else gradient.flatten()
                        for weight, gradient in zip(learning, gradients, strict=True)
                    ),
                    rows.new_tensor([gradient is not None for gradient in gradients]),
                    result.loss.reshape(1),
                    rows.new_tensor([result.num_used, result.num_left_out, self._interrupt]),
                ]
            )
        self._workers.sum(rows)
        total = torch.zeros_like(rows[0])
        for row in rows:  # one order of summation, whoever filled the rows
            total = total + row
        *present, loss, used, left_out, interrupts = total[sum(sizes) :].tolist()
        self.interrupted = interrupts > 0
        counted = self._left_out.get(phase.left_out_name, 0) if phase.counts_anew else 0
        self._left_out[phase.left_out_name] = counted + int(left_out)
        if used < phase.batch_size:
            total = total * (phase.batch_size / max(used, 1))
            loss *= phase.batch_size / used if used else math.nan
        for weight, gradient, there in zip(
            learning, total[: sum(sizes)].split(sizes), present, strict=True
        ):
            weight.grad = gradient.view_as(weight) if there else None
        factor = _ROLLBACK_FACTOR**self._num_rollbacks
        if self._adam.step(loss, self._done, phase.num_steps, factor):
            self._skipped_in_a_row = 0
            return float(loss)
        self._num_skipped += 1
        self._skipped_in_a_row += 1
        return math.nan

    # -------------------------------------------------------------------- validation, calibration

    def _validate(self) -> None:
        """Measure the validation problems and keep the weights if they are the best so far."""
        settings, joint = self.settings, self._phase.name == "joint"
        diverged = self._skipped_in_a_row >= _SKIPPED or not all(
            bool(weight.isfinite().all()) for weight in self._parameters.values()
        )
        found = validate(
            settings,
            self.model,
            self._recordings,
            self._validation if joint else None,
            self.source.unit,
            judges_halting=not joint or settings.joint.warmup < 1,
        )
        num_left_out = found.num_left_out
        if num_left_out is None:
            num_left_out = self._recordings.num_left_out[("validation",)]
        self._left_out["validation"] = num_left_out
        self._metrics = {
            **found.metrics,
            "nonfinite_problems": float(self.num_nonfinite),
            "skipped_steps": float(self._num_skipped),
        }
        self._halting_steps = found.halting_steps
        judged = torch.tensor(
            [found.score, diverged or found.diverged], dtype=torch.float64, device=self._device
        )
        moments = [
            value
            for state in self._adam.state.values()
            for key, value in state.items()
            if key != "step"
        ]
        # Replicas are equal to the bit on machines of one type, and kept together on others.
        self._workers.follow_first(
            judged, *(weight.data for weight in self._parameters.values()), *moments
        )
        score, self._diverged = judged[0].item(), bool(judged[1])
        ranked = (self._left_out["validation"], score)
        warmup = settings.joint.warmup
        warming = joint and self._step < warmup * self._phase.num_steps
        counts = math.isfinite(score) and (warmup == 1 or not warming)
        if counts and not self._diverged and ranked < self._best_score:
            self._best_score, self._is_exported = ranked, False
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self._best = weights, self._card()

    def _calibrate(self) -> None:
        """Calibrate the stop policies for the best weights and store them on their card."""
        if self._best is None:
            return
        weights, card = self._best
        if card.policies:  # nothing was left open, or the run had ended already
            return
        self.model.load_state_dict(weights)
        policies = calibrate_policies(self.settings, self.model, self._recordings)
        recorded = {
            name[0]: num for name, num in self._recordings.num_left_out.items() if len(name) == 1
        }
        self._left_out["calibration"] = recorded.get("calibration", 0)
        self._best, self._is_exported = (weights, replace(card, policies=policies)), False
        self.save()

    def _blank_card(self) -> Card:
        """What the model is made of and trained for."""
        settings = self.settings
        rule = None if settings.rule.name == "none" else settings.rule
        return Card(
            method=settings.method,
            price=settings.price,
            horizon=settings.horizon,
            rule=rule,
            halter=settings.halter,
            price_range=settings.price_range,
            unit=self.source.unit,
            observed=self.source.observed,
            keeps_best=settings.keeps_best,
            family=None
            if settings.runs is not None
            else Choice(settings.family.name, self.source.description["family_settings"]),
        )

    def _card(self) -> Card:
        """The card of the weights as they are, before calibration."""
        settings = self.settings
        policies: Mapping[CostUnit, StopPolicy] = {}
        if not self._halting.halts:
            budget = FixedBudget(settings.horizon)
            policies = {unit: StopPolicy(budget, RETURNABLE[unit][0]) for unit in CostUnit}
        elif not self._halting.method.needs_calibration:
            policies = {unit: self._halting.method.policy(unit) for unit in CostUnit}
        return replace(
            self.model.card,
            policies=policies,
            provenance={
                "settings": settings.to_json(),
                "command": self._command,
                "meta_step": self._step,
                "seconds": round(self._seconds, 1),
                "metrics": finite_only(self._metrics),
                "versions": {"haltwise": __version__, "torch": torch.__version__},
            },
        )

    # ------------------------------------------------------------------------------- persistence

    def _snapshot(self) -> TrainingState:
        return TrainingState.take(
            self._step,
            self._phase.name,
            diverged=self._diverged,
            metrics=self._metrics,
            parameters=self._parameters,
            adam=self._adam,
        )

    def _take_up(self, state: TrainingState) -> None:
        """Go on from there; the phase is begun already."""
        self._step, self._diverged, self._metrics = state.step, state.diverged, state.metrics
        state.put(self._parameters, self._adam)

    def save(self) -> None:
        """Write the checkpoint that `resume` reads, and the best weights for use.

        Raises:
            InputError: The directory cannot be written; the checkpoint before is still good.
        """
        if not self._workers.is_first:
            return
        good = self._good.step == self._step
        now = self._good if good else self._snapshot()
        tensors = nested_state(now.tensors, "now.")
        metadata: dict[str, Any] = {
            **self._identity(),
            "command": self._command,
            "now": now.to_json(),
            "left_out": self._left_out,
            "skipped": [self._num_skipped, self._skipped_in_a_row],
            "num_rollbacks": self._num_rollbacks,
            "seconds": self._seconds,
            "num_records": self._log.num_records,
            "best_score": None if math.isinf(self._best_score[1]) else self._best_score,
        }
        if not good:
            tensors |= nested_state(self._good.tensors, "good.")
            metadata["good"] = self._good.to_json()
        if self._best is not None:
            tensors |= nested_state(self._best[0], "best.")
            metadata["best"] = self._best[1].to_json()
        self._files.save(self._step, (tensors, metadata))
        self._export()

    def _export(self) -> None:
        if self._best is not None and not self._is_exported:
            self._files.export(*self._best)
            self._is_exported = True

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        document: dict[str, Any] = json.loads(
            json.dumps({"settings": self.settings.to_json(), **self.source.description})
        )
        return document

    def _restore(self, checkpoint: Checkpoint) -> int:
        """Take up a checkpoint; how many records the log had then.

        Raises:
            InputError: It is of other settings, or its tensors do not fit.
        """
        tensors, metadata = checkpoint
        try:
            written = TrainingSettings.from_json(metadata["settings"]).to_json()
            described = {name: metadata[name] for name in self.source.description}
            identity = {"settings": written, **described}
            _refuse_drift(self.directory, json.loads(json.dumps(identity)), self._identity())
            self._command = metadata["command"]
            names = {phase.name: phase for phase in self._phases}
            self._begin_phase(names[metadata["now"]["phase"]])
            states = {
                name: TrainingState.from_json(
                    metadata[name], sub_state(tensors, f"{name}."), self._parameters, self._device
                )
                for name in ("now", "good")
                if name in metadata
            }
            self._take_up(states["now"])
            self._good = states.get("good", states["now"])
            self._left_out = dict(metadata["left_out"])
            self._num_skipped, self._skipped_in_a_row = metadata["skipped"]
            self._num_rollbacks, self._seconds = metadata["num_rollbacks"], metadata["seconds"]
            if metadata["best_score"] is not None:
                failed, score = metadata["best_score"]
                self._best_score = (failed, score)
            if "best" in metadata:
                best = sub_state(tensors, "best.")
                require_like(best, self.model.state_dict())
                self._best = best, Card.from_json(metadata["best"], self._own)
                self._is_exported = self._files.holds(*self._best)
                if self._workers.is_first:
                    self._export()
            num_records: int = metadata["num_records"]
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"the checkpoint in {self.directory} does not belong to the run: {error!r}"
            ) from None
        return num_records


def _take_over(name: str, part: str, load: Any, own: Any) -> None:
    """Begin with the weights of the rule or halter of `name`."""
    source = load(name)
    trained = getattr(source, part)
    if isinstance(own, torch.nn.Module):
        weights = trained.state_dict()
        require(
            weights.keys() == own.state_dict().keys()
            and all(weights[key].shape == value.shape for key, value in own.state_dict().items()),
            f"the {part} of {name} has other settings than this run's; drop either",
        )
        own.load_state_dict(weights)


def _refuse_drift(directory: Path, written: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run under other settings than it began with."""
    found = differences(written, json.loads(json.dumps(now)))
    require(
        not found,
        f"{directory} holds a run of other settings ({'; '.join(found)}); go on with its own by "
        "--resume, or choose another directory",
    )
