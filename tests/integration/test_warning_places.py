"""A warning names the line of the user's that led to it, however deep it arose."""

import warnings

import pytest
import torch

import haltwise
from haltwise._core.errors import DataWarning, FitWarning
from haltwise.tasks import family


def _places(recorded: list[warnings.WarningMessage]) -> set[str]:
    return {each.filename for each in recorded}


def test_solve_names_the_line_that_called_it() -> None:
    generator = torch.Generator().manual_seed(0)
    batch = family("regression-2d").sample(4, generator)
    with pytest.warns(FitWarning) as recorded:
        haltwise.solve(batch, "regression-2d", price=1e6)
    assert _places(recorded.list) == {__file__}


def test_the_torch_optimizer_names_the_step() -> None:
    param = torch.nn.Parameter(torch.ones(3))
    optimizer = haltwise.LearnedOptimizer([param], "regression-10d")

    def steps() -> None:
        for _ in range(300):
            optimizer.zero_grad()
            loss = 1e4 * param.square().sum() + 1e6 * param.abs().sum()
            loss.backward()
            optimizer.step(loss=loss)

    with pytest.warns(FitWarning, match="Adam takes over") as recorded:
        steps()
    assert _places(recorded.list) == {__file__}


def test_curves_name_who_reads_them() -> None:
    losses = [[3.0, 2.0, 1.0], [3.0, float("nan"), float("inf")], [float("nan")] * 3]
    with pytest.warns(DataWarning) as recorded:
        haltwise.Curves.from_matrix(losses)
    assert _places(recorded.list) == {__file__}
