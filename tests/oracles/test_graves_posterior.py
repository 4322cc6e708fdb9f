"""Graves' halting step, ponder cost and objective against his equations."""

import pytest
import torch
from draws import DOUBLE, randn
from posterior_cases import graves_loop
from stop_rule_cases import AFTER, BEFORE
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting import GravesPosterior
from haltwise.halting.objectives import ponder_objective
from haltwise.processes import Trajectory
from haltwise.stop_rules import PonderThreshold, decisions


def test_halting_step_and_remainder_are_graves_equations() -> None:
    logits = (2 * randn(40, 9) - 2).requires_grad_()
    posterior = GravesPosterior(logits)
    for i, row in enumerate(logits.sigmoid().tolist()):
        h = [*row, 1.0]
        n = 1
        while sum(h[:n]) < 1 - 0.01:
            n += 1
        assert posterior.halting_step()[i] == n - 1
        assert posterior.remainder()[i].item() == pytest.approx(1 - sum(h[: n - 1]), abs=1e-12)
    assert posterior.halting_step().unique().numel() > 4
    (gradient,) = torch.autograd.grad(posterior.remainder().sum(), logits)
    slope = torch.special.expit(logits.detach()) * torch.special.expit(-logits.detach())
    before = torch.arange(9) < posterior.halting_step().unsqueeze(1)
    assert_close(gradient, torch.where(before, -slope, 0.0), rtol=1e-12, atol=1e-15)


def test_the_ponder_objective_is_expected_loss_and_price_of_pondering() -> None:
    """What stands where the probability is zero is not read."""
    logits, losses, price = 2 * randn(5, 7), randn(5, 8, seed=2), randn(5, seed=3).exp()
    posterior = GravesPosterior(logits, 0.05)
    unread = posterior.log_prob() == -torch.inf
    assert unread.any()
    leaves = [losses.masked_fill(unread, torch.nan).requires_grad_(), logits.requires_grad_()]
    found = ponder_objective(leaves[0], GravesPosterior(logits, 0.05), price=price)
    for i, row in enumerate(losses.tolist()):
        p = graves_loop([*logits[i].tolist(), 0.0], 0.05)
        last = max(step for step, mass in enumerate(p) if mass > 0)
        expected = sum(mass * loss for mass, loss in zip(p, row, strict=True))
        cost = expected + price[i].item() * (last + p[last])
        assert found[i].item() == pytest.approx(cost, rel=1e-12)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), leaves))
    with pytest.raises(InputError, match=r"\(5, 7\) and \(5, 8\)"):
        ponder_objective(losses[:, :-1], posterior, price=price)
    with pytest.raises(InputError, match="epsilon"):
        GravesPosterior(logits, 1.0)


def test_the_ponder_rule_stops_where_the_posterior_halts() -> None:
    logits = 2 * randn(50, 12, 2) - 3
    losses = torch.zeros(50, 13, dtype=DOUBLE)
    trajectory = Trajectory(losses, losses, outputs={"halting_logits": logits})
    for time in (AFTER, BEFORE):
        steps = GravesPosterior(logits[..., time], 0.1).halting_step()
        assert torch.equal(decisions(PonderThreshold(0.1, time), trajectory), steps)
        assert steps.unique().numel() > 6
