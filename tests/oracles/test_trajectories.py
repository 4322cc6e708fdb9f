"""The one record: its observations in order, selection, joining, and shapes that do not fit."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from draws import randn
from stop_rule_cases import TRAJECTORY, N, T
from torch import Tensor

from haltwise import InputError
from haltwise._core.tensors import map_tensors
from haltwise.processes import Trajectory

FULL = replace(
    TRAJECTORY,
    signals=randn(N, T, 13),
    readouts=randn(N, T, 3),
    final=randn(N, 2),
)
"""With everything there is."""


def fields(trajectory: Trajectory) -> dict[str, Tensor]:
    own = {name: v for name, v in vars(trajectory).items() if isinstance(v, Tensor)}
    return {**own, **trajectory.outputs}


def assert_same(found: Trajectory, expected: dict[str, Tensor]) -> None:
    assert fields(found).keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in fields(found).items())


def test_every_step_but_the_last_is_observed() -> None:
    steps = list(FULL)
    assert [observation.step for observation in steps] == list(range(T))
    for name in ("loss", "log_grad_norm", "signals", "hazard_logits", "hold_logits"):
        stacked = torch.stack([observation.known(name) for observation in steps], 1)
        assert torch.equal(stacked, FULL.known(name)[:, :T])
    readouts = [observation.readout for observation in steps]
    assert FULL.readouts is not None
    assert all(
        r is not None and torch.equal(r, FULL.readouts[:, t]) for t, r in enumerate(readouts)
    )


def test_a_matrix_of_losses_is_a_trajectory() -> None:
    losses = randn(4, 6)
    trajectory = Trajectory(losses, losses)
    assert (trajectory.num_items, trajectory.num_steps) == (4, 5)
    assert [observation.known("loss").shape for observation in trajectory] == [(4,)] * 5
    with pytest.raises(InputError, match="log_grad_norm is needed here"):
        trajectory.known("log_grad_norm")


def test_selecting_and_joining_are_each_others_inverse() -> None:
    index = torch.tensor([3, 3, 0])
    expected = {name: value[index] for name, value in fields(FULL).items()}
    assert_same(FULL.select(index), expected)
    parts = [FULL.select(torch.arange(N)[part::3].sort().values) for part in range(3)]
    order = torch.cat([torch.arange(N)[part::3] for part in range(3)]).argsort()
    assert_same(Trajectory.join(parts).select(order), fields(FULL))


def test_joining_leaves_out_what_a_part_lacks() -> None:
    bare = replace(FULL, signals=None, outputs={"hold_logits": FULL.outputs["hold_logits"]})
    joined = Trajectory.join([FULL, bare])
    assert joined.num_items == 2 * N
    assert joined.signals is None
    assert joined.outputs == {}
    assert joined.readouts is not None
    other_size = Trajectory.join([FULL, replace(FULL, final=randn(N, 5))])
    assert other_size.final is not None
    assert other_size.final.shape == (2 * N, 0)
    assert Trajectory.join([FULL, replace(FULL, final=None)]).final is None


@pytest.mark.parametrize("name", [name for name in fields(FULL) if name != "final"])
def test_an_item_is_finite_if_all_that_is_known_of_it_is(name: str) -> None:
    assert FULL.finite.all()
    spoilt = map_tensors(FULL, torch.clone)
    fields(spoilt)[name][5, 2] = torch.nan
    if name == "log_grad_norm":  # nothing is learned from it
        assert spoilt.finite.all()
    else:
        assert spoilt.finite.tolist() == [i != 5 for i in range(N)]


def test_losses_must_be_a_matrix() -> None:
    with pytest.raises(InputError, match="matrix"):
        Trajectory(TRAJECTORY.loss[0], TRAJECTORY.loss[0])


@pytest.mark.parametrize("name", [name for name in fields(FULL) if name != "final"])
def test_shapes_that_do_not_fit_are_refused(name: str) -> None:
    shorter = fields(FULL)[name][:, :-1]
    changes: Any = {name: shorter}
    if name in FULL.outputs:
        changes = {"outputs": {**FULL.outputs, name: shorter}}
    with pytest.raises(InputError, match="must have losses of shape"):
        replace(FULL, **changes)
