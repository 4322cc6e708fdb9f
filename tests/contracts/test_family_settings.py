"""Impossible settings of families are refused when the family is made."""

import math

import pytest

from haltwise import InputError
from haltwise.tasks import TaskFamily
from haltwise.tasks.cifar10 import CifarConvolutional
from haltwise.tasks.curve_fitting import CurveFitting
from haltwise.tasks.diabetes import Diabetes
from haltwise.tasks.logistic_regression import LogisticRegression
from haltwise.tasks.matrix_factorization import DigitFactorization
from haltwise.tasks.minibatch_regression import MinibatchRegression
from haltwise.tasks.perceptron import Perceptron
from haltwise.tasks.quadratic import Quadratic
from haltwise.tasks.regression import LinearRegression
from haltwise.tasks.robust_regression import StudentTRegression
from haltwise.tasks.rosenbrock import Rosenbrock


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        (LinearRegression, {"num_params": 0}, "num_params"),
        (LinearRegression, {"min_observations": 0}, "min_observations"),
        (LinearRegression, {"max_observations": 9}, "10 and 9"),
        (LinearRegression, {"alpha": 0.0}, "alpha"),
        (LinearRegression, {"beta": -1.0}, "beta"),
        (LinearRegression, {"beta": math.nan}, "beta"),
        (LinearRegression, {"spread": -0.1}, "spread"),
        (LinearRegression, {"condition_decades": -1.0}, "condition_decades"),
        (LinearRegression, {"signal_decades": -1.0}, "signal_decades"),
        (LinearRegression, {"spectral_norm": 0.0}, "spectral_norm"),
        (LinearRegression, {"inputs": "gaussian"}, "inputs"),
        (LogisticRegression, {"num_params": 0}, "num_params"),
        (LogisticRegression, {"rows_per_step": 0}, "rows_per_step"),
        (LogisticRegression, {"rows_per_step": 201}, "num_observations = 200, got 201"),
        (LogisticRegression, {"penalty": 0.0}, "penalty"),
        (DigitFactorization, {"rank": 0}, "rank"),
        (DigitFactorization, {"rank": 9}, "rank"),
        (DigitFactorization, {"entries_per_step": 65}, "entries_per_step"),
        (DigitFactorization, {"start_std": 0.0}, "start_std"),
        (MinibatchRegression, {"num_params": 0}, "num_params"),
        (MinibatchRegression, {"rows_per_step": 0}, "rows_per_step"),
        (MinibatchRegression, {"rows_per_step": 11}, "num_observations = 10, got 11"),
        (MinibatchRegression, {"beta": 0.0}, "beta"),
        (Quadratic, {"num_params": 0}, "num_params"),
        (Quadratic, {"start_std": -1.0}, "start_std"),
        (CurveFitting, {"curve": "line"}, "decay, growth, peak, got 'line'"),
        (CurveFitting, {"num_observations": 2}, "num_observations"),
        (CurveFitting, {"min_noise": 0.0}, "noise"),
        (CurveFitting, {"max_noise": 0.001}, "noise"),
        (Rosenbrock, {"num_params": 1}, "num_params"),
        (Rosenbrock, {"min_steepness": 0.0}, "steepness"),
        (Rosenbrock, {"max_steepness": 0.5}, "steepness"),
        (Rosenbrock, {"start_std": -1.0}, "start_std"),
        (StudentTRegression, {"degrees": 0.0}, "degrees"),
        (StudentTRegression, {"noise_scale": 0.0}, "noise_scale"),
        (StudentTRegression, {"num_observations": 9}, "num_observations"),
        (StudentTRegression, {"spread": -0.1}, "spread"),
        (StudentTRegression, {"alpha": 0.0}, "alpha"),
        (Perceptron, {"num_hidden": 0}, "num_hidden"),
        (Perceptron, {"num_layers": 0}, "num_layers"),
        (Perceptron, {"activation": "tanh"}, "activation"),
        (Perceptron, {"data": "svhn"}, "data must be"),
        (Perceptron, {"batch_size": 0}, "batch_size"),
        (Perceptron, {"num_score": 0}, "num_score"),
        (Perceptron, {"init_std": -1.0}, "init_std"),
        (CifarConvolutional, {"labels": "0"}, "labels"),
        (CifarConvolutional, {"labels": "00"}, "labels"),
        (CifarConvolutional, {"labels": "0a"}, "labels"),
        (Diabetes, {"max_observations": 443}, "442"),
        (Diabetes, {"beta": 0.0}, "beta"),
    ],
)
def test_bad_settings_are_refused_at_once(
    family: type[TaskFamily], settings: dict[str, object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        family(**settings)
