"""Stopping a Lightning `Trainer`: `pip install 'haltwise[lightning]'`."""

import math
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

from haltwise._core.errors import require
from haltwise.interfaces.logged import warn_of_no_point
from haltwise.interfaces.monitor import HaltingMonitor
from haltwise.interfaces.run_monitor import RunMonitor, warn_of_direction

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    raise ImportError("Lightning is not installed: pip install 'haltwise[lightning]'") from None

__all__ = ["HaltingCallback", "RunCallback"]

Monitor = TypeVar("Monitor", HaltingMonitor, RunMonitor)


class _WithMonitor(Callback, Generic[Monitor]):  # type: ignore[misc]
    """A callback whose monitor is in the checkpoints; a fit from one goes on with its run."""

    def __init__(self, monitor: Monitor) -> None:
        self.monitor: Monitor = monitor
        self._resumed = False
        self._ignores_state = False

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # Nothing goes on from one that is only validated, tested or predicted by, nor from one of
        # the start, as after a search for a learning rate.
        self._ignores_state = trainer.state.fn != "fit" or checkpoint["global_step"] == 0

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._resumed = False

    def _stop(self, trainer: Trainer) -> None:
        """Stop the fit where the monitor of any process says so."""
        stops = trainer.strategy.reduce_boolean_decision(self.monitor.should_stop, all=False)
        trainer.should_stop = trainer.should_stop or stops

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = self.monitor.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        ignores, self._ignores_state = self._ignores_state, False
        if not ignores:
            self.monitor.load_state_dict(state_dict)
            self._resumed = True


@final
class HaltingCallback(_WithMonitor[HaltingMonitor]):
    """Lets a `HaltingMonitor` record a Lightning fit, or end it.

    The monitor looks at parameters and gradients at every step of the optimizer. Every fit is a run
    of its own, unless a checkpoint is loaded; one that ends by an exception is not recorded, nor is
    one from a checkpoint that was written without this callback.
    Several processes stop together, by the mean of their losses, and the first of them records.

    Args:
        monitor: One that stops, or `HaltingMonitor.recording(...)`, which is closed at the end of
            the fit.
        metric: Logged in validation: a round is then an epoch with its validation, and this is
            its loss. None: every step of the optimizer is a round, by the mean of what
            `training_step` returned since the last.
        score: Logged in validation, too: what a stop is judged by, for recording; the metric if
            None.

    Warns:
        DataWarning: The fit had no validation, so there was no round.

    Examples:
        >>> trainer = Trainer(callbacks=[HaltingCallback(monitor, "val_loss")])  # doctest: +SKIP
    """

    def __init__(
        self, monitor: HaltingMonitor, metric: str | None = None, *, score: str | None = None
    ) -> None:
        require(score is None or metric is not None, "a score needs a metric beside it; name both")
        super().__init__(monitor)
        self._metric, self._score = metric, score
        self._moved = False
        self._global_step = 0
        self._losses: list[Tensor] = []  # since the last step of the optimizer

    def __repr__(self) -> str:
        return f"HaltingCallback({self.monitor})"

    @property
    def state_key(self) -> str:
        """Tell several callbacks of one trainer apart in its checkpoints."""
        key: str = self._generate_state_key(
            monitor=self.monitor.identity, metric=self._metric, score=self._score
        )
        return key

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # What a checkpoint holds is known by now, with any strategy.
        _require_validation(trainer, self._metric)
        self._global_step, self._losses, self._moved = trainer.global_step, [], False
        if not self._resumed:
            self.monitor.discard()  # of a fit that did not end
            self.monitor.start(pl_module, resumed=trainer.ckpt_path is not None)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        require(
            isinstance(loss, Tensor)
            or pl_module.automatic_optimization
            or self._metric is not None,
            "training_step must return the loss, or a dictionary with 'loss'; or name a metric",
        )
        if isinstance(loss, Tensor):  # else the batch was skipped
            # Lightning divides by the number of batches whose gradients add up.
            self._losses.append(loss.detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == self._global_step:
            return  # gradients are being accumulated
        self._global_step = trainer.global_step
        losses, self._losses = self._losses, []
        if self._metric is not None:
            has_moved = len(losses) > 0 or not pl_module.automatic_optimization
            self._look(trainer, pl_module, has_moved=has_moved)
            return
        total = torch.stack([*losses, torch.zeros((), device=pl_module.device)]).sum()
        number = torch.tensor(float(len(losses)), device=pl_module.device)
        total, number = (trainer.strategy.reduce(x, reduce_op="sum") for x in (total, number))
        if self._look(trainer, pl_module, has_moved=bool(number > 0)):
            self.monitor.update(total / number)
            self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Validation may also be for its own sake, or precede the first step.
        if self._metric is None or trainer.state.fn != "fit" or not self._moved:
            return
        # Validated is what a stop now leaves, so it is what a stop is judged by.
        loss, score = (
            trainer.strategy.reduce(_logged(trainer, name).to(pl_module.device), reduce_op="mean")
            for name in (self._metric, self._score or self._metric)
        )
        self._moved = False
        self.monitor.update(loss, score=score)
        self._stop(trainer)

    def _look(self, trainer: Trainer, pl_module: LightningModule, *, has_moved: bool) -> bool:
        """Look at the model, unless its step was skipped; whether it was not."""
        scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
        grads = (param.grad for param in pl_module.parameters() if param.grad is not None)
        if not has_moved or (scaled and not all(bool(grad.isfinite().all()) for grad in grads)):
            return False
        self.monitor.look(pl_module)
        self._moved = True
        return True

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            self.monitor.discard()
        self.monitor.close()
        self._resumed = False
        if self._metric is not None:
            warn_of_no_point(self.monitor.steps, self._metric, trainer.callback_metrics)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.monitor.discard()
        super().on_exception(trainer, pl_module, exception)


@final
class RunCallback(_WithMonitor[RunMonitor]):
    """Ends a Lightning fit where a `RunMonitor` gives it up, by its log alone.

    Cost is counted in steps of the optimizer, and the steps that are planned are the budget. The
    state of the monitor is in the checkpoints, and a fit that is resumed from one goes on with its
    run, by the steps that are planned then. Several processes stop together, by the mean of the
    metric over them.

    Args:
        monitor: When to give up.
        metric: As it is logged.
        in_training: Whether it is logged in training and is known at the end of each epoch, rather
            than after each validation.

    Raises:
        InputError: The metric was not logged by then.

    Warns:
        DataWarning: The fit had no validation.

    Examples:
        >>> trainer = Trainer(callbacks=[RunCallback(monitor, "val_loss")])  # doctest: +SKIP
    """

    def __init__(
        self, monitor: RunMonitor, metric: str = "val_loss", *, in_training: bool = False
    ) -> None:
        warn_of_direction(metric, monitor.direction)
        super().__init__(monitor)
        self._metric, self._in_training = metric, in_training

    def __repr__(self) -> str:
        return f"RunCallback({self._metric}: {self.monitor})"

    @property
    def state_key(self) -> str:
        """Tell several callbacks of one trainer apart in its checkpoints."""
        key: str = self._generate_state_key(metric=self._metric, monitor=self.monitor.identity)
        return key

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _require_validation(trainer, None if self._in_training else self._metric)
        begin = self.monitor.resume if self._resumed else self.monitor.start
        begin(budget=_planned_steps(trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Validation may also be for its own sake, or precede the first step.
        if not self._in_training and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._update(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._in_training:
            self._update(trainer, pl_module)

    def _update(self, trainer: Trainer, pl_module: LightningModule) -> None:
        where = "training_step, with on_epoch=True" if self._in_training else "validation_step"
        value = _logged(trainer, self._metric, where).to(pl_module.device)
        mean = trainer.strategy.reduce(value, reduce_op="mean")
        self.monitor.update(mean, cost=trainer.global_step)
        self._stop(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._resumed = False
        warn_of_no_point(self.monitor.steps, self._metric, trainer.callback_metrics)


def _require_validation(trainer: Trainer, metric: str | None) -> None:
    require(
        metric is None or trainer.enable_validation,
        f"the metric {metric!r} is logged in validation, but this fit has none; give it a "
        "validation_step and val_dataloaders, or go by the training",
    )


def _planned_steps(trainer: Trainer, pl_module: LightningModule) -> float | None:
    """Steps of the optimizer in the whole fit, None where that is not known."""
    if not pl_module.automatic_optimization:  # then one batch may have several steps
        return None
    steps = float(trainer.estimated_stepping_batches)
    return steps if 0 < steps < math.inf else None


def _logged(trainer: Trainer, name: str, where: str = "validation_step") -> Tensor:
    known: dict[str, Tensor] = trainer.callback_metrics
    require(
        name in known,
        f"no metric {name!r} was logged; there are {', '.join(sorted(known)) or 'none'}: log it by "
        f"self.log in {where}",
    )
    return known[name]
