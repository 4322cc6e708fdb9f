"""The one record: its observations in order, selection, joining, and shapes that do not fit."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from draws import randn
from stop_rule_cases import TRAJECTORY, N, T
from torch import Tensor

from haltwise import InputError, certify
from haltwise._core.tensors import map_tensors
from haltwise.certificates import ExcessLoss
from haltwise.processes import Trajectory
from haltwise.stop_rules import Patience, Plateau, calibrate

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


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
def test_arrays_are_a_trajectory_as_tensors_are(dtype: Any) -> None:
    losses: Any = np.array([[3, 2, 1], [5, 4, 4]], dtype)
    signals: Any = np.ones((2, 2, 3), np.float32)
    found = Trajectory(losses, losses - 1, signals=signals, outputs={"h": signals[..., 0]})
    expected = torch.from_numpy(losses.astype(np.float32 if dtype is np.float32 else np.float64))
    assert torch.equal(found.loss, expected)
    assert found.loss.dtype == found.excess.dtype == expected.dtype
    assert torch.equal(found.excess, expected - 1)
    assert isinstance(found.signals, Tensor)
    assert found.outputs["h"].shape == (2, 2)
    losses[:] = 0  # the record is a copy
    assert torch.equal(found.loss, expected)
    assert found.select(torch.tensor([1])).num_items == 1
    assert Trajectory.join([found, found]).num_items == 4


@pytest.mark.filterwarnings("ignore:.* equal one before them")  # in whole numbers they do
@pytest.mark.parametrize(
    "convert",
    [
        *(partial(Tensor.to, dtype=dtype) for dtype in (torch.int64, torch.int32, torch.uint8)),
        *(partial(Tensor.to, dtype=dtype) for dtype in (torch.bfloat16, torch.float16)),
        partial(torch.gt, other=1),
        lambda value: value.clone().requires_grad_(),
    ],
)
def test_tensors_of_any_real_numbers_are_judged_as_those_in_float64(
    convert: Callable[[Tensor], Tensor],
) -> None:
    given = convert(10 * torch.exp(-randn(400, 1).abs() * torch.arange(30)))
    found, expected = (
        Trajectory(loss, loss, readouts=loss[:, 1:, None])
        for loss in (given, given.detach().double())
    )
    assert found.loss.dtype in (torch.float32, torch.float64)
    assert found.readouts is not None
    assert found.readouts.dtype == found.excess.dtype == found.loss.dtype
    assert not found.loss.requires_grad
    assert torch.equal(found.loss.double(), expected.loss)
    asked: Any = {"risk": ExcessLoss(), "level": 1.0, "confidence": 0.9, "bound": 10.0}
    assert certify(Patience, found, **asked, clip=True) == certify(
        Patience, expected, **asked, clip=True
    )
    assert calibrate(Plateau, found, price=0.01) == calibrate(Plateau, expected, price=0.01)


def test_arrays_are_certified_as_tensors_are() -> None:
    losses: Any = np.exp(-np.random.default_rng(0).uniform(0.05, 0.5, (400, 1)) * np.arange(30))
    asked: Any = {"risk": ExcessLoss(), "level": 0.1, "confidence": 0.9, "bound": 1.0}
    ours = certify(Plateau, Trajectory(losses, losses), **asked)
    tensors = torch.from_numpy(losses)
    assert ours == certify(Plateau, Trajectory(tensors, tensors), **asked)
    assert ours.require().policy is not None


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ([[1.0, 2.0]], "loss must be a tensor or an array of NumPy, got"),
        (np.array([["a", "b"]]), "loss must hold numbers"),
        (np.ones((2, 3)) + 1j, r"loss must hold real numbers, got torch.complex128; .*loss\.real"),
        (torch.ones(2, 3) + 1j, r"loss must hold real numbers, got torch.complex64; .*loss\.real"),
        (torch.ones(2, 3).to_sparse(), r"loss is sparse_coo, .*; make it dense by loss.to_dense"),
        (np.ones(3), r"losses must be a matrix \[n, T\+1\] .*, got shape \[3\]"),
        (np.ones((3, 0)), r"losses must be a matrix \[n, T\+1\] .*, got shape \[3, 0\]"),
    ],
)
def test_what_is_neither_is_refused(loss: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Trajectory(loss, loss)
