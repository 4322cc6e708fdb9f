"""Meta-training, resumable at every validation.

First rule and head together: unroll, score, backpropagate, step. Then the head by itself, on
recorded problems of the final rule, which costs no gradients of the optimizee. A hand-designed
rule has nothing to learn, so its head goes straight to the second.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, final

import torch
from torch import Tensor

from haltwise import pretrained
from haltwise._errors import InputError, require
from haltwise._random import stream
from haltwise._tensors import map_tensors
from haltwise._version import __version__
from haltwise.capture import CapturedUnroll
from haltwise.checkpoint import load_tensors, save_tensors, write_atomically
from haltwise.halting.accounts import RECALLS, Account, Recall, calibrate, costs, paid, settle
from haltwise.halting.head import AFTER, BEFORE, HaltingOutput
from haltwise.halting.stopping import (
    HazardThreshold,
    PonderThreshold,
    PosteriorMode,
    StopRule,
    Traces,
    decisions,
)
from haltwise.optimizer import LearnedOptimizer
from haltwise.recorded_runs import RecordedRuns
from haltwise.runlog import RunLog
from haltwise.tasks import TaskBatch, family
from haltwise.training.config import PARTS, TrainingConfig
from haltwise.training.objective import MetaObjective
from haltwise.unroll import Recording, Trajectory, backpropagate, record

__all__ = ["Progress", "Trainer"]

_UNCALIBRATED: dict[str, StopRule] = {
    "softmax": PosteriorMode(BEFORE),
    "graves": PonderThreshold(output=BEFORE),
}
_RECORDED_COORDINATES = 2**20  # that are recorded at once: their state fills some 300 MiB
_CONFIG, _LAST, _BEST = "config.json", "last.safetensors", "best.safetensors"


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
    """

    step: int
    loss: float
    price_adjusted_loss: float
    mean_halting_step: float
    mean_loss: float
    num_nonfinite: int


@final
class Trainer:
    """One meta-training run and its directory.

    `run()` yields progress after every meta-step and may be left at any time; what was done up to
    the last checkpoint is kept, and `Trainer.resume` goes on from there to the same weights that
    an uninterrupted run reaches.

    Args:
        config: What to train.
        directory: Created if missing.
        device: Where to compute.
        tensorboard: Whether to write TensorBoard event files.
        command: What started the run, for the card.

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
    ) -> None:
        self._setup(config, directory, device)
        require(
            not (directory / _CONFIG).exists(),
            f"{directory} holds a run already; resume it or choose another directory",
        )
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(
                f"cannot create {directory}: {error.strerror}; choose another directory"
            ) from error
        self._command = command
        run = {"config": config.to_json(), "command": command}
        document = json.dumps(run, indent=2) + "\n"
        write_atomically(directory / _CONFIG, document.encode())
        self._log = RunLog(directory, tensorboard=tensorboard)
        self._begin()

    @classmethod
    def resume(
        cls,
        directory: Path,
        *,
        device: torch.device | str = "cpu",
        tensorboard: bool = False,
    ) -> Self:
        """The run in `directory`, at its last checkpoint.

        Raises:
            InputError: There is no run, or its files are corrupt.
        """
        path = directory / _CONFIG
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            raise InputError(f"{directory} holds no run: there is no {path}") from None
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); restore it from a copy") from None
        trainer = cls.__new__(cls)
        trainer._setup(TrainingConfig.from_json(document.get("config", {})), directory, device)
        trainer._command = document.get("command", "")
        trainer._log = RunLog(directory, tensorboard=tensorboard)
        if (directory / _LAST).exists():
            trainer._load(directory / _LAST)
        else:
            trainer._begin()
        return trainer

    def _setup(self, config: TrainingConfig, directory: Path, device: torch.device | str) -> None:
        self.config, self.directory, self._device = config, directory, device
        if config.runs is None:
            self.family = family(config.family, config.family_settings)
        self._mixed_with = {name: family(name) for name in config.mixed_with}
        self.optimizer = LearnedOptimizer(config.optimizer, stream(config.seed, "weights"))
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
        if config.runs is None:
            self._validation = self._sample(config.num_validation, "validation")
        self._step, self._num_nonfinite, self._seconds = 0, 0, 0.0
        self._metrics: dict[str, float] = {}
        self._halting_steps: Tensor | None = None
        self._best_score = math.inf
        self._recordings: dict[str, Recording] = {}
        if config.runs is not None:
            runs = RecordedRuns.load(config.runs, config.horizon)
            runs = runs.keeping_best() if config.keeps_best else runs
            self._reads = runs.reads
            self._recordings = {
                name: map_tensors(part, lambda value: value.to(device))
                for name, part in runs.split(config.seed).items()
            }
        self._begin_phase(alone=False)

    def _begin(self) -> None:
        """Take over a trained rule, if that is wanted, and measure what there is to begin with."""
        for part in PARTS:
            name = getattr(self.config, f"{part}_from")
            if name is not None:
                self._take_over(name, part)
        self._validate()

    def _take_over(self, name: str, part: str) -> None:
        """Begin with the weights of the rule or head of `name`."""
        source = pretrained.load(name)
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

    def _sample(self, num_problems: int, *path: str | int) -> TaskBatch:
        generator = stream(self.config.seed, *path)
        return self.family.sample(num_problems, generator, device=self._device)

    def _begin_phase(self, *, alone: bool) -> None:
        """Let rule and head learn, or the head alone."""
        self._alone = alone
        for weight in self.optimizer.rule_parameters():
            weight.requires_grad_(not alone)
        learning = [value for value in self._parameters.values() if value.requires_grad]
        self._adam = torch.optim.Adam(learning, lr=self.config.learning_rate)

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
        return self._num_nonfinite

    @property
    def num_steps(self) -> int:
        """Meta-steps of the whole run: those of rule and head together, then of the head alone."""
        alone = 0 if self.config.posterior == "none" else self.config.head_steps
        return self._num_joint_steps + alone

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every meta-step."""
        started = time.perf_counter()
        while self._step < self.num_steps:
            if self._step >= self._num_joint_steps and not self._alone:
                weights, _ = load_tensors(self.directory / _BEST)
                self.optimizer.load_state_dict(weights)
                self._best_score = math.inf  # what follows is scored apart
                self._begin_phase(alone=True)
                self.save()  # the best weights, from which it begins, are overwritten by its own
            loss = self._head_step() if self._alone else self._joint_step()
            self._step += 1
            ends = self._step in (self._num_joint_steps, self.num_steps)
            if ends or self._step % self.config.validate_every == 0:
                now = time.perf_counter()
                self._seconds, started = self._seconds + now - started, now
                self._validate()
                self._log.write({"step": self._step, "loss": loss, **self._metrics})
                if self._halting_steps is not None:
                    self._log.write_histogram("halting_step", self._halting_steps, self._step)
                self.save()
            yield Progress(
                self._step,
                loss,
                self._metrics["price_adjusted_loss"],
                self._metrics["mean_halting_step"],
                self._metrics["mean_loss"],
                self._num_nonfinite,
            )
        softmax = self.config.posterior == "softmax" and self.config.head_steps > 0
        if self._hazard or softmax:
            self._calibrate()
        self._log.close()

    def _draw_prices(self, num: int, generator: torch.Generator) -> Tensor:
        exponent = 2 * torch.rand(num, generator=generator) - 1
        return (self.config.price * self.config.price_range**exponent).to(self._device)

    def _joint_step(self) -> float:
        """One step of rule and head together, on fresh problems."""
        config = self.config
        generator = stream(config.seed, "train", self._step)
        batch = self.family.sample(config.batch_size, generator, device=self._device)
        price = self._draw_prices(config.batch_size, generator)
        trajectory = self._unroll(batch, price)
        finite = trajectory.finite
        if not finite.all():
            self._num_nonfinite += int((~finite).sum())
            index = finite.nonzero().squeeze(1)
            if len(index) == 0:
                return math.nan
            trajectory = trajectory.select(index)

        excess = trajectory.excess.clone().requires_grad_()
        halting = HaltingOutput(*(value.clone().requires_grad_() for value in trajectory.halting))
        warm = self._step >= config.warmup * config.num_meta_steps
        losses = (
            self._objective(excess, halting, trajectory.price, config.hazard_temperature, generator)
            if warm
            else self._objective.losses(excess)
        )
        loss = losses.mean()
        self._adam.zero_grad()
        loss.backward()
        assert excess.grad is not None
        cotangent = HaltingOutput(
            *(torch.zeros_like(value) if value.grad is None else value.grad for value in halting)
        )
        backpropagate(self.optimizer, trajectory, excess.grad, cotangent, truncate=config.truncate)
        return self._update(loss, self._step, self._num_joint_steps)

    def _head_step(self) -> float:
        """One step of the head alone, on recorded problems."""
        config = self.config
        recording = self._recorded("recorded", config.num_recorded)
        done = self._step - self._num_joint_steps
        generator = stream(config.seed, "head", done)
        size = config.head_batch_size
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
        loss = (losses * (price / config.price) ** config.price_exponent).mean()
        self._adam.zero_grad()
        loss.backward()
        return self._update(loss, done, config.head_steps)

    def _update(self, loss: Tensor, step: int, num_steps: int) -> float:
        """Adam, its rate decayed to 1 % by a cosine over each phase; the loss before the step."""
        cosine = 0.5 * (1 + math.cos(math.pi * step / num_steps))
        self._adam.param_groups[0]["lr"] = self.config.learning_rate * (0.01 + 0.99 * cosine)
        for weights in (self.optimizer.rule_parameters(), list(self.optimizer.head.parameters())):
            norm = torch.nn.utils.clip_grad_norm_(weights, self.config.clip_norm)
            if not norm.isfinite():
                self._num_nonfinite += 1
                return math.nan
        self._adam.step()
        return loss.item()

    def _recorded(self, name: str, num_problems: int) -> Recording:
        """Problems of the stream `name`, recorded under the final rule, non-finite ones left out.

        Raises:
            InputError: None stayed finite.
        """
        if name not in self._recordings:
            share = max(1, num_problems // (1 + len(self._mixed_with)))
            batches = [self._sample(share, name)]
            for other, drawn in self._mixed_with.items():
                generator = stream(self.config.seed, name, other)
                batches.append(drawn.sample(share, generator, device=self._device))
            index = torch.arange(share, device=self._device)
            recording = Recording.join(
                [
                    record(self.optimizer.rule, batch.select(part), self.config.horizon)
                    for batch in batches
                    for part in index.split(max(1, _RECORDED_COORDINATES // batch.dim))
                ]
            )
            finite = recording.finite.nonzero().squeeze(1)
            require(
                len(finite) > 0,
                f"not one of {num_problems} problems of {self.config.family} stays finite for "
                f"{self.config.horizon} steps; choose a smaller learning rate or horizon",
            )
            self._num_nonfinite += num_problems - len(finite)
            self._recordings[name] = recording.select(finite)
        return self._recordings[name]

    def _validate(self) -> None:
        """Measure the validation problems and keep the weights if they are the best so far."""
        config = self.config
        if self._alone or config.runs is not None:
            recording = self._recorded("validation", config.num_validation)
        else:
            recording = record(self.optimizer.rule, self._validation, config.horizon)
        metrics = {
            "mean_loss": recording.excess[:, 1:].mean().item(),
            "final_loss": recording.excess[:, -1].mean().item(),
            "price_adjusted_loss": math.nan,
            "mean_halting_step": math.nan,
            "nonfinite_problems": float(self._num_nonfinite),
        }
        score = metrics["mean_loss"] / config.price
        if config.posterior != "none" and (self._alone or config.warmup < 1):
            prices = self._prices()
            adjusted, steps = self._adjusted_loss(recording, config.price)
            metrics |= {
                "price_adjusted_loss": adjusted,
                "mean_halting_step": steps.double().mean().item(),
            }
            self._halting_steps = steps
            score = sum(self._adjusted_loss(recording, price)[0] / price for price in prices)
        self._metrics = metrics
        warming = not self._alone and self._step < config.warmup * self._num_joint_steps
        if score < self._best_score and (config.warmup == 1 or not warming):
            self._best_score = score
            save_tensors(self.directory / _BEST, self.optimizer.state_dict(), self.card())

    def _traces(self, recording: Recording, price: float) -> Traces:
        prices = torch.full_like(recording.loss[:, 0], price)
        with torch.no_grad():
            said = self.optimizer.speak(recording.signals, recording.readouts, prices)
        return Trajectory(recording, prices, said).traces()

    def _adjusted_loss(self, recording: Recording, price: float) -> tuple[float, Tensor]:
        """J and costs [n] of stops decided before the gradient is paid for, not calibrated.

        Of a recorded loop, that stops where it is.
        """
        traces = self._traces(recording, price)
        if self.config.runs is not None:
            decided = decisions(HazardThreshold(0.0, AFTER), traces)
            j = settle(traces, decided, Account.UPDATES, Recall.CURRENT, price=price)
            return j.mean().item(), decided
        rule = _UNCALIBRATED.get(self.config.posterior, HazardThreshold(0.0, BEFORE))
        recall = Recall.LEARNED if self._hazard else Recall.NEXT
        decided = decisions(rule, traces)
        j = settle(traces, decided, Account.GRADIENTS, recall, price=price)
        cost = paid(decided, Account.GRADIENTS, traces.num_steps)
        return j.mean().item(), cost

    def _calibrate(self) -> None:
        """Choose what a stop rule leaves open on problems of their own; store it with the weights.

        That is the hazard's threshold, or below how many steps the posterior's mode is not sought.
        """
        path = self.directory / _BEST
        weights, card = load_tensors(path)
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
        for output, account in ((AFTER, Account.UPDATES), (BEFORE, Account.GRADIENTS)):
            learned = self._hazard and account is Account.GRADIENTS
            recall = Recall.LEARNED if learned else RECALLS[account][0]
            candidates = kind.candidates(merged, table, output)
            policy = calibrate(candidates, merged, account, price=1.0, recalls=(recall,)).policy
            chosen.append(getattr(policy.rule, setting))
        save_tensors(path, weights, {**card, name: chosen})

    def _prices(self) -> list[float]:
        """The prices that validation and calibration average over."""
        spread = self.config.price_range**0.75
        return sorted({self.config.price / spread, self.config.price, self.config.price * spread})

    def card(self) -> dict[str, Any]:
        """What was trained, on what and for how long; stored beside the weights."""
        return {
            "config": self.config.to_json(),
            **(
                {"family_settings": asdict(self.family)}
                if self.config.runs is None
                else {"reads": self._reads}
            ),
            "command": self._command,
            "meta_step": self._step,
            "seconds": round(self._seconds, 1),
            "metrics": {
                name: None if math.isnan(value) else value for name, value in self._metrics.items()
            },
            "versions": {"haltwise": __version__, "torch": torch.__version__},
        }

    def save(self) -> None:
        """Write the checkpoint that `resume` reads: weights, Adam's moments and the counters."""
        tensors = {f"weights.{name}": value for name, value in self._parameters.items()}
        for name, value in self._parameters.items():
            for key, moment in self._adam.state.get(value, {}).items():
                tensors[f"adam.{key}.{name}"] = moment
        metadata = {
            "step": self._step,
            "alone": self._alone,
            "num_nonfinite": self._num_nonfinite,
            "seconds": self._seconds,
            "best_score": None if math.isinf(self._best_score) else self._best_score,
            "metrics": self.card()["metrics"],
        }
        save_tensors(self.directory / _LAST, tensors, metadata)

    def _load(self, path: Path) -> None:
        tensors, metadata = load_tensors(path)
        try:
            self._step, self._num_nonfinite = metadata["step"], metadata["num_nonfinite"]
            self._begin_phase(alone=metadata["alone"])
            for name, value in self._parameters.items():
                value.data.copy_(tensors[f"weights.{name}"])
                moments = {
                    key: tensors[f"adam.{key}.{name}"].to("cpu" if key == "step" else self._device)
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{key}.{name}" in tensors
                }
                if moments:
                    self._adam.state[value] = moments
            self._seconds = metadata["seconds"]
            best = metadata["best_score"]
            self._metrics = {
                name: math.nan if value is None else value
                for name, value in metadata["metrics"].items()
            }
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"{path} does not belong to the run beside it: {error}") from None
        self._best_score = math.inf if best is None else best
