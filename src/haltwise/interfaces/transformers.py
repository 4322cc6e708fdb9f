"""Stopping a Hugging Face `Trainer`: `pip install 'haltwise[transformers]'`."""

from typing import Any, final

from torch import nn

from haltwise._core.errors import require
from haltwise.interfaces.logged import warn_of_no_point
from haltwise.interfaces.monitor import HaltingMonitor
from haltwise.interfaces.run_monitor import RunMonitor, warn_of_direction

try:
    from transformers import TrainerCallback, TrainerControl
except ImportError:
    raise ImportError(
        "transformers is not installed: pip install 'haltwise[transformers]'"
    ) from None

__all__ = ["HaltingCallback", "RunCallback"]


@final
class HaltingCallback(TrainerCallback):  # type: ignore[misc]
    """Lets a `HaltingMonitor` record a Hugging Face training, or end it.

    A round lies between two logs of the training loss (`logging_steps`), or between two evaluations
    if a metric is named. The monitor looks at parameters and gradients at every step of the
    optimizer; its state is not in the checkpoints, so a resumed training is judged from there on,
    and is not recorded. Every training is a run of its own; one that ends by an exception is not
    recorded. Of several processes, the first records.

    Args:
        monitor: One that stops, or `HaltingMonitor.recording(...)`, which is closed at the end of
            the training.
        metric: Of the evaluation, as `"eval_loss"`, or `"eval_NAME_loss"` where there are several
            sets: it is then the loss of the round.
        score: Of the evaluation, too: what a stop is judged by, for recording; the metric if None.

    Warns:
        DataWarning: There was no round, as the metric was never logged.
    """

    def __init__(
        self, monitor: HaltingMonitor, metric: str | None = None, *, score: str | None = None
    ) -> None:
        require(score is None or metric is not None, "a score needs a metric beside it; name both")
        self.monitor = monitor
        self._metric, self._score = metric, score
        self._moved = False  # since the last round
        self._metrics: dict[str, float] = {}  # of all sets, since the last step
        self._known: set[str] = set()

    def __repr__(self) -> str:
        return f"HaltingCallback({self.monitor})"

    def on_train_begin(
        self, args: Any = None, state: Any = None, *_: Any, model: nn.Module, **kwargs: Any
    ) -> None:
        resumed = state is not None and state.global_step > 0
        self.monitor.start(model, resumed=resumed, awaits_end=True)
        self._moved, self._metrics, self._known = False, {}, set()

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Refuse names that none of the sets knew."""
        for name in (self._metric, self._score) if self._metrics else ():
            require(
                name is None or name in self._metrics,
                f"the evaluation has no {name!r}, but {', '.join(sorted(self._metrics))}; name one "
                "of these",
            )
        self._metrics = {}

    def on_optimizer_step(
        self, *args: Any, model: nn.Module, optimizer: Any = None, **kwargs: Any
    ) -> None:
        if not getattr(optimizer, "step_was_skipped", False):  # as gradients overflowed
            self.monitor.look(model)
            self._moved = True

    def on_log(
        self, args: Any, state: Any, control: TrainerControl, *, logs: dict[str, float], **_: Any
    ) -> None:
        self._known |= logs.keys()
        # The last log, of the whole run, has no loss.
        if self._moved and self._metric is None and "loss" in logs:
            self._update(control, logs["loss"], None)

    def on_evaluate(
        self, args: Any, state: Any, control: TrainerControl, *, metrics: dict[str, float], **_: Any
    ) -> None:
        if not self._moved or self._metric is None:
            return
        self._metrics |= metrics
        known = self._metrics
        score = self._score or self._metric  # evaluated is what a stop now leaves
        if self._metric in known and score in known:
            self._update(control, known[self._metric], known[score])

    def _update(self, control: TrainerControl, loss: float, score: float | None) -> None:
        self.monitor.update(loss, score=score)
        self._moved = False
        control.should_training_stop |= self.monitor.should_stop

    def on_train_end(self, args: Any, state: Any, *others: Any, **kwargs: Any) -> None:
        if not state.is_world_process_zero:
            self.monitor.discard()
        self.monitor.end()
        self._moved = False  # an evaluation is for its own sake from now on
        self.on_step_begin()
        warn_of_no_point(self.monitor.steps, self._metric or "loss", self._known)


@final
class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Ends a Hugging Face training where a `RunMonitor` gives it up, by its log alone.

    Cost is counted in steps of the optimizer, and the steps that are planned are the budget. A
    training that is resumed from a checkpoint is judged by its whole log, as if it had not been
    interrupted.

    Args:
        monitor: When to give up.
        metric: As the trainer logs it: `"loss"` of the training, `"eval_loss"` of the evaluation.

    Warns:
        DataWarning: The metric was never logged.

    Examples:
        >>> callback = RunCallback(monitor, "eval_loss")  # doctest: +SKIP
        >>> trainer = Trainer(model, args, callbacks=[callback])  # doctest: +SKIP
    """

    def __init__(self, monitor: RunMonitor, metric: str = "eval_loss") -> None:
        warn_of_direction(metric, monitor.direction)
        self.monitor = monitor
        self._metric = metric
        self._training = False  # an evaluation may be for its own sake
        self._known: set[str] = set()

    def __repr__(self) -> str:
        return f"RunCallback({self._metric}: {self.monitor})"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.monitor.start(budget=state.max_steps)
        for logs in state.log_history:  # before a checkpoint from which it is resumed
            if self._metric in logs:
                self.monitor.update(logs[self._metric], cost=logs["step"])
        self._training, self._known = True, set()

    def on_log(
        self, args: Any, state: Any, control: TrainerControl, *, logs: dict[str, float], **_: Any
    ) -> None:
        self._known |= logs.keys()
        if self._training and self._metric in logs:
            self.monitor.update(logs[self._metric], cost=state.global_step)
            control.should_training_stop |= self.monitor.should_stop

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._training = False
        warn_of_no_point(self.monitor.steps, self._metric, self._known)
