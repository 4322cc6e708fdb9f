"""Giving up trials of Ray Tune by their results: `pip install 'haltwise[ray]'`."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, final

from haltwise.interfaces.logged import logged
from haltwise.interfaces.run_monitor import RunMonitor, warn_of_direction

try:
    from ray.tune import Stopper
    from ray.tune.result import DEBUG_METRICS, DONE
except ImportError:
    raise ImportError("Ray Tune is not installed: pip install 'haltwise[ray]'") from None

__all__ = ["RunStopper"]


@final
class RunStopper(Stopper):  # type: ignore[misc]
    """Stops each trial of Ray Tune where it is given up.

    Args:
        monitor: When to give up; each trial has a copy of it.
        metric: As results have it, `"eval/loss"` for what is nested. Once one had it, results
            without it, as between evaluations, are no points.
        cost: What of a result is its cost: `"training_iteration"` or `"time_total_s"`.

    Raises:
        InputError: A learned rule has no budget; or a trial has reported something, but none so far
            the metric.

    Examples:
        >>> stopper = RunStopper(monitor, "val_loss")  # doctest: +SKIP
        >>> tuner = tune.Tuner(train, run_config=tune.RunConfig(stop=stopper))  # doctest: +SKIP
    """

    def __init__(
        self, monitor: RunMonitor, metric: str, *, cost: str = "training_iteration"
    ) -> None:
        warn_of_direction(metric, monitor.direction)
        copy.copy(monitor).start()  # what it refuses would end the experiment at the first result
        self._monitor, self._metric, self._cost = monitor, metric, cost
        self.monitors: dict[str, RunMonitor] = {}
        """Of each trial, by its identity."""
        self._was_reported = False

    def __repr__(self) -> str:
        return f"RunStopper({self._metric}: {self._monitor})"

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        values = dict(_flat(result))
        if values.keys() <= _UNASKED:  # of a trial that ended without a word
            return False
        if trial_id not in self.monitors:
            self.monitors[trial_id] = copy.copy(self._monitor)
            self.monitors[trial_id].start()
        monitor = self.monitors[trial_id]
        if self._metric in values or not self._was_reported:
            monitor.update(logged(values, self._metric), cost=logged(values, self._cost))
            self._was_reported = True
        return monitor.should_stop

    def stop_all(self) -> bool:
        return False


_UNASKED = {*DEBUG_METRICS, DONE}  # what Ray puts into every result


def _flat(result: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """What a result reports, with the names that lead to it joined by slashes, as Ray does it."""
    for name, value in result.items():
        if name == "config" and not before:
            continue
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}/")
        else:
            yield f"{before}{name}", value
