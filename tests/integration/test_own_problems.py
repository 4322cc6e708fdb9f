"""Problems as users have them: named parameters, bounds, arrays, data frames, progress."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from draws import DOUBLE, randn
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError, Outcome
from haltwise._core import progress

NUM, ROWS = 8, 30
X = randn(NUM, ROWS)
Y = 1.5 * torch.exp(-0.7 * X.abs()) + 0.1 * randn(NUM, ROWS, seed=2)
BOUNDS = {"rate": haltwise.positive(), "size": haltwise.interval(-10, 10)}


def decay(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    size, rate = params["size"].unsqueeze(1), params["rate"]
    return 50 * (y - size * torch.exp(-rate * x.abs())).square().sum(1)


def start(dtype: torch.dtype = DOUBLE) -> dict[str, Tensor]:
    return {
        "size": torch.linspace(0.5, 2, NUM, dtype=dtype),
        "rate": torch.full((NUM, 1), 0.5, dtype=dtype),
    }


def problem(dtype: torch.dtype = DOUBLE) -> FunctionBatch:
    return FunctionBatch(start(dtype), decay, {"x": X.to(dtype), "y": Y.to(dtype)}, bounds=BOUNDS)


def as_arrays(dtype: torch.dtype = DOUBLE) -> FunctionBatch:
    arrays = {name: value.numpy() for name, value in start(dtype).items()}
    return FunctionBatch(
        arrays, decay, {"x": X.to(dtype).numpy(), "y": Y.to(dtype).numpy()}, bounds=BOUNDS
    )


SETTINGS: Any = [
    {"optimizer": "regression-2d", "price": 0.01},
    {"method": "newton"},
    {"method": "lbfgs", "gtol": 1e-6},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_named_parameters_within_bounds_are_a_solution_in_their_own_numbers(settings: Any) -> None:
    solution = haltwise.solve(problem(), **settings)
    assert list(solution.params) == ["size", "rate"]
    assert solution.params["size"].shape == (NUM,)
    assert solution.params["rate"].shape == (NUM, 1)
    torch.testing.assert_close(decay(solution.params, X, Y), solution.loss)
    assert (solution.params["rate"] > 0).all()

    def free(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
        size = 20 * params[:, 0].sigmoid() - 10
        return decay({"size": size, "rate": params[:, 1:].exp()}, x, y)

    begun = problem().start
    by_hand = haltwise.solve(FunctionBatch(begun, free, {"x": X, "y": Y}), **settings)
    torch.testing.assert_close(by_hand.params[:, 1:].exp(), solution.params["rate"])
    differ = by_hand.num_gradients != solution.num_gradients
    if settings.get("method") == "newton":  # a step that goes too far by hand is shortened here
        differ &= by_hand.num_gradients < solution.num_gradients
    assert not differ.any()
    assert torch.equal(by_hand.outcome, solution.outcome)


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_come_back_as_arrays_of_their_kind(dtype: torch.dtype, settings: Any) -> None:
    asked = {**settings, "history": True, "standard_errors": True}
    ours, theirs = (haltwise.solve(batch, **asked) for batch in (problem(dtype), as_arrays(dtype)))
    assert ours.standard_errors is not None
    assert theirs.standard_errors is not None
    kinds = {"num_gradients": "i", "steps": "i", "outcome": "i", "success": "b"}
    for name in ("loss", "left", "history", "param_scale", *kinds):
        array: Any = getattr(theirs, name)
        assert isinstance(array, np.ndarray)
        assert array.dtype.kind == kinds.get(name, "f")
        np.testing.assert_array_equal(array, getattr(ours, name))
    for one, other in (
        (ours.params, theirs.params),
        (ours.standard_errors.params, theirs.standard_errors.params),
    ):
        for name, value in one.items():
            assert other[name].dtype == value.numpy().dtype
            np.testing.assert_array_equal(other[name], value)
    np.testing.assert_array_equal(
        theirs.standard_errors.covariance, ours.standard_errors.covariance
    )
    assert repr(theirs) == repr(ours)
    assert repr(theirs.standard_errors) == repr(ours.standard_errors)
    assert [theirs.why(number) for number in range(NUM)] == list(map(ours.why, range(NUM)))


def test_residuals_take_names_and_bounds() -> None:
    def residuals(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        size, rate = params["size"].unsqueeze(1), params["rate"]
        return 10 * (y - size * torch.exp(-rate * x.abs()))

    ours = FunctionBatch(
        {name: value.numpy() for name, value in start().items()},
        residuals=residuals,
        data={"x": X, "y": Y},
        bounds=BOUNDS,
    )
    found = haltwise.solve(ours, method="auto")
    assert found.method.startswith("gauss-newton")
    expected = haltwise.solve(problem(), method="newton", gtol=1e-10)
    np.testing.assert_allclose(found.params["rate"], expected.params["rate"], rtol=1e-4)


def test_one_array_comes_back_as_one_array() -> None:
    begun = np.ones((3, 2))
    batch = FunctionBatch(begun, lambda params: params.square().sum(1))
    solution: Any = haltwise.solve(batch)
    assert isinstance(solution.params, np.ndarray)
    assert solution.params.shape == (3, 2)
    assert isinstance(solution.loss, np.ndarray)


def test_the_price_for_a_budget_and_a_recommendation_take_arrays() -> None:
    price = haltwise.price_for_budget(as_arrays(), 15, "regression-2d")
    assert price == haltwise.price_for_budget(problem(), 15, "regression-2d")
    ours, theirs = (
        haltwise.recommend(batch, ["regression-2d"], price=0.1, max_steps=20)
        for batch in (problem(), as_arrays())
    )
    assert ours.use == theirs.use
    assert [trial.j for trial in ours.trials] == [trial.j for trial in theirs.trials]


def test_a_solution_is_one_line() -> None:
    text = str(haltwise.solve(problem(), "regression-2d", price=0.01))
    assert text.startswith("Solution(8 problems of 2 parameters by lstm: ")
    assert "\n" not in text


@pytest.mark.parametrize("make", [problem, as_arrays])
def test_a_solution_becomes_a_data_frame(make: Any) -> None:
    pandas = pytest.importorskip("pandas")
    labels = [f"curve {number}" for number in range(NUM)]
    solution = haltwise.solve(make(), "regression-2d", price=0.01, standard_errors=True)
    frame = solution.to_frame(index=labels)
    assert list(frame.index) == labels
    assert list(frame.columns) == [
        *("size", "rate[0]", "size_se", "rate[0]_se"),
        *("loss", "num_gradients", "success", "outcome", "reason"),
    ]
    assert solution.standard_errors is not None
    np.testing.assert_array_equal(frame["rate[0]"], solution.params["rate"][:, 0])
    np.testing.assert_array_equal(frame["size_se"], solution.standard_errors.params["size"])
    for number in range(NUM):
        row = frame.iloc[number]
        assert row["outcome"] == Outcome(int(solution.outcome[number])).name
        assert solution.why(number).startswith(row["reason"])
        assert row["reason"]
    pairs = solution.to_frame([("a", number) for number in range(NUM)])
    assert isinstance(pairs.index, pandas.MultiIndex)
    with pytest.raises(InputError, match="one label for each of the 8 problems"):
        solution.to_frame(["a"])


def test_parameters_called_as_other_columns_of_a_data_frame_are_refused() -> None:
    pytest.importorskip("pandas")
    batch = FunctionBatch({"loss": torch.ones(3, 2), "reason": torch.ones(3)}, odd)
    with pytest.raises(InputError, match="would be called 'reason'"):
        haltwise.solve(batch, method="lbfgs").to_frame()


def odd(params: dict[str, Tensor]) -> Tensor:
    return params["loss"].square().sum(1) + params["reason"].square()


def test_prices_of_each_may_be_an_array() -> None:
    prices = np.geomspace(1e-6, 1e-1, NUM)
    ours = haltwise.solve(problem(), method="newton", price=torch.from_numpy(prices))
    theirs: Any = haltwise.solve(as_arrays(), method="newton", price=prices)  # type: ignore[arg-type]
    np.testing.assert_array_equal(theirs.num_gradients, ours.num_gradients)
    theirs.param_scale[0] = 2
    assert (theirs.param_scale[1:] == 1).all()


def test_a_data_frame_without_pandas_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    solution = haltwise.solve(problem(), "regression-2d", price=0.01)
    with pytest.raises(InputError, match="pandas is missing: pip install 'haltwise"):
        solution.to_frame()


@pytest.mark.parametrize("settings", SETTINGS)
def test_progress_is_shown_where_it_is_asked_for(
    settings: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    asked = {**settings, "chunk_size": 3}
    silent = haltwise.solve(problem(), **asked)
    assert capsys.readouterr() == ("", "")
    shown = haltwise.solve(problem(), **asked, progress=True)
    out, err = capsys.readouterr()
    assert out == ""
    told = [line.partition(",")[0] for line in err.splitlines()]
    assert told == [f"problems {done} of 8" for done in (0, 3, 6, 8)]
    assert torch.equal(silent.params["rate"], shown.params["rate"])


def test_progress_outlives_what_it_is_shown_to() -> None:
    program = """
import os, torch, haltwise
from haltwise._core import progress
progress._SECONDS = 0.0
os.close(2)
batch = haltwise.FunctionBatch(torch.ones(9, 2), lambda params: params.square().sum(1))
print(haltwise.solve(batch, "regression-2d", progress=True, chunk_size=2))
"""
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0
    assert run.stdout.startswith("Solution(9 problems")


def test_an_error_in_a_loss_is_that_error() -> None:
    wrong = FunctionBatch(start(), lambda params: params["rat"].sum(1), bounds=BOUNDS)
    with pytest.raises(KeyError, match="rat"):
        haltwise.solve(wrong)
