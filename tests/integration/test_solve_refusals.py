"""Problems and settings that `haltwise.solve` refuses, each with a way out."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError, OptimizerModel
from haltwise._core.random import stream
from haltwise.engines import engines
from haltwise.engines.newton import Newton
from haltwise.models import Card, Choice, save_model
from haltwise.stop_rules import FixedBudget
from haltwise.tasks import Observation, TaskBatch, family
from haltwise.update_rules import Adam

UNCALIBRATED = OptimizerModel(
    Card(method=Choice("stick-breaking"), price=0.1, horizon=5, rule=Choice("lstm"))
)
ONES = torch.ones(5, 2)


def centred(params: Tensor) -> Tensor:
    return (params - params.mean(0)).square().sum(1)


def noisy(params: Tensor) -> Tensor:
    return params.square().sum(1) * torch.rand((), generator=NOISE)


NOISE = torch.Generator().manual_seed(0)
OUTSIDE = torch.arange(5.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ONES, "must be a TaskBatch, got Tensor; make one of a loss"),
        (lambda: FunctionBatch(ONES[0], centred), r"shape \[B, D\].*got shape \[2\]"),
        (lambda: FunctionBatch(ONES[:0], centred), r"got shape \[0, 2\]"),
        (lambda: FunctionBatch([[1.0]], centred), "got list"),
        (lambda: FunctionBatch(ONES.long(), centred), r"got torch.int64; convert"),
        (lambda: FunctionBatch(ONES.half(), centred), r"got torch.float16; convert"),
        (
            lambda: FunctionBatch(torch.where(OUTSIDE[:, None] > 2, torch.nan, ONES), centred),
            "NaN or infinity in 2 of 5 problems, first in problem 3",
        ),
        (lambda: FunctionBatch(ONES, centred), "problem 0 or its gradient changes with"),
        (lambda: FunctionBatch(ONES, lambda p: p.square().sum(1) / len(p)), "problem 0 or"),
        (lambda: FunctionBatch(ONES, noisy), "and not random"),
        (lambda: FunctionBatch(ONES, lambda p: p.square().sum()), r"shape \[3\].*got shape \[\]"),
        (lambda: FunctionBatch(ONES, lambda p: p.square()), r"got shape \[3, 2\]"),
        (lambda: FunctionBatch(ONES, lambda p: 3.0), "got 3.0"),  # type: ignore[arg-type,return-value]
        (lambda: FunctionBatch(ONES, lambda p: p.double().sum(1)), "torch.float64 for param"),
        (lambda: FunctionBatch(ONES, lambda p: p.detach().sum(1)), "no gradient in its param"),
        (
            lambda: FunctionBatch(ONES, lambda p: p.sum(1) * OUTSIDE),
            "fails for 3 of the 5 problems",
        ),
        (
            lambda: FunctionBatch(ONES, lambda p, x: x.sum(1), {"x": ONES[:4]}),
            r"data\['x'\] must be a tensor with the 5 problems .* got shape \[4, 2\]",
        ),
        (lambda: FunctionBatch(np.array([["1"]]), centred), "start must hold numbers"),
        (lambda: FunctionBatch(ONES, centred, [ONES]), "data must be a dictionary"),  # type: ignore[arg-type]
        (
            lambda: FunctionBatch(ONES, lambda p, x: p.sum(1), {"x": ONES.to_sparse()}),
            r"is sparse_coo, .*; make it dense by data\['x'\].to_dense\(\)",
        ),
        (lambda: FunctionBatch(ONES, lambda p: p.sub_(3).square().sum(1)), "as by params - 3 in"),
        (lambda: FunctionBatch(ONES.to_sparse(), centred), "make it dense by start.to_dense"),
        (
            lambda: FunctionBatch(ONES.numpy().astype(np.longdouble), centred),
            r"start must hold numbers that PyTorch has, .* convert it by .astype\(float\)",
        ),
        (
            lambda: FunctionBatch(ONES, lambda p, x: p.sum(1), {"x": 3}),
            r"data\['x'\] .* got 3",
        ),
    ],
)
def test_problems_that_will_not_do(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        haltwise.solve(make())


@dataclass(frozen=True)
class Bowls(TaskBatch):
    """A batch of one's own; each broken one observes something else."""

    center: Tensor

    @property
    def reference_loss(self) -> Tensor:
        return torch.zeros_like(self.start[:, 0])

    def observe(self, params: Tensor, step: int) -> Any:
        away = params - self.center
        return Observation(away.square().sum(1), 2 * away)


class Pairs(Bowls):
    def observe(self, params: Tensor, step: int) -> Any:
        return tuple(super().observe(params, step))


class Columns(Bowls):
    def observe(self, params: Tensor, step: int) -> Any:
        loss, grad = super().observe(params, step)
        return Observation(loss.unsqueeze(1), grad)


class OneGradient(Bowls):
    def observe(self, params: Tensor, step: int) -> Any:
        loss, grad = super().observe(params, step)
        return Observation(loss, grad[:1])


class Precise(Bowls):
    def observe(self, params: Tensor, step: int) -> Any:
        return Observation(*(value.double() for value in super().observe(params, step)))


class InPlace(Bowls):
    def observe(self, params: Tensor, step: int) -> Any:
        return super().observe(params.add_(1), step)


class Mean(Bowls):
    def observe(self, params: Tensor, step: int) -> Any:
        loss, grad = super().observe(params, step)
        return Observation(loss + loss.mean(), grad)


class Noisy(Bowls):
    def observe(self, params: Tensor, step: int) -> Any:
        loss, grad = super().observe(params, step)
        return Observation(loss * torch.rand((), generator=NOISE), grad)


CENTER = torch.arange(10.0).view(5, 2)


@pytest.mark.parametrize("method", ["lbfgs", "adam", "lstm"])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (Pairs(ONES, CENTER), r"must return an Observation\(loss, grad\), got tuple"),
        (Columns(ONES, CENTER), r"the loss that Columns.observe returns .*shape \[3, 1\]"),
        (OneGradient(ONES, CENTER), r"the gradient that OneGradient.observe .*shape \[1, 2\]"),
        (Precise(ONES, CENTER), "must be a tensor of torch.float32 .* got torch.float64"),
        (InPlace(ONES, CENTER), "changes the parameters that it is given in place"),
        (Mean(ONES, CENTER), "loss of problem 0 of Mean.* changes with the problems beside it"),
        (Noisy(ONES, CENTER), "loss of problem 0 of Noisy.* or from call to call"),
        (Bowls(ONES, CENTER[0]), r"the field center of Bowls must have the 5 .* shape \[2\]"),
    ],
)
def test_batches_of_ones_own_that_will_not_do(batch: Bowls, message: str, method: str) -> None:
    with pytest.raises(InputError, match=message):
        haltwise.solve(batch, method=method)


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64])
def test_data_are_refused_of_which_pytorch_cannot_select_rows(dtype: torch.dtype) -> None:
    whole = torch.arange(10).view(5, 2)
    data = whole.to(dtype)

    def function(x: Tensor) -> TaskBatch:
        return FunctionBatch(ONES, lambda p, x: (p - x).square().sum(1), {"x": x})

    def own(x: Tensor) -> TaskBatch:
        return Bowls(ONES, x)

    try:
        data.index_select(0, torch.arange(2))
    except RuntimeError:  # PyTorch before 2.14
        convert = r"; convert it by \.to\(torch\.int64"
        with pytest.raises(InputError, match=rf"data\['x'\] is {dtype}, .*{convert}"):
            haltwise.solve(function(data))
        with pytest.raises(InputError, match=rf"field center of Bowls is {dtype}, .*{convert}"):
            haltwise.solve(own(data), method="lbfgs")
    else:
        for make in (function, own):
            found = haltwise.solve(make(data), method="lbfgs").params
            torch.testing.assert_close(found, whole.float())


def test_weights_without_numbers_are_refused() -> None:
    model = haltwise.load("regression-2d").to("meta")
    with pytest.raises(InputError, match="are on the device meta, which holds no numbers"):
        haltwise.solve(Bowls(ONES, CENTER), model)


@dataclass(frozen=True)
class Settled(Bowls):
    """With settings that all problems share, beside tensors of each."""

    settings: dict[str, Any]

    def observe(self, params: Tensor, step: int) -> Any:
        loss, grad = super().observe(params, step)
        scale = self.settings["scale"] * self.settings.get("weight", torch.ones_like(loss))
        return Observation(scale * loss, scale.unsqueeze(1) * grad)


@pytest.mark.parametrize("weight", [{}, {"weight": torch.arange(1.0, 6.0)}])
@pytest.mark.parametrize("method", ["lbfgs", "lstm"])
def test_a_batch_of_ones_own_may_keep_settings_in_a_dictionary(
    method: str, weight: dict[str, Tensor]
) -> None:
    settings = {"scale": 0.5, "name": "bowls", **weight}
    solution = haltwise.solve(Settled(ONES, CENTER, settings), method=method)
    torch.testing.assert_close(solution.params, CENTER, rtol=0, atol=0.5)
    assert settings.keys() == {"scale", "name", *weight}


def test_a_batch_of_ones_own_is_solved() -> None:
    torch.testing.assert_close(haltwise.solve(Bowls(ONES, CENTER)).params, CENTER)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": ""}, "unknown method ''"),
        ({"optimizer": "regresion-10d"}, "did you mean 'regression-10d'"),
        ({"stop": 5}, "stop must be a StopRule"),
        ({"price": 0.0}, "above 0 and finite, got 0"),
        ({"price": torch.ones(3)}, r"shape \[12\], got shape \[3\]"),
        ({"max_steps": 0}, "max_steps must be at least 1"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
        ({"max_steps": 10**20}, "max_steps must be at most"),
        ({"guard": "no"}, "guard must be True or False, got 'no'"),
        ({"history": 1}, "history must be True or False"),
        ({"method": "lbfgs", "gtol": "small"}, "gtol must be a single real number, got 'small'"),
        ({"param_scale": "1"}, "param_scale must"),
        ({"param_scale": 10**400}, "param_scale must"),
        ({"optimizer": UNCALIBRATED}, "do not know when to stop yet: .* or give a stop rule"),
    ],
)
def test_settings_that_will_not_do(given: dict[str, Any], message: str) -> None:
    batch = family("regression-10d").sample(12, stream(2), dtype=torch.float64)
    with pytest.raises(InputError, match=message):
        haltwise.solve(
            batch, **({} if "method" in given else {"optimizer": "regression-10d"}) | given
        )


def refused(found: Any) -> None:
    (reason,) = found.skipped.values()
    raise InputError(reason)


@pytest.mark.parametrize("how", ["first", "optimizer", "price_for_budget", "recommend"])
@pytest.mark.parametrize(
    ("engine", "said"),
    [
        *((name, f"method={name!r}") for name in ("auto", "lstm", *engines())),
        (Newton(), "method=Newton()"),
        (Adam(0.3), "method=Adam("),
    ],
)
def test_an_engine_in_the_place_of_weights_is_told_where_it_belongs(
    engine: Any, said: str, how: str
) -> None:
    batch = family("regression-10d").sample(3, stream(2))
    call: dict[str, Callable[[], Any]] = {
        "first": lambda: haltwise.solve(batch, engine),
        "optimizer": lambda: haltwise.solve(batch, optimizer=engine),
        "price_for_budget": lambda: haltwise.price_for_budget(batch, 5, engine),
        "recommend": lambda: refused(haltwise.recommend(batch, [engine], price=0.1, max_steps=5)),
    }
    with pytest.raises(InputError) as caught:
        call[how]()
    assert "did you mean" not in str(caught.value)
    assert "haltwise.solve" in str(caught.value)
    assert said in str(caught.value)


def test_a_run_that_is_called_as_an_engine_is_that_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths go first, as anywhere else."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "runs" / "bfgs"
    path.mkdir(parents=True)
    model = haltwise.load("regression-10d")
    save_model(path / "best.safetensors", model.state_dict(), model.card)
    batch = family("regression-10d").sample(3, stream(2))
    assert len(haltwise.solve(batch, "bfgs").loss) == 3


def test_a_name_that_is_near_to_none_gets_no_list_of_all() -> None:
    batch = family("regression-10d").sample(3, stream(2))
    for call in (
        lambda: haltwise.solve(batch, "zzz"),
        lambda: haltwise.load("zzz"),
        lambda: haltwise.LearnedOptimizer([torch.nn.Parameter(torch.ones(2))], weights="zzz"),
        lambda: family("zzz"),
    ):
        with pytest.raises(InputError) as caught:
            call()
        assert "did you mean" not in str(caught.value)
        assert "`haltwise list` shows" in str(caught.value)
        assert str(caught.value).count("'") == 2  # around the name itself
    for name in ("regresion-10d", "lstm", "mnist"):
        with pytest.raises(InputError) as caught:
            haltwise.load(name)
        assert str(caught.value).count(" or '") <= 2


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        ({"method": Newton}, r"got the class Newton; .*Newton\("),
        ({"method": Adam}, r"got the class Adam; .*Adam\("),
        ({"stop": FixedBudget}, r"got the class FixedBudget; .*FixedBudget\("),
        ({"method": "lbfgs", "stop": FixedBudget}, r"got the class FixedBudget; .*FixedBudget\("),
        ({"problem": FunctionBatch}, r"got the class FunctionBatch; .*FunctionBatch\("),
    ],
)
def test_a_class_in_the_place_of_an_instance_is_told_so(given: dict[str, Any], advice: str) -> None:
    batch = family("regression-10d").sample(3, stream(2))
    with pytest.raises(InputError, match=advice):
        haltwise.solve(**{"problem": batch, **given})


def test_a_stop_rule_takes_the_place_of_a_calibration_that_is_missing() -> None:
    batch = family("regression-10d").sample(3, stream(2))
    solution = haltwise.solve(batch, UNCALIBRATED, FixedBudget(2))
    assert solution.num_gradients.tolist() == [3, 3, 3]


@pytest.mark.parametrize("method", ["newton", "lbfgs"])
def test_a_factorization_that_fails_for_one_problem_is_told_how_to_spare_the_others(
    method: str,
) -> None:
    def loss(params: Tensor, center: Tensor) -> Tensor:
        matrix = torch.diag_embed(params + center)  # that of one is not positive definite
        factor: Tensor = torch.linalg.cholesky(matrix)
        return factor.diagonal(dim1=1, dim2=2).square().sum(1)

    center = torch.tensor([1.0, -3.0, 1.0, 1.0, 1.0]).unsqueeze(1)
    problem = FunctionBatch(ONES, loss, {"center": center})
    with pytest.raises(InputError, match=r"the loss fails .*Batch element 1.*return NaN for that"):
        haltwise.solve(problem, method=method)
