"""What stops cost and return, in both units of cost."""

import pytest
import torch
from stop_rule_cases import TRAJECTORY, N, T, falling_trajectory

from haltwise import InputError
from haltwise.processes import Trajectory
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    ReturnedIterate,
    costs,
    returned_steps,
    steps_charged,
    takes_update,
    total_cost,
)


def test_a_gradient_in_hand_is_paid_for_and_its_update_applied() -> None:
    decided = torch.tensor([0, 3, T - 1, T])
    trajectory = TRAJECTORY.select(torch.arange(4))
    current, following = (
        returned_steps(decided, trajectory, returns).tolist()
        for returns in (ReturnedIterate.CURRENT, ReturnedIterate.NEXT)
    )
    assert current == [0, 3, T - 1, T]
    assert following == [1, 4, T, T]
    assert steps_charged(decided, CostUnit.UPDATES, T).tolist() == [0, 3, T - 1, T]
    assert steps_charged(decided, CostUnit.GRADIENTS, T).tolist() == [1, 4, T, T]


def test_costs_add_the_price_of_every_step() -> None:
    table = costs(torch.tensor([[5.0, 3, 2], [1, 1, 0]]), 0.5)
    assert table.tolist() == [[5, 3.5, 3], [1, 1.5, 1]]


def test_the_best_iterate_is_the_first_of_the_lowest_losses_observed_so_far() -> None:
    loss = torch.tensor([[3.0, 2, 4, 1, 1, -5], [torch.nan, 9, 8, 7, 6, -5]])
    trajectory = Trajectory(loss, loss)
    for decided, expected in ((0, [0, 0]), (2, [1, 2]), (4, [3, 4]), (5, [3, 4])):
        found = returned_steps(torch.tensor([decided] * 2), trajectory, ReturnedIterate.BEST)
        assert found.tolist() == expected


@pytest.mark.parametrize("unit", CostUnit)
def test_the_total_cost_is_the_excess_returned_and_the_price_of_what_is_charged(
    unit: CostUnit,
) -> None:
    trajectory = falling_trajectory(seed=3)
    decided = torch.arange(N) % (T + 1)
    hold = trajectory.known("hold_logits")
    for returns in RETURNABLE[unit]:
        found = total_cost(trajectory, decided, unit, returns, price=0.3)
        for i, t in enumerate(decided.tolist()):
            seen = trajectory.loss[i, : min(t, T - 1) + 1].tolist()
            end = {
                ReturnedIterate.NEXT: min(t + 1, T),
                ReturnedIterate.CURRENT: t,
                ReturnedIterate.BEST: seen.index(min(seen)),
                ReturnedIterate.LEARNED: t if t == T or hold[i, t] > 0 else t + 1,
            }[returns]
            charged = t if unit is CostUnit.UPDATES else min(t + 1, T)
            expected = trajectory.excess[i, end].item() + 0.3 * charged
            assert found[i].item() == pytest.approx(expected, rel=1e-14)


def test_what_the_unit_does_not_pay_for_cannot_be_returned() -> None:
    decided = torch.zeros(N, dtype=torch.int64)
    for returns in (ReturnedIterate.NEXT, ReturnedIterate.LEARNED):
        with pytest.raises(InputError, match="at the cost of its updates; choose 'current' or"):
            total_cost(TRAJECTORY, decided, CostUnit.UPDATES, returns, price=0.1)


def test_the_learned_iterate_needs_the_outputs_that_choose_it() -> None:
    losses_alone = Trajectory(TRAJECTORY.loss, TRAJECTORY.excess)
    decided = torch.full((N,), 2)
    with pytest.raises(InputError, match="hold_logits"):
        returned_steps(decided, losses_alone, ReturnedIterate.LEARNED)
    assert returned_steps(decided, losses_alone, ReturnedIterate.NEXT).tolist() == [3] * N


def test_the_update_is_taken_where_nothing_says_to_hold() -> None:
    hold = torch.tensor([-1.0, 0.0, 2.0, torch.nan])
    expected = {
        ReturnedIterate.NEXT: [True] * 4,
        ReturnedIterate.CURRENT: [False] * 4,
        ReturnedIterate.BEST: [False] * 4,
        ReturnedIterate.LEARNED: [True, True, False, True],
    }
    for returns, takes in expected.items():
        assert takes_update(returns, hold, hold).tolist() == takes
