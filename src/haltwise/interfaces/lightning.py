"""Stopping a Lightning `Trainer`: `pip install 'haltwise[lightning]'`."""

from typing import Any, final

from torch import Tensor

from haltwise._core.errors import require
from haltwise.interfaces.monitor import HaltingMonitor

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    raise ImportError("Lightning is not installed: pip install 'haltwise[lightning]'") from None

__all__ = ["HaltingCallback"]


@final
class HaltingCallback(Callback):  # type: ignore[misc]
    """Lets a `HaltingMonitor` record a Lightning fit, or end it.

    Args:
        monitor: One that stops, or `HaltingMonitor.recording(...)`, which is closed at the end of
            the fit.
        metric: Logged in validation: a round is then an epoch with its validation, and this is
            its loss. None: every step of the optimizer is a round, by what `training_step` returns.
        score: Logged in validation, too: what a stop is judged by, for recording.

    Examples:
        >>> trainer = Trainer(callbacks=[HaltingCallback(monitor, "val_loss")])  # doctest: +SKIP
    """

    def __init__(
        self, monitor: HaltingMonitor, metric: str | None = None, *, score: str | None = None
    ) -> None:
        require(score is None or metric is not None, "a score needs a metric beside it; name both")
        self.monitor = monitor
        self._metric, self._score = metric, score
        self._global_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._global_step = trainer.global_step
        if self.monitor.steps == 0:  # else a checkpoint was loaded
            self.monitor.start(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *batch: Any
    ) -> None:
        if self._metric is not None or trainer.global_step == self._global_step:
            return  # gradients are being accumulated
        self._global_step = trainer.global_step
        loss = outputs["loss"] if isinstance(outputs, dict) else outputs
        require(
            isinstance(loss, Tensor),
            "training_step must return the loss, or a dictionary with 'loss'; or name a metric",
        )
        self.monitor.update(loss, pl_module)
        self._stop(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._metric is None or trainer.sanity_checking:
            return
        score = None if self._score is None else _logged(trainer, self._score)
        self.monitor.update(_logged(trainer, self._metric), pl_module, score=score)
        self._stop(trainer)

    def _stop(self, trainer: Trainer) -> None:
        trainer.should_stop = trainer.should_stop or self.monitor.should_stop

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.monitor.close()

    def state_dict(self) -> dict[str, Any]:
        return self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.monitor.load_state_dict(state_dict)


def _logged(trainer: Trainer, name: str) -> Tensor:
    known: dict[str, Tensor] = trainer.callback_metrics
    require(
        name in known,
        f"no metric {name!r} was logged; there are {', '.join(sorted(known)) or 'none'}: log it by "
        "self.log in validation_step",
    )
    return known[name]
