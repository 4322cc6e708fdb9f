"""Batches of one's own: start and data in one dtype, on one device, and moved in one line."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from draws import randn
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError
from haltwise._core.random import stream
from haltwise.certificates import ExcessLoss, RiskMonitor, RiskTable
from haltwise.curves.shipped import load_curve_rule
from haltwise.evaluation import stopping_report
from haltwise.evaluation.optimizers import lbfgs_curve
from haltwise.processes import Trajectory
from haltwise.processes.markov_chain import MarkovChainFamily
from haltwise.report.explorer import explore
from haltwise.rollout import record_process
from haltwise.stop_rules import Plateau, calibrate
from haltwise.tasks import family

NUM, ROWS, DIM = 6, 12, 3
SINGLE, DOUBLE = torch.float32, torch.float64
X = randn(NUM, ROWS, DIM)
Y = (X @ randn(NUM, DIM, 1, seed=1)).squeeze(-1) + 0.1 * randn(NUM, ROWS, seed=2)


def squares(params: Tensor, x: Tensor, y: Tensor) -> Tensor:
    return (y - (x @ params.unsqueeze(-1)).squeeze(-1)).square().sum(1) / 2


def named_squares(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    return squares(params["w"], x, y)


def as_given(value: Tensor, dtype: torch.dtype, *, array: bool) -> Any:
    return value.to(dtype).numpy() if array else value.to(dtype)


@pytest.mark.parametrize("arrays", [(False, False), (True, True), (True, False), (False, True)])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("dtypes", [(SINGLE, DOUBLE), (DOUBLE, SINGLE)])
def test_the_wider_dtype_of_start_and_data_is_that_of_the_batch(
    dtypes: tuple[torch.dtype, torch.dtype], arrays: tuple[bool, bool], *, named: bool
) -> None:
    """A start in single precision beside data in double takes none of the data's digits."""
    start = as_given(torch.zeros(NUM, DIM), dtypes[0], array=arrays[0])
    x, y = (as_given(value, dtypes[1], array=arrays[1]) for value in (X, Y))
    batch = (
        FunctionBatch({"w": start}, named_squares, {"x": x, "y": y})
        if named
        else FunctionBatch(start, squares, {"x": x, "y": y})
    )
    assert batch.start.dtype == DOUBLE
    solution = haltwise.solve(batch, method="newton")
    params = solution.params["w"] if named else solution.params
    assert str(params.dtype).endswith("float64")
    assert isinstance(params, np.ndarray) == arrays[0]
    seen = [torch.as_tensor(value).double() for value in (x, y)]
    expected = torch.linalg.lstsq(seen[0], seen[1].unsqueeze(-1)).solution.squeeze(-1)
    torch.testing.assert_close(torch.as_tensor(params), expected, rtol=1e-9, atol=1e-9)


def test_data_that_single_precision_could_not_hold_are_fitted_by_all_their_digits() -> None:
    """Days of a calendar in hundreds: as float32 they would be a quarter of a day apart."""
    t = 2_460_000 + torch.linspace(0, 1, ROWS, dtype=DOUBLE).expand(NUM, ROWS)
    y = 2 + 3 * (t - 2_460_000)

    def line(params: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return (y - params[:, :1] - params[:, 1:] * (t - 2_460_000)).square().sum(1)

    batch = FunctionBatch(torch.zeros(NUM, 2), line, {"t": t, "y": y})
    found = haltwise.solve(batch, method="newton").params
    torch.testing.assert_close(found, torch.tensor([2.0, 3.0], dtype=DOUBLE).expand(NUM, 2))


def test_whole_numbers_and_flags_stay_what_they_are() -> None:
    data = {"one": np.arange(4), "two": np.arange(4) > 1, "three": torch.arange(4).half()}
    batch = FunctionBatch(torch.zeros(4, 2), lambda params, **_: params.square().sum(1), data)
    dtypes = {name: value.dtype for name, value in batch.data.items()}
    assert dtypes == {"one": torch.int64, "two": torch.bool, "three": SINGLE}
    assert batch.start.dtype == SINGLE


def test_data_that_are_in_order_are_not_copied() -> None:
    batch = FunctionBatch(torch.zeros(NUM, DIM, dtype=DOUBLE), squares, {"x": X, "y": Y})
    assert batch.data["x"] is X


@pytest.mark.parametrize("dtype", [SINGLE, np.float32, "float32", np.dtype("f4")])
def test_a_batch_and_groups_take_the_dtypes_of_both_worlds(dtype: Any) -> None:
    table = {"key": [0, 1, 1], "x": [1.0, 2.0, 3.0]}
    groups = haltwise.from_groups(table, "key", dtype=dtype)
    assert groups.data["x"].dtype == SINGLE
    batch = FunctionBatch(np.ones((NUM, DIM)), squares, {"x": X, "y": Y}).to(dtype=dtype)
    assert batch.start.dtype == batch.data["x"].dtype == SINGLE
    assert haltwise.solve(batch, method="newton").params.dtype == np.float32


@pytest.mark.parametrize("dtype", [torch.float16, int, np.int64, "single-ish", None, 3, [1]])
def test_other_dtypes_are_refused(dtype: Any) -> None:
    table = {"key": [0, 1, 1], "x": [1.0, 2.0, 3.0]}
    with pytest.raises(InputError, match=r"dtype must be torch\.float32 or torch\.float64"):
        haltwise.from_groups(table, "key", dtype=dtype)
    if dtype is not None:
        with pytest.raises(InputError, match=r"dtype must be torch\.float32 or torch\.float64"):
            family("regression-2d").sample(2, torch.Generator()).to(dtype=dtype)


def test_a_batch_moves_in_one_line() -> None:
    data = {"x": X, "y": Y, "count": torch.arange(NUM)}

    def loss(params: Tensor, x: Tensor, y: Tensor, count: Tensor) -> Tensor:
        return squares(params, x, y) + 0 * count

    for start in (torch.zeros(NUM, DIM, dtype=DOUBLE), np.zeros((NUM, DIM))):
        batch = FunctionBatch(start, loss, data)
        there = batch.to("meta")
        assert {value.device.type for value in (there.start, *there.data.values())} == {"meta"}
        assert there.data["count"].dtype == torch.int64
        assert there.dim == DIM
        with pytest.raises(InputError, match="on the device meta, which holds no numbers"):
            haltwise.solve(there)
        back = batch.to("cpu")
        assert torch.equal(back.start, batch.start)
        for one in (
            batch.to(SINGLE),
            batch.to("cpu", SINGLE),
            batch.to(torch.device("cpu"), SINGLE),
        ):
            assert one.start.dtype == one.data["x"].dtype == SINGLE
            assert one.data["count"].dtype == torch.int64
        assert isinstance(haltwise.solve(back, method="newton").params, type(start))


def test_named_parameters_move_with_their_bounds() -> None:
    start = {"w": torch.full((NUM, DIM), 0.3, dtype=DOUBLE)}
    batch = FunctionBatch(
        start, named_squares, {"x": X, "y": Y}, bounds={"w": haltwise.interval(-9, 9)}
    )
    single = batch.to(SINGLE)
    torch.testing.assert_close(single.own(single.start)["w"], start["w"].float())
    assert single.observe(single.start, 0).loss.dtype == SINGLE


@pytest.mark.parametrize("device", ["gpu", "cuda:99", 3.5, "cpu:x"])
def test_devices_that_are_none_are_refused(device: Any) -> None:
    batch = FunctionBatch(torch.zeros(NUM, DIM, dtype=DOUBLE), squares, {"x": X, "y": Y})
    with pytest.raises(InputError, match=r"device .* cannot be used \(.*\); give"):
        batch.to(device)


def test_arrays_go_where_the_tensors_are() -> None:
    """An array has no device, so a tensor beside it says where the batch is."""
    beside = FunctionBatch(np.zeros((NUM, DIM)), squares, {"x": X.to("meta"), "y": Y.to("meta")})
    assert beside.start.device.type == "meta"
    beside = FunctionBatch(torch.zeros(NUM, DIM, device="meta"), squares, {"x": X.numpy(), "y": Y})
    assert beside.data["x"].device.type == "meta"


def test_start_and_data_on_two_devices_are_named() -> None:
    batch = FunctionBatch(torch.zeros(NUM, DIM, dtype=DOUBLE), squares, {"x": X.to("meta"), "y": Y})
    with pytest.raises(
        InputError, match=r"data\['x'\] is on meta and start on cpu; move both by .*\.to\('cpu'\)"
    ):
        haltwise.solve(batch)


FALLS = torch.exp(-torch.linspace(0.3, 1.3, 400, dtype=DOUBLE)[:, None] * torch.arange(30))
ENDS = torch.full((400,), 5)
RECORDED = Trajectory(FALLS, FALLS)
RUNS = haltwise.Curves.from_matrix(FALLS, target=0.1)
ASKED: dict[str, Any] = {"risk": ExcessLoss(), "level": 0.1, "confidence": 0.9, "bound": 1.0}
CHAINS = MarkovChainFamily()


@pytest.mark.parametrize(
    "ask",
    [
        lambda: haltwise.certify(Plateau, RECORDED, **ASKED),
        lambda: haltwise.certify(Plateau, RECORDED, **ASKED, group=list(range(40)) * 10),
        lambda: haltwise.certify(
            load_curve_rule("training-runs"), RUNS, risk="given-up", level=0.3, confidence=0.9
        ),
        lambda: RiskTable.of([[0, 0.2], [0, 0.4]], [[1, 2], [1, 3]], groups=[0, 1]).group_means(),
        lambda: calibrate(Plateau, RECORDED, price=0.01),
        lambda: stopping_report(FALLS, ENDS, price=0.05, groups=ENDS.cumsum(0) % 7),
        lambda: stopping_report(FALLS, ENDS, price=0.05, hazards=FALLS[:, 1:], baselines=False),
        lambda: [RiskMonitor(0.1, bound=1.0).draw() for _ in range(9)],
        lambda: (
            haltwise.recommend(
                FunctionBatch(X[:, 0], squares, {"x": X, "y": Y}), ["regression-10d"], price=0.01
            ).use
        ),
        lambda: lbfgs_curve(FunctionBatch(X[:, 0], squares, {"x": X, "y": Y}), 5),
        lambda: explore(
            haltwise.load("regression-2d"),
            family("regression-2d"),
            stream(0, "drawn"),
            num_problems=3,
            num_steps=5,
        ),
        lambda: CHAINS.best_stops(record_process(CHAINS.sample(9, stream(0, "chains")), 9), 0.1),
    ],
)
def test_data_on_the_cpu_are_judged_whatever_the_default_device(ask: Callable[[], Any]) -> None:
    with torch.device("meta"):
        found = ask()
    assert repr(found) == repr(ask())
