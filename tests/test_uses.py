"""The uses of benchmarks/uses: every way of each has one loss, and its derivatives are those."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from draws import randn

from haltwise import FunctionBatch

NUM = 6
USES = Path(__file__).parents[1] / "benchmarks" / "uses"
NAMES = ("logistic", "negative_binomial", "light_curves", "alignment", "michaelis_menten")
DERIVATIVES = {
    "logistic": "irls",
    "negative_binomial": "derivatives",
    "light_curves": "scores",
    "alignment": "reweighted",
}


@pytest.fixture
def use(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(USES)
    return importlib.import_module(request.param)


def starts(use: ModuleType, data: dict[str, Any]) -> Any:
    if hasattr(use, "start_of"):
        return use.start_of(data)
    return 0.1 * randn(NUM, 6 if use.__name__ == "alignment" else use.DIM).numpy()


@pytest.mark.parametrize("use", DERIVATIVES, indirect=True)
def test_derivatives_by_hand_are_those_of_the_loss(use: ModuleType) -> None:
    data = use.simulate(NUM)
    start = starts(use, data)
    derivatives = getattr(use, DERIVATIVES[use.__name__])
    shown = use.coordinates_first(data) if use.__name__ == "alignment" else data
    given = FunctionBatch(start, data=shown, derivatives=derivatives)
    seen = given.observe_curvature(given.start)
    own = start
    if use.__name__ == "negative_binomial":
        own = use.shown(start)
    np.testing.assert_allclose(seen.loss, use.losses(own, **data), rtol=1e-9)
    for column in range(start.shape[1]):
        step = torch.zeros_like(given.start)
        step[:, column] = 1e-5
        up, down = (given.observe_curvature(given.start + sign * step) for sign in (1, -1))
        slope = (up.loss - down.loss) / 2e-5
        torch.testing.assert_close(seen.grad[:, column], slope, rtol=1e-5, atol=1e-5)
        if use.__name__ in ("logistic", "negative_binomial"):
            bend = (up.grad - down.grad) / 2e-5
            torch.testing.assert_close(seen.curvature[:, column], bend, rtol=1e-5, atol=1e-5)
    if use.__name__ != "negative_binomial":
        assert (torch.linalg.eigvalsh(seen.curvature)[:, 0] > 0).all()


@pytest.mark.parametrize("use", NAMES, indirect=True)
def test_what_users_write_is_the_loss_that_judges(use: ModuleType) -> None:
    data = use.simulate(NUM)
    start = starts(use, data)
    tensors = {name: torch.from_numpy(np.array(value)) for name, value in data.items()}
    params: Any = torch.from_numpy(start)
    if use.__name__ == "negative_binomial":
        params = {"effect": params[:, :-1], "dispersion": params[:, -1].exp()}
    if use.__name__ == "michaelis_menten":
        named = {"largest": params[:, 0], "half": params[:, 1]}
        residuals = use.torch_residuals(named, **tensors) / tensors["velocity"].amax(1, True)
        found = residuals.square().sum(1) / 2
    else:
        if use.__name__ == "alignment":  # coordinates first
            tensors = {name: cloud.mT for name, cloud in tensors.items()}
        found = use.torch_loss(params, **tensors)
    np.testing.assert_allclose(found, use.losses(start, **data), rtol=1e-9)


def test_the_expected_information_is_the_mean_of_the_scores_squares(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(USES)
    use = importlib.import_module("light_curves")
    number = 3000
    data = use.simulate(number)
    # The same curve for all, so that only the walk differs.
    gap = np.broadcast_to(data["gap"][:1], data["gap"].shape)
    variance = np.broadcast_to(data["variance"][:1], gap.shape)
    params = torch.tensor([-2.0, 5.0, 18.0]).double().expand(number, 3)
    generator = np.random.default_rng(0)
    age = np.cumsum(np.append(0.0, gap[0, 1:]))
    covariance = np.exp(-4.0 - np.abs(age[:, None] - age) / np.exp(5.0)) + np.diag(variance[0])
    magnitude = 18 + generator.standard_normal(gap.shape) @ np.linalg.cholesky(covariance).T
    given = (torch.from_numpy(np.array(v)) for v in (gap, magnitude, variance))
    _, grad, information = use.scores(params, *given)
    away = params[0, :2] - torch.from_numpy(use.CENTER)
    scores = grad - torch.cat((away, away.new_zeros(1)))
    expected = information[0] - torch.diag(torch.tensor([1.0, 1.0, 0.0]).double())
    size = expected.diagonal().sqrt()
    found = scores.mT @ scores / number / size / size.unsqueeze(1)
    torch.testing.assert_close(found, expected / size / size.unsqueeze(1), rtol=0, atol=0.08)
