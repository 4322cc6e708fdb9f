"""Giving up an XGBoost training by its log: `pip install 'haltwise[xgboost]'`."""

from typing import Any, final

from haltwise.interfaces.logged import logged
from haltwise.interfaces.run_monitor import RunMonitor, warn_of_direction

try:
    from xgboost.callback import TrainingCallback
except ImportError:
    raise ImportError("XGBoost is not installed: pip install 'haltwise[xgboost]'") from None

__all__ = ["RunCallback"]


@final
class RunCallback(TrainingCallback):  # type: ignore[misc]
    """Ends a training of `xgboost.train`, `xgboost.cv` or an estimator where it is given up.

    Cost is counted in boosting rounds. Every training is a run of its own. Of `xgboost.cv` the
    mean over the folds is the metric, and the rounds until the last are returned, or until the best
    where XGBoost's early stopping is beside it.

    Args:
        monitor: When to give up.
        metric: As XGBoost prints it, DATA-METRIC, for instance `"validation_0-logloss"`.

    Examples:
        >>> callback = RunCallback(monitor, "valid-logloss")  # doctest: +SKIP
        >>> booster = xgboost.train(  # doctest: +SKIP
        ...     params, data, 1000, evals=[(valid, "valid")], callbacks=[callback]
        ... )
    """

    def __init__(self, monitor: RunMonitor, metric: str) -> None:
        super().__init__()
        warn_of_direction(metric, monitor.direction)
        self.monitor = monitor
        self._metric = metric

    def __repr__(self) -> str:
        return f"RunCallback({self._metric}: {self.monitor})"

    def before_training(self, model: Any) -> Any:
        self.monitor.start()
        return model

    def after_iteration(
        self, model: Any, epoch: int, evals_log: dict[str, dict[str, list[Any]]]
    ) -> bool:
        values = {
            f"{data}-{name}": history[-1]
            for data, metrics in evals_log.items()
            for name, history in metrics.items()
        }
        value = logged(values, self._metric)
        mean = value[0] if isinstance(value, tuple) else value  # of folds beside the deviation
        self.monitor.update(mean, cost=epoch + 1)
        is_of_folds = hasattr(model, "cvfolds")
        if self.monitor.should_stop and is_of_folds and model.attr("best_iteration") is None:
            model.set_attr(best_iteration=str(epoch))  # xgboost.cv returns the rounds up to it
        return self.monitor.should_stop
