"""Cells of variable width against the plain cell, SciPy's logistic law and finite differences."""

import pytest
import torch
from draws import DOUBLE, seeded
from scipy.stats import logistic
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from haltwise import InputError
from haltwise.nn import LogisticPosterior, VariableComputationCell


@pytest.mark.parametrize("sharpness", [0.05, 1.0, 30.0])
def test_the_law_of_the_width_is_scipy_s(sharpness: float) -> None:
    location = torch.tensor([-3.0, 0.4, 2.5, 7.9, 20.0], dtype=DOUBLE)
    law = LogisticPosterior(location, sharpness, 8)
    found = law.log_prob().exp()
    units = torch.arange(9)
    for row, where in zip(found, location.tolist(), strict=True):
        # d >= i where location plus logistic noise is at least i
        above = logistic.sf(units, loc=where, scale=1 / sharpness)
        above[0] = 1
        due = above - [*above[1:], 0]
        assert row.tolist() == pytest.approx(due.tolist(), abs=1e-12)
    torch.testing.assert_close(found.sum(1), torch.ones(5, dtype=DOUBLE))
    torch.testing.assert_close(law.ponder_steps(), (found * units).sum(1))


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell])
def test_a_sharp_mean_is_what_is_run(kind: type[nn.RNNCell]) -> None:
    """And each row is what a loop over units makes of the plain cell."""
    torch.manual_seed(0)
    cell = VariableComputationCell(kind(3, 10), sharpness=1e4).double()
    nn.init.normal_(cell.share.weight, generator=seeded())
    inputs = torch.randn(20, 3, generator=seeded(), dtype=DOUBLE)
    hidden = torch.randn(20, 10, generator=seeded(1), dtype=DOUBLE)
    mean = cell(inputs, hidden, price=0.1)
    ran = cell.run(inputs, hidden, price=0.1)
    seen = torch.cat((inputs, hidden, torch.full((20, 1), 0.1, dtype=DOUBLE).log()), 1)
    width = 10 * cell.share(seen).sigmoid().squeeze(1)
    assert torch.equal(ran.width, width.floor().clamp_min(1))
    assert len(set(ran.width.tolist())) > 3
    wide = width > 1
    torch.testing.assert_close(mean.width[wide], ran.width[wide])
    torch.testing.assert_close(mean.hidden[wide], ran.hidden[wide])
    for row in range(20):
        most = int(ran.width[row])
        masked = hidden[row : row + 1].clone()
        masked[:, most:] = 0
        due = hidden[row].clone()
        due[:most] = cell.cell(inputs[row : row + 1], masked)[0, :most]
        torch.testing.assert_close(ran.hidden[row], due)
        alone = cell.run(inputs[row : row + 1], hidden[row : row + 1], price=0.1)
        torch.testing.assert_close(alone.hidden[0], ran.hidden[row])


@pytest.mark.parametrize("normed", [False, True])
def test_a_cell_of_full_width_is_the_cell(*, normed: bool) -> None:
    torch.manual_seed(0)
    plain = nn.GRUCell(3, 6)
    if normed:  # a weight that is computed from others
        weight_norm(plain, "weight_hh").parametrizations.weight_hh.original0.data.mul_(2)
    cell = VariableComputationCell(plain, sharpness=100.0)
    nn.init.constant_(cell.share.bias, 50.0)
    nn.init.zeros_(cell.share.weight)
    inputs, hidden = torch.randn(4, 3), torch.randn(4, 6)
    torch.testing.assert_close(
        cell.run(inputs, hidden, price=1.0).hidden, cell.cell(inputs, hidden)
    )


def test_gradients_are_differences() -> None:
    torch.manual_seed(0)
    cell = VariableComputationCell(nn.RNNCell(2, 4), sharpness=0.7).double()

    def loss(inputs: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        step = cell(inputs, hidden, price=0.1)
        total: torch.Tensor = step.hidden.square().sum(1) + 0.1 * step.width
        return total

    arguments = torch.randn(3, 2, dtype=DOUBLE), torch.randn(3, 4, dtype=DOUBLE)
    assert torch.autograd.gradcheck(loss, [value.requires_grad_() for value in arguments])


def test_half_precision_reads_prices_beyond_its_own() -> None:
    cell = VariableComputationCell(nn.GRUCell(3, 10)).half()
    for price in (1e-9, 1e6):
        step = cell(torch.ones(2, 3, dtype=torch.float16), price=price)
        assert step.hidden.isfinite().all()


def test_a_token_that_is_no_number_disturbs_no_other() -> None:
    cell = VariableComputationCell(nn.GRUCell(3, 10))
    inputs = torch.randn(4, 3, generator=seeded())
    due = cell.run(inputs, price=0.1)
    broken = cell.run(inputs.index_fill(0, torch.tensor([2]), torch.nan), price=0.1)
    others = [0, 1, 3]
    torch.testing.assert_close(broken.hidden[others], due.hidden[others])
    assert torch.equal(broken.width[others], due.width[others])
    assert broken.hidden[2].isnan().all()


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(InputError, match=r"nn[.]GRUCell, got LSTMCell"):
        VariableComputationCell(nn.LSTMCell(2, 3))  # type: ignore[arg-type]
    with pytest.raises(InputError, match="sharpness must be above 0"):
        LogisticPosterior(torch.zeros(1), 0.0, 3)
    with pytest.raises(InputError, match="prices must be finite numbers above 0"):
        VariableComputationCell(nn.GRUCell(2, 3))(torch.zeros(1, 2), price=0.0)


def test_no_tokens_have_no_width() -> None:
    cell = VariableComputationCell(nn.GRUCell(3, 5))
    for step in (cell(torch.zeros(0, 3), price=0.1), cell.run(torch.zeros(0, 3), price=0.1)):
        assert (step.hidden.shape, step.width.shape) == ((0, 5), (0,))
