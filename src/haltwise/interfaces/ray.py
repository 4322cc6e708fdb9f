"""Giving up trials of Ray Tune by their results: `pip install 'haltwise[ray]'`."""

import copy
from typing import Any, final

from haltwise.interfaces.logged import logged
from haltwise.interfaces.run_monitor import RunMonitor, warn_of_direction

try:
    from ray.tune import Stopper
except ImportError:
    raise ImportError("Ray Tune is not installed: pip install 'haltwise[ray]'") from None

__all__ = ["RunStopper"]


@final
class RunStopper(Stopper):  # type: ignore[misc]
    """Stops each trial of Ray Tune where it is given up.

    Args:
        monitor: When to give up; each trial has a copy of it.
        metric: What every result reports.
        cost: What of a result is its cost: `"training_iteration"` or `"time_total_s"`.

    Examples:
        >>> stopper = RunStopper(monitor, "val_loss")  # doctest: +SKIP
        >>> tuner = tune.Tuner(train, run_config=tune.RunConfig(stop=stopper))  # doctest: +SKIP
    """

    def __init__(
        self, monitor: RunMonitor, metric: str, *, cost: str = "training_iteration"
    ) -> None:
        warn_of_direction(metric, monitor.direction)
        self._monitor, self._metric, self._cost = monitor, metric, cost
        self.monitors: dict[str, RunMonitor] = {}
        """Of each trial, by its identity."""

    def __repr__(self) -> str:
        return f"RunStopper({self._metric}: {self._monitor})"

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        if trial_id not in self.monitors:
            self.monitors[trial_id] = copy.copy(self._monitor)
            self.monitors[trial_id].start()
        monitor = self.monitors[trial_id]
        monitor.update(logged(result, self._metric), cost=logged(result, self._cost))
        return monitor.should_stop

    def stop_all(self) -> bool:
        return False
