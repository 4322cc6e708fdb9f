"""Giving up a Keras training by its log: `pip install 'haltwise[keras]'`."""

from typing import Any, final

from haltwise.interfaces.logged import warn_of_no_point
from haltwise.interfaces.run_monitor import RunMonitor, warn_of_direction

try:
    from keras.callbacks import Callback
except ImportError:
    raise ImportError("Keras is not installed: pip install 'haltwise[keras]'") from None

__all__ = ["RunCallback"]


@final
class RunCallback(Callback):  # type: ignore[misc]
    """Ends a training of `model.fit` where it is given up, with any backend of Keras.

    Cost is counted in epochs, and the number of epochs asked for is the budget. A fit whose
    `initial_epoch` is above 0 goes on with the run that the monitor knows, with its own number of
    epochs for the budget; any other is a run of its own.

    Args:
        monitor: When to give up.
        metric: As Keras logs it. Epochs without it, as between validations, are no points.

    Warns:
        DataWarning: No epoch logged the metric.

    Examples:
        >>> callback = RunCallback(monitor, "val_loss")  # doctest: +SKIP
        >>> model.fit(  # doctest: +SKIP
        ...     x, y, epochs=100, validation_split=0.2, callbacks=[callback]
        ... )
    """

    def __init__(self, monitor: RunMonitor, metric: str = "val_loss") -> None:
        super().__init__()
        warn_of_direction(metric, monitor.direction)
        self.monitor = monitor
        self._metric = metric
        self._begun = False
        self._known: set[str] = set()

    def __repr__(self) -> str:
        return f"RunCallback({self._metric}: {self.monitor})"

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        self._begun, self._known = False, set()

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if not self._begun:
            goes_on = epoch > 0 and self.monitor.steps > 0
            begin = self.monitor.resume if goes_on else self.monitor.start
            begin(budget=self.params["epochs"])
        self._begun = True

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        values = logs or {}
        self._known |= values.keys()
        if self._metric in values:
            self.monitor.update(values[self._metric], cost=epoch + 1)
            self.model.stop_training |= self.monitor.should_stop

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        warn_of_no_point(self.monitor.steps, self._metric, self._known)
