"""The callback for Keras, with the real package on PyTorch."""

import os
from typing import Any

import numpy as np
import pytest
from tiny_rules import patience, stop_of

from haltwise._core.errors import DataWarning

os.environ.setdefault("KERAS_BACKEND", "torch")
keras = pytest.importorskip("keras")

from haltwise.interfaces.keras import RunCallback  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")


def fit(callbacks: list[Any], seed: int = 0, epochs: int = 12, **settings: Any) -> dict[str, Any]:
    """The history of a small fit at a rate that is too high."""
    keras.utils.set_random_seed(seed)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(40, 4)).astype("float32")
    y = x.sum(1) + generator.normal(size=40).astype("float32")
    model = keras.Sequential([keras.layers.Dense(8, activation="tanh"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.3), "mse")
    history: dict[str, Any] = model.fit(
        x, y, epochs=epochs, validation_split=0.5, verbose=0, callbacks=callbacks, **settings
    ).history
    return history


def test_it_stops_by_the_log() -> None:
    stops = set()
    callback = RunCallback(patience(2))
    for seed in range(1, 5):
        log = fit([], seed)["val_loss"]
        found = fit([callback], seed)["val_loss"]
        assert len(found) == callback.monitor.steps == stop_of(log, 2)
        assert callback.monitor.curve.columns["loss"].tolist() == found
        assert callback.monitor.curve.budget == 12
        stops.add(len(found))
    assert len(stops) > 1
    assert min(stops) < 12


def test_epochs_between_validations_are_no_points() -> None:
    callback = RunCallback(patience(50))
    fit([callback], epochs=7, validation_freq=3)
    assert callback.monitor.curve.cost.tolist() == [3, 6]


def test_a_fit_goes_on_from_its_initial_epoch() -> None:
    callback = RunCallback(patience(50), "loss")
    fit([callback], epochs=4)
    fit([callback], epochs=6, initial_epoch=3)
    assert callback.monitor.curve.cost.tolist() == [1, 2, 3, 4, 5, 6]
    assert callback.monitor.steps == 7
    fit([callback], epochs=2)
    assert callback.monitor.curve.cost.tolist() == [1, 2]
    fresh = RunCallback(patience(50), "loss")
    fit([fresh], epochs=6, initial_epoch=3)
    assert fresh.monitor.curve.cost.tolist() == [4, 5, 6]
    assert fresh.monitor.curve.budget == 6
    for epoch in range(6, 9):  # a loop of fits of one epoch
        fit([fresh], epochs=epoch + 1, initial_epoch=epoch)
        assert fresh.monitor.curve.budget == epoch + 1
    assert fresh.monitor.curve.cost.tolist() == list(range(4, 10))


def test_a_metric_that_was_never_logged_is_reported() -> None:
    callback = RunCallback(patience(1, direction="max"), "f1")
    with pytest.warns(DataWarning, match="no metric 'f1' was logged, but loss, val_loss") as told:
        fit([callback], epochs=2)
    (place,) = {each.filename for each in told if each.category is DataWarning}
    assert place == __file__  # not a line of Keras
