"""Giving up a LightGBM training by its log: `pip install 'haltwise[lightgbm]'`."""

import math
from typing import Any, final

from haltwise._core.errors import require
from haltwise._core.settings import require_flags
from haltwise.interfaces.logged import logged
from haltwise.interfaces.run_monitor import RunMonitor

try:
    from lightgbm.callback import CallbackEnv, EarlyStopException
except (ImportError, OSError):  # a system library may be missing
    raise ImportError("LightGBM is not installed: pip install 'haltwise[lightgbm]'") from None

__all__ = ["RunCallback"]


@final
class RunCallback:
    """Ends a training of `lightgbm.train`, `lightgbm.cv` or an estimator where it is given up.

    Cost is counted in boosting rounds, the number of rounds asked for is the budget. Every training
    is a run of its own. Of `lightgbm.cv` the mean over the folds is the metric.

    Args:
        monitor: When to give up.
        metric: DATA-METRIC, for instance `"valid_0-l2"`.
        at_best: Whether the model is used as it was at the best value of the metric
            (`best_iteration`), as after LightGBM's early stopping, in place of with all its trees.
            Say True where `lightgbm.early_stopping` is beside it: LightGBM goes by the one that
            ends the training. None is True where the parameters ask for early stopping.

    Raises:
        InputError: The metric was not logged, or another direction of it is better.

    Examples:
        >>> callback = RunCallback(monitor, "valid_0-l2")  # doctest: +SKIP
        >>> booster = lightgbm.train(  # doctest: +SKIP
        ...     params, data, 1000, valid_sets=[valid], callbacks=[callback]
        ... )
    """

    def __init__(self, monitor: RunMonitor, metric: str, *, at_best: bool | None = None) -> None:
        if at_best is not None:
            require_flags(at_best=at_best)
        self.monitor = monitor
        self._metric, self._at_best = metric, at_best
        self._lowest = math.inf
        self._best: tuple[int, Any] = 0, []  # the round of the lowest loss, and all its results
        self.order = 30  # after LightGBM's own that log and record
        self.before_iteration = False

    def __repr__(self) -> str:
        return f"RunCallback({self._metric}: {self.monitor})"

    def __call__(self, env: CallbackEnv) -> None:
        results = env.evaluation_result_list or []
        if env.iteration == env.begin_iteration:
            self.monitor.start(budget=env.end_iteration - env.begin_iteration)
            self._lowest, self._best = math.inf, (env.iteration, results)
            require(
                not (self._at_best and _is_dart(env.params)),
                "dart changes earlier trees, so no round is left as it was at its best; leave "
                "at_best out",
            )
        _, _, value, is_higher_better, *_ = logged(
            {f"{r[0]}-{r[1]}": r for r in results}, self._metric
        )
        direction = "max" if is_higher_better else "min"
        require(
            self.monitor.direction == direction,
            f"{self._metric} is better the {'higher' if is_higher_better else 'lower'}, but the "
            f"monitor was made with direction={self.monitor.direction!r}; make it with "
            f"{direction!r}",
        )
        self.monitor.update(value, cost=env.iteration - env.begin_iteration + 1)
        loss = -value if is_higher_better else value
        if loss < self._lowest:
            self._lowest, self._best = loss, (env.iteration, results)
        if self.monitor.should_stop:
            asked = (env.params.get("early_stopping_round") or 0) > 0 and not _is_dart(env.params)
            at_best = asked if self._at_best is None else self._at_best
            raise EarlyStopException(*(self._best if at_best else (env.iteration, results)))


def _is_dart(params: dict[str, Any]) -> bool:
    """Whether earlier trees change, where LightGBM has no early stopping either."""
    return "dart" in (params.get(name) for name in ("boosting", "boosting_type", "boost"))
