"""Every posterior against slow loops, the shorter problem alone, finite differences, extremes."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Categorical
from torch.testing import assert_close

from haltwise import InputError
from haltwise.halting import (
    AFTER,
    BEFORE,
    GravesPosterior,
    Posterior,
    SoftmaxPosterior,
    StickBreakingPosterior,
    TruncatedGeometric,
)
from haltwise.stop_rules import PonderThreshold, Traces, decisions
from haltwise.halting.objectives import free_energy, ponder_objective

DOUBLE = torch.float64


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


# --- One table: a posterior of [B, T+1] numbers, and its twin of the numbers of one problem ---


def softmax_loop(values: list[float]) -> list[float]:
    weights = [math.exp(value - max(values)) for value in values]
    return [weight / math.fsum(weights) for weight in weights]


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def stick_breaking_loop(values: list[float]) -> list[float]:
    probabilities, left = [], 1.0
    for value in values[:-1]:
        probabilities.append(left * sigmoid(value))
        left *= 1 - sigmoid(value)
    return [*probabilities, left]


def graves_loop(values: list[float], epsilon: float) -> list[float]:
    """Graves' N(t), R(t) and p: his steps are 1-based and the last one halts for certain."""
    h = [sigmoid(value) for value in values[:-1]] + [1.0]
    n = min(m for m in range(1, len(h) + 1) if sum(h[:m]) >= 1 - epsilon)
    remainder = 1 - sum(h[: n - 1])
    return [*h[: n - 1], remainder, *[0.0] * (len(h) - n)]


Make = Callable[..., Posterior]
POSTERIORS: dict[str, tuple[Make, Callable[[list[float]], list[float]]]] = {
    "softmax": (lambda x, horizons=None: SoftmaxPosterior(x, horizons), softmax_loop),
    "stick-breaking": (
        lambda x, horizons=None: StickBreakingPosterior(x[:, :-1], horizons),
        stick_breaking_loop,
    ),
    "graves": (
        lambda x, horizons=None: GravesPosterior(x[:, :-1], horizons=horizons),
        lambda values: graves_loop(values, 0.01),
    ),
    "graves, epsilon .3": (
        lambda x, horizons=None: GravesPosterior(x[:, :-1], 0.3, horizons),
        lambda values: graves_loop(values, 0.3),
    ),
}
every_posterior = pytest.mark.parametrize(("make", "twin"), POSTERIORS.values(), ids=POSTERIORS)
QUANTITIES: dict[str, Callable[[Posterior], Tensor]] = {
    "log_prob": lambda posterior: posterior.log_prob(),
    "log_survival": lambda posterior: posterior.log_survival(),
    "log_hazard": lambda posterior: posterior.log_hazard(),
    "kl": lambda posterior: posterior.kl(0.7),
}


@every_posterior
@given(st.lists(st.floats(-12, 12), min_size=1, max_size=12), st.floats(0.05, 0.999))
def test_every_answer_is_the_loops(
    make: Make, twin: Callable[[list[float]], list[float]], values: list[float], nu: float
) -> None:
    posterior = make(torch.tensor([values], dtype=DOUBLE))
    assert posterior.horizon == len(values) - 1
    expected = twin(values)
    found = posterior.log_prob().exp()[0].tolist()
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-13)
    assert math.fsum(found) == pytest.approx(1, abs=1e-12)
    survival = [math.fsum(expected[step:]) for step in range(len(values))]
    assert posterior.log_survival().exp()[0].tolist() == pytest.approx(
        survival, rel=1e-9, abs=1e-13
    )
    hazard, reached = posterior.log_hazard().exp()[0].tolist(), 1.0
    for step, probability in enumerate(expected):  # the hazard gives q back
        assert hazard[step] * reached == pytest.approx(probability, rel=1e-6, abs=1e-9)
        reached *= 1 - hazard[step]
    last = max(step for step, probability in enumerate(expected) if probability > 0)
    assert hazard[last:] == [pytest.approx(1, abs=1e-12), *[0.0] * (len(values) - last - 1)]
    assert expected[int(posterior.mode())] == pytest.approx(max(expected), rel=1e-12)
    r = math.sqrt(nu)
    prior = [r**step * (1 - r) / (1 - r ** len(values)) for step in range(len(values))]
    kl = sum(q * math.log(q / p) for q, p in zip(expected, prior, strict=True) if q > 0)
    assert posterior.kl(nu).item() == pytest.approx(kl, rel=1e-8, abs=1e-10)


@every_posterior
@given(st.data())
def test_a_ragged_batch_is_the_shorter_problems_alone(
    make: Make, twin: Callable[[list[float]], list[float]], data: st.DataObject
) -> None:
    num_steps = data.draw(st.integers(1, 9))
    row = st.lists(st.floats(-20, 20), min_size=num_steps, max_size=num_steps)
    values = torch.tensor(data.draw(st.lists(row, min_size=1, max_size=4)), dtype=DOUBLE)
    horizons = torch.tensor([data.draw(st.integers(0, num_steps - 1)) for _ in values])
    ragged = make(values, horizons)
    modes = ragged.mode()
    for name, quantity in QUANTITIES.items():
        for i, (found, own) in enumerate(zip(quantity(ragged), horizons.tolist(), strict=True)):
            alone = make(values[i : i + 1, : own + 1])
            if name == "kl":
                assert_close(found, quantity(alone)[0], rtol=1e-12, atol=1e-12)
            else:
                assert_close(found[: own + 1], quantity(alone)[0], rtol=1e-12, atol=1e-12)
                assert (found[own + 1 :] == -torch.inf).all()
            assert modes[i] == alone.mode()[0]


@every_posterior
@pytest.mark.parametrize("quantity", QUANTITIES.values(), ids=QUANTITIES)
@pytest.mark.parametrize("horizons", [None, torch.tensor([5, 0, 3])], ids=["full", "ragged"])
def test_gradients_are_finite_differences(
    make: Make, twin: object, quantity: Callable[[Posterior], Tensor], horizons: Tensor | None
) -> None:
    def finite(values: Tensor) -> Tensor:
        found = quantity(make(values, horizons))
        return found[found != -torch.inf]

    assert torch.autograd.gradcheck(finite, (randn(3, 6).requires_grad_(),))


@every_posterior
@pytest.mark.parametrize("kind", ["random", "high", "low", "alternating"])
@pytest.mark.parametrize("ragged", [False, True])
def test_extreme_logits_give_no_nan_in_float32(
    make: Make, twin: object, kind: str, ragged: bool
) -> None:
    values = {
        "random": 1e4 * randn(2, 1001).clamp(-1, 1),
        "high": torch.full((2, 1001), 1e4),
        "low": torch.full((2, 1001), -1e4),
        "alternating": 1e4 * (1 - 2.0 * (torch.arange(1001) % 2)).expand(2, 1001),
    }[kind].float()
    values.requires_grad_()
    horizons = torch.tensor([1000, 400]) if ragged else None
    posterior = make(values, horizons)
    for name, quantity in QUANTITIES.items():
        found = quantity(posterior)
        assert not found.isnan().any(), name
        assert (found < torch.inf).all(), name
        (gradient,) = torch.autograd.grad(found[found.isfinite()].sum(), values)
        assert gradient.isfinite().all(), name
    assert_close(posterior.log_prob().exp().sum(1), torch.ones(2), rtol=1e-4, atol=0)
    survival = posterior.log_survival()
    assert (survival[:, 1:] <= survival[:, :-1]).all()
    assert (posterior.log_hazard() <= 1e-6).all()
    if horizons is not None:
        assert (survival[1, 401:] == -torch.inf).all()
        assert survival[1, 0].isfinite()


@every_posterior
def test_impossible_input_is_named(make: Make, twin: object) -> None:
    values = torch.zeros(3, 5)
    for poison in (math.nan, math.inf):
        broken = values.clone()
        broken[1, 2] = poison
        with pytest.raises(InputError, match=rf"logits .* got {poison} at problem 1, step 2"):
            make(broken)
    for horizons, message in (
        (torch.tensor([4, 5, 4]), r"horizons must lie in 0\.\.4.* got \[5\]"),
        (torch.tensor([4, -1, 4]), r"got \[-1\]"),
        (torch.tensor([4, 4]), r"int64 \[3\]"),
        (torch.tensor([4.0, 4, 4]), "float32"),
    ):
        with pytest.raises(InputError, match=message):
            make(values, horizons)
    with pytest.raises(InputError, match=r"must have the shape \[batch, T"):
        make(torch.zeros(2, 3, 5))
    with pytest.raises(InputError, match=r"\[3\], got \[2\]"):
        make(values).kl(torch.tensor([0.5, 0.5]))
    assert make(values[:0]).log_prob().shape == (0, 5)


# --- Graves --------------------------------------------------------------------------------------


def test_ponder_cost_is_graves_equations_and_its_gradient_that_of_the_remainder() -> None:
    logits = (2 * randn(40, 9) - 2).requires_grad_()
    posterior = GravesPosterior(logits)
    for i, row in enumerate(logits.sigmoid().tolist()):
        h = [*row, 1.0]
        n = 1
        while sum(h[:n]) < 1 - 0.01:
            n += 1
        assert posterior.halting_step()[i] == n - 1
        assert posterior.remainder()[i].item() == pytest.approx(1 - sum(h[: n - 1]), abs=1e-12)
        assert posterior.ponder_cost()[i].item() == pytest.approx(n - sum(h[: n - 1]), abs=1e-12)
    assert posterior.halting_step().unique().numel() > 4
    (gradient,) = torch.autograd.grad(posterior.ponder_cost().sum(), logits)
    slope = torch.special.expit(logits.detach()) * torch.special.expit(-logits.detach())
    before = torch.arange(9) < posterior.halting_step().unsqueeze(1)
    assert_close(gradient, torch.where(before, -slope, 0.0), rtol=1e-12, atol=1e-15)


def test_the_ponder_objective_is_expected_loss_and_price_of_pondering() -> None:
    logits, losses, price = randn(5, 7) - 1, randn(5, 8, seed=2), randn(5, seed=3).exp()
    horizons = torch.tensor([7, 0, 3, 7, 5])
    padded = losses.clone()
    for i, own in enumerate(horizons.tolist()):
        padded[i, own + 1 :] = math.nan  # there is no data
    leaves = [padded.requires_grad_(), logits.requires_grad_()]
    posterior = GravesPosterior(logits, 0.05, horizons)
    found = ponder_objective(padded, posterior, price=price)
    for i, own in enumerate(horizons.tolist()):
        p = graves_loop(logits[i, : own + 1].tolist(), 0.05) if own else [1.0]
        last = max(step for step, mass in enumerate(p) if mass > 0)
        expected = sum(mass * loss for mass, loss in zip(p, losses[i].tolist(), strict=False))
        cost = expected + price[i].item() * (last + p[last])
        assert found[i].item() == pytest.approx(cost, rel=1e-12)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), leaves))
    with pytest.raises(InputError, match=r"\(5, 7\) and \(5, 8\)"):
        ponder_objective(losses[:, :-1], posterior, price=price)
    with pytest.raises(InputError, match="epsilon"):
        GravesPosterior(logits, 1.0)


def test_the_ponder_rule_stops_where_the_posterior_halts() -> None:
    logits = 2 * randn(50, 12, 2) - 3
    blank = torch.zeros(50, 13, dtype=DOUBLE)
    traces = Traces(blank, blank, blank, torch.zeros_like(logits), logits)
    for output in (AFTER, BEFORE):
        steps = GravesPosterior(logits[..., output], 0.1).halting_step()
        assert torch.equal(decisions(PonderThreshold(0.1, output), traces), steps)
        assert steps.unique().numel() > 6
    with pytest.raises(InputError, match="epsilon"):
        PonderThreshold(0.0)


# --- The free energy of any of them --------------------------------------------------------------


@every_posterior
def test_the_free_energy_of_a_ragged_batch_is_that_of_the_problems_alone(
    make: Make, twin: object
) -> None:
    values, losses, horizons = randn(3, 6), randn(3, 6, seed=2), torch.tensor([5, 0, 3])
    knobs = {"price": randn(3, seed=3).exp(), "temperature": randn(3, seed=4).exp()}
    for i, own in enumerate(horizons.tolist()):
        losses[i, own + 1 :] = math.nan
    leaves = [losses.requires_grad_(), values.requires_grad_(), knobs["temperature"]]
    leaves[2].requires_grad_()
    found = free_energy(losses, make(values, horizons).log_prob(), **knobs)
    for i, own in enumerate(horizons.tolist()):
        one = {name: knob[i : i + 1] for name, knob in knobs.items()}
        log_prob = make(values[i : i + 1, : own + 1]).log_prob()
        assert_close(found[i : i + 1], free_energy(losses[i : i + 1, : own + 1], log_prob, **one))
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(found.sum(), leaves))
    with pytest.raises(InputError, match=r"\(3, 5\) and \(3, 6\)"):
        free_energy(losses[:, :-1], make(values).log_prob(), **knobs)


def test_free_energy_is_ponder_nets_regularised_loss_up_to_a_constant() -> None:
    """E_q[f] + beta KL(q || geometric), truncated and renormalised at T."""
    losses, beta, continuation = randn(4, 7), 0.3, 0.8
    posterior = StickBreakingPosterior(randn(4, 6, seed=2))
    price = -beta * 0.5 * math.log(continuation)
    knobs = {"price": torch.full((4,), price), "temperature": torch.full((4,), beta)}
    energy = free_energy(losses, posterior.log_prob(), **knobs)
    expected = (posterior.log_prob().exp() * losses).sum(1) + beta * posterior.kl(continuation)
    constant = beta * TruncatedGeometric(continuation, 6).log_prob(torch.tensor(0.0))
    assert_close(energy, expected + constant.double(), rtol=1e-6, atol=1e-6)


# --- The softmax posterior -----------------------------------------------------------------------

logits_lists = st.lists(st.floats(-50, 50), min_size=1, max_size=12)


@settings(deadline=None, max_examples=50)
@given(logits_lists)
def test_probability_survival_and_hazard_agree_with_a_loop(values: list[float]) -> None:
    posterior = SoftmaxPosterior(torch.tensor([values], dtype=torch.float64))
    weights = [math.exp(value - max(values)) for value in values]
    probabilities = [weight / sum(weights) for weight in weights]
    found = posterior.log_prob().exp()[0].tolist()
    assert found == pytest.approx(probabilities, abs=1e-12)
    survival = [sum(probabilities[step:]) for step in range(len(values))]
    assert posterior.log_survival().exp()[0].tolist() == pytest.approx(survival, abs=1e-12)
    hazard, reached = posterior.log_hazard().exp()[0].tolist(), 1.0
    for step, probability in enumerate(probabilities):  # stick-breaking gives q back
        assert hazard[step] * reached == pytest.approx(probability, abs=1e-9)
        reached *= 1 - hazard[step]
    assert hazard[-1] == pytest.approx(1)
    assert probabilities[int(posterior.mode())] == pytest.approx(max(probabilities))


def test_the_stream_is_the_softmax_over_what_has_been_seen() -> None:
    increments = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)).double()
    logits = torch.cat((torch.zeros(1, 3), increments)).cumsum(0).T
    for horizon, posterior in enumerate(SoftmaxPosterior.stream(iter(increments), increments[0])):
        assert posterior.horizon == horizon
        expected = logits[:, : horizon + 1].softmax(1)
        torch.testing.assert_close(posterior.log_prob().exp(), expected)
    assert horizon == 7


@pytest.mark.parametrize("continuation", [0.3, 0.99])
def test_kl_is_zero_at_the_prior_and_brute_force_elsewhere(continuation: float) -> None:
    steps = torch.arange(6, dtype=torch.float64)
    prior = steps * 0.5 * math.log(continuation)
    other = torch.tensor([0.0, 3.0, -1.0, 2.0, -torch.inf, 0.5], dtype=torch.float64)
    kl = SoftmaxPosterior(torch.stack((prior, other))).kl(continuation)
    q, p = Categorical(logits=other).probs, Categorical(logits=prior).probs
    brute = sum(a * math.log(a / b) for a, b in zip(q.tolist(), p.tolist(), strict=True) if a > 0)
    torch.testing.assert_close(kl, torch.tensor([0.0, brute], dtype=torch.float64))


def test_a_ragged_horizon_is_masked() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, -torch.inf]])
    posterior = SoftmaxPosterior(logits)
    shorter = SoftmaxPosterior(logits[1:, :2])
    torch.testing.assert_close(posterior.log_prob()[1, :2], shorter.log_prob()[0])
    assert posterior.mode().tolist() == [2, 1]
    assert posterior.kl(0.9).isfinite().all()


def test_logits_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(InputError, match=r"\(3,\)"):
        SoftmaxPosterior(torch.zeros(3))


def test_a_problem_without_a_finite_logit_is_refused() -> None:
    logits = torch.zeros(3, 2)
    logits[1] = -torch.inf
    with pytest.raises(InputError, match="problem 1"):
        SoftmaxPosterior(logits)
    logits[1, 1] = 0
    with pytest.raises(InputError, match="problem 1"):
        SoftmaxPosterior(logits, torch.tensor([1, 0, 1]))
