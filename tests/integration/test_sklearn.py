"""Loops of `partial_fit` and scikit-learn's callbacks, with the real package."""

from typing import Any

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression, SGDClassifier
from sklearn.pipeline import make_pipeline
from tiny_rules import patience, stop_of

from haltwise import InputError
from haltwise._core.errors import FitWarning
from haltwise.interfaces.sklearn import RunCallback, fit_by_batches


def table(seed: int) -> tuple[Any, Any]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(200, 5))
    return x, (x[:, 0] + generator.normal(size=200) > 0).astype(int)


def test_a_loop_of_partial_fit_stops_by_its_score() -> None:
    x, y = table(0)
    batches = [(x[i : i + 5], y[i : i + 5]) for i in range(0, 100, 5)]

    def accuracy(model: Any) -> Any:
        return model.score(x[100:], y[100:])

    scores, model = [], SGDClassifier(random_state=0)
    for batch in batches:
        model.partial_fit(*batch, classes=[0, 1])
        scores.append(accuracy(model))
    expected = stop_of(scores, 3, direction="max")
    assert expected < len(batches)
    monitor = patience(3, direction="max")
    for _ in range(2):  # each fit is a run of its own
        found = SGDClassifier(random_state=0)
        assert fit_by_batches(found, iter(batches), monitor, accuracy, classes=[0, 1]) is found
        assert monitor.steps == found.t_ // 5 == expected
    assert monitor.curve.columns["metric"].tolist() == scores[:expected]


def test_all_batches_are_used_if_nothing_stops_it() -> None:
    x, y = table(0)
    monitor = patience(99)
    fit_by_batches(SGDClassifier(), [(x, y)] * 3, monitor, lambda _: 1.0, classes=[0, 1])
    assert (monitor.steps, monitor.should_stop) == (3, False)


callbacks = pytest.mark.skipif(
    not hasattr(LogisticRegression, "set_callbacks"), reason="this scikit-learn has no callbacks"
)


def obedient() -> Any:
    """An estimator that obeys callbacks, as scikit-learn's guide for developers has it."""
    from sklearn.callback import CallbackSupportMixin, with_callbacks

    class Halving(CallbackSupportMixin, BaseEstimator):  # type: ignore[misc]
        def __init__(self, losses: Any = ()) -> None:
            self.losses = losses

        @with_callbacks  # type: ignore[untyped-decorator]
        def fit(self, x: Any, y: Any = None) -> Any:
            context = self._init_callback_context(max_subtasks=len(self.losses))
            context.call_on_fit_task_begin(estimator=self, X=x, y=y)
            for number in range(len(self.losses)):
                part = context.subcontext(task_name="iteration")
                part.call_on_fit_task_begin(estimator=self, X=x, y=y)
                self.n_iter_ = number + 1
                state = {"n_iter_": self.n_iter_}
                if part.call_on_fit_task_end(
                    estimator=self, X=x, y=y, reconstruction_attributes=state
                ):
                    break
            context.call_on_fit_task_end(estimator=self, X=x, y=y)
            return self

    return Halving


@callbacks
def test_an_estimator_that_obeys_stops() -> None:
    losses = [5.0, 4, 3, 3, 3, 3, 2, 1]
    callback = RunCallback(patience(3), lambda model: model.losses[model.n_iter_ - 1])
    model = obedient()(losses).set_callbacks(callback)
    for _ in range(2):
        assert model.fit([[0]]).n_iter_ == callback.monitor.steps == stop_of(losses, 3) == 6


@callbacks
@pytest.mark.filterwarnings("ignore:lbfgs failed to converge")
def test_an_estimator_that_does_not_obey_is_reported() -> None:
    x, y = table(1)
    callback = RunCallback(patience(2), lambda _: 1.0)
    model = LogisticRegression(max_iter=6, tol=1e-12).set_callbacks(callback)
    with pytest.warns(FitWarning, match="LogisticRegression was told to stop, but goes on") as told:
        model.fit(x, y)
    assert len([warning for warning in told if warning.category is FitWarning]) == 1
    assert callback.monitor.steps == model.n_iter_[0]


def test_an_estimator_without_partial_fit_is_refused() -> None:
    x, y = table(0)
    with pytest.raises(InputError, match="LogisticRegression has no partial_fit, so it cannot"):
        fit_by_batches(LogisticRegression(), [(x, y)], patience(1), lambda _: 1.0)


def test_a_batch_is_a_pair() -> None:
    x, _ = table(0)
    batches: Any = [x[:2]]  # which has two rows
    with pytest.raises(InputError, match=r"a pair of inputs and targets, got shape \[2, 5\]; with"):
        fit_by_batches(MiniBatchKMeans(2), batches, patience(1), lambda _: 1.0)
    monitor = patience(99)
    fit_by_batches(MiniBatchKMeans(2, n_init=1), [(x, None)] * 3, monitor, lambda _: 1.0)
    assert monitor.steps == 3


@callbacks
def test_a_fit_without_iterations_is_reported() -> None:
    x, y = table(0)
    model = make_pipeline(obedient()([1.0, 2.0]))
    with pytest.warns(FitWarning, match="Pipeline showed its callback no iteration") as told:
        model.set_callbacks(RunCallback(patience(1), lambda _: 1.0)).fit(x, y)
    assert [each.filename for each in told] == [__file__]
