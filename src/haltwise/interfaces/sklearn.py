"""Giving up fits of scikit-learn by a score of one's own."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, final

from haltwise._core.errors import FitWarning, require, warn
from haltwise._core.settings import shown
from haltwise.interfaces.run_monitor import Number, RunMonitor

__all__ = ["RunCallback", "fit_by_batches"]

Estimator = TypeVar("Estimator")


def fit_by_batches(
    estimator: Estimator,
    batches: Iterable[tuple[Any, Any]],
    monitor: RunMonitor,
    score: Callable[[Estimator], Number],
    **settings: Any,
) -> Estimator:
    """Fit by `partial_fit` until there are no more batches or the fit is given up.

    Args:
        estimator: Any that has `partial_fit`; fitted in place.
        batches: Inputs and targets of each call, None for targets that are not needed.
        monitor: When to give up; the fit is a run of its own.
        score: The metric, called with the estimator after each batch.
        **settings: Of `partial_fit`, for instance `classes`.

    Returns:
        The estimator.

    Raises:
        InputError: The estimator has no `partial_fit`, or a batch is no pair.

    Examples:
        >>> batches = ((x[i::10], y[i::10]) for i in range(10))  # doctest: +SKIP
        >>> score = lambda model: model.score(x_valid, y_valid)  # doctest: +SKIP
        >>> fit_by_batches(SGDRegressor(), batches, monitor, score)  # doctest: +SKIP
    """
    require(
        hasattr(estimator, "partial_fit"),
        f"{type(estimator).__name__} has no partial_fit, so it cannot be fitted by batches; take "
        "an estimator that has, such as SGDClassifier",
    )
    monitor.start()
    fitted: Any = estimator
    for batch in batches:
        require(
            isinstance(batch, tuple | list) and len(batch) == 2,
            f"a batch must be a pair of inputs and targets, got {shown(batch)}; without targets "
            "give (inputs, None)",
        )
        inputs, targets = batch
        fitted.partial_fit(inputs, targets, **settings)
        monitor.update(score(estimator))
        if monitor.should_stop:
            break
    return estimator


@final
class RunCallback:
    """Asks a fit of scikit-learn 1.9 or later to stop where it is given up.

    `estimator.set_callbacks(RunCallback(monitor, score))`. Cost is counted in iterations, of which
    every fit begins a run. An estimator may or may not obey: scikit-learn 1.9 has the interface,
    but its own `LogisticRegression` goes on all the same.

    Args:
        monitor: When to give up.
        score: The metric, called with an estimator that is fitted as far as the iteration came.

    Warns:
        FitWarning: The estimator does not obey, or showed no iteration, as those that fit others.
    """

    def __init__(self, monitor: RunMonitor, score: Callable[[Any], Number]) -> None:
        self.monitor = monitor
        self._score = score
        self._warned = False

    def __repr__(self) -> str:
        return f"RunCallback({self.monitor})"

    def setup(self, estimator: Any, context: Any) -> None:
        """Begin a run."""
        self.monitor.start()
        self._warned = False

    def teardown(self, estimator: Any, context: Any) -> None:
        """Say if the fit was not watched."""
        if self.monitor.steps == 0:
            warn(
                f"{type(estimator).__name__} showed its callback no iteration, so the fit was not "
                "watched; set the callback on an estimator that has iterations, such as the one "
                "within",
                FitWarning,
            )

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Do nothing before an iteration."""

    def on_fit_task_end(self, estimator: Any, context: Any, *, fitted_estimator: Any) -> bool:
        """See an iteration, and say whether to stop."""
        is_iteration = context.parent is not None and context.max_subtasks == 0
        if not is_iteration or fitted_estimator is None:  # or one that was not run
            return False
        if self.monitor.should_stop and not self._warned:
            self._warned = True
            warn(
                f"{type(estimator).__name__} was told to stop, but goes on: this version of it "
                "does not obey callbacks; use partial_fit or a lower max_iter",
                FitWarning,
            )
        self.monitor.update(self._score(fitted_estimator))
        return self.monitor.should_stop
