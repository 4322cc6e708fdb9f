"""Giving up boosted trees, with the real packages: by their own logs, round for round."""

from typing import Any

import numpy as np
import pytest
from tiny_rules import patience, stop_of

from haltwise import InputError

pytestmark = pytest.mark.filterwarnings("ignore")  # their own


def tables(seed: int) -> tuple[Any, ...]:
    """Noise beside a little signal: boosting soon overfits."""
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(200, 5))
    y = (x[:, 0] + 2 * generator.normal(size=200) > 0).astype(float)
    return x[:100], y[:100], x[100:], y[100:]


class TestXGBoost:
    PARAMS = {"objective": "binary:logistic", "eval_metric": ["logloss", "auc"], "nthread": 1}  # noqa: RUF012

    def train(self, seed: int, callbacks: list[Any]) -> tuple[Any, dict[str, Any]]:
        xgboost = pytest.importorskip("xgboost")
        x, y, x_valid, y_valid = tables(seed)
        log: dict[str, Any] = {}
        train, valid = xgboost.DMatrix(x, y), xgboost.DMatrix(x_valid, y_valid)
        booster = xgboost.train(
            self.PARAMS,
            train,
            40,
            evals=[(train, "train"), (valid, "valid")],
            evals_result=log,
            verbose_eval=False,
            callbacks=callbacks,
        )
        return booster, log

    def callback(self, *arguments: Any) -> Any:
        pytest.importorskip("xgboost")
        from haltwise.interfaces.xgboost import RunCallback

        return RunCallback(*arguments)

    @pytest.mark.parametrize(("name", "direction"), [("logloss", "min"), ("auc", "max")])
    def test_it_stops_by_the_log(self, name: str, direction: Any) -> None:
        stops = set()
        callback = self.callback(patience(4, direction=direction), f"valid-{name}")
        for seed in range(3):  # every training is a run of its own
            _, log = self.train(seed, [])
            expected = stop_of(log["valid"][name], 4, direction=direction)
            booster, _ = self.train(seed, [callback])
            assert booster.num_boosted_rounds() == callback.monitor.steps == expected
            curve = callback.monitor.curve
            assert curve.cost.tolist() == list(range(1, expected + 1))
            assert curve.columns[curve.metric].tolist() == log["valid"][name][:expected]
            stops.add(expected)
        assert len(stops) > 1
        assert max(stops) < 40

    def test_of_folds_the_mean_is_judged(self) -> None:
        xgboost = pytest.importorskip("xgboost")
        x, y, *_ = tables(0)
        settings: dict[str, Any] = {"num_boost_round": 30, "as_pandas": False, "seed": 1}
        log = xgboost.cv(self.PARAMS, xgboost.DMatrix(x, y), **settings)
        callback = self.callback(patience(4), "test-logloss")
        found = xgboost.cv(self.PARAMS, xgboost.DMatrix(x, y), callbacks=[callback], **settings)
        assert callback.monitor.steps == stop_of(log["test-logloss-mean"], 4) < 30
        assert len(found["test-logloss-mean"]) == callback.monitor.steps

    @pytest.mark.parametrize("order", [1, -1])
    def test_early_stopping_beside_it_keeps_its_best_round(self, order: int) -> None:
        xgboost = pytest.importorskip("xgboost")
        x, y, *_ = tables(0)
        settings: dict[str, Any] = {"num_boost_round": 30, "as_pandas": False, "seed": 1}
        stopping = xgboost.callback.EarlyStopping(25, metric_name="logloss")
        callback = self.callback(patience(12), "test-logloss")
        found = xgboost.cv(
            self.PARAMS, xgboost.DMatrix(x, y), callbacks=[callback, stopping][::order], **settings
        )["test-logloss-mean"]
        seen = callback.monitor.curve.loss
        assert len(found) == seen.argmin() + 1 < len(seen) < 30

    def test_an_unknown_metric_is_refused(self) -> None:
        with pytest.raises(InputError, match=r"no metric 'x' .* train-auc, train-logloss, valid"):
            self.train(0, [self.callback(patience(1), "x")])


class TestLightGBM:
    def train(self, seed: int, callbacks: list[Any], num: int = 40, **settings: Any) -> Any:
        lightgbm = pytest.importorskip("lightgbm")
        x, y, x_valid, y_valid = tables(seed)
        log: dict[str, Any] = {}
        data = lightgbm.Dataset(x, y)
        booster = lightgbm.train(
            {"objective": "binary", "metric": ["binary_logloss", "auc"], "verbosity": -1,
             "num_threads": 1, "learning_rate": 0.3, "min_data_in_leaf": 5, **settings},
            data,
            num,
            valid_sets=[lightgbm.Dataset(x_valid, y_valid, reference=data)],
            callbacks=[lightgbm.record_evaluation(log), *callbacks],
        )  # fmt: skip
        return booster, log["valid_0"]

    def callback(self, *arguments: Any, **settings: Any) -> Any:
        pytest.importorskip("lightgbm")
        from haltwise.interfaces.lightgbm import RunCallback

        return RunCallback(*arguments, **settings)

    @pytest.mark.parametrize(("name", "direction"), [("binary_logloss", "min"), ("auc", "max")])
    def test_it_stops_by_the_log(self, name: str, direction: Any) -> None:
        stops = set()
        callback = self.callback(patience(4, direction=direction), f"valid_0-{name}")
        for seed in range(3):
            _, log = self.train(seed, [])
            expected = stop_of(log[name], 4, direction=direction)
            booster, found = self.train(seed, [callback])
            assert booster.num_trees() == callback.monitor.steps == expected
            assert callback.monitor.curve.budget == 40
            assert callback.monitor.curve.loss.tolist() == [
                value if direction == "min" else -value for value in found[name]
            ]
            assert booster.best_iteration == expected  # predictions use all trees
            stops.add(expected)
        assert len(stops) > 1
        assert max(stops) < 40

    def test_of_folds_the_mean_is_judged(self) -> None:
        lightgbm = pytest.importorskip("lightgbm")
        x, y, *_ = tables(0)
        settings: dict[str, Any] = {"num_boost_round": 30, "nfold": 3, "seed": 1}
        params = {"objective": "binary", "verbosity": -1, "num_threads": 1, "learning_rate": 0.5}
        log = lightgbm.cv(params, lightgbm.Dataset(x, y), **settings)["valid binary_logloss-mean"]
        callback = self.callback(patience(2), "valid-binary_logloss")
        lightgbm.cv(params, lightgbm.Dataset(x, y), callbacks=[callback], **settings)
        assert callback.monitor.steps == stop_of(log, 2) < 30

    @pytest.mark.parametrize("name", ["binary_logloss", "auc"])
    @pytest.mark.parametrize("by_parameter", [True, False])
    def test_early_stopping_beside_it_keeps_the_best_round(
        self, name: str, by_parameter: bool
    ) -> None:
        lightgbm = pytest.importorskip("lightgbm")
        monitor = patience(8, direction="min" if name == "binary_logloss" else "max")
        settings = {"early_stopping_round": 30} if by_parameter else {}
        callback = self.callback(monitor, f"valid_0-{name}", at_best=None if by_parameter else True)
        beside = [] if by_parameter else [lightgbm.early_stopping(30, verbose=False)]
        for seed in range(2):  # the second finds nothing left of the first
            booster, _ = self.train(seed, [*beside, callback], **settings)
            best = int(monitor.curve.loss.argmin())
            assert booster.best_iteration == best + 1 < monitor.steps < 40
            assert booster.best_score["valid_0"][name] == abs(monitor.curve.loss[best])

    def test_a_first_value_that_is_nan_is_not_the_best(self) -> None:
        lightgbm = pytest.importorskip("lightgbm")
        values = iter([np.nan, 3.0, 2.0, *[5.0] * 9])
        callback = self.callback(patience(4), "valid_0-own", at_best=True)
        x, y, x_valid, y_valid = tables(0)
        data = lightgbm.Dataset(x, y)
        booster = lightgbm.train(
            {"objective": "binary", "metric": "none", "verbosity": -1, "num_threads": 1}, data, 12,
            valid_sets=[lightgbm.Dataset(x_valid, y_valid, reference=data)],
            feval=lambda *_: ("own", next(values), False), callbacks=[callback],
        )  # fmt: skip
        assert (booster.best_iteration, booster.best_score["valid_0"]["own"]) == (3, 2.0)
        assert callback.monitor.steps == 7

    @pytest.mark.parametrize(
        "settings", [{"early_stopping_round": 0}, {"early_stopping_round": 9, "boosting": "dart"}]
    )
    def test_all_trees_are_used_without_early_stopping(self, settings: dict[str, Any]) -> None:
        callback = self.callback(patience(4), "valid_0-binary_logloss")
        booster, _ = self.train(0, [callback], **settings)
        assert booster.best_iteration == booster.num_trees() == callback.monitor.steps < 40

    def test_dart_has_no_best_round(self) -> None:
        callback = self.callback(patience(4), "valid_0-binary_logloss", at_best=True)
        with pytest.raises(InputError, match="dart changes earlier trees"):
            self.train(0, [callback], boosting="dart")

    def test_a_wrong_direction_and_an_unknown_metric_are_refused(self) -> None:
        with pytest.raises(
            InputError, match=r"auc is better the higher, but .* make it with 'max'"
        ):
            self.train(0, [self.callback(patience(1), "valid_0-auc")])
        with pytest.raises(InputError, match="no metric 'auc' was logged, but valid_0-auc"):
            self.train(0, [self.callback(patience(1), "auc")])


class TestCatBoost:
    def train(self, seed: int, callbacks: list[Any], **settings: Any) -> Any:
        catboost = pytest.importorskip("catboost")
        x, y, x_valid, y_valid = tables(seed)
        own = {"allow_writing_files": False, "eval_metric": "AUC", "use_best_model": False}
        model = catboost.CatBoostClassifier(
            iterations=40, learning_rate=0.5, thread_count=1, verbose=0, **(own | settings)
        )
        return model.fit(x, y, eval_set=(x_valid, y_valid), callbacks=callbacks)

    @pytest.mark.parametrize(("name", "direction"), [("Logloss", "min"), ("AUC", "max")])
    def test_it_stops_by_the_log(self, name: str, direction: Any) -> None:
        from haltwise.interfaces.catboost import RunCallback

        stops = set()
        callback = RunCallback(patience(4, direction=direction), f"validation-{name}")
        for seed in range(3):  # every training is a run of its own
            log = self.train(seed, []).get_evals_result()["validation"][name]
            expected = stop_of(log, 4, direction=direction)
            assert self.train(seed, [callback]).tree_count_ == callback.monitor.steps == expected
            curve = callback.monitor.curve
            assert curve.cost.tolist() == list(range(1, expected + 1))
            assert curve.columns[curve.metric].tolist() == log[:expected]
            stops.add(expected)
        assert len(stops) > 1

    def test_a_training_that_goes_on_is_judged_by_its_whole_log(self, tmp_path: Any) -> None:
        from haltwise.interfaces.catboost import RunCallback

        kept = {
            "allow_writing_files": True,
            "train_dir": str(tmp_path),
            "save_snapshot": True,
            "snapshot_interval": 0,
        }
        first = RunCallback(patience(4), "validation-Logloss")
        num_rounds = self.train(0, [first], **kept).tree_count_
        again = RunCallback(patience(50), "validation-Logloss")
        log = self.train(0, [again], **kept).get_evals_result()["validation"]["Logloss"]
        assert 4 < num_rounds < len(log) == 40
        assert again.monitor.curve.cost.tolist() == list(range(1, 41))
        assert again.monitor.curve.loss.tolist() == log

    def test_rounds_between_evaluations_are_no_points(self) -> None:
        from haltwise.interfaces.catboost import RunCallback

        callback = RunCallback(patience(90), "validation-Logloss")
        self.train(0, [callback], metric_period=10)
        assert callback.monitor.curve.cost.tolist() == [1, 11, 21, 31, 40]

    def test_a_missing_metric_is_told(self) -> None:
        from haltwise.interfaces.catboost import RunCallback

        with pytest.raises(Exception, match="no metric 'x' was logged, but learn-Logloss, "):
            self.train(0, [RunCallback(patience(1), "x")])
