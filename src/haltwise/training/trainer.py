"""Meta-training, resumable at every validation.

First rule and head together: unroll, score, backpropagate, step. Then the head by itself, on
recorded problems of the final rule, which costs no gradients of the optimizee. A hand-designed
rule has nothing to learn, so its head goes straight to the second.

Every random stream is a function of the seed, the step and the virtual shard, and the gradients of
the shards are summed in their order: neither interruptions nor the number of workers change a bit.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Self, final

import torch
from torch import Tensor

from haltwise.models import loading
from haltwise._core.errors import InputError, require
from haltwise._core.random import stream
from haltwise._core.tensors import nested_state, require_like, sub_state
from haltwise._core.version import __version__
from haltwise.rollout.cuda_graph import CapturedUnroll
from haltwise.stop_rules.accounts import RETURNABLE, CostUnit, ReturnedIterate, calibrate, costs, steps_charged, total_cost
from haltwise.halting.halter import AFTER, BEFORE, HaltingOutput
from haltwise.stop_rules import (
    HazardThreshold,
    PonderThreshold,
    PosteriorMode,
    StopRule,
    Traces,
    decisions,
)
from haltwise.models.optimizer_model import OptimizerModel
from haltwise.training.run.log import RunLog
from haltwise.training.config import PARTS, TrainingConfig
from haltwise.training.run.directory import Checkpoint, RunDirectory, differences
from haltwise.training.objective import MetaObjective
from haltwise.training.problems import Report, problems_of
from haltwise.rollout.record import Recording, Trajectory, backpropagate, record
from haltwise._core.workers import Workers

__all__ = ["Progress", "Trainer"]

_UNCALIBRATED: dict[str, StopRule] = {
    "softmax": PosteriorMode(BEFORE),
    "graves": PonderThreshold(output=BEFORE),
}
_DIVERGED = 100  # times what a problem starts from that it has got worse by
_SKIPPED = 20  # meta-steps in a row without a finite gradient are a divergence, too
_ROLLBACK_FACTOR = 0.3  # of the learning rate


class _State(NamedTuple):
    """What a meta-step begins from."""

    step: int
    alone: bool
    diverged: bool
    metrics: dict[str, float]
    tensors: dict[str, Tensor]
    """Copies of the weights and of Adam's moments."""


@final
@dataclass(frozen=True)
class Progress:
    """Where a run stands after a meta-step.

    Attributes:
        step: Meta-steps done.
        loss: The objective on the last batch, per problem.
        price_adjusted_loss: J = excess loss at the stop + price * steps on the validation
            problems at the default price, of the last validation; NaN where no head is trained.
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
    """One meta-training run and its directory.

    `run()` yields progress after every meta-step and may be left at any time; what was done up to
    the last checkpoint is kept, and `Trainer.resume` goes on from there to the same weights that
    an uninterrupted run reaches. Recording the problems that a head learns from may take long
    between two of these steps: `report_recording`, if set, is told how many are done.

    Args:
        config: What to train.
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
        config: TrainingConfig,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        tensorboard: bool = False,
        command: str = "",
        workers: Workers | None = None,
        data_dir: Path | str | None = None,
    ) -> None:
        self._setup(config, directory, device, workers, data_dir)
        held = RunDirectory.holds_run(directory)
        self._workers.wait()  # until all have looked
        require(not held, f"{directory} holds a run already; resume it or choose another directory")
        self._command = command
        self._begin()
        if self._workers.is_first:
            self._files.create({"config": config.to_json(), "command": command})
            self._log = RunLog(directory, tensorboard=tensorboard)

    @classmethod
    def resume(
        cls,
        directory: Path,
        *,
        config: TrainingConfig | None = None,
        device: torch.device | str = "cpu",
        tensorboard: bool = False,
        workers: Workers | None = None,
        data_dir: Path | str | None = None,
    ) -> Self:
        """The run in `directory`, at its last checkpoint.

        Args:
            directory: Of the run.
            config: If given, what the run must be of.
            device: Where to compute.
            tensorboard: Whether to write TensorBoard event files.
            workers: The processes that share the run.
            data_dir: Directory of the family's data files.

        Warns:
            CheckpointWarning: The newest checkpoint is corrupt and the one before was taken.

        Raises:
            InputError: There is no run, its files are corrupt, or it is of another configuration.
        """
        document = RunDirectory.read(directory)
        try:
            written = TrainingConfig.from_json(document.get("config", {}))
        except InputError as error:
            raise InputError(f"the config.json of {directory} is damaged: {error}") from None
        if config is not None:
            _refuse_drift(directory, written.to_json(), config.to_json())
        trainer = cls.__new__(cls)
        trainer._setup(written, directory, device, workers, data_dir)
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

    def _setup(
        self,
        config: TrainingConfig,
        directory: Path,
        device: torch.device | str,
        workers: Workers | None,
        data_dir: Path | str | None,
    ) -> None:
        self.config, self.directory, self._device = config, directory, device
        self._workers = workers or Workers()
        self._shards = self._workers.shards(config.num_shards)
        self._files = RunDirectory(directory, config.num_checkpoints)
        self.problems = problems_of(config, device, data_dir)
        self.report_recording: Report | None = None
        self.optimizer = OptimizerModel(config.optimizer, stream(config.seed, "weights"))
        self.optimizer.to(device)
        self._objective = MetaObjective(config, self.optimizer)
        self._unroll = CapturedUnroll(self.optimizer, config.horizon, config.segment)
        self._parameters = dict(self.optimizer.named_parameters())
        self._num_joint_steps = config.num_meta_steps if self.optimizer.rule_parameters() else 0
        require(
            self.num_steps >= 1,
            f"there is nothing to train: rule {config.optimizer.rule} for "
            f"{self._num_joint_steps} meta-steps, and posterior {config.posterior!r} with no step "
            "for the head alone; train a head with --preset act, or set --meta-steps",
        )
        generator = stream(config.seed, "validation")
        self._validation = self.problems.sample(config.num_validation, generator)
        self._step, self._seconds = 0, 0.0
        self._left_out: dict[str, int] = {}  # problems that were not finite, by stream
        self._num_skipped, self._skipped_in_a_row = 0, 0
        self._metrics: dict[str, float] = {}
        self._halting_steps: Tensor | None = None
        self._best: Checkpoint | None = None
        self._best_score = (math.inf, math.inf)  # problems that failed, then the score itself
        self._is_exported = True
        self._recordings: dict[tuple[str | int, ...], Recording] = {}
        self._num_left_out: dict[tuple[str | int, ...], int] = {}  # of each recording
        self._interrupt, self.interrupted = False, False
        self._begin_phase(alone=False)

    def _begin(self) -> None:
        """Take over a trained rule, if that is wanted, and measure what there is to begin with."""
        for part in PARTS:
            name = getattr(self.config, f"{part}_from")
            if name is not None:
                self._take_over(name, part)
        self._validate()
        self._good = self._snapshot()

    def _take_over(self, name: str, part: str) -> None:
        """Begin with the weights of the rule or head of `name`."""
        source = loading.load(name)
        trained = {
            key: value for key, value in source.state_dict().items() if key.startswith(f"{part}.")
        }
        own = [key for key in self._parameters if key.startswith(f"{part}.")]
        require(
            all(
                getattr(source.config, setting) == getattr(self.config.optimizer, setting)
                for setting in PARTS[part]
            )
            and all(trained[key].shape == self._parameters[key].shape for key in own),
            f"the {part} of {name} has other settings than this run's; drop either",
        )
        self.optimizer.load_state_dict(trained, strict=False)

    def _begin_phase(self, *, alone: bool) -> None:
        """Let rule and head learn, or the head alone."""
        self._alone, self._num_rollbacks = alone, 0
        for weight in self.optimizer.rule_parameters():
            weight.requires_grad_(not alone)
        self._learning = [value for value in self._parameters.values() if value.requires_grad]
        self._adam = torch.optim.Adam(self._learning, lr=self.config.learning_rate)

    @property
    def _hazard(self) -> bool:
        return self.config.posterior in ("stick-breaking", "both")

    @property
    def step(self) -> int:
        """Meta-steps done."""
        return self._step

    @property
    def num_nonfinite(self) -> int:
        """Problems left out so far because their loss or gradient was not finite."""
        return sum(self._left_out.values())

    @property
    def num_skipped(self) -> int:
        """Meta-steps without an update so far, for the meta-gradient was not finite."""
        return self._num_skipped

    @property
    def num_steps(self) -> int:
        """Meta-steps of the whole run: those of rule and head together, then of the head alone."""
        alone = 0 if self.config.posterior == "none" else self.config.head_steps
        return self._num_joint_steps + alone

    def interrupt(self) -> None:
        """Have `run` end after the meta-step it is in, with a checkpoint, at every worker."""
        self._interrupt = True

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every meta-step.

        Raises:
            InputError: Training diverges again and again, or nothing can be written.
        """
        started = time.perf_counter()
        while self._step < self.num_steps and not self.interrupted:
            if self._step >= self._num_joint_steps and not self._alone:
                self._go_on_alone()
            loss = self._meta_step()
            self._step += 1
            ends = self._step in (self._num_joint_steps, self.num_steps)
            if ends or self._step % self.config.validate_every == 0:
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
        elif self._hazard or (self.config.posterior == "softmax" and self.config.head_steps > 0):
            self._calibrate()
        if self._workers.is_first:
            self._log.close()

    def _go_on_alone(self) -> None:
        """Freeze the best rule; what follows is scored apart."""
        if self._best is None:
            raise InputError(
                f"not one of {self.config.num_validation} problems of {self.config.family} stays "
                f"finite for {self.config.horizon} steps; choose a smaller learning rate or horizon"
            )
        self.optimizer.load_state_dict(self._best[0])
        self._best_score = (math.inf, math.inf)
        self._begin_phase(alone=True)
        self._skipped_in_a_row = 0
        self._good = self._snapshot()

    def _roll_back(self) -> None:
        """Return to the last good state, to go on with a lower learning rate.

        Raises:
            InputError: That has been tried as often as it may.
        """
        tried = self.config.learning_rate * _ROLLBACK_FACTOR**self._num_rollbacks
        require(
            self._num_rollbacks < self.config.max_rollbacks,
            f"meta-training diverged at step {self._step}, now with learning rate {tried:g} after "
            f"{self._num_rollbacks} rollbacks; the best weights so far are kept in "
            f"{self.directory}; begin again with a lower --learning-rate or --horizon",
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

    def _stream(self, shard: int, *path: str | int) -> torch.Generator:
        """The generator of a virtual shard; a single one needs no number."""
        return stream(self.config.seed, *path, *([shard] if self.config.num_shards > 1 else []))

    def _draw_prices(self, num: int, generator: torch.Generator) -> Tensor:
        exponent = 2 * torch.rand(num, generator=generator) - 1
        return (self.config.price * self.config.price_range**exponent).to(self._device)

    def _meta_step(self) -> float:
        """One step on the gradients of all virtual shards; the loss before it, per problem."""
        config = self.config
        differentiate = self._head_shard if self._alone else self._joint_shard
        num_problems = config.head_batch_size if self._alone else config.batch_size
        sizes = [weight.numel() for weight in self._learning]
        # A row a shard: gradients, whether each weight has one, and four numbers.
        rows = torch.zeros(config.num_shards, sum(sizes) + len(sizes) + 4, device=self._device)
        for shard in self._shards:
            self._adam.zero_grad()
            loss, num_used, num_left_out = differentiate(shard)
            gradients = [weight.grad for weight in self._learning]
            rows[shard] = torch.cat(
                [
                    *(
                        weight.new_zeros(weight.numel()) if gradient is None else gradient.flatten()
                        for weight, gradient in zip(self._learning, gradients, strict=True)
                    ),
                    rows.new_tensor([gradient is not None for gradient in gradients]),
                    loss.reshape(1),
                    rows.new_tensor([num_used, num_left_out, self._interrupt]),
                ]
            )
        self._workers.sum(rows)
        total = torch.zeros_like(rows[0])
        for row in rows:  # one order of summation, whoever filled the rows
            total = total + row
        *present, loss_value, used, left_out, interrupts = total[sum(sizes) :].tolist()
        self.interrupted = interrupts > 0
        if self._alone:
            self._left_out["recorded"] = int(left_out)
        else:
            self._left_out["train"] = self._left_out.get("train", 0) + int(left_out)
        if used < num_problems:
            total = total * (num_problems / max(used, 1))
            loss_value *= num_problems / used if used else math.nan
        for weight, gradient, there in zip(
            self._learning, total[: sum(sizes)].split(sizes), present, strict=True
        ):
            weight.grad = gradient.view_as(weight) if there else None
        return self._update(loss_value)

    def _joint_shard(self, shard: int) -> tuple[Tensor, int, int]:
        """Differentiate rule and head together on fresh problems.

        Returns:
            The sum of the problems' losses over the size of the whole batch, and how many of them
            were used and left out.
        """
        config = self.config
        size = config.batch_size // config.num_shards
        generator = self._stream(shard, "train", self._step)
        batch = self.problems.sample(size, generator)
        assert batch is not None
        price = self._draw_prices(size, generator)
        trajectory = self._unroll(batch, price)
        finite = trajectory.finite
        if not finite.all():
            index = finite.nonzero().squeeze(1)
            if len(index) == 0:
                return price.new_zeros(()), 0, size
            trajectory = trajectory.select(index)

        excess = trajectory.excess.clone().requires_grad_()
        halting = HaltingOutput(*(value.clone().requires_grad_() for value in trajectory.halting))
        warm = self._step >= config.warmup * config.num_meta_steps
        losses = (
            self._objective(excess, halting, trajectory.price, config.hazard_temperature, generator)
            if warm
            else self._objective.losses(excess)
        )
        loss = losses.sum() / config.batch_size
        loss.backward()
        assert excess.grad is not None
        cotangent = HaltingOutput(
            *(torch.zeros_like(value) if value.grad is None else value.grad for value in halting)
        )
        backpropagate(self.optimizer, trajectory, excess.grad, cotangent, truncate=config.truncate)
        return loss.detach(), len(losses), size - len(losses)

    def _head_shard(self, shard: int) -> tuple[Tensor, int, int]:
        """Differentiate the head alone on recorded problems; see `_joint_shard`."""
        config = self.config
        num_recorded = config.num_recorded // config.num_shards
        path = (shard,) if config.num_shards > 1 else ()
        recording = self._recorded("recorded", num_recorded, *path)
        done = self._step - self._num_joint_steps
        generator = self._stream(shard, "head", done)
        size = config.head_batch_size // config.num_shards
        index = torch.randint(recording.num_problems, (size,), generator=generator)
        chosen = recording.select(index.to(self._device))
        price = self._draw_prices(size, generator)
        cooling = config.final_hazard_temperature / config.hazard_temperature
        tau = config.hazard_temperature * cooling ** (done / config.head_steps)
        said = self.optimizer.speak(chosen.signals, chosen.readouts, price)
        distilled = done < config.distilled * config.head_steps
        losses = self._objective.halting(
            chosen.excess, said, price, tau, generator, distilled=distilled
        )
        weighed = losses * (price / config.price) ** config.price_exponent
        loss = weighed.sum() / config.head_batch_size
        loss.backward()
        return loss.detach(), size, self._num_left_out.get(("recorded", *path), 0)

    def _update(self, loss: float) -> float:
        """Adam, its rate decayed to 1 % by a cosine over each phase; NaN if it was skipped."""
        config = self.config
        step, num_steps = (
            (self._step - self._num_joint_steps, config.head_steps)
            if self._alone
            else (self._step, self._num_joint_steps)
        )
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        rate = config.learning_rate * _ROLLBACK_FACTOR**self._num_rollbacks
        self._adam.param_groups[0]["lr"] = rate * (0.01 + 0.99 * cosine)
        norms = [
            torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
            for weights in (
                self.optimizer.rule_parameters(),
                list(self.optimizer.head.parameters()),
            )
        ]
        if not (math.isfinite(loss) and all(norm.isfinite() for norm in norms)):
            self._num_skipped += 1
            self._skipped_in_a_row += 1
            return math.nan
        self._skipped_in_a_row = 0
        self._adam.step()
        return loss

    def _recorded(self, name: str, num_problems: int, *path: int) -> Recording:
        """Problems of the stream `name`, recorded under the final rule, non-finite ones left out.

        Raises:
            InputError: None stayed finite.
        """
        key: tuple[str | int, ...] = (name, *path)
        if key not in self._recordings:
            recording = self.problems.record(
                self.optimizer.rule, name, num_problems, *path, report=self.report_recording
            )
            finite = recording.finite.nonzero().squeeze(1)
            require(
                len(finite) > 0,
                f"not one of {num_problems} problems of {self.config.family} stays finite for "
                f"{self.config.horizon} steps; choose a smaller learning rate or horizon",
            )
            self._recordings[key] = recording.select(finite)
            self._num_left_out[key] = recording.num_problems - len(finite)
            if not path:  # else all workers together know
                self._left_out[name] = self._num_left_out[key]
        return self._recordings[key]

    def _validate(self) -> None:
        """Measure the validation problems and keep the weights if they are the best so far."""
        config = self.config
        diverged = self._skipped_in_a_row >= _SKIPPED or not all(
            bool(weight.isfinite().all()) for weight in self._parameters.values()
        )
        if self._alone or self._validation is None:
            recording = self._recorded("validation", config.num_validation)
        else:
            recording = record(self.optimizer.rule, self._validation, config.horizon)
            worse = recording.excess[:, 1:].mean(1) - recording.excess[:, 0]
            bearable = worse <= _DIVERGED * recording.excess[:, 0].abs()  # false for NaN
            diverged = diverged or bool(bearable.float().mean() < 0.5)
            recording = recording.select(recording.finite.nonzero().squeeze(1))
            self._left_out["validation"] = config.num_validation - recording.num_problems
        metrics = {
            "mean_loss": recording.excess[:, 1:].mean().item(),
            "final_loss": recording.excess[:, -1].mean().item(),
            "price_adjusted_loss": math.nan,
            "mean_halting_step": math.nan,
            "nonfinite_problems": float(self.num_nonfinite),
            "skipped_steps": float(self._num_skipped),
        }
        score = metrics["mean_loss"] / config.price
        speaks = config.posterior != "none" and (self._alone or config.warmup < 1)
        if speaks and recording.num_problems > 0:
            prices = self._prices()
            adjusted, steps = self._adjusted_loss(recording, config.price)
            metrics |= {
                "price_adjusted_loss": adjusted,
                "mean_halting_step": steps.double().mean().item(),
            }
            self._halting_steps = steps
            score = sum(self._adjusted_loss(recording, price)[0] / price for price in prices)
        self._metrics = metrics
        judged = torch.tensor([score, diverged], dtype=torch.float64, device=self._device)
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
        ranked = (self._left_out.get("validation", 0), score)
        warming = not self._alone and self._step < config.warmup * self._num_joint_steps
        counts = math.isfinite(score) and (config.warmup == 1 or not warming)
        if counts and not self._diverged and ranked < self._best_score:
            self._best_score, self._is_exported = ranked, False
            weights = {name: value.clone() for name, value in self.optimizer.state_dict().items()}
            self._best = weights, self.card()

    def _traces(self, recording: Recording, price: float) -> Traces:
        prices = torch.full_like(recording.loss[:, 0], price)
        with torch.no_grad():
            said = self.optimizer.speak(recording.signals, recording.readouts, prices)
        return Trajectory(recording, prices, said).traces()

    def _adjusted_loss(self, recording: Recording, price: float) -> tuple[float, Tensor]:
        """J and costs [n] of stops that are not calibrated."""
        output, account, recall = self.problems.stops
        traces = self._traces(recording, price)
        rule = _UNCALIBRATED.get(self.config.posterior, HazardThreshold(0.0, output))
        decided = decisions(rule, traces)
        j = total_cost(traces, decided, account, recall, price=price)
        return j.mean().item(), steps_charged(decided, account, traces.num_steps)

    def _calibrate(self) -> None:
        """Choose what a stop rule leaves open on problems of their own; store it with the weights.

        That is the hazard's threshold, or below how many steps the posterior's mode is not sought.
        """
        assert self._best is not None
        weights, card = self._best
        setting, name = ("threshold", "thresholds") if self._hazard else ("min_steps", "min_steps")
        if name in card:  # the run had ended already
            return
        self.optimizer.load_state_dict(weights)
        recording = self._recorded("calibration", self.config.num_calibration)
        traces = []
        for price in self._prices():
            said = self._traces(recording, price)
            traces.append(replace(said, excess=said.excess / price))
        merged = Traces(
            *(torch.cat([getattr(t, field.name) for t in traces]) for field in fields(Traces))
        )
        table = costs(merged.excess, 1.0)
        kind = HazardThreshold if self._hazard else PosteriorMode
        chosen = []
        for output, account in ((AFTER, CostUnit.UPDATES), (BEFORE, CostUnit.GRADIENTS)):
            learned = self._hazard and account is CostUnit.GRADIENTS
            recall = ReturnedIterate.LEARNED if learned else RETURNABLE[account][0]
            candidates = kind.candidates(merged, table, output)
            policy = calibrate(candidates, merged, account, price=1.0, recalls=(recall,)).policy
            chosen.append(getattr(policy.rule, setting))
        self._best, self._is_exported = (weights, {**card, name: chosen}), False
        self.save()

    def _prices(self) -> list[float]:
        """The prices that validation and calibration average over."""
        spread = self.config.price_range**0.75
        return sorted({self.config.price / spread, self.config.price, self.config.price * spread})

    def card(self) -> dict[str, Any]:
        """What was trained, on what and for how long; stored beside the weights."""
        return {
            "config": self.config.to_json(),
            **self.problems.description,
            "command": self._command,
            "meta_step": self._step,
            "seconds": round(self._seconds, 1),
            "metrics": _finite_only(self._metrics),
            "versions": {"haltwise": __version__, "torch": torch.__version__},
        }

    def _snapshot(self) -> _State:
        tensors = nested_state(dict(self._parameters), "weights.")
        for name, value in self._parameters.items():
            for key, moment in self._adam.state.get(value, {}).items():
                tensors[f"adam.{key}.{name}"] = moment
        copies = {name: value.detach().clone() for name, value in tensors.items()}
        return _State(self._step, self._alone, self._diverged, self._metrics, copies)

    def _take_up(self, state: _State) -> None:
        """Go on from there; the phase is begun already."""
        self._step, self._diverged, self._metrics = state.step, state.diverged, state.metrics
        self._adam.state.clear()
        for name, value in self._parameters.items():
            value.data.copy_(state.tensors[f"weights.{name}"])
            if f"adam.step.{name}" in state.tensors:
                self._adam.state[value] = {
                    key: state.tensors[f"adam.{key}.{name}"].clone() for key in _MOMENTS
                }

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
            "now": _to_json(now),
            "left_out": self._left_out,
            "skipped": [self._num_skipped, self._skipped_in_a_row],
            "num_rollbacks": self._num_rollbacks,
            "seconds": self._seconds,
            "num_records": self._log.num_records,
            "best_score": None if math.isinf(self._best_score[1]) else self._best_score,
        }
        if not good:
            tensors |= nested_state(self._good.tensors, "good.")
            metadata["good"] = _to_json(self._good)
        if self._best is not None:
            tensors |= nested_state(self._best[0], "best.")
            metadata["best"] = self._best[1]
        self._files.save(self._step, (tensors, metadata))
        self._export()

    def _export(self) -> None:
        if self._best is not None and not self._is_exported:
            self._files.export(self._best)
            self._is_exported = True

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint belongs to."""
        document: dict[str, Any] = json.loads(
            json.dumps({"config": self.config.to_json(), **self.problems.description})
        )
        return document

    def _restore(self, checkpoint: Checkpoint) -> int:
        """Take up a checkpoint; how many records the log had then.

        Raises:
            InputError: It is of another configuration, or its tensors do not fit.
        """
        tensors, metadata = checkpoint
        try:
            written = TrainingConfig.from_json(metadata["config"]).to_json()
            described = {name: metadata[name] for name in self.problems.description}
            settings = {"config": written, **described}
            _refuse_drift(self.directory, json.loads(json.dumps(settings)), self._identity())
            self._command = metadata["command"]
            self._begin_phase(alone=metadata["now"]["alone"])
            states = {
                name: self._from_json(metadata[name], sub_state(tensors, f"{name}."))
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
                require_like(best, self.optimizer.state_dict())
                self._best = best, metadata["best"]
                self._is_exported = _same(self._best, self._files.exported())
                if self._workers.is_first:
                    self._export()
            num_records: int = metadata["num_records"]
        except (KeyError, RuntimeError, TypeError, AttributeError) as error:
            raise InputError(
                f"the checkpoint in {self.directory} does not belong to the run: {error!r}"
            ) from None
        return num_records

    def _from_json(self, document: dict[str, Any], tensors: dict[str, Tensor]) -> _State:
        like = nested_state(dict(self._parameters), "weights.")
        for name, value in self._parameters.items():
            if f"adam.step.{name}" in tensors:
                like[f"adam.step.{name}"] = torch.zeros(())
                like |= {f"adam.{key}.{name}": value for key in _MOMENTS[1:]}
        require_like(tensors, like)
        placed = {
            name: value if name.startswith("adam.step.") else value.to(self._device)
            for name, value in tensors.items()
        }
        metrics = {
            name: math.nan if value is None else value
            for name, value in document["metrics"].items()
        }
        return _State(document["step"], document["alone"], document["diverged"], metrics, placed)


_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


def _to_json(state: _State) -> dict[str, Any]:
    """All but the tensors; JSON knows no NaN."""
    document = state._asdict()
    del document["tensors"]
    document["metrics"] = _finite_only(state.metrics)
    return document


def _finite_only(metrics: dict[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in metrics.items()}


def _same(one: Checkpoint, other: Checkpoint | None) -> bool:
    return (
        other is not None
        and one[1] == other[1]
        and one[0].keys() == other[0].keys()
        and all(torch.equal(value.cpu(), other[0][name]) for name, value in one[0].items())
    )


def _refuse_drift(directory: Path, written: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuse to go on with a run under another configuration than it began with."""
    found = differences(written, json.loads(json.dumps(now)))
    require(
        not found,
        f"{directory} holds a run of another configuration ({'; '.join(found)}); go on with its "
        "own by --resume, or choose another directory",
    )
