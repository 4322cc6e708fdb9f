"""The stopper for Ray Tune, with the real package; a cluster of its own takes too long here."""

import pickle
from typing import Any

import pytest
from tiny_rules import patience

from haltwise import InputError

tune = pytest.importorskip("ray.tune")

from haltwise.interfaces.ray import RunStopper  # noqa: E402


def result(iteration: int, **metrics: float) -> dict[str, Any]:
    return {"training_iteration": iteration, "time_total_s": 10.0 * iteration, **metrics}


def test_each_trial_is_a_run_of_its_own() -> None:
    stopper = RunStopper(patience(3), "loss")
    assert isinstance(stopper, tune.Stopper)
    for iteration in range(1, 9):
        assert not stopper("good", result(iteration, loss=-iteration))
        assert stopper("bad", result(iteration, loss=1)) == (iteration >= 4)
    assert not stopper.stop_all()
    assert {name: monitor.steps for name, monitor in stopper.monitors.items()} == {
        "good": 8,
        "bad": 8,
    }
    assert stopper.monitors["bad"].curve.cost.tolist() == list(range(1, 9))


def test_cost_may_be_time() -> None:
    stopper = RunStopper(patience(3), "loss", cost="time_total_s")
    stopper("a", result(1, loss=1))
    assert stopper.monitors["a"].curve.cost.tolist() == [10]


def test_a_missing_metric_is_refused() -> None:
    with pytest.raises(InputError, match="no metric 'x' was logged, but loss, time_total_s"):
        RunStopper(patience(1), "x")("a", result(1, loss=1))


def test_it_survives_a_checkpoint_of_the_experiment() -> None:
    stopper = RunStopper(patience(3), "loss")
    for iteration in (1, 2, 3):
        stopper("a", result(iteration, loss=1))
    again = pickle.loads(pickle.dumps(stopper))
    assert again("a", result(4, loss=1))
