"""Training, resumable at every validation.

First update rule and halter together: unroll, score, backpropagate, step. Then the halter by
itself, on recorded trajectories of the final rule, which costs no gradients of the optimizee. A
hand-designed rule has nothing to learn, so its halter goes straight to the second phase.

Every random stream is a function of the seed, the step and the virtual shard, and the gradients of
the shards are summed in their order: neither interruptions nor the number of workers change a bit.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from haltwise._core.errors import CheckpointWarning, InputError, require, warn
from haltwise._core.json import from_json, to_json
from haltwise._core.random import stream
from haltwise._core.tensors import nested_state, require_like, sub_state
from haltwise._core.version import __version__
from haltwise._core.workers import Workers
from haltwise.models.card import Card
from haltwise.models.first_rounds import FirstRounds
from haltwise.stop_rules import RETURNABLE, CostUnit, FixedBudget, StopPolicy
from haltwise.training.choices import own_classes, own_files
from haltwise.training.learner import Counters, Learner, TrainingState
from haltwise.training.run.directory import Checkpoint, RunDirectory, refuse_drift
from haltwise.training.run.log import RunLog
from haltwise.training.settings import TrainingSettings
from haltwise.training.sources import source_of
from haltwise.training.transfer import begin_from
from haltwise.training.validation import DIVERGED, calibrate_policies, measure_scales, validate

__all__ = ["Progress", "Trainer"]

_UNRANKED = (math.inf, math.inf)  # the rank that any weights beat


class _Best(NamedTuple):
    """The best weights so far and their card, without policies until these are calibrated."""

    weights: dict[str, Tensor]
    card: Card


@final
@dataclass(frozen=True)
class _Written:
    """What a checkpoint holds beside states and weights."""

    command: str
    counters: Counters
    num_records: int
    best_rank: tuple[int, float] | None


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
        data_dir: See `haltwise.tasks.family`.

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
            CheckpointWarning: The newest checkpoint is corrupt and the one before was taken, or a
                file of your own has changed since.

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
        files, first = trainer._files, trainer._workers.is_first
        newest = None
        if first:
            files.lock()
            files.clean()
            newest = files.newest()
        step = torch.tensor(-1 if newest is None else newest[0], device=device)
        trainer._workers.follow_first(step)
        keep = 0
        if step < 0:
            trainer._begin()
        else:
            checkpoint = files.load(int(step)) if newest is None else newest[1]
            keep = trainer._restore(int(step), checkpoint)
        if first:
            trainer._log = RunLog(directory, tensorboard=tensorboard, keep=keep, step=trainer.step)
        return trainer

    def _set_up(
        self,
        settings: TrainingSettings,
        directory: Path,
        device: torch.device | str,
        workers: Workers | None,
        data_dir: Path | str | None,
    ) -> None:
        self.settings, self.directory = settings, directory
        self._workers = workers or Workers()
        self._files = RunDirectory(directory, settings.run.num_checkpoints)
        self.source = source_of(settings, device, data_dir)
        self._own, self._own_files = own_classes(settings), own_files(settings)
        self._learner = Learner(settings, self.source, self._own, device, self._workers)
        self.model = self._learner.model
        """As trained so far."""
        self.num_steps = self._learner.num_steps
        """Meta-steps of the whole run: those of rule and halter together, then of the halter."""
        self._validation = self.source.sample_each(settings.validation.num_problems, "validation")
        self._diverged = False
        self._metrics: dict[str, float] = {}
        self._halting_steps: Tensor | None = None
        self._best: _Best | None = None
        self._best_rank: tuple[float, ...] = _UNRANKED  # problems that failed, then the score
        self._is_exported = True
        self._interrupt, self.interrupted = False, False

    def _begin(self) -> None:
        """Copy trained parts, if that is wanted, and measure what there is to begin with."""
        begin_from(self.model, self.settings.rule_from, self.settings.halter_from, self._own)
        self._validate()
        if self._learner.phase.name == "halting":  # an untrained halter is no contender
            self._best_rank = _UNRANKED
        self._good = self._snapshot()

    @property
    def step(self) -> int:
        """Meta-steps done."""
        return self._learner.step

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
                self._files.require_locked()
                if self._diverged and not self._good.diverged:
                    self._roll_back()
                else:
                    self._good = self._snapshot()
                    if self._workers.is_first:
                        entry = {"step": self.step, "loss": loss, **self._metrics}
                        self._log.write(entry, self._halting_steps)
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

    def _kept(self) -> _Best:
        """The best weights so far.

        Raises:
            InputError: No validation kept any.
        """
        if self._best is not None:
            return self._best
        if math.isnan(self._metrics["mean_loss"]):  # of no problem
            raise InputError(self.source.none_finite(self.settings.validation.num_problems))
        raise InputError(
            f"at every validation most problems of {self.settings.family.name} ended more than "
            f"{DIVERGED} times as far above their least loss as they had begun, so no weights are "
            "kept; train for more steps or with a lower --adam.learning-rate, and see that the "
            "problems do not begin at their minimum"
        )

    def _phase_ends(self) -> bool:
        return self._learner.num_done == self._learner.phase.num_steps

    def _begin_next_phase(self) -> None:
        """Freeze the best rule for the next phase, which is scored apart."""
        learner = self._learner
        self.model.load_state_dict(self._kept().weights)
        self._best_rank = _UNRANKED
        learner.begin_phase(learner.phases[-1])
        self._good = self._snapshot()

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
        if self._workers.is_first:
            entry = {"step": diverged_at, "event": "rollback", "to_step": self._good.step}
            self._log.write({**entry, "learning_rate": learner.learning_rate})

    def _validate(self) -> None:
        """Measure the validation problems and keep the weights if they are the best so far."""
        settings, learner = self.settings, self._learner
        joint, warmup = learner.phase.name == "joint", settings.joint.warmup
        found = validate(
            settings,
            self.model,
            self.source,
            self._validation if joint else [],
            judges_halting=not joint or warmup < 1,
        )
        diverging = learner.is_diverging or found.diverged
        left_out, score, diverged = learner.agree(found.num_left_out, found.score, diverging)
        learner.counters.left_out["validation"] = int(left_out)
        self._metrics = {
            **found.metrics,
            "nonfinite_problems": float(self.num_nonfinite),
            "skipped_steps": float(self.num_skipped),
        }
        self._halting_steps = found.halting_steps
        self._diverged = bool(diverged)
        rank = (int(left_out), score)
        warming = joint and self.step < warmup * learner.phase.num_steps
        counts = math.isfinite(score) and (warmup == 1 or not warming)
        if counts and not self._diverged and rank < self._best_rank:
            self._best_rank, self._is_exported = rank, False
            weights = {name: value.clone() for name, value in self.model.state_dict().items()}
            self._best = _Best(weights, self._card())

    def _card(self) -> Card:
        """Describe the weights as trained so far; policies that need calibration are left out."""
        settings, halting = self.settings, self._learner.halting
        policies: Mapping[CostUnit, StopPolicy] = {}
        if not halting.halts:
            budget = FixedBudget(settings.horizon)
            policies = {unit: StopPolicy(budget, RETURNABLE[unit][0]) for unit in CostUnit}
        elif not halting.method.needs_calibration:
            policies = {unit: halting.method.policy(unit) for unit in CostUnit}
        provenance = {
            "settings": settings.to_json(),
            "command": self._command,
            "meta_step": self.step,
            "seconds": round(self._learner.counters.seconds, 1),
            "metrics": to_json(self._metrics),
            "versions": {"haltwise": __version__, "torch": torch.__version__},
        }
        return replace(self.model.card, policies=policies, provenance=provenance)

    def _calibrate(self) -> None:
        """Store on the card of the best weights when they stop, and on what scales."""
        counters = self._learner.counters
        weights, card = self._kept()
        if "calibration" in counters.left_out:  # the run had ended already
            return
        self.model.load_state_dict(weights)
        halting, settings = self._learner.halting, self.settings
        recorded = self.source.take(self.model, settings.validation.num_calibration, "calibration")
        if not card.policies:  # where nothing was left open, there is a policy already
            found = calibrate_policies(card, halting, recorded)
            provenance = {**card.provenance, "calibration": found.to_json()}
            card = replace(card, policies=found.policies, provenance=provenance)
            if self._workers.is_first:
                self._log.write({"step": self.step, "event": "calibration", **found.to_json()})
        generator = stream(settings.seed, "scales")
        card = replace(card, scales=measure_scales(card, halting, recorded, generator))
        if card.scales is None:
            typical = self.source.typical(self.model, settings.validation.num_calibration)
            card = replace(card, first_rounds=FirstRounds.of(typical))
        counters.left_out["calibration"] = self.source.num_left_out[("calibration",)]
        self._best, self._is_exported = _Best(weights, card), False
        self.save()

    def _snapshot(self) -> TrainingState:
        return self._learner.snapshot(diverged=self._diverged, metrics=self._metrics)

    def save(self) -> None:
        """Write the checkpoint that `resume` reads, and the best weights for use.

        Raises:
            InputError: The directory cannot be written; the checkpoint before is still good.
        """
        if not self._workers.is_first:
            return
        states = {"now": self._good}
        if self._good.step != self.step:
            states = {"now": self._snapshot(), "good": self._good}
        tensors: dict[str, Tensor] = {}
        metadata: dict[str, Any] = {
            **self._identity(),
            "command": self._command,
            "own_files": self._own_files,
            **{name: state.to_json() for name, state in states.items()},
            "counters": asdict(self._learner.counters),
            "num_records": self._log.num_records,
            "best_rank": None if self._best_rank == _UNRANKED else self._best_rank,
        }
        for name, state in states.items():
            tensors |= nested_state(state.tensors, f"{name}.")
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

    def _warn_of_changes(self, before: Mapping[str, str]) -> None:
        """Say which files of your own are others than when the run was left."""
        for path, checksum in self._own_files.items() if self._workers.is_first else ():
            if before.get(path, checksum) != checksum:
                warn(
                    f"{path} has changed since the checkpoint, and the run goes on with what it "
                    "holds now; where it computes anything else, begin anew in another directory",
                    CheckpointWarning,
                )

    def _restore(self, step: int, checkpoint: Checkpoint) -> int:
        """Take up a checkpoint, which must fit; the number of records that the log had then."""
        tensors, metadata = checkpoint
        try:
            written = TrainingSettings.from_json(metadata["settings"]).to_json()
            described = {name: metadata[name] for name in self.source.description}
            refuse_drift(self.directory, {"settings": written, **described}, self._identity())
            self._warn_of_changes(metadata.get("own_files", {}))
            found = from_json(
                _Written, {item.name: metadata[item.name] for item in fields(_Written)}
            )
            learner, self._command = self._learner, found.command
            phases = {phase.name: phase for phase in learner.phases}
            learner.begin_phase(phases[metadata["now"]["phase"]])
            states = {
                name: learner.stored(metadata[name], sub_state(tensors, f"{name}."))
                for name in ("now", "good")
                if name in metadata
            }
            now = states["now"]
            learner.take_up(now)
            learner.counters = found.counters
            require(found.num_records >= 0, f"it counts {found.num_records} records")
            require(
                now.step == step and 0 <= learner.num_done <= learner.phase.num_steps,
                f"the checkpoint of step {step} says that it is of {now.step}",
            )
            self._diverged, self._metrics = now.diverged, now.metrics
            self._progress(math.nan)  # what it needs is there
            self._good = states.get("good", now)
            self._best_rank = found.best_rank or _UNRANKED
            if "best" in metadata:
                best = sub_state(tensors, "best.")
                require_like(best, self.model.state_dict())
                self._best = _Best(best, Card.from_json(metadata["best"], self._own))
                self._is_exported = self._files.holds(*self._best)
                if self._workers.is_first:
                    self._export()
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"the checkpoint in {self.directory} does not belong to the run: {error!r}"
            ) from None
        return found.num_records
