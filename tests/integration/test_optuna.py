"""The pruner for Optuna, with the real package."""

import math
import pickle
from typing import Any

import numpy as np
import pytest
from tiny_rules import Median, exponential_runs, small_model

from haltwise import FitWarning, InputError
from haltwise.curves.curves import Curve, Floats
from haltwise.curves.features import FEATURES
from haltwise.curves.forecast import Forecast
from haltwise.curves.model import CurveCard, CurveModel, Loss
from haltwise.curves.rule import CurveRule
from haltwise.curves.trees import Trees

optuna = pytest.importorskip("optuna")
optuna.logging.set_verbosity(optuna.logging.ERROR)

from haltwise.interfaces.optuna import HaltwisePruner  # noqa: E402


class Seen(CurveRule):
    """Remembers the last curve it was shown; gives up what lags the target by more than 1."""

    curve: Curve | None = None

    def score(self, curve: Curve) -> Floats:
        self.curve = curve
        return curve.loss_target - curve.loss


def run(
    pruner: Any, curves: list[list[float]], direction: str = "minimize", first: int = 0
) -> list[int]:
    """The number of values that each trial reported before it was pruned, or all."""
    study = optuna.create_study(direction=direction, pruner=pruner)
    lengths: list[int] = []

    def objective(trial: Any) -> float:
        values: list[float] = curves[trial.number]
        for step, value in enumerate(values):
            trial.report(value, step + first)
            if trial.should_prune():
                lengths.append(step + 1)
                raise optuna.TrialPruned
        lengths.append(len(values))
        return values[-1]

    study.optimize(objective, n_trials=len(curves))
    states = [trial.state.name for trial in study.trials]
    for length, values, state in zip(lengths, curves, states, strict=True):
        assert state == "COMPLETE" or length < len(values) or state == "PRUNED"
    return lengths


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_the_best_completed_trial_is_the_target(direction: str, sign: int) -> None:
    rule = Seen()
    curves = [
        [9.0, 8, 7, 6, 5],  # nothing completed before it
        [9.0, 6.5, 5.5, 5.5, 5.5],  # behind the best, 5, by no more than 1 from the third value on
        [3.0, 9, 9, 9, 4.5],  # it was as good as the best already
        [6.0, 5.6, 5.6, 5.4, 1],  # the best is 4.5 now
        [9.0, 9, 9, 9, 9],
    ]
    pruner = HaltwisePruner(rule, level=-1.0, min_points=3)
    found = run(pruner, [[sign * v for v in values] for values in curves], direction)
    assert found == [5, 5, 5, 3, 3]
    assert rule.curve is not None
    assert rule.curve.loss_target == 4.5
    assert rule.curve.budget == 4
    assert rule.curve.cost.tolist() == [0, 1, 2]
    assert rule.curve.direction == ("min" if sign == 1 else "max")


def test_settings_are_obeyed() -> None:
    curves = [[9.0] * 6] * 4
    for settings, expected in (
        ({"target": 1.0}, [6, 3, 3, 3]),
        ({"target": 1.0, "n_startup_trials": 0}, [3, 3, 3, 3]),
        ({"target": 1.0, "n_startup_trials": 2}, [6, 6, 3, 3]),
        ({"target": 1.0, "min_points": 5}, [6, 5, 5, 5]),
        ({"target": 9.0}, [6, 6, 6, 6]),
        ({"target": 1.0, "budget": 50}, [6, 3, 3, 3]),
        ({"n_startup_trials": 0}, [6, 6, 6, 6]),  # there is no target at first, and then it is met
    ):
        rule = Seen()
        chosen: Any = {"min_points": 3, **settings}
        pruner = HaltwisePruner(rule, level=-1.0, **chosen)
        assert run(pruner, curves, first=1) == expected
        if rule.curve is not None:
            known = expected != [3, 3, 3, 3] or "budget" in settings
            assert rule.curve.budget == settings.get("budget", 6) or not known


def test_a_learned_model_prunes_with_its_own_levels() -> None:
    curves = [*exponential_runs(12, 3).values.reshape(12, 30).tolist()]
    found = run(HaltwisePruner(small_model(), lost=0.05), curves)
    best, ends = math.inf, [values[-1] for values in curves]
    for length, end in zip(found, ends, strict=True):
        assert length == 30 or end > best - 0.1  # those that are better are let go on
        best = min(best, end) if length == 30 else best
    assert best < min(ends) + 0.1
    assert sum(found) < 12 * 30 / 2
    with pytest.raises(InputError, match="Median is not a learned model"):
        HaltwisePruner(Median())


def test_a_rule_may_learn_from_the_peers() -> None:
    rule = Median()
    curves = [
        [9.0, 8, 7, 6],
        [8.0, 7, 6, 5],
        [8.7, 7.6, 6.6, 4.9],  # worse than the median, 8.5 7.5 6.5 5.5, from the first on
        [8.0, 7, 6.5, 5.0],  # of three peers, one of them pruned: 8.7 7.6 6.6 5.5
        [1.0, 9, 9, 9],  # it was better than the best
    ]
    pruner = HaltwisePruner(rule, level=0.0, peers=True, n_startup_trials=2, min_points=3)
    assert run(pruner, curves) == [4, 4, 3, 4, 4]
    assert rule.num_fits == 3  # once for each trial that finished
    assert rule.curves is not None
    assert rule.curves.num_points.tolist() == [4, 4, 3, 4]


def test_there_need_be_no_peer_yet() -> None:
    rule = Median()
    pruner = HaltwisePruner(
        rule, target=1.0, budget=4, level=0.0, peers=True, n_startup_trials=0, min_points=1
    )
    assert run(pruner, [[9.0, 8, 7, 6]]) == [4]
    assert rule.num_fits == 0


def test_a_trial_that_diverged_is_judged() -> None:
    curves = [[1.0, 1.0, 1.0], [math.nan, math.nan, math.nan, math.nan], [math.inf] * 4]
    pruner = HaltwisePruner(Seen(), level=-1e9, min_points=3)
    assert run(pruner, curves)[1:] == [3, 3]


def test_a_trial_without_values_is_not_judged() -> None:
    study = optuna.create_study(pruner=HaltwisePruner(Seen(), level=0.0))
    study.optimize(lambda trial: float(trial.should_prune()), n_trials=3)
    assert [trial.value for trial in study.trials] == [0, 0, 0]


def equal_chances(chance: float) -> CurveModel:
    """A model for which every run has the same chance at every point."""
    leaf = {name: np.zeros((1, 1)) for name in ("feature", "threshold", "left", "right", "value")}
    nodes = {**leaf, "missing_left": np.array([[False]])}
    trees = Trees(nodes, np.log(chance / (1 - chance)), len(FEATURES))
    card = CurveCard("value", "steps", 10.0, levels={"0.01": Loss(0.0, 0.0, 0.0)})
    return CurveModel(Forecast({"all": trees}), card)


@pytest.mark.parametrize("first", [0, 1])
def test_a_learned_model_prunes_by_the_pace_of_the_study(first: int) -> None:
    chance, num_points, num_trials = 0.2, 11, 20
    curves = [[1.0] * num_points, *[[2.0] * num_points] * (num_trials - 1)]
    expected = [num_points]
    for _ in range(num_trials - 1):
        for length in range(2, num_points + 1):
            # A trial is worth its chance less what it would still cost, and a whole trial's cost
            # is worth a success for each whole trial that the study has spent.
            spent = (sum(expected) + length) / num_points
            last_step = num_points - 1 + first
            left = 1 - (length - 1 + first) / last_step
            cost = chance * left / 2 + (1 - chance) * left
            if chance - cost / spent < 0:
                break
        expected.append(length)
    found = run(HaltwisePruner(equal_chances(chance)), curves, first=first)
    assert found == expected
    assert {2, num_points} < set(found) or min(found) == 2 < max(found[1:])


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_a_gain_below_min_delta_is_no_success(direction: str, sign: int) -> None:
    curves = [[sign * end] * 8 for end in (1.0, 0.9, 0.4)]
    for min_delta, expected in ((0.0, [8, 8, 8]), (0.3, [8, 2, 8])):
        pruner = HaltwisePruner(equal_chances(0.01), min_delta=min_delta)
        assert run(pruner, curves, direction) == expected
    with pytest.raises(InputError, match="min_delta must not be negative, got -1"):
        HaltwisePruner(equal_chances(0.01), min_delta=-1)


def test_a_price_replaces_the_pace() -> None:
    curves = [[1.0] * 8, [2.0] * 8]
    assert run(HaltwisePruner(equal_chances(0.01), price=1e-9), curves) == [8, 8]
    assert run(HaltwisePruner(equal_chances(0.01)), curves) == [8, 2]


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_the_worse_half_of_four_trials_is_pruned(direction: str, sign: int) -> None:
    ends = [5.0, 6.0, 7.0, 8.0, 5.5, 5.7]
    # 8 is behind 3 of 4; 5.5 is behind 1 of 5 and 1 of 4; 5.7 is behind 2 of 6, then 2 of 5.
    curves = [[math.nan] + [sign * end] * 7 for end in ends]
    found = run(HaltwisePruner(equal_chances(0.99)), curves, direction)
    assert found == [8, 8, 8, 2, 8, 3]


def test_a_fixed_level_that_prunes_nothing_says_so_once() -> None:
    curves = [[float(trial)] * 4 for trial in range(14)]
    with pytest.warns(FitWarning, match=r"lost=0.01 has pruned none of 10 trials.*leave lost= out"):
        assert run(HaltwisePruner(equal_chances(0.5), lost=0.01), curves) == [4] * 14
    with pytest.warns(FitWarning) as warned:
        run(HaltwisePruner(equal_chances(0.5), price=1e-9), curves)
    assert ["price=1e-09" in str(each.message) for each in warned] == [True]
    for silent in (
        HaltwisePruner(equal_chances(0.99)),  # by the pace
        HaltwisePruner(equal_chances(0.01), price=0.5),  # it prunes
        HaltwisePruner(Seen(), level=-1e9),  # a level of one's own for a rule of one's own
    ):
        run(silent, curves)  # warnings are errors


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_the_target_is_in_the_unit_of_the_reports(direction: str, sign: int) -> None:
    rule = Seen()
    for returned, target in ((-60.0, 0.5), (0.5, 0.5), (0.55, 0.55), (60.0, 0.9)):

        def objective(trial: Any, returned: float = returned) -> float:
            for step, value in enumerate([0.9, 0.5, 0.6]):
                trial.report(sign * (value + trial.number), step)
                trial.should_prune()
            return sign * (returned + float(trial.number))

        study = optuna.create_study(
            direction=direction, pruner=HaltwisePruner(rule, level=-1e9, min_points=1)
        )
        study.optimize(objective, n_trials=2)
        assert rule.curve is not None
        assert rule.curve.target == sign * target


@pytest.mark.parametrize("settings", [{}, {"lost": 0.01}, {"price": 1e9}, {"peers": True}])
def test_nothing_is_pruned_while_budget_or_target_is_unknown(settings: Any) -> None:
    pruner = HaltwisePruner(equal_chances(0.01), **settings)
    # Only the last trial knows how far another went beyond step 0.
    assert run(pruner, [[1.0], [2.0] * 5, [3.0] * 5])[:2] == [1, 5]

    def objective(trial: Any) -> float:
        trial.set_constraint("far", 1.0)  # positive: violated
        for step in range(4):
            trial.report(float(trial.number), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return float(trial.number)

    study = optuna.create_study(pruner=pruner)
    study.optimize(objective, n_trials=3)
    assert {trial.state.name for trial in study.trials} == {"COMPLETE"}
    study = optuna.create_study(pruner=pruner)
    study.add_trial(optuna.trial.create_trial(value=-1.0))  # without its curve
    study.optimize(lambda trial: [trial.report(5, 0), trial.report(5, 1), 1.0][-1], n_trials=2)


@pytest.mark.parametrize("name", ["target", "budget", "min_delta"])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_settings_that_are_no_number_are_refused(name: str, value: float) -> None:
    settings: Any = {name: value}
    with pytest.raises(InputError, match=f"{name} must be a finite number, got {value}"):
        HaltwisePruner("training-runs", **settings)


@pytest.mark.parametrize(("direction", "sign"), [("minimize", 1), ("maximize", -1)])
def test_a_best_value_that_is_infinite_ends_no_study(direction: str, sign: int) -> None:
    curves = [[sign * -math.inf] * 5, *[[5.0] * 5] * 5]
    assert run(HaltwisePruner(equal_chances(0.01)), curves, direction) == [5] * 6


def test_a_pruner_may_serve_several_studies() -> None:
    """What it keeps of finished trials is that of the study that asks, also of one by its name."""
    rng = np.random.default_rng(0)
    both = [rng.uniform(0, 9, (12, 6)).round(1).tolist() for _ in range(2)]
    shared = HaltwisePruner(equal_chances(0.5))
    for direction in ("minimize", "maximize"):
        for curves in both:
            expected = run(HaltwisePruner(equal_chances(0.5)), curves, direction)
            assert run(shared, curves, direction) == expected
            assert min(expected) < 6


def test_another_study_of_the_same_name_and_size_is_another() -> None:
    pruner = HaltwisePruner(equal_chances(0.9))
    mine = {0: 5.0, 1: 5.0}
    running = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, intermediate_values=mine
    )
    for others, expected in ((9.0, False), (1.0, True), (9.0, False)):
        study = optuna.create_study(study_name="same")
        for _ in range(6):
            values = {0: others, 1: others, 2: 0.0}
            study.add_trial(optuna.trial.create_trial(value=0.0, intermediate_values=values))
        assert pruner.prune(study, running) == expected


@pytest.mark.parametrize("seed", range(4))
def test_what_is_kept_of_trials_decides_as_all_of_them_do(seed: int) -> None:
    """Several run at once, and end in every way there is."""
    rng = np.random.default_rng(seed)
    study = optuna.create_study(direction=["minimize", "maximize"][seed % 2])
    states = [optuna.trial.TrialState[name] for name in ("COMPLETE", "PRUNED", "FAIL")]
    kept = HaltwisePruner(equal_chances(0.3), n_startup_trials=0)
    running: list[tuple[Any, int]] = []
    decisions = []
    for _ in range(200):
        if len(running) < 4:
            running.append((study.ask(), 0))
        trial, step = running.pop(rng.integers(len(running)))
        if step > 3 and rng.random() < 0.3:
            state = states[rng.integers(3)]
            value = rng.normal() if state is states[0] else None
            study.tell(trial, value, state=state)
            continue
        trial.report(math.nan if rng.random() < 0.1 else rng.integers(-3, 4), step)
        running.append((trial, step + int(rng.integers(1, 3))))
        seen = study.get_trials()[trial.number]
        fresh = HaltwisePruner(equal_chances(0.3), n_startup_trials=0)
        decisions.append(fresh.prune(study, seen))
        assert kept.prune(study, seen) == decisions[-1]
        if rng.random() < 0.1:
            kept = pickle.loads(pickle.dumps(kept))
    assert 5 < sum(decisions) < len(decisions) - 5


def test_a_decision_copies_no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a study of hundreds of trials a copy takes longer than all else."""
    pruner = HaltwisePruner(equal_chances(0.5))
    study = optuna.create_study(pruner=pruner)
    for number in range(5):
        values = dict(enumerate([9.0 + number] * 6))
        study.add_trial(optuna.trial.create_trial(value=9.0 + number, intermediate_values=values))
    copied: list[Any] = []

    def noted(trial: Any, _: Any) -> Any:
        copied.append(trial)
        return trial

    monkeypatch.setattr(optuna.trial.FrozenTrial, "__deepcopy__", noted, raising=False)
    running = optuna.trial.create_trial(
        state=optuna.trial.TrialState.RUNNING, intermediate_values={0: 9.0, 1: 8.0}
    )
    pruner.prune(study, running)
    assert len(copied) == 1  # the best one
    copied.clear()
    for _ in range(3):
        pruner.prune(study, running)
    assert copied == []
