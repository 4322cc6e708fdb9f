"""The torch optimizer does no harm: when Adam takes over, from where, and what stays as it was."""

import io
import math
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from draws import DOUBLE, randn
from networks import assert_same, given_grads
from random_models import random_model, with_threshold
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.testing import assert_close

import haltwise
from haltwise import FitWarning, LearnedOptimizer
from haltwise.interfaces.torch_optim.guard import adam_, init_tensors
from haltwise.tasks import family

HORIZON = 60  # of regression-10d
zeros = partial(torch.zeros, dtype=DOUBLE)


def quadratic(params: list[nn.Parameter], sign: float = 1.0) -> Tensor:
    return sign * torch.cat([param.flatten() - 1 for param in params]).square().sum()


def run(
    optimizer: LearnedOptimizer, params: list[nn.Parameter], num: int, sign: float = 1.0
) -> list[float]:
    """Steps on a quadratic that the weights fit, and the losses."""
    losses = []
    for _ in range(num):
        optimizer.zero_grad()
        loss = quadratic(params, sign)
        torch.autograd.backward(loss)
        optimizer.step(loss=loss)
        losses.append(loss.item())
    return losses


def tell(optimizer: LearnedOptimizer, losses: list[float]) -> Iterator[list[Tensor]]:
    """Steps with these losses, whatever the gradients; yields the parameters before each."""
    for loss in losses:
        params = [param for group in optimizer.param_groups for param in group["params"]]
        yield [param.detach().clone() for param in params]
        optimizer.step(loss=loss)


def guards(optimizer: LearnedOptimizer) -> list[dict[str, Any]]:
    return [record["guard"] for _, record in optimizer._records()]


def take_over(optimizer: LearnedOptimizer, params: list[nn.Parameter]) -> None:
    with pytest.warns(FitWarning, match="after the 60 steps"):
        run(optimizer, params, HORIZON + 1)


# -------------------------------------------------------------------------------------------- Adam


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_adam_updates_as_that_of_torch(scale: float) -> None:
    param = nn.Parameter(torch.ones((), dtype=DOUBLE))
    optimizer = torch.optim.Adam([param], lr=0.1, betas=(0.9, 0.99), eps=0)
    state = init_tensors(param, param.detach().view(1))
    for step in range(30):
        param.grad = randn(1, seed=step, dtype=DOUBLE)[0]
        before = param.detach().clone()
        optimizer.step()
        (found,) = adam_([state], [scale * param.grad.view(1)], step, 0.1)
        assert_close(found[0], param.detach() - before, rtol=2e-4, atol=0)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-25, 1e19, 3e38])
def test_adam_stays_small_at_extreme_gradients(size: float) -> None:
    state = init_tensors(nn.Parameter(torch.ones(3)), torch.ones(3))
    for step, sign in enumerate((1, 1, -1, 1)):
        (update,) = adam_([state], [sign * size * torch.tensor([1.0, -1.0, 0.0])], step, 0.1)
        assert (update.abs() < 0.2).all()
    for step in range(4, 1500):  # it recovers
        (update,) = adam_([state], [torch.full((3,), 1e12)], step, 0.1)
    assert (update < -1e-3).all()


def test_adam_bounds_each_tensor_by_its_own_gradient() -> None:
    """By the formula: what is added to a root is a share of the root mean square of its tensor."""
    sizes = {1: 1e-25, 3: 1.0, 50: 1e6}
    states = [init_tensors(nn.Parameter(zero), zero) for zero in map(zeros, sizes)]
    means = [zeros(n) for n in sizes]
    squares = [zeros(n) for n in sizes]
    for step in range(4):
        grads = [
            size * randn(n, seed=step, dtype=DOUBLE) * 10.0 ** torch.arange(0, -n, -1)
            for n, size in sizes.items()
        ]
        updates = adam_(states, grads, step, 0.1)
        for n, grad in enumerate(grads):
            means[n] = 0.9 * means[n] + 0.1 * grad
            squares[n] = 0.99 * squares[n] + 0.01 * grad.square()
            root = (squares[n] / (1 - 0.99 ** (step + 1))).sqrt()
            root = root + 1e-4 * root.square().mean().sqrt() + 1e-19
            assert_close(updates[n], -0.1 * means[n] / (1 - 0.9 ** (step + 1)) / root)


# --------------------------------------------------------------------------------------- take-over


def test_after_the_horizon_adam_takes_over_with_one_warning() -> None:
    (param,) = params = given_grads((10,))
    optimizer = LearnedOptimizer(params, "regression-10d")
    losses = run(optimizer, params, HORIZON - 1)
    before = param.detach().clone()
    losses += run(optimizer, params, 1)
    assert not torch.equal(param, before)
    assert (optimizer.steps_taken, optimizer.should_stop) == (HORIZON, True)
    before = param.detach().clone()
    with pytest.warns(FitWarning) as caught:
        losses += run(optimizer, params, 1)
    rate, update = guards(optimizer)[0]["rate"], param.detach() - before
    losses += run(optimizer, params, 300)  # without another one
    assert len(caught) == 1
    assert "'regression-10d' after the 60 steps" in str(caught[0].message)
    expected = -(before - 1).sign() * rate  # Adam's first step
    far = (before - 1).abs() > 1e-3
    assert_close(update[far], expected[far], rtol=0.1, atol=0)
    assert max(losses[HORIZON:]) <= losses[0]
    assert optimizer.steps_taken == HORIZON + 301


def test_under_adam_decay_takes_its_share_off_and_what_is_not_finite_is_skipped() -> None:
    params = given_grads((4,), (2, 3))
    optimizer = LearnedOptimizer(params, "regression-10d")
    take_over(optimizer, params)
    state, start = optimizer.state_dict(), [param.detach().clone() for param in params]
    ends = []
    for decay in (0.0, 0.1, 0.2):
        for param, value in zip(params, start, strict=True):
            param.data.copy_(value)
        optimizer.load_state_dict(state)
        optimizer.param_groups[0]["weight_decay"] = decay
        optimizer.step(loss=quadratic(params))
        ends.append(torch.cat([param.detach().flatten() for param in params]))
    taken = torch.stack([ends[0] - ends[1], ends[0] - ends[2]])
    shares = taken / torch.cat([value.flatten() for value in start])
    assert (shares > 0).all()
    assert_close(shares, shares[:, :1] * torch.ones(10), rtol=1e-2, atol=0)
    assert_close(shares[1], 2 * shares[0], rtol=1e-2, atol=0)
    for bad in params:
        before = [param.detach().clone() for param in params]
        assert bad.grad is not None
        kept, bad.grad = bad.grad, torch.full_like(bad.grad, torch.nan)
        optimizer.step(loss=quadratic(params))
        bad.grad = kept
        assert_same([param.detach() for param in params], before)
    assert optimizer.num_skipped == 2


def test_it_asks_to_stop_at_the_horizon_at_the_latest() -> None:
    learned = with_threshold(random_model("adam", horizon=7, learning_rate=0.1), 1e9)
    optimizer = LearnedOptimizer(given_grads((3,)), learned)
    stops = [optimizer.should_stop for _ in tell(optimizer, [5.0 - t / 4 for t in range(7)])]
    assert [*stops, optimizer.should_stop] == [False] * 7 + [True]


def test_the_rate_does_not_depend_on_lr_or_its_warm_up() -> None:
    sizes = []
    for lr in (1.0, 0.5):
        params = given_grads((10,))
        optimizer = LearnedOptimizer(params, "regression-10d", lr=lr)
        for _ in tell(optimizer, [5.0]):
            pass
        sizes.append(guards(optimizer)[0]["size_there"])
    assert_close(sizes[1], sizes[0])
    (param,) = given_grads((10,))
    optimizer = LearnedOptimizer([param], "regression-10d", lr=0.0)
    for _ in tell(optimizer, [5.0, 5.0]):
        pass
    optimizer.param_groups[0]["lr"] = 1.0
    before = param.detach().clone()
    with pytest.warns(FitWarning, match="has risen"):
        for _ in tell(optimizer, [500.0, 500.0, 500.0, 5.0]):
            pass
    assert 0 < (param - before).abs().max() < 0.5


@pytest.mark.parametrize("misses", [False, True])
def test_it_goes_back_to_where_the_smoothed_loss_was_lowest(misses: bool) -> None:
    params = given_grads((4,), (3,))
    optimizer = LearnedOptimizer(params, "regression-10d")
    *_, lowest = tell(optimizer, [10.0 - t / 2 for t in range(15)])
    if misses:  # it has no gradient at the step that goes back
        params[1].grad = None
    with pytest.warns(FitWarning, match="at step 17, as the loss has risen above its lowest"):
        for _ in tell(optimizer, [100.0, 100.0, 100.0]):  # a single one may be an outlier
            pass
    assert all(torch.equal(param, value) for param, value in zip(params, lowest, strict=True))
    assert optimizer.steps_taken == 18
    rate = guards(optimizer)[0]["rate"]
    for _ in tell(optimizer, [3.0]):
        pass
    grad = params[0].grad
    assert grad is not None
    assert_close(params[0].detach() - lowest[0], -rate * grad.sign(), rtol=0.01, atol=0)
    *_, again = tell(optimizer, [2.0, 1.0, 500.0, 500.0, 500.0])
    assert_close(guards(optimizer)[0]["rate"], 0.3 * rate)
    assert not torch.equal(params[0], again[0])


@pytest.mark.parametrize("has_loss", [True, False])
def test_a_long_outage_costs_the_rate_of_one(*, has_loss: bool) -> None:
    params = given_grads((4,))
    optimizer = LearnedOptimizer(params, "regression-10d")
    assert params[0].grad is not None
    good, bad = params[0].grad.clone(), torch.full((4,), math.nan)

    def rate_after(*grads: torch.Tensor) -> float:
        for grad in grads:
            params[0].grad = grad.clone()
            optimizer.step(loss=3.0 if has_loss else None)
        rate: float = guards(optimizer)[0]["rate"]
        return rate

    with pytest.warns(FitWarning, match="as steps are not finite"):
        rate = rate_after(*[good] * 5, *[bad] * 3)
    assert rate_after(*[bad] * 27) == rate > 0  # nothing has moved that would have led there
    assert rate_after(good, *[bad] * 3) == pytest.approx(0.3 * rate)
    assert rate_after(*[bad] * 27) == pytest.approx(0.3 * rate)


def test_a_loss_that_no_longer_falls_is_given_up() -> None:
    optimizer = LearnedOptimizer(given_grads((4,)), "regression-10d")
    steps = tell(optimizer, [10.0, *[1.0] * 15, *[1.1] * 40])
    with pytest.warns(FitWarning, match="at step 46, as the loss has not fallen for 31 steps"):
        for _ in steps:
            pass


@pytest.mark.parametrize("num", [40, 150])
def test_another_loss_is_learned_to_which_the_data_change(num: int) -> None:
    """No step has led there: at the parameters of the lowest loss it is as high."""
    (param,) = given_grads((10,))
    optimizer = LearnedOptimizer([param])
    losses = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FitWarning)
        for step in range(num + 400):
            optimizer.zero_grad()
            place, least = (0.0, 0.0) if step < num else (0.15, 5.0)
            loss = (param - place).square().sum() + least
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)
            losses.append(loss.item())
    assert losses[num - 1] < 0.2
    assert losses[num] > 5.2
    assert losses[-1] < 5.01


def test_losses_at_some_steps_only_do_not_mislead() -> None:
    (param,) = params = given_grads((10,))
    (twin,) = given_grads((10,))
    optimizer, plain = (
        LearnedOptimizer([one], "regression-10d", guard=guard)
        for one, guard in ((param, True), (twin, False))
    )
    for step in range(40):
        for one, own in ((param, optimizer), (twin, plain)):
            loss = quadratic([one])
            one.grad = 2 * (one.detach() - 1)
            own.step(loss=loss.detach() if step % 7 == 0 else None)
    assert torch.equal(param, twin)
    assert params[0] is param


def test_a_poor_fit_ends_better_than_it_began() -> None:
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = LearnedOptimizer(model.parameters(), "regression-10d")
    stops: list[bool] = []

    def train() -> None:
        for step in range(300):
            chosen = torch.randint(len(x), (128,), generator=torch.Generator().manual_seed(step))
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x[chosen]), y[chosen])
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)
            stops.append(optimizer.should_stop)

    with pytest.warns(FitWarning):
        train()
    assert nn.functional.cross_entropy(model(x), y) < 0.3
    assert all(stops[HORIZON - 1 :])


def test_a_network_whose_units_have_died_begins_again() -> None:
    digits = load_digits()
    images = torch.tensor(digits.images[:256, None], dtype=torch.float32) / 16
    labels = torch.tensor(digits.target[:256])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
        )
    params = list(model.parameters())
    start = [param.detach().clone() for param in params]
    # Steps far too large kill the units at once; only the last biases have a gradient then.
    learned = random_model("adam", horizon=20, learning_rate=0.2)
    optimizer = LearnedOptimizer(params, with_threshold(learned, 1e9))

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(images), labels)
        torch.autograd.backward(loss)
        optimizer.step(loss=loss)
        return loss.item()

    def fail() -> None:
        while all(guard["adam"] < 0 for guard in guards(optimizer)):
            step()

    with pytest.warns(FitWarning):
        fail()
    assert all(torch.equal(*pair) for pair in zip(params, start, strict=True))
    assert min(step() for _ in range(60)) < 1.5


def test_a_small_fall_that_is_no_noise_is_kept() -> None:
    optimizer = LearnedOptimizer(given_grads((4,)), "regression-10d")
    *_, lowest = tell(optimizer, [1000 - step / 20 for step in range(25)])
    with pytest.warns(FitWarning, match="has risen"):
        for _ in tell(optimizer, [1100.0, 1100.0, 1100.0]):
            pass
    (param,) = optimizer.param_groups[0]["params"]
    assert torch.equal(param, lowest[0])


# --------------------------------------------------------------------------- what it leaves alone


def test_it_changes_no_bit_on_its_own_family() -> None:
    problems = family("digits-mlp").sample(2, torch.Generator().manual_seed(3))
    horizon = haltwise.load("digits-mlp").card.horizon
    for number in range(2):
        problem = problems.select(torch.tensor([number]))
        ends, stops = [], []
        for guard in (True, False):
            param = nn.Parameter(problem.start[0].clone())
            optimizer = LearnedOptimizer([param], "digits-mlp", guard=guard)
            for step in range(horizon):
                loss, grad = problem.observe(param.detach().unsqueeze(0), step)
                param.grad = grad[0]
                optimizer.step(loss=loss)
                stops.append(optimizer.should_stop)
            ends.append(param.detach())
        assert torch.equal(*ends)
        assert stops[: horizon - 1] == stops[horizon:-1]


def test_without_a_guard_the_rule_is_followed_for_ever() -> None:
    params = given_grads((10,))
    optimizer = LearnedOptimizer(params, "regression-10d", guard=False)
    run(optimizer, params, HORIZON + 20)
    assert not [name for name in optimizer.state[params[0]] if name.startswith("guard")]
    (record,) = [record for _, record in optimizer._records()]
    assert "guard" not in record
    for _ in tell(optimizer, [1e6, math.nan, math.nan, math.nan]):
        pass
    assert optimizer.num_skipped == 3


def test_coordinates_without_a_gradient_stay_where_they_are() -> None:
    rows = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    layer = nn.Embedding(6, 3, _weight=rows)
    start = layer.weight.detach().clone()
    optimizer = LearnedOptimizer(layer.parameters(), "regression-10d", chunk_size=4)

    def train(*rows: int, num: int = 1) -> None:
        for _ in range(num):
            optimizer.zero_grad()
            loss = layer(torch.tensor(rows)).square().sum()
            torch.autograd.backward(loss)
            optimizer.step(loss=loss)

    train(1, 4)
    train(1)
    moved = [row for row in range(6) if not torch.equal(layer.weight[row], start[row])]
    assert moved == [1, 4]
    with pytest.warns(FitWarning, match="Adam takes over"):  # nor does it move them
        train(1, 2, num=HORIZON)
    assert torch.equal(layer.weight[[0, 3, 5]], start[[0, 3, 5]])
    assert not torch.equal(layer.weight[2], start[2])
    (param,) = given_grads((4,))
    before = param.detach().clone()
    param.grad = torch.tensor([0.0, 1.0, 0.0, 0.0])
    decayed = LearnedOptimizer([param], "regression-10d", weight_decay=0.1, lr=0.5)
    decayed.step(loss=1.0)
    assert_close(param[[0, 2, 3]].detach(), 0.95 * before[[0, 2, 3]])


# ------------------------------------------------------------------------------------- persistence


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, DOUBLE])
@pytest.mark.parametrize("steps", [0, 25])
def test_a_state_goes_on_bit_by_bit_under_adam(dtype: torch.dtype, steps: int) -> None:
    params, twins = given_grads((4,), (3,), dtype=dtype), given_grads((4,), (3,), dtype=dtype)
    optimizer = LearnedOptimizer(params, "regression-10d")
    take_over(optimizer, params)
    run(optimizer, params, steps)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    other = LearnedOptimizer(twins, "regression-10d")
    other.load_state_dict(torch.load(file, weights_only=True))
    for twin, param in zip(twins, params, strict=True):
        twin.data.copy_(param)
    assert_same(other.state_dict(), optimizer.state_dict())
    losses = run(optimizer, params, 15)
    assert run(other, twins, 15) == losses  # and no second warning
    for loss in (1e5, 1e5, 1.0):  # it goes back, too
        for own in (optimizer, other):
            own.step(loss=loss)
    assert_same(other.state_dict(), optimizer.state_dict())
    assert all(torch.equal(*pair) for pair in zip(params, twins, strict=True))


def test_a_guard_may_come_with_a_loaded_state() -> None:
    params, twins = given_grads((10,)), given_grads((10,))
    optimizer = LearnedOptimizer(params, "regression-10d", guard=False)
    run(optimizer, params, 5)
    other = LearnedOptimizer(twins, "regression-10d")
    other.load_state_dict(optimizer.state_dict())
    twins[0].data.copy_(params[0])
    run(other, twins, HORIZON - 5)
    assert other.should_stop
    with pytest.warns(FitWarning, match="after the 60 steps"):
        run(other, twins, 1)


# ---------------------------------------------------------------------------- groups, signs, NaN


def test_maximizing_is_guarded_as_minimizing_the_negative() -> None:
    up, down = given_grads((10,)), given_grads((10,))
    for params, sign in ((down, 1.0), (up, -1.0)):
        optimizer = LearnedOptimizer(params, "regression-10d", maximize=sign < 0)
        with pytest.warns(FitWarning, match="after the 60 steps"):
            run(optimizer, params, HORIZON + 30, sign)
    assert torch.equal(*up, *down)


def test_groups_are_guarded_apart() -> None:
    first, second = given_grads((4,), (3,))
    short = random_model("adam", horizon=7, learning_rate=0.1)
    groups: list[dict[str, Any]] = [{"params": [first], "weights": short}, {"params": [second]}]
    optimizer = LearnedOptimizer(groups, "regression-10d")
    with pytest.warns(FitWarning) as caught:
        for _ in tell(optimizer, [5.0 - t / 4 for t in range(10)]):
            pass
    assert ["'OptimizerModel' after the 7" in str(one.message) for one in caught] == [True]
    assert [guard["adam"] for guard in guards(optimizer)] == [3, -1]
    (alone,) = given_grads((3,), (3,))[1:]
    alone.data.copy_(given_grads((4,), (3,))[1])
    alone.grad = second.grad
    reference = LearnedOptimizer([alone], "regression-10d")
    for _ in tell(reference, [5.0 - t / 4 for t in range(10)]):
        pass
    assert torch.equal(alone, second)


@pytest.mark.parametrize("bad", ["gradient", "update", "loss"])
def test_steps_that_are_not_finite_in_a_row_hand_over(bad: str) -> None:
    first, second = given_grads((4,), (3,))
    explosive = random_model("sgd", horizon=100, learning_rate=1e30)
    groups = [{"params": [first]}, {"params": [second]}]
    optimizer = LearnedOptimizer(groups, explosive if bad == "update" else "regression-10d")
    assert first.grad is not None
    good = 1e-30 * first.grad if bad == "update" else first.grad.clone()
    if bad == "update":
        assert second.grad is not None
        second.grad *= 1e-30
    first.grad = good
    *_, lowest = tell(optimizer, [5.0, 4.0, 3.0])

    def fail(num: int) -> None:
        for _ in range(num):
            first.grad = good * {"gradient": math.nan, "update": 1e20, "loss": 1}[bad]
            first.grad *= 1e20 if bad == "update" else 1
            optimizer.step(loss=math.nan if bad == "loss" else 3.0)
        first.grad = good

    fail(2)
    optimizer.step(loss=2.9)
    before = first.detach().clone()
    fail(2)
    assert torch.equal(first, before)
    with pytest.warns(FitWarning, match="as steps are not finite"):
        fail(1)
    assert [guard["adam"] for guard in guards(optimizer)] == [0, 0 if bad == "loss" else -1]
    # Where the update failed the last losses were known, and the lowest so far.
    assert torch.equal(first, before) == (bad == "update")
    assert (optimizer.num_skipped, optimizer.steps_taken) == (5, 4)
    assert len(lowest) == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step(loss=2.9)
    assert first.isfinite().all()
