"""The stopper for Ray Tune, with the real package; a cluster of its own takes too long here."""

import pickle
from typing import Any

import pytest
from tiny_rules import patience

from haltwise import InputError, RunMonitor

tune = pytest.importorskip("ray.tune")
ray_result = pytest.importorskip("ray.tune.result")

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


def test_a_nested_metric_is_named_as_ray_does() -> None:
    stopper = RunStopper(patience(3), "eval/loss")
    for iteration in range(1, 5):
        ended = stopper("a", {"eval": {"loss": 1.0}, **result(iteration)})
    assert ended
    assert stopper.monitors["a"].steps == 4


def test_results_between_evaluations_are_no_points() -> None:
    stopper = RunStopper(patience(3), "loss")
    for iteration in range(1, 10):
        own = {"loss": 1.0} if iteration % 3 == 1 else {}
        assert not stopper("a", result(iteration, reward=1.0, **own))
    assert stopper.monitors["a"].curve.cost.tolist() == [1, 4, 7]
    assert stopper("a", result(10, loss=1.0))
    assert not stopper("b", result(1, reward=1.0))


def test_a_trial_that_reports_nothing_goes_on() -> None:
    ended = dict.fromkeys(ray_result.DEBUG_METRICS, 1) | {"config": {"lr": 1}, "done": True}
    assert not RunStopper(patience(1), "loss")("a", ended)


def test_a_learned_rule_without_a_budget_is_refused_before_the_experiment() -> None:
    monitor = RunMonitor("training-runs", target=0.3)
    with pytest.raises(InputError, match="give a budget"):
        RunStopper(monitor, "loss")


def test_it_survives_a_checkpoint_of_the_experiment() -> None:
    stopper = RunStopper(patience(3), "loss")
    for iteration in (1, 2, 3):
        stopper("a", result(iteration, loss=1))
    again = pickle.loads(pickle.dumps(stopper))
    assert again("a", result(4, loss=1))
