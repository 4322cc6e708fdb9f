"""Baselines that read what the halter reads: general learners on the same features.

A logistic regression and boosted trees learn "no later step is worth its price", seen in hindsight,
and trees learn the value of going on by fitted policy iteration (Longstaff and Schwartz 2001). In
place of a halter's memory, trees see the features of the step before and running means of them.
Scores on the tuning items come from models that were fitted on the other half of these; threshold
and returned iterate are then chosen on all of them, as every rule's are.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from haltwise._core.extras import extra
from haltwise.evaluation.judge import Stops
from haltwise.halting.features.optimization import OptimizationFeatures
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules import CostUnit, HazardThreshold, choose, costs, returnable

__all__ = ["LEARNERS", "learned_baselines"]

LEARNERS = ("logistic_signals", "boosted_trees", "value_trees")
"""Their names."""

_FEWEST = 50  # tuning items
_MOST_ROWS = 2**17  # of (item, step) to fit a model on
_FAR = 10.0  # prices, beyond which a value is clear
_RATE = 0.15  # of running means
_ROUNDS = 2  # of policy iteration before the last
_NUM_TREES = {"boosted_trees": 50, "value_trees": 100}  # of each model

Array = npt.NDArray[Any]
Scores = list[Array]  # of the tuning and the test items, [n, T] each; higher is stop


def learned_baselines(
    tuning: Trajectory, test: Trajectory, units: Iterable[CostUnit], price: float
) -> dict[CostUnit, dict[str, Stops]]:
    """The stops of each baseline on the test items, by unit of cost and by name.

    None where no signals are shown, there are too few tuning items, or all of these are alike.
    They are fitted on as many threads as PyTorch has.
    """
    with extra("learn"):
        from threadpoolctl import threadpool_limits

    found: dict[CostUnit, dict[str, Stops]] = {unit: {} for unit in units}
    if tuning.signals is None or test.signals is None or tuning.num_items < _FEWEST:
        return found
    plain = [_features(each, price) for each in (tuning, test)]
    label = _best_now(tuning, price)
    if label.all() or not label.any():
        return found
    rich = [_with_history(each) for each in plain]
    with threadpool_limits(torch.get_num_threads()):
        classified = {  # what is best in hindsight is so in every unit
            "logistic_signals": _cross_fitted(_logistic, plain, label),
            "boosted_trees": _cross_fitted(_boosted, rich, label),
        }
        for unit, stops in found.items():
            scores = {**classified, "value_trees": _values(rich, _gains(tuning, unit, price))}
            for name, each in scores.items():
                stops[name] = _stops(each, tuning, test, unit, price)
    return found


def _features(trajectory: Trajectory, price: float) -> Array:
    """What a halter reads at each step, [n, T, F]."""
    signals = trajectory.known("signals").float()
    prices, features = signals.new_full((len(signals),), price), OptimizationFeatures()
    found, _ = features.extract(signals, prices, features.init(len(signals), signals))
    return np.asarray(found.nan_to_num(0.0), dtype=np.float32)


def _with_history(features: Array) -> Array:
    last, mean = np.zeros_like(features), features.copy()
    last[:, 1:] = features[:, :-1]
    for step in range(1, features.shape[1]):
        mean[:, step] = mean[:, step - 1] + _RATE * (features[:, step] - mean[:, step - 1])
    return np.concatenate((features, last, mean), -1)


def _best_now(trajectory: Trajectory, price: float) -> Array:
    """Whether no later step is worth its price, [n, T]."""
    table = costs(trajectory.excess.double(), price)
    later = table.flip(1).cummin(1).values.flip(1)[:, 1:]
    return np.asarray(table[:, :-1] <= later)


def _gains(trajectory: Trajectory, unit: CostUnit, price: float) -> Array:
    """What a stop at each step costs, in prices, [n, T+1]; the last is that of never stopping."""
    table = (costs(trajectory.excess.double(), price) / price).numpy()
    if unit is CostUnit.UPDATES:
        return np.asarray(table)
    return np.concatenate((table[:, 1:], table[:, -1:]), 1)  # the update paid for is taken


def _cross_fitted(fit: Callable[[Array, Array], Any], x: list[Array], y: Array) -> Scores:
    """Scores of models fitted on each half of the tuning items: of the other half, and of tests."""
    half, own, both = np.arange(len(y)) % 2, np.zeros(y.shape), []
    for side in (0, 1):
        rows = np.flatnonzero(half == side)[: max(1, _MOST_ROWS // y.shape[1])]
        predict = fit(x[0][rows].reshape(-1, x[0].shape[-1]), y[rows].reshape(-1))
        own[half != side] = _at_each_step(predict, x[0][half != side])
        both.append([_at_each_step(predict, each) for each in x[1:]])
    return [own, *((one + other) / 2 for one, other in zip(*both, strict=True))]


def _at_each_step(predict: Callable[[Array], Array], x: Array) -> Array:
    return predict(x.reshape(-1, x.shape[-1])).reshape(x.shape[:2])


def _logistic(x: Array, y: Array) -> Any:
    with extra("learn"):
        from sklearn.linear_model import LogisticRegression

    center, scale = x.mean(0), x.std(0) + 1e-6
    if y.all() or not y.any():
        return lambda new: np.full(len(new), float(y[0]))
    model = LogisticRegression(max_iter=300).fit((x - center) / scale, y)
    return lambda new: model.decision_function((new - center) / scale)


def _boosted(x: Array, y: Array) -> Any:
    with extra("learn"):
        from sklearn.ensemble import HistGradientBoostingClassifier

    if y.all() or not y.any():
        return lambda new: np.full(len(new), float(y[0]))
    model = HistGradientBoostingClassifier(
        max_iter=_NUM_TREES["boosted_trees"], learning_rate=0.2, max_leaf_nodes=15,
        min_samples_leaf=_leaf(y), l2_regularization=5.0, early_stopping=False, random_state=0,
    )  # fmt: skip
    return model.fit(x, y).decision_function


def _regression(x: Array, y: Array) -> Any:
    with extra("learn"):
        from sklearn.ensemble import HistGradientBoostingRegressor

    model = HistGradientBoostingRegressor(
        max_iter=_NUM_TREES["value_trees"], learning_rate=0.15, min_samples_leaf=_leaf(y),
        l2_regularization=1.0, early_stopping=False, random_state=0,
    )  # fmt: skip
    return model.fit(x, y).predict


def _leaf(y: Array) -> int:
    """The smallest leaf: a tree must not learn single items by heart."""
    return int(min(300, max(20, len(y) // 200)))


def _values(x: list[Array], cost: Array) -> Scores:
    """What going on costs more than stopping, the policy iterated as the forecast learns."""
    later = np.minimum.accumulate(cost[:, ::-1], 1)[:, ::-1][:, 1:]  # the best, in hindsight
    for number in range(_ROUNDS + 1):
        shown = x if number == _ROUNDS else x[:1]  # the tests, to the last forecast alone
        target = np.clip(later - cost[:, :-1], -_FAR, _FAR)
        scores = _cross_fitted(_regression, shown, target)
        value = cost.copy()
        for step in reversed(range(target.shape[1])):
            stops = scores[0][:, step] >= 0
            value[:, step] = np.where(stops, cost[:, step], value[:, step + 1])
        later = value[:, 1:]
    return scores


def _stops(
    scores: Scores, tuning: Trajectory, test: Trajectory, unit: CostUnit, price: float
) -> Stops:
    """The stops by a threshold of the scores, chosen with the returned iterate on the tuning."""

    def scored(trajectory: Trajectory, score: Array) -> Trajectory:
        logits = torch.from_numpy(score).to(trajectory.loss)
        outputs: dict[str, Tensor] = {"hazard_logits": torch.stack((logits, logits), -1)}
        return replace(trajectory, outputs=outputs)

    tune_on, judge_on = (scored(*pair) for pair in zip((tuning, test), scores, strict=True))
    table = costs(tuning.excess, price)
    rules = HazardThreshold.candidates(tune_on, table)
    found = choose(rules, tune_on, unit, price=price, returns=returnable(unit))
    return Stops.by(found.policy, judge_on, unit)
