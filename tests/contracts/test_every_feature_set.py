"""What every kind of halting features must satisfy."""

import itertools
import math

import pytest
import torch
from descents import PRICE, B, D, Descent, T, measured
from draws import DOUBLE, randn
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from haltwise.halting.features import FeatureSet, feature_sets

every_kind = pytest.mark.parametrize("kind", feature_sets().values(), ids=feature_sets())


def extract(kind: FeatureSet, signals: Tensor, price: Tensor) -> Tensor:
    return kind.extract(signals, price, kind.init(len(price), signals))[0]


def random_run(seed: int = 1) -> list[Tensor]:
    """Losses, gradients and updates that have nothing to do with each other."""
    return [randn(B, T, *shape, seed=seed + i) for i, shape in enumerate(((), (D,), (D,)))]


@every_kind
def test_features_have_the_promised_shape_and_the_dtype_of_the_signals(kind: FeatureSet) -> None:
    for dtype in (torch.float32, DOUBLE):
        signals, price = Descent().signals().to(dtype), PRICE.to(dtype)
        features, memory = kind.extract(signals, price, kind.init(B, signals))
        assert features.shape == (B, T, kind.num_features)
        assert features.dtype == dtype
        assert features.isfinite().all()
        assert all(len(value) == B and value.dtype == dtype for value in memory.values())
        assert kind.blank(price).shape == (B, kind.num_features)


@every_kind
@given(cuts=st.sets(st.integers(1, T - 1)), seed=st.integers(0, 10**6))
def test_features_in_pieces_are_those_at_once(kind: FeatureSet, cuts: set[int], seed: int) -> None:
    signals = measured(*random_run(seed))
    memory, pieces = kind.init(B, signals), []
    for begin, end in itertools.pairwise([0, *sorted(cuts), T]):
        features, memory = kind.extract(signals[:, begin:end], PRICE, memory)
        pieces.append(features)
    assert torch.equal(torch.cat(pieces, 1), extract(kind, signals, PRICE))


@every_kind
@pytest.mark.parametrize("step", range(1, T))
def test_features_do_not_look_ahead(kind: FeatureSet, step: int) -> None:
    losses, grads, updates = random_run()
    before = extract(kind, measured(losses, grads, updates), PRICE)
    losses[:, step:], grads[:, step:], updates[:, step:] = -3.0, 5.0, 1e3
    after = extract(kind, measured(losses, grads, updates), PRICE)
    assert torch.equal(before[:, :step], after[:, :step])
    assert not torch.equal(before[:, step], after[:, step])


@every_kind
def test_items_do_not_see_each_other(kind: FeatureSet) -> None:
    signals, index = Descent().signals(), torch.tensor([3, 0])
    found = extract(kind, signals[index], PRICE[index])
    assert torch.equal(found, extract(kind, signals, PRICE)[index])


@every_kind
@pytest.mark.parametrize("where", ["loss", "grad", "update"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_broken_item_leaves_the_others_bit_identical(
    kind: FeatureSet, where: str, value: float
) -> None:
    quadratic = Descent()
    inputs = {"loss": quadratic.losses, "grad": quadratic.grads, "update": quadratic.updates}
    clean = extract(kind, measured(*inputs.values()), PRICE)
    inputs[where] = inputs[where].clone()
    inputs[where][1, 3] = value
    broken = extract(kind, measured(*inputs.values()), PRICE)
    others = [0, 2, 3, 4]
    assert torch.equal(broken[others], clean[others])
    assert torch.equal(broken[1, :3], clean[1, :3])
    assert not torch.equal(broken[1, 3:], clean[1, 3:])


SIZES = (0.0, 1e-38, 1e-30, 1.0, 1e15, 1e30)


@every_kind
@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("update_size", SIZES)
@pytest.mark.parametrize("grad_size", SIZES)
def test_extremes_stay_finite(
    kind: FeatureSet, grad_size: float, update_size: float, dtype: torch.dtype
) -> None:
    steps, dim = 6, 3
    grads = (grad_size * randn(2, steps, dim).clamp(-3, 3)).to(dtype)
    updates = (update_size * randn(2, steps, dim, seed=2).clamp(-3, 3)).to(dtype)
    grads[:, 3], updates[:, 4] = 1.0, 0.0  # and sudden changes
    losses = (grad_size * randn(2, steps, seed=4)).to(dtype)
    signals = measured(losses, grads, updates)
    assert signals.isfinite().all()
    assert signals.dtype == dtype
    for price in (1e-9, 1.0, 1e6):
        features = extract(kind, signals, torch.full((2,), price, dtype=dtype))
        assert features.isfinite().all()
        assert features.abs().max() < 100


@every_kind
def test_extracting_leaves_signals_and_memory_untouched(kind: FeatureSet) -> None:
    signals = Descent().signals()
    memory = kind.init(B, signals)
    kept = {name: value.clone() for name, value in memory.items()}, signals.clone()
    once, _ = kind.extract(signals, PRICE, memory)
    again, _ = kind.extract(signals, PRICE, memory)
    assert torch.equal(once, again)
    assert torch.equal(signals, kept[1])
    assert all(torch.equal(value, kept[0][name]) for name, value in memory.items())
