"""Training, resumable at every validation.

First update rule and halter together: unroll, score, backpropagate, step. Then the halter by
itself, on recorded trajectories of the final rule, which costs no gradients of the optimizee. A
hand-designed rule has nothing to learn, so its halter goes straight to the second phase.

Every random stream is a function of the seed, the step and the virtual shard, and the gradients of
the shards are summed in their order: neither interruptions nor the number of workers change a bit.
"""

import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise._core.tensors import nested_state, require_like, sub_state
from haltwise._core.workers import Workers
from haltwise.models.card import Card
from haltwise.models.files import Model
from haltwise.training.best import UNRANKED, Best, trained_card
from haltwise.training.choices import own_classes
from haltwise.training.learner import Counters, Learner, TrainingState
from haltwise.training.run.directory import Checkpoint, RunDirectory, refuse_drift
from haltwise.training.run.log import RunLog
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import source_of
from haltwise.training.transfer import begin_from
from haltwise.training.validation import calibrate_policies, validate

__all__ = ["Progress", "Trainer"]


@final
@dataclass(frozen=True)
class Progress:
    """The progress of a run after a meta-step."""

    step: int
    """Meta-steps done."""
    loss: float
    """The objective on the last batch, per problem."""
    price_adjusted_loss: float
    """J = excess loss at the stop + price * steps on the validation problems at the default price,
    of the last validation; NaN where no halting is learned."""
    mean_halting_step: float
    """Mean charged steps of the same stops."""
    mean_loss: float
    """Mean excess loss over steps 1..T on the validation problems."""
    num_nonfinite: int
    """Problems left out so far because their loss or gradient was not finite."""
    num_skipped: int
    """Meta-steps without an update, for the meta-gradient was not finite."""
    num_rollbacks: int
    """Returns to the last good state in this phase, since training had diverged."""


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
        InputError: A setting is impossible, or the directory holds a run already or cannot be
            written.
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
        RunDirectory.require_free(directory)
        self._workers.wait()  # until all have looked
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
        """Take up the run in `directory` at its last checkpoint.

        If `settings` are given, the run must have the same. For the other arguments see the class.

        Warns:
            CheckpointWarning: The newest checkpoint is corrupt and the one before was taken.

        Raises:
            InputError: There is no run, its files are corrupt, it is of other settings, or another
                process trains it.
        """
        document = RunDirectory.read(directory)
        try:
            require("settings" in document, "it holds no settings")
            written = TrainingSettings.from_json(document["settings"])
        except (InputError, AttributeError) as error:
            raise InputError(f"the config.json of {directory} is damaged: {error}") from None
        if settings is not None:
            refuse_drift(directory, written.to_json(), settings.to_json())
        trainer = cls.__new__(cls)
        trainer._set_up(written, directory, device, workers, data_dir)
        trainer._command = str(document.get("command", ""))
        first = trainer._workers.is_first
        newest = None
        if first:
            trainer._files.lock()
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
                directory, tensorboard=tensorboard, keep=num_records, step=trainer.step
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
        self._files = RunDirectory(directory, settings.run.num_checkpoints)
        self.source = source_of(settings, device, data_dir)
        self._own = own_classes(settings)
        self._learner = Learner(settings, self.source, self._own, device, self._workers)
        generator = stream(settings.seed, "validation")
        self._validation = self.source.sample(settings.validation.num_problems, generator)
        self._diverged = False
        self._metrics: dict[str, float] = {}
        self._halting_steps: Tensor | None = None
        self._best: Best | None = None
        self._best_rank = UNRANKED  # problems that failed, then the score itself
        self._is_exported = True
        self._interrupt, self.interrupted = False, False

    def _begin(self) -> None:
        """Copy trained parts, if that is wanted, and measure what there is to begin with."""
        begin_from(self.model, self.settings.rule_from, self.settings.halter_from, self._own)
        self._validate()
        if self._learner.phase.name == "halting":  # an untrained halter is no contender
            self._best_rank = UNRANKED
        self._good = self._snapshot()

    # ---------------------------------------------------------------------------------- progress

    @property
    def model(self) -> Model:
        """The model as trained so far."""
        return self._learner.model

    @property
    def step(self) -> int:
        """Meta-steps done."""
        return self._learner.step

    @property
    def num_steps(self) -> int:
        """Meta-steps of the whole run: those of rule and halter together, then of the halter."""
        return self._learner.num_steps

    @property
    def num_nonfinite(self) -> int:
        """Problems left out so far because their loss or gradient was not finite."""
        return sum(self._learner.counters.left_out.values())

    @property
    def num_skipped(self) -> int:
        """Meta-steps without an update so far, for the meta-gradient was not finite."""
        return self._learner.counters.num_skipped

    def interrupt(self) -> None:
        """End `run` after the meta-step it is in, with a checkpoint, at every worker."""
        self._interrupt = True

    # -------------------------------------------------------------------------------------- loop

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every meta-step.

        Raises:
            InputError: Training diverges again and again, or nothing can be written.
        """
        if self._workers.is_first:
            self._files.lock()
        try:
            yield from self._run()
        finally:
            self._files.unlock()

    def _run(self) -> Iterator[Progress]:
        learner, started = self._learner, time.perf_counter()
        while self.step < self.num_steps and not self.interrupted:
            if learner.phase is not learner.phases[-1] and self._phase_ends():
                self._begin_next_phase()
            loss, self.interrupted = learner.meta_step(interrupt=self._interrupt)
            if self._phase_ends() or self.step % self.settings.validation.every == 0:
                now = time.perf_counter()
                learner.counters.seconds += now - started
                started = now
                self._validate()
                if self._diverged and not self._good.diverged:
                    self._roll_back()
                else:
                    self._keep(loss)
                self.save()
            yield self._progress(loss)
        if self.interrupted:
            self.save()
        else:
            self._calibrate()
        if self._workers.is_first:
            self._log.close()

    def _progress(self, loss: float) -> Progress:
        return Progress(
            self.step,
            loss,
            self._metrics["price_adjusted_loss"],
            self._metrics["mean_halting_step"],
            self._metrics["mean_loss"],
            self.num_nonfinite,
            self.num_skipped,
            self._learner.counters.num_rollbacks,
        )

    def _phase_ends(self) -> bool:
        return self._learner.num_done == self._learner.phase.num_steps

    def _begin_next_phase(self) -> None:
        """Freeze the best rule for the next phase, which is scored apart."""
        learner = self._learner
        if self._best is None:
            self.source.require_finite(0, self.settings.validation.num_problems)
        assert self._best is not None
        self.model.load_state_dict(self._best.weights)
        self._best_rank = UNRANKED
        learner.begin_phase(learner.phases[learner.phases.index(learner.phase) + 1])
        self._good = self._snapshot()

    def _keep(self, loss: float) -> None:
        """Take the state as the last good one, and log it."""
        self._good = self._snapshot()
        self._write_log({"step": self.step, "loss": loss, **self._metrics})
        if self._workers.is_first and self._halting_steps is not None:
            self._log.write_histogram("halting_step", self._halting_steps, self.step)

    def _roll_back(self) -> None:
        """Return to the last good state, to go on with a lower learning rate."""
        learner, diverged_at = self._learner, self.step
        num_rollbacks = learner.counters.num_rollbacks
        require(
            num_rollbacks < self.settings.run.max_rollbacks,
            f"meta-training diverged at step {diverged_at}, now with learning rate "
            f"{learner.learning_rate:g} after {num_rollbacks} rollbacks; the best weights so far "
            f"are kept in {self.directory}; begin again with a lower --adam.learning-rate or "
            "--horizon",
        )
        learner.roll_back(self._good)
        self._diverged, self._metrics = self._good.diverged, self._good.metrics
        self._write_log(
            {
                "step": diverged_at,
                "event": "rollback",
                "to_step": self._good.step,
                "learning_rate": learner.learning_rate,
            }
        )

    def _write_log(self, entry: dict[str, Any]) -> None:
        if self._workers.is_first:
            self._log.write(entry)

    # -------------------------------------------------------------------- validation, calibration

    def _validate(self) -> None:
        """Measure the validation problems and keep the weights if they are the best so far."""
        settings, learner = self.settings, self._learner
        joint, warmup = learner.phase.name == "joint", settings.joint.warmup
        found = validate(
            settings,
            self.model,
            self.source,
            self._validation if joint else None,
            judges_halting=not joint or warmup < 1,
        )
        learner.counters.left_out["validation"] = found.num_left_out
        self._metrics = {
            **found.metrics,
            "nonfinite_problems": float(self.num_nonfinite),
            "skipped_steps": float(self.num_skipped),
        }
        self._halting_steps = found.halting_steps
        score, diverged = learner.agree(found.score, learner.is_diverging or found.diverged)
        self._diverged = bool(diverged)
        rank = (found.num_left_out, score)
        warming = joint and self.step < warmup * learner.phase.num_steps
        counts = math.isfinite(score) and (warmup == 1 or not warming)
        if counts and not self._diverged and rank < self._best_rank:
            self._best_rank, self._is_exported = rank, False
            card = trained_card(
                self.model,
                settings,
                command=self._command,
                meta_step=self.step,
                seconds=learner.counters.seconds,
                metrics=self._metrics,
            )
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self._best = Best(weights, card)

    def _calibrate(self) -> None:
        """Calibrate the stop policies for the best weights and store them on their card."""
        if self._best is None:
            return
        weights, card = self._best
        if card.policies:  # nothing was left open, or the run had ended already
            return
        self.model.load_state_dict(weights)
        policies = calibrate_policies(self.settings, self.model, self.source)
        num_left_out = self.source.num_left_out[("calibration",)]
        self._learner.counters.left_out["calibration"] = num_left_out
        self._best, self._is_exported = Best(weights, replace(card, policies=policies)), False
        self.save()

    # ------------------------------------------------------------------------------- persistence

    def _snapshot(self) -> TrainingState:
        return self._learner.snapshot(diverged=self._diverged, metrics=self._metrics)

    def save(self) -> None:
        """Write the checkpoint that `resume` reads, and the best weights for use.

        Raises:
            InputError: The directory cannot be written; the checkpoint before is still good.
        """
        if not self._workers.is_first:
            return
        good = self._good.step == self.step
        now = self._good if good else self._snapshot()
        tensors = nested_state(now.tensors, "now.")
        metadata: dict[str, Any] = {
            **self._identity(),
            "command": self._command,
            "now": now.to_json(),
            "counters": asdict(self._learner.counters),
            "num_records": self._log.num_records,
            "best_rank": None if self._best_rank == UNRANKED else self._best_rank,
        }
        if not good:
            tensors |= nested_state(self._good.tensors, "good.")
            metadata["good"] = self._good.to_json()
        if self._best is not None:
            tensors |= nested_state(self._best.weights, "best.")
            metadata["best"] = self._best.card.to_json()
        self._files.save(self.step, (tensors, metadata))
        self._export()

    def _export(self) -> None:
        if self._best is not None and not self._is_exported:
            self._files.export(*self._best)
            self._is_exported = True

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to, as JSON values."""
        return {"settings": self.settings.to_json(), **self.source.description}

    def _restore(self, checkpoint: Checkpoint) -> int:
        """Take up a checkpoint, which must fit; the number of records that the log had then."""
        tensors, metadata = checkpoint
        try:
            written = TrainingSettings.from_json(metadata["settings"]).to_json()
            described = {name: metadata[name] for name in self.source.description}
            refuse_drift(self.directory, {"settings": written, **described}, self._identity())
            self._command = metadata["command"]
            learner = self._learner
            names = {phase.name: phase for phase in learner.phases}
            learner.begin_phase(names[metadata["now"]["phase"]])
            states = {
                name: learner.stored(metadata[name], sub_state(tensors, f"{name}."))
                for name in ("now", "good")
                if name in metadata
            }
            now = states["now"]
            learner.take_up(now)
            learner.counters = Counters(**metadata["counters"])
            self._diverged, self._metrics = now.diverged, now.metrics
            self._good = states.get("good", now)
            if metadata["best_rank"] is not None:
                failed, score = metadata["best_rank"]
                self._best_rank = (failed, score)
            if "best" in metadata:
                best = sub_state(tensors, "best.")
                require_like(best, self.model.state_dict())
                self._best = Best(best, Card.from_json(metadata["best"], self._own))
                self._is_exported = self._files.holds(*self._best)
                if self._workers.is_first:
                    self._export()
            num_records: int = metadata["num_records"]
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"the checkpoint in {self.directory} does not belong to the run: {error!r}"
            ) from None
        return num_records
