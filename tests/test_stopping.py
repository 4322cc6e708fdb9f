"""Stop rules against plain loops over one problem's past, and against its future."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from haltwise._errors import InputError
from haltwise.halting import stopping
from haltwise.halting.accounts import Account, calibrate, costs, ends
from haltwise.halting.head import AFTER, BEFORE
from haltwise.halting.stopping import (
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Logistic,
    Patience,
    Plateau,
    PosteriorMode,
    Seen,
    StopRule,
    Traces,
    decisions,
)

DOUBLE = torch.float64
N, T = 40, 12


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def make_traces(seed: int = 0) -> Traces:
    """Noisy, falling curves; every signal crosses every sensible threshold at some time."""
    fall = torch.linspace(2, -2, T + 1, dtype=DOUBLE)
    loss = (fall + 0.7 * randn(N, T + 1, seed=seed + 1)).exp()
    return Traces(
        loss=loss,
        excess=loss + 0.1 * randn(N, T + 1, seed=seed + 2),
        log_grad_norm=fall + randn(N, T + 1, seed=seed + 3),
        increments=fall[:-1, None] + randn(N, T, 2, seed=seed + 4),
        hazard_logits=-fall[:-1, None] + randn(N, T, 2, seed=seed + 5),
        hold_logits=randn(N, T, seed=seed + 6),
    )


TRACES = make_traces()
COSTS = costs(TRACES.excess, 0.2)
CLASSES = [
    value
    for value in vars(stopping).values()
    if isinstance(value, type) and issubclass(value, StopRule) and value is not StopRule
]


def settings(rule: type[StopRule]) -> list[StopRule]:
    """A spread of what the rule would try itself; a rule without settings, as it is."""
    try:
        found = rule.candidates(TRACES, COSTS)
    except NotImplementedError:
        return [rule()]
    return found[:: max(1, len(found) // 12)]


every_rule = pytest.mark.parametrize("rule", CLASSES, ids=lambda rule: rule.__name__)


# --- What every rule promises --------------------------------------------------------------------


@every_rule
def test_decisions_are_those_of_a_loop_over_one_problem(rule: type[StopRule]) -> None:
    for setting in settings(rule):
        expected = []
        for i in range(N):
            memory, stopped = setting.init(1, TRACES.loss), T
            for step in range(T):
                signals = (getattr(TRACES, name)[i : i + 1, step] for name in Seen._fields[1:])
                stop, memory = setting.step(Seen(step, *signals), memory)
                if stop.item():
                    stopped = step
                    break
            expected.append(stopped)
        found = decisions(setting, TRACES)
        assert found.dtype == torch.int64
        assert found.tolist() == expected


@every_rule
@pytest.mark.parametrize("replacement", ["other curves", "nan"])
def test_the_future_never_changes_a_decision(rule: type[StopRule], replacement: str) -> None:
    other = make_traces(seed=50)
    for setting in settings(rule):
        before = decisions(setting, TRACES)
        for step in range(T):
            changed = {}
            for name, value in vars(TRACES).items():
                future = getattr(other, name) if replacement == "other curves" else value * math.nan
                changed[name] = torch.cat((value[:, : step + 1], future[:, step + 1 :]), 1)
            after = decisions(setting, Traces(**changed))
            past = before <= step
            assert torch.equal(after[past], before[past])
            assert (after[~past] > step).all()


@every_rule
def test_what_is_scored_is_never_seen(rule: type[StopRule]) -> None:
    blind = replace(TRACES, excess=TRACES.excess * math.nan)
    for setting in settings(rule):
        assert torch.equal(decisions(setting, blind), decisions(setting, TRACES))


@every_rule
def test_candidates_are_rules_that_differ(rule: type[StopRule]) -> None:
    try:
        found = rule.candidates(TRACES, COSTS)
    except NotImplementedError as error:
        assert rule.__name__ in str(error)  # noqa: PT017
        return
    assert all(type(setting) is rule for setting in found)
    assert len(set(found)) == len(found)  # none is tried twice
    stops = torch.stack([decisions(setting, TRACES) for setting in found])
    assert len(stops.unique(dim=0)) > T / 2
    assert stops.double().mean(1).max() > T - 2  # from hardly ever ...
    assert stops.double().mean(1).min() < 3  # ... to nearly at once


@every_rule
def test_steps_leave_the_memory_alone(rule: type[StopRule]) -> None:
    setting = settings(rule)[0]
    memory = setting.init(N, TRACES.loss)
    for seen in TRACES:
        copies = {name: value.clone() for name, value in memory.items()}
        stop, following = setting.step(seen, memory)
        assert stop.dtype == torch.bool
        assert stop.shape == (N,)
        assert following.keys() == memory.keys()
        assert all(torch.equal(value, copies[name]) for name, value in memory.items())
        memory = following


@every_rule
def test_candidates_serve_traces_of_problems_that_diverged(rule: type[StopRule]) -> None:
    spoilt = {name: value.clone() for name, value in vars(TRACES).items()}
    for value in spoilt.values():
        value[0, 5:] = math.nan
        value[1, 6:] = math.inf if value.ndim == 2 else math.nan
    traces = Traces(**spoilt)
    try:
        found = rule.candidates(traces, costs(traces.excess, 0.2))
    except NotImplementedError:
        return
    assert len(found) > T / 2
    for setting in found[::20]:
        assert torch.equal(decisions(setting, traces)[2:], decisions(setting, TRACES)[2:])


# --- What each rule says, in plain Python --------------------------------------------------------


def fixed(rule: FixedBudget, i: int, t: int) -> bool:
    return t >= rule.budget


def gradient_norm(rule: GradientNorm, i: int, t: int) -> bool:
    return TRACES.log_grad_norm[i, t].item() <= rule.log_tolerance


def plateau(rule: Plateau, i: int, t: int) -> bool:
    return t > 0 and (TRACES.loss[i, t - 1] - TRACES.loss[i, t]).item() <= rule.tolerance


def patience(rule: Patience, i: int, t: int) -> bool:
    lowest, at = math.inf, 0
    for step, loss in enumerate(TRACES.loss[i, : t + 1].tolist()):
        if loss < lowest - rule.tolerance:
            lowest, at = loss, step
    return t - at >= rule.length


def mode(rule: PosteriorMode, i: int, t: int) -> bool:
    return TRACES.increments[i, t, rule.output].item() <= 0


def hazard(rule: HazardThreshold, i: int, t: int) -> bool:
    return TRACES.hazard_logits[i, t, rule.output].item() >= rule.threshold


def logistic(rule: Logistic, i: int, t: int) -> bool:
    norm, loss = TRACES.log_grad_norm[i, t].item(), TRACES.loss[i, t].item()
    inputs = (norm, math.asinh(loss), t, math.log1p(t))
    score = math.fsum(w * x for w, x in zip(rule.weights, inputs, strict=True))
    return score >= rule.threshold


@pytest.mark.parametrize(
    ("rules", "says"),
    [
        ([FixedBudget(n) for n in (0, 1, 5, T - 1, T, T + 5)], fixed),
        ([GradientNorm(level) for level in (-3.0, -0.5, 1.0)], gradient_norm),
        ([Plateau(level) for level in (-1.0, 0.0, 0.3)], plateau),
        ([Patience(n, level) for n in (1, 2, 5) for level in (0.0, 0.4)], patience),
        ([PosteriorMode(), PosteriorMode(AFTER), PosteriorMode(BEFORE)], mode),
        ([HazardThreshold(), HazardThreshold(-1.0, AFTER), HazardThreshold(1.0, BEFORE)], hazard),
        ([Logistic((-1.0, -0.5, 0.2, 0.1), level) for level in (-2.0, 0.0, 2.0)], logistic),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_decisions_follow_the_definition(
    rules: list[StopRule], says: Callable[[StopRule, int, int], bool]
) -> None:
    seen = set()
    for rule in rules:
        expected = [next((t for t in range(T) if says(rule, i, t)), T) for i in range(N)]
        assert decisions(rule, TRACES).tolist() == expected
        seen |= set(expected)
    assert len(seen) > 4


def curve(*losses: float) -> Traces:
    """One problem that ends with a loss no rule may see."""
    loss = torch.tensor([[*losses, -100.0]], dtype=DOUBLE)
    outputs = torch.zeros(1, len(losses), 2, dtype=DOUBLE)
    return Traces(loss, loss, loss, outputs, outputs, outputs[..., 0])


@pytest.mark.parametrize(
    ("rule", "losses", "stop"),
    [
        (Patience(1), (5, 4, 3, 3, 2), 3),
        (Patience(2), (5, 4, 3, 3, 2, 2), 6),  # the new low resets the count
        (Patience(2), (5, 4, 4, 4), 3),
        (Patience(3), (5, 4, 6, 7, 3, 8, 9, 10), 7),
        (Patience(1), (5, 6, 4, 3), 1),
        (Patience(2, 1.0), (9, 8.5, 8.2, 0), 2),  # small gains do not count ...
        (Patience(2, 1.0), (9, 8.5, 7.9, 7.5, 6.8), 5),  # ... until they add up
        (Patience(1), (5, 4, math.nan, 3), 2),
        (Patience(3), (math.inf, 5, 4, 3), 4),
        (Plateau(0.0), (5, 4, 4, 3), 2),
        (Plateau(0.0), (5, 6, 4), 1),
        (Plateau(0.5), (5, 4, 3.6, 1), 2),
        (Plateau(-1.0), (5, 5.5, 7, 1), 2),  # tolerates a rise below 1
        (Plateau(0.0), (5, 4, 3, 2), 4),
        (Plateau(0.0), (math.inf, 5, 4), 3),
        (Plateau(10.0), (5, 4, 3), 1),  # never before two losses are known
    ],
)
def test_hand_made_curves(rule: StopRule, losses: tuple[float, ...], stop: int) -> None:
    assert decisions(rule, curve(*losses)).tolist() == [stop]


# --- Tuning --------------------------------------------------------------------------------------


def test_fixed_budgets_are_all_tried() -> None:
    assert FixedBudget.candidates(TRACES, COSTS) == [FixedBudget(n) for n in range(T + 1)]


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
def test_a_fitted_logistic_rule_finds_the_step_that_pays(dtype: torch.dtype) -> None:
    """Rates and sizes differ by problem; a step pays until the signal falls below the price."""
    steps, price = torch.arange(31, dtype=DOUBLE), 0.02
    rate = torch.linspace(0.2, 1.5, 60, dtype=DOUBLE)[:, None]
    excess = (2 * randn(60, 1)).exp() * torch.exp(-rate * steps)
    signal = 0.01 * (excess * (1 - torch.exp(-rate))).log()  # no unit is better than another
    said = randn(60, 30, 2, seed=2)
    signals = excess + randn(60, 31, seed=3).abs(), excess, signal, said, said, said[..., 0]
    tuning, test = (Traces(*(value[half::2].to(dtype) for value in signals)) for half in (0, 1))
    table, test_table = costs(tuning.excess, price), costs(test.excess, price)

    def tuned(rule: type[StopRule]) -> float:
        best = calibrate(
            rule.candidates(tuning, table), tuning, table, Account.UPDATES, price=1.0
        ).rule
        return test_table.gather(1, decisions(best, test)[:, None]).mean().item()

    oracle, fixed = test_table.amin(1).mean().item(), tuned(FixedBudget)
    assert fixed - oracle > 0.05  # there is something to gain
    assert tuned(Logistic) - oracle < 0.05 * (fixed - oracle)


@pytest.mark.parametrize(("slope", "stop"), [(1.0, 0), (-1.0, T)])
def test_a_logistic_rule_with_one_label_always_or_never_stops(slope: float, stop: int) -> None:
    (rule,) = Logistic.candidates(TRACES, slope * torch.arange(T + 1.0).expand(N, -1))
    assert decisions(rule, TRACES).tolist() == [stop] * N


def test_thresholds_need_a_finite_value() -> None:
    hopeless = replace(TRACES, log_grad_norm=TRACES.log_grad_norm * math.nan)
    with pytest.raises(InputError, match="no finite value"):
        GradientNorm.candidates(hopeless, COSTS)


# --- Traces --------------------------------------------------------------------------------------


def test_traces_yield_every_step_but_the_last() -> None:
    steps = list(TRACES)
    assert [seen.step for seen in steps] == list(range(T))
    for name in Seen._fields[1:]:
        stacked = torch.stack([getattr(seen, name) for seen in steps], 1)
        assert torch.equal(stacked, getattr(TRACES, name)[:, :T])


@pytest.mark.parametrize("name", list(vars(TRACES)))
def test_traces_of_unequal_shape_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="must have shapes"):
        replace(TRACES, **{name: getattr(TRACES, name)[:, :-1]})


# --- Accounts ------------------------------------------------------------------------------------


def test_a_gradient_in_hand_is_paid_for_and_its_update_applied() -> None:
    decided = torch.tensor([0, 3, T - 1, T])
    assert ends(decided, Account.UPDATES, T).tolist() == [0, 3, T - 1, T]
    assert ends(decided, Account.GRADIENTS, T).tolist() == [1, 4, T, T]


def test_costs_add_the_price_of_every_step() -> None:
    table = costs(torch.tensor([[5.0, 3, 2], [1, 1, 0]]), 0.5)
    assert table.tolist() == [[5, 3.5, 3], [1, 1.5, 1]]


@pytest.mark.parametrize("account", Account)
def test_calibration_picks_the_candidate_that_costs_least(account: Account) -> None:
    candidates = [GradientNorm(level / 2) for level in range(-8, 8)]
    shift = account is Account.GRADIENTS
    means = []
    for candidate in candidates:
        stops = decisions(candidate, TRACES).tolist()
        means.append(sum(COSTS[i, min(stop + shift, T)].item() for i, stop in enumerate(stops)))
    best = min(range(len(candidates)), key=means.__getitem__)
    assert 0 < best < len(candidates) - 1
    policy = calibrate(iter(candidates), TRACES, COSTS, account, price=1.0)
    assert policy.rule == candidates[best]
