"""Giving up a CatBoost training by its log: `pip install 'haltwise[catboost]'`."""

from typing import Any, final

from haltwise.interfaces.logged import logged
from haltwise.interfaces.run_monitor import RunMonitor, warn_of_direction

__all__ = ["RunCallback"]


@final
class RunCallback:
    """Ends a training of a CatBoost estimator on CPUs where it is given up.

    Cost is counted in boosting rounds. Every training is a run of its own; one that goes on from a
    snapshot is judged by its whole log. CatBoost itself keeps the trees up to the
    best round on the evaluation set, by its `eval_metric` (`use_best_model`).

    Args:
        monitor: When to give up.
        metric: DATA-METRIC, for instance `"validation-RMSE"`, or `"validation_0-RMSE"` where there
            are several evaluation sets. Rounds without it (`metric_period`) are no points.

    Raises:
        InputError: The first round did not log the metric. CatBoost raises it as its own error.

    Examples:
        >>> callback = RunCallback(monitor, "validation-RMSE")  # doctest: +SKIP
        >>> CatBoostRegressor(iterations=1000).fit(  # doctest: +SKIP
        ...     x, y, eval_set=(x_valid, y_valid), callbacks=[callback]
        ... )
    """

    def __init__(self, monitor: RunMonitor, metric: str) -> None:
        warn_of_direction(metric, monitor.direction)
        self.monitor = monitor
        self._metric = metric
        self._num_logged = 0

    def __repr__(self) -> str:
        return f"RunCallback({self._metric}: {self.monitor})"

    def after_iteration(self, info: Any) -> bool:
        """See what a round logged, and say whether there should be another."""
        values = {
            f"{data}-{name}": history
            for data, metrics in info.metrics.items()
            for name, history in metrics.items()
        }
        history = logged(values, self._metric)
        if info.iteration == 1 or self.monitor.steps == 0:
            self.monitor.start()
            # Of a training that goes on from a snapshot the earlier rounds are known, too.
            is_whole = len(history) == info.iteration
            self._num_logged = 0 if is_whole else len(history) - 1
        first = info.iteration - (len(history) - self._num_logged) + 1
        for number, value in enumerate(history[self._num_logged :], first):
            self.monitor.update(value, cost=number)
        self._num_logged = len(history)
        return not self.monitor.should_stop
