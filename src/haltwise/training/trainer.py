"""Meta-training: unroll, score, backpropagate, step; resumable at every validation."""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Self, final

import torch

from haltwise._errors import InputError, require
from haltwise._random import stream
from haltwise._version import __version__
from haltwise.checkpoint import load_tensors, save_tensors, write_atomically
from haltwise.halting.accounts import Account, Recall, calibrate, costs, ends
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
from haltwise.runlog import RunLog
from haltwise.tasks import family
from haltwise.training.config import TrainingConfig
from haltwise.training.objective import MetaObjective
from haltwise.unroll import Trajectory, backpropagate, unroll

__all__ = ["Progress", "Trainer"]

_NUM_CALIBRATION = 4096
_UNCALIBRATED: dict[str, StopRule] = {
    "softmax": PosteriorMode(BEFORE),
    "graves": PonderThreshold(output=BEFORE),
}
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
        tensorboard: bool = False,
        command: str = "",
    ) -> None:
        self._setup(config, directory)
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
        self._validate()

    @classmethod
    def resume(cls, directory: Path, *, tensorboard: bool = False) -> Self:
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
        trainer._setup(TrainingConfig.from_json(document.get("config", {})), directory)
        trainer._command = document.get("command", "")
        trainer._log = RunLog(directory, tensorboard=tensorboard)
        if (directory / _LAST).exists():
            trainer._load(directory / _LAST)
        else:
            trainer._validate()
        return trainer

    def _setup(self, config: TrainingConfig, directory: Path) -> None:
        self.config, self.directory = config, directory
        self.family = family(config.family)
        self.optimizer = LearnedOptimizer(config.optimizer, stream(config.seed, "weights"))
        self._objective = MetaObjective(config, self.optimizer)
        self._parameters = dict(self.optimizer.named_parameters())
        self._adam = torch.optim.Adam(self._parameters.values(), lr=config.learning_rate)
        self._validation = self.family.sample(
            config.num_validation, stream(config.seed, "validation")
        )
        self._step, self._num_nonfinite, self._seconds = 0, 0, 0.0
        self._metrics: dict[str, float] = {}
        self._best_score = math.inf

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

    def run(self) -> Iterator[Progress]:
        """Train to the end, yielding after every meta-step."""
        started = time.perf_counter()
        while self._step < self.config.num_meta_steps:
            loss = self._meta_step()
            self._step += 1
            if (
                self._step % self.config.validate_every == 0
                or self._step == self.config.num_meta_steps
            ):
                now = time.perf_counter()
                self._seconds, started = self._seconds + now - started, now
                self._validate()
                self._log.write({"step": self._step, "loss": loss, **self._metrics})
                self.save()
                if self._step == self.config.num_meta_steps and self._hazard:
                    self._calibrate()
            yield Progress(
                self._step,
                loss,
                self._metrics["price_adjusted_loss"],
                self._metrics["mean_halting_step"],
                self._metrics["mean_loss"],
                self._num_nonfinite,
            )
        self._log.close()

    def _meta_step(self) -> float:
        config = self.config
        self._adam.param_groups[0]["lr"] = self._learning_rate()
        generator = stream(config.seed, "train", self._step)
        batch = self.family.sample(config.batch_size, generator)
        exponent = 2 * torch.rand(config.batch_size, generator=generator) - 1
        price = config.price * config.price_range**exponent
        trajectory = unroll(self.optimizer, batch, config.horizon, price, segment=config.segment)
        finite = trajectory.finite
        if not finite.all():
            self._num_nonfinite += int((~finite).sum())
            index = finite.nonzero().squeeze(1)
            if len(index) == 0:
                return math.nan
            trajectory, price = trajectory.select(index), price[index]

        excess = trajectory.excess.clone().requires_grad_()
        halting = HaltingOutput(
            trajectory.increments.clone().requires_grad_(),
            trajectory.hazard_logits.clone().requires_grad_(),
            trajectory.hold_logits.clone().requires_grad_(),
        )
        self._adam.zero_grad()
        warm = self._step >= config.warmup * config.num_meta_steps
        loss = self._objective(excess, halting, price, generator, warm=warm).mean()
        loss.backward()
        assert excess.grad is not None
        cotangent = HaltingOutput(
            *(torch.zeros_like(value) if value.grad is None else value.grad for value in halting)
        )
        for weight in self.optimizer.rule_parameters():
            weight.requires_grad_(self._step < self._frozen_from)
        backpropagate(self.optimizer, trajectory, excess.grad, cotangent, truncate=config.truncate)
        for weights in (self.optimizer.rule_parameters(), list(self.optimizer.head.parameters())):
            norm = torch.nn.utils.clip_grad_norm_(weights, config.clip_norm)
            if not norm.isfinite():
                self._num_nonfinite += config.batch_size
                return math.nan
        self._adam.step()
        return loss.item()

    @property
    def _frozen_from(self) -> int:
        """The meta-step from which on the rule is frozen."""
        return round((1 - self.config.head_only) * self.config.num_meta_steps)

    def _learning_rate(self) -> float:
        """A cosine from full to 1 %, once while the rule learns and once for the head alone."""
        begin, end = 0, self._frozen_from
        if self._step >= end:
            begin, end = end, self.config.num_meta_steps
        share = (self._step - begin) / max(end - begin, 1)
        return self.config.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))

    def _validate(self) -> None:
        """Measure the validation problems and keep the weights if they are the best so far."""
        config = self.config
        trajectory = self._unroll_validation(config.price)
        metrics = {
            "mean_loss": trajectory.excess[:, 1:].mean().item(),
            "final_loss": trajectory.excess[:, -1].mean().item(),
            "price_adjusted_loss": math.nan,
            "mean_halting_step": math.nan,
            "learning_rate": self._learning_rate(),
            "nonfinite_problems": float(self._num_nonfinite),
        }
        score = metrics["mean_loss"] / config.price
        if config.posterior != "none":
            adjusted, halting_step = self._adjusted_loss(trajectory, config.price)
            metrics |= {"price_adjusted_loss": adjusted, "mean_halting_step": halting_step}
            score = sum(
                self._adjusted_loss(self._unroll_validation(price), price)[0] / price
                for price in self._prices()
            )
        self._metrics = metrics
        if score < self._best_score and self._step >= config.warmup * config.num_meta_steps:
            self._best_score = score
            save_tensors(self.directory / _BEST, self.optimizer.state_dict(), self.card())

    def _unroll_validation(self, price: float) -> Trajectory:
        prices = torch.full((self._validation.num_problems,), price)
        return unroll(self.optimizer, self._validation, self.config.horizon, prices)

    def _adjusted_loss(self, trajectory: Trajectory, price: float) -> tuple[float, float]:
        """J and the mean step of stops decided before the gradient is paid for, not calibrated."""
        table, traces = costs(trajectory.excess, price), trajectory.traces()
        rule = _UNCALIBRATED.get(self.config.posterior, HazardThreshold(0.0, BEFORE))
        end = ends(decisions(rule, traces), traces, Recall.NEXT)
        return table.gather(1, end.unsqueeze(1)).mean().item(), end.double().mean().item()

    def _calibrate(self) -> None:
        """Choose the hazard's thresholds on problems of their own; store them with the weights."""
        path = self.directory / _BEST
        weights, card = load_tensors(path)
        best = LearnedOptimizer.from_weights(self.config.optimizer, weights)
        problems = self.family.sample(_NUM_CALIBRATION, stream(self.config.seed, "calibration"))
        traces = []
        for price in self._prices():
            prices = torch.full((_NUM_CALIBRATION,), price)
            trajectory = unroll(best, problems, self.config.horizon, prices)
            trajectory = trajectory.select(trajectory.finite.nonzero().squeeze(1))
            traces.append(replace(trajectory.traces(), excess=trajectory.excess / price))
        merged = Traces(
            *(torch.cat([getattr(t, field.name) for t in traces]) for field in fields(Traces))
        )
        table = costs(merged.excess, 1.0)
        thresholds = []
        for output, account in ((AFTER, Account.UPDATES), (BEFORE, Account.GRADIENTS)):
            candidates = HazardThreshold.candidates(merged, table, output)
            rule = calibrate(candidates, merged, account, price=1.0).policy.rule
            assert isinstance(rule, HazardThreshold)
            thresholds.append(rule.threshold)
        save_tensors(path, weights, {**card, "thresholds": thresholds})

    def _prices(self) -> list[float]:
        """The prices that validation and calibration average over."""
        spread = self.config.price_range**0.75
        return sorted({self.config.price / spread, self.config.price, self.config.price * spread})

    def card(self) -> dict[str, Any]:
        """What was trained, on what and for how long; stored beside the weights."""
        return {
            "config": self.config.to_json(),
            "family_settings": asdict(self.family),
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
            "num_nonfinite": self._num_nonfinite,
            "seconds": self._seconds,
            "best_score": None if math.isinf(self._best_score) else self._best_score,
            "metrics": self.card()["metrics"],
        }
        save_tensors(self.directory / _LAST, tensors, metadata)

    def _load(self, path: Path) -> None:
        tensors, metadata = load_tensors(path)
        try:
            for name, value in self._parameters.items():
                value.data.copy_(tensors[f"weights.{name}"])
                moments = {
                    key: tensors[f"adam.{key}.{name}"]
                    for key in ("step", "exp_avg", "exp_avg_sq")
                    if f"adam.{key}.{name}" in tensors
                }
                if moments:
                    self._adam.state[value] = moments
            self._step, self._num_nonfinite = metadata["step"], metadata["num_nonfinite"]
            self._seconds = metadata["seconds"]
            best = metadata["best_score"]
            self._metrics = {
                name: math.nan if value is None else value
                for name, value in metadata["metrics"].items()
            }
        except (KeyError, RuntimeError, TypeError) as error:
            raise InputError(f"{path} does not belong to the run beside it: {error}") from None
        self._best_score = math.inf if best is None else best
