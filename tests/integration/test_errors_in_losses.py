"""An error inside a user's loss: the sentence names its likely cause, and the way out works."""

from typing import Any

import numpy as np
import pytest
import torch
from draws import randn
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError

NUM, ROWS = 7, 10
TAIL = "must take any subset"
SINGLE = torch.float32
X, Y = randn(NUM, ROWS, 2), randn(NUM, ROWS, seed=1)
MASK = torch.ones(NUM, ROWS, dtype=torch.bool)
DATA = {"x": X, "y": Y, "mask": MASK}
START: Any = np.zeros((NUM, 2))


def squares(params: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    return ((y - (x @ params.unsqueeze(-1)).squeeze(-1)).square() * mask).sum(1)


def message_of(batch: FunctionBatch) -> str:
    with pytest.raises(InputError) as caught:
        haltwise.solve(batch, method="lbfgs")
    return str(caught.value)


def without_mask(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return squares(params, x, y, MASK)


@pytest.mark.parametrize("kind", ["loss", "residuals", "derivatives"])
def test_arguments_that_do_not_fit_the_data_are_named(kind: str) -> None:
    functions: Any = {kind: without_mask}, {kind: squares}
    found = message_of(FunctionBatch(START, data=DATA, **functions[0]))
    assert "'mask'" in found
    assert "(params, x, y)" in found
    assert "every entry of data" in found
    assert TAIL not in found
    found = message_of(FunctionBatch(START, data={"x": X, "y": Y}, **functions[1]))
    assert "'mask'" in found
    assert "every entry of data" in found
    assert TAIL not in found


def test_so_are_those_of_a_loss_of_each_observation() -> None:
    poisson = haltwise.generalized_linear(lambda z, y: z.exp() - y * z)
    found = message_of(FunctionBatch(START, derivatives=poisson, data=DATA))
    assert "name 'mask' among its arguments, or leave 'mask' out of data" in found
    assert TAIL not in found


@pytest.mark.parametrize(
    "function",
    [
        lambda p, x, y, mask: ((np.exp(p[:, :1]) - y) * mask).sum(1),
        lambda p, x, y, mask: np.maximum(p, 1).sum(1),
        lambda p, x, y, mask: (torch.exp(START[:3]) * p).sum(1),
        lambda p, x, y, mask: torch.tensor(np.asarray(p)).sum(1),
    ],
)
def test_numpy_inside_a_loss_is_named(function: Any) -> None:
    found = message_of(FunctionBatch(START, function, DATA))
    assert "PyTorch alone" in found
    assert "torch.exp" in found
    assert TAIL not in found


@pytest.mark.parametrize("array", [False, True])
def test_whole_numbers_that_a_product_does_not_take_are_named(*, array: bool) -> None:
    whole: Any = X.round().long()
    data = {**DATA, "x": whole.numpy() if array else whole}
    found = message_of(FunctionBatch(START, squares, data))
    assert "data['x'] is torch.int64" in found
    assert "parameters torch.float64" in found
    assert ".astype('float64')" in found
    assert ".to(torch.float64)" in found
    assert TAIL not in found
    mended = {**DATA, "x": whole.numpy().astype("float64") if array else whole.to(torch.float64)}
    assert haltwise.solve(FunctionBatch(START, squares, mended), method="lbfgs").success.all()


def test_a_tensor_that_the_loss_brings_is_to_have_the_dtype_of_the_parameters() -> None:
    own = torch.ones(2, 1)  # in single precision

    def loss(params: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        return squares(params, x, y, mask) + (params @ own).squeeze(-1).square()

    found = message_of(FunctionBatch(START, loss, DATA))
    assert "start and data are torch.float64" in found
    assert ".to(torch.float64)" in found
    assert TAIL not in found
    own = own.to(torch.float64)
    assert haltwise.solve(FunctionBatch(START, loss, DATA), method="lbfgs").success.all()


def test_a_loss_in_another_dtype_is_told_to_compute_in_that_of_its_parameters() -> None:
    batch = FunctionBatch(torch.ones(NUM, 2), lambda p: p.double().square().sum(1))
    found = message_of(batch)
    assert "the loss has dtype torch.float64 for parameters of torch.float32" in found
    assert "compute it in that of the parameters" in found


def test_data_as_an_index_are_told_to_be_whole_numbers() -> None:
    effects = torch.zeros(5, dtype=torch.float64)
    data = {"level": torch.ones(NUM, dtype=torch.float64)}
    batch = FunctionBatch(START, lambda p, level: p.square().sum(1) + effects[level], data)
    found = message_of(batch)
    assert ".long()" in found
    assert TAIL not in found


def test_what_belongs_to_all_problems_is_still_told_to_come_in_data() -> None:
    closure = torch.arange(float(NUM), dtype=torch.float64)
    found = message_of(FunctionBatch(START, lambda p: p.square().sum(1) * closure))
    assert f"fails for 3 of the {NUM} problems" in found
    assert TAIL in found

    def squeezed(params: Tensor) -> Tensor:
        return params.unsqueeze(-1).squeeze().square().sum(1)  # of one problem it drops too much

    found = message_of(FunctionBatch(START, squeezed))
    assert f"fails for 1 of the {NUM} problems" in found
    assert TAIL in found


def test_any_other_error_comes_with_the_shapes_of_the_call() -> None:
    data = {"x": randn(NUM, ROWS, 3), "y": Y}
    found = message_of(
        FunctionBatch(START, lambda p, x, y: (x @ p.unsqueeze(-1)).sum((1, 2)), data)
    )
    assert "params [3, 2], x [3, 10, 3], y [3, 10]" in found
    assert TAIL not in found
    named = {"a": np.zeros(NUM), "b": np.zeros((NUM, 2))}
    found = message_of(FunctionBatch(named, lambda p, x, y: (x @ p["b"].unsqueeze(-1)).sum(), data))
    assert "params['a'] [3], params['b'] [3, 2], x [3, 10, 3], y [3, 10]" in found


@pytest.mark.parametrize("data", [DATA, {**DATA, "x": X.float(), "y": Y.float()}])
def test_a_start_of_whole_numbers_is_told_how_to_be_converted_and_then_works(data: Any) -> None:
    whole = np.zeros((NUM, 2), int)
    found = message_of(FunctionBatch(whole, squares, data))
    assert "got int64" in found
    assert "start.astype(float)" in found
    converted = FunctionBatch(whole.astype(float), squares, data)
    assert haltwise.solve(converted, method="lbfgs").success.all()
    tensor = torch.zeros(NUM, 2, dtype=torch.int64)
    found = message_of(FunctionBatch(tensor, squares, data))
    assert "got torch.int64" in found
    assert "start.double()" in found
    assert haltwise.solve(
        FunctionBatch(tensor.double(), squares, data), method="lbfgs"
    ).success.all()


@pytest.mark.parametrize("array", [False, True])
def test_named_starts_of_whole_numbers_are_told_it_too(*, array: bool) -> None:
    whole: Any = np.ones((NUM, 2), int) if array else torch.ones(NUM, 2, dtype=torch.int64)
    advice = r"start\['w'\]\.astype\(float\)" if array else r"start\['w'\]\.double\(\)"
    with pytest.raises(InputError, match=rf"got (torch\.)?int64; convert it by {advice}"):
        FunctionBatch({"w": whole}, lambda p: p["w"].square().sum(1))
    with pytest.raises(InputError, match=r"got (torch\.)?int64; convert it by start\."):
        FunctionBatch(whole, lambda p: p.square().sum(1), bounds=haltwise.positive())
