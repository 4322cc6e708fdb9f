"""Stop rules against plain loops over one problem's past, and against its future."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from itertools import product
from statistics import fmean, stdev
from typing import Any, NamedTuple

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from haltwise._core.errors import CalibrationWarning, InputError
from haltwise.halting import stopping
from haltwise.stop_rules.accounts import RETURNABLE, CostUnit, ReturnedIterate, calibrate, costs, returned_steps, steps_charged
from haltwise.halting.halter import AFTER, BEFORE
from haltwise.stop_rules import (
    AllOf,
    AnyOf,
    CumulativeThreshold,
    Drawdown,
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Logistic,
    Patience,
    Plateau,
    PonderThreshold,
    PosteriorMode,
    Sampling,
    StepObservation,
    StopRule,
    Traces,
    decide_all,
    decisions,
    decisions_and_reasons,
)
from haltwise.update_rules import select_state

DOUBLE = torch.float64
N, T = 40, 12


def seeded(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=seeded(seed), dtype=DOUBLE)


def make_traces(seed: int = 0, num: int = N) -> Traces:
    """Noisy, falling curves; every signal crosses every sensible threshold at some time."""
    fall = torch.linspace(2, -2, T + 1, dtype=DOUBLE)
    loss = (fall + 0.7 * randn(num, T + 1, seed=seed + 1)).exp()
    return Traces(
        loss=loss,
        excess=loss + 0.1 * randn(num, T + 1, seed=seed + 2),
        log_grad_norm=fall + randn(num, T + 1, seed=seed + 3),
        increments=fall[:-1, None] + randn(num, T, 2, seed=seed + 4),
        hazard_logits=-fall[:-1, None] + randn(num, T, 2, seed=seed + 5),
        hold_logits=randn(num, T, seed=seed + 6),
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
    if rule in COMPOSED:
        return COMPOSED[rule]
    try:
        found = rule.candidates(TRACES, COSTS)
    except NotImplementedError:
        return [rule()]
    return found[:: max(1, len(found) // 12)]


COMPOSED: dict[type[StopRule], list[StopRule]] = {
    AnyOf: [
        Patience(3) | GradientNorm(-1.5) | FixedBudget(9),
        HazardThreshold(3.0) | (Sampling(7) & Plateau(0.2)),
    ],
    AllOf: [
        Patience(1) & GradientNorm(0.5),
        (Sampling(7) | PosteriorMode(BEFORE)) & (Drawdown(0.1) | CumulativeThreshold(0.9)),
    ],
}

every_rule = pytest.mark.parametrize("rule", CLASSES, ids=lambda rule: rule.__name__)


# --- What every rule promises --------------------------------------------------------------------


@every_rule
def test_decisions_are_those_of_a_loop_over_one_problem(rule: type[StopRule]) -> None:
    for setting in settings(rule):
        expected = []
        for i in range(N):
            memory, stopped = select_state(setting.init(N, TRACES.loss), torch.tensor([i])), T
            for step in range(T):
                signals = (getattr(TRACES, name)[i : i + 1, step] for name in StepObservation._fields[1:])
                stop, memory = setting.step(StepObservation(step, *signals), memory)
                if stop.item():
                    stopped = step
                    break
            expected.append(stopped)
        found = decisions(setting, TRACES)
        assert found.dtype == torch.int64
        assert found.tolist() == expected


@every_rule
def test_many_settings_at_once_decide_as_each_alone(rule: type[StopRule]) -> None:
    """Also mixed, so that those which share a statistic are not neighbours, and with NaN."""
    loss = TRACES.loss.clone()
    loss[3, 4:] = torch.nan
    for traces in (TRACES, replace(TRACES, loss=loss)):
        choices = [*settings(rule), *settings(GradientNorm), *settings(rule)[::-1]]
        found = list(decide_all(choices, traces))
        assert [setting for setting, _ in found] == choices
        for setting, decided in found:
            assert torch.equal(decided, decisions(setting, traces))


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
def test_problems_that_leave_change_nothing_for_those_that_stay(rule: type[StopRule]) -> None:
    for setting, leave_at in product(settings(rule), (1, T // 2)):
        kept = randn(N, seed=leave_at).argsort()[: N // 3]
        full, part = setting.init(N, TRACES.loss), None
        for seen in TRACES:
            if seen.step == leave_at:
                part = select_state(full, kept)
            stop, full = setting.step(seen, full)
            if part is not None:
                rest = StepObservation(seen.step, *(seen.signal(name)[kept] for name in StepObservation._fields[1:]))
                fewer, part = setting.step(rest, part)
                assert torch.equal(fewer, stop[kept])
                assert torch.equal(setting.why(fewer, part), setting.why(stop, full)[kept])


def composed(leaves: st.SearchStrategy[StopRule]) -> st.SearchStrategy[StopRule]:
    pairs = st.tuples(leaves, leaves)
    return pairs.map(lambda pair: pair[0] | pair[1]) | pairs.map(lambda pair: pair[0] & pair[1])


any_rule = st.recursive(
    st.sampled_from([setting for rule in CLASSES for setting in settings(rule)]),
    composed,
    max_leaves=3,
)


def said(rule: StopRule, traces: Traces) -> list[list[int]]:
    """At every step, of every problem, the reason to stop or -1."""
    memory, found = rule.init(traces.num_problems, traces.loss), []
    for seen in traces:
        stop, memory = rule.step(seen, memory)
        found.append(torch.where(stop, rule.why(stop, memory), -1).tolist())
    return found


@given(rule=any_rule, step=st.integers(0, T - 1), seed=st.integers(0, 1000))
def test_nothing_said_up_to_a_step_depends_on_what_comes_after_it(
    rule: StopRule, step: int, seed: int
) -> None:
    scale = 10.0 ** (seed % 5 - 2)
    altered = Traces(
        **{
            name: torch.cat(
                (value[:, : step + 1], scale * randn(*value[:, step + 1 :].shape, seed=seed)), 1
            )
            for name, value in vars(TRACES).items()
        }
    )
    assert said(rule, altered)[: step + 1] == said(rule, TRACES)[: step + 1]


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
    if rule is not PosteriorMode:  # whose settings only put off the first mode
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
    return TRACES.signal("log_grad_norm")[i, t].item() <= rule.log_tolerance


def plateau(rule: Plateau, i: int, t: int) -> bool:
    return t > 0 and (TRACES.loss[i, t - 1] - TRACES.loss[i, t]).item() <= rule.tolerance


def patience(rule: Patience, i: int, t: int) -> bool:
    lowest, at = math.inf, 0
    for step, loss in enumerate(TRACES.loss[i, : t + 1].tolist()):
        if loss < lowest - rule.tolerance:
            lowest, at = loss, step
    return t - at >= rule.length


def mode(rule: PosteriorMode, i: int, t: int) -> bool:
    return TRACES.signal("increments")[i, t, rule.output].item() <= 0


def hazard(rule: HazardThreshold, i: int, t: int) -> bool:
    return TRACES.signal("hazard_logits")[i, t, rule.output].item() >= rule.threshold


def survival(i: int, t: int, output: int) -> float:
    logits = TRACES.signal("hazard_logits")[i, : t + 1, output].tolist()
    return math.prod(1 - 1 / (1 + math.exp(-logit)) for logit in logits)


def cumulative(rule: CumulativeThreshold, i: int, t: int) -> bool:
    return 1 - survival(i, t, rule.output) >= rule.level


def ponder(rule: PonderThreshold, i: int, t: int) -> bool:
    logits = TRACES.signal("hazard_logits")[i, : t + 1, rule.output].tolist()
    return math.fsum(1 / (1 + math.exp(-logit)) for logit in logits) >= 1 - rule.epsilon


def sampling(rule: Sampling, i: int, t: int) -> bool:
    uniform = torch.rand(N, generator=seeded(rule.seed), dtype=DOUBLE)[i].item()
    return survival(i, t, rule.output) <= uniform


def drawdown(rule: Drawdown, i: int, t: int) -> bool:
    losses: list[float] = TRACES.loss[i, : t + 1].tolist()
    return losses[-1] > min(losses) + rule.tolerance


def logistic(rule: Logistic, i: int, t: int) -> bool:
    norm, loss = TRACES.signal("log_grad_norm")[i, t].item(), TRACES.loss[i, t].item()
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
        ([CumulativeThreshold(p, o) for p in (0.1, 0.5, 0.95) for o in (0, 1)], cumulative),
        ([PonderThreshold(e, o) for e in (0.01, 0.5, 0.9) for o in (AFTER, BEFORE)], ponder),
        ([Sampling(seed, o) for seed in (0, 5) for o in (AFTER, BEFORE)], sampling),
        ([Drawdown(level) for level in (0.0, 0.5, 2.0)], drawdown),
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
        (Drawdown(), (5, 4, 4, 3), 4),  # a standstill is no rise
        (Drawdown(), (5, 4, 4.5), 2),
        (Drawdown(1.0), (5, 4, 5, 3, 4.5), 4),
        (Drawdown(1.0), (math.inf, 5, 4), 3),
        (Drawdown(1.0), (5, math.nan, 4), 1),
        (Drawdown(1.0), (5, math.inf, 4), 1),
    ],
)
def test_hand_made_curves(rule: StopRule, losses: tuple[float, ...], stop: int) -> None:
    assert decisions(rule, curve(*losses)).tolist() == [stop]


# --- Sampling and the distribution function -------------------------------------------------------


def test_sampled_stops_follow_the_learned_law() -> None:
    """Chi-square of 20,000 stops against q(t), T's share last."""
    num = 20_000
    logits = torch.tensor([-3.0, -1.0, -2.0, 0.5, -4.0, -0.3], dtype=DOUBLE)
    loss = torch.zeros(num, 7, dtype=DOUBLE)
    hazards = torch.stack((logits, -logits), -1).expand(num, -1, -1)
    traces = Traces(loss, loss, hazard_logits=hazards)
    for seed, output in product((0, 1), (AFTER, BEFORE)):
        counts = torch.bincount(decisions(Sampling(seed, output), traces), minlength=7)
        rho = hazards[0, :, output].sigmoid()
        reached = torch.cat((rho.new_ones(1), (1 - rho).cumprod(0)))
        expected = num * reached * torch.cat((rho, rho.new_ones(1)))
        assert ((counts - expected).square() / expected).sum() < 16.8  # p = .01, 6 degrees


def test_different_seeds_draw_different_stops() -> None:
    stops = [decisions(Sampling(seed), TRACES) for seed in range(3)]
    assert not torch.equal(stops[0], stops[1])
    assert torch.equal(stops[0], decisions(Sampling(0), TRACES))


@pytest.mark.parametrize("level", [0.0, 1.0, -1.0, 2.0, math.nan])
def test_levels_that_mean_nothing_are_refused(level: float) -> None:
    with pytest.raises(InputError, match="strictly between 0 and 1"):
        CumulativeThreshold(level)


def test_extreme_hazards_neither_stop_too_soon_nor_overflow() -> None:
    loss = torch.zeros(2, 4, dtype=torch.float32)
    logits = torch.tensor([[-1e4, -1e4, 1e4], [-60.0, -60.0, -60.0]])
    traces = Traces(loss, loss, hazard_logits=logits.unsqueeze(-1).expand(-1, -1, 2))
    assert decisions(CumulativeThreshold(0.999), traces).tolist() == [2, 3]
    for level, stop in ((1e-30, 0), (1e-26, 1), (1e-24, 3)):  # rho = 8.8e-27
        assert decisions(CumulativeThreshold(level), traces).tolist() == [2, stop]


# --- Composition ---------------------------------------------------------------------------------


@hypothesis.settings(max_examples=25)
@given(a=any_rule, b=any_rule, c=any_rule)
def test_composed_rules_obey_the_laws_of_sets(a: StopRule, b: StopRule, c: StopRule) -> None:
    def stops(rule: StopRule) -> Tensor:
        return torch.tensor(said(rule, TRACES)) >= 0  # at every step, not only the first

    first, second, third = stops(a), stops(b), stops(c)
    assert torch.equal(stops(a | a), first)
    assert torch.equal(stops(a & a), first)
    assert torch.equal(stops(a | b), first | second)
    assert torch.equal(stops(b | a), first | second)
    assert torch.equal(stops(a & b), first & second)
    assert torch.equal(stops(b & a), first & second)
    assert torch.equal(stops((a | b) | c), first | second | third)
    assert torch.equal(stops((a | b) & c), stops((a & c) | (b & c)))
    earliest = torch.minimum(decisions(a, TRACES), decisions(b, TRACES))
    assert torch.equal(decisions(a | b, TRACES), earliest)


@given(a=any_rule, b=any_rule)
def test_a_composed_rule_says_which_part_it_is_due_to(a: StopRule, b: StopRule) -> None:
    alone = [said(a, TRACES), said(b, TRACES)]
    for step, of_step in enumerate(said(a | b, TRACES)):
        for i, reason in enumerate(of_step):
            x, y = alone[0][step][i], alone[1][step][i]
            due = a.reasons[x] if x >= 0 else b.reasons[y] if y >= 0 else None
            assert (None if reason < 0 else (a | b).reasons[reason]) == due
    for step, of_step in enumerate(said(a & b, TRACES)):
        for i, reason in enumerate(of_step):
            x, y = alone[0][step][i], alone[1][step][i]
            due = f"{a.reasons[x]} and {b.reasons[y]}" if min(x, y) >= 0 else None
            assert (None if reason < 0 else (a & b).reasons[reason]) == due


def test_reasons_are_words_with_their_settings() -> None:
    rule = GradientNorm(math.log(0.001)) | Patience(5, 0.1) | FixedBudget(40)
    assert rule.reasons == (
        "the gradient's rms is at most 0.001",
        "the loss has not fallen by more than 0.1 for 5 steps",
        "40 steps are done",
    )


@every_rule
def test_every_rule_says_why(rule: type[StopRule]) -> None:
    for setting in settings(rule):
        decided, reason = decisions_and_reasons(setting, TRACES)
        assert torch.equal(reason >= 0, decided < T)
        assert int(reason.max()) < len(setting.reasons)
        assert not any(type(setting).__name__ in words for words in setting.reasons)


@pytest.mark.parametrize("rule", [AnyOf, AllOf])
def test_composing_nothing_is_refused(rule: Callable[[tuple[StopRule, ...]], StopRule]) -> None:
    with pytest.raises(InputError, match="at least one rule"):
        rule(())


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
        found = rule.candidates(tuning, table)
        best = calibrate(found, tuning, CostUnit.UPDATES, price=price).policy.rule
        return test_table.gather(1, decisions(best, test)[:, None]).mean().item()

    oracle, fixed = test_table.amin(1).mean().item(), tuned(FixedBudget)
    assert fixed - oracle > 0.05  # there is something to gain
    assert tuned(Logistic) - oracle < 0.05 * (fixed - oracle)


@pytest.mark.parametrize(("slope", "stop"), [(1.0, 0), (-1.0, T)])
def test_a_logistic_rule_with_one_label_always_or_never_stops(slope: float, stop: int) -> None:
    (rule,) = Logistic.candidates(TRACES, slope * torch.arange(T + 1.0).expand(N, -1))
    assert decisions(rule, TRACES).tolist() == [stop] * N


def test_thresholds_need_a_finite_value() -> None:
    hopeless = replace(TRACES, log_grad_norm=TRACES.signal("log_grad_norm") * math.nan)
    with pytest.raises(InputError, match="no finite value"):
        GradientNorm.candidates(hopeless, COSTS)


# --- Traces --------------------------------------------------------------------------------------


def test_traces_yield_every_step_but_the_last() -> None:
    steps = list(TRACES)
    assert [seen.step for seen in steps] == list(range(T))
    for name in StepObservation._fields[1:]:
        stacked = torch.stack([seen.signal(name) for seen in steps], 1)
        assert torch.equal(stacked, TRACES.signal(name)[:, :T])


LOSSES_ALONE = Traces(TRACES.loss, TRACES.excess)
NEEDS: dict[type[StopRule], str] = {
    GradientNorm: "log_grad_norm",
    Logistic: "log_grad_norm",
    HazardThreshold: "hazard_logits",
    CumulativeThreshold: "hazard_logits",
    PonderThreshold: "hazard_logits",
    Sampling: "hazard_logits",
    PosteriorMode: "increments",
}


@every_rule
def test_losses_alone_will_do_unless_a_rule_says_what_it_lacks(rule: type[StopRule]) -> None:
    if rule in COMPOSED:
        return
    setting = settings(rule)[0]
    if rule not in NEEDS:
        assert torch.equal(decisions(setting, LOSSES_ALONE), decisions(setting, TRACES))
        assert rule.candidates(LOSSES_ALONE, COSTS) == rule.candidates(TRACES, COSTS)
        return
    with pytest.raises(InputError, match=f"{NEEDS[rule]} is needed"):
        decisions(setting, LOSSES_ALONE)
    with pytest.raises((InputError, NotImplementedError), match=f"{NEEDS[rule]}|nothing to tune"):
        rule.candidates(LOSSES_ALONE, COSTS)


def test_what_the_head_has_not_said_cannot_be_returned() -> None:
    decided = torch.full((N,), 2)
    with pytest.raises(InputError, match="hold_logits"):
        returned_steps(decided, LOSSES_ALONE, ReturnedIterate.LEARNED)
    assert returned_steps(decided, LOSSES_ALONE, ReturnedIterate.NEXT).tolist() == [3] * N


def test_losses_must_be_a_matrix() -> None:
    with pytest.raises(InputError, match="matrix"):
        Traces(TRACES.loss[0], TRACES.loss[0])


@pytest.mark.parametrize("name", list(vars(TRACES)))
def test_traces_of_unequal_shape_are_refused(name: str) -> None:
    with pytest.raises(InputError, match="must have shapes"):
        replace(TRACES, **{name: getattr(TRACES, name)[:, :-1]})


# --- Accounts ------------------------------------------------------------------------------------


def test_a_gradient_in_hand_is_paid_for_and_its_update_applied() -> None:
    decided = torch.tensor([0, 3, T - 1, T])
    traces = TRACES.select(torch.arange(4))
    assert returned_steps(decided, traces, ReturnedIterate.CURRENT).tolist() == [0, 3, T - 1, T]
    assert returned_steps(decided, traces, ReturnedIterate.NEXT).tolist() == [1, 4, T, T]
    assert steps_charged(decided, CostUnit.UPDATES, T).tolist() == [0, 3, T - 1, T]
    assert steps_charged(decided, CostUnit.GRADIENTS, T).tolist() == [1, 4, T, T]


def test_costs_add_the_price_of_every_step() -> None:
    table = costs(torch.tensor([[5.0, 3, 2], [1, 1, 0]]), 0.5)
    assert table.tolist() == [[5, 3.5, 3], [1, 1.5, 1]]


@pytest.mark.parametrize("account", CostUnit)
def test_calibration_picks_the_candidate_that_costs_least(account: CostUnit) -> None:
    candidates = [GradientNorm(level / 2) for level in range(-8, 8)]
    shift = account is CostUnit.GRADIENTS
    means = []
    for candidate in candidates:
        stops = decisions(candidate, TRACES).tolist()
        means.append(sum(COSTS[i, min(stop + shift, T)].item() for i, stop in enumerate(stops)))
    best = min(range(len(candidates)), key=means.__getitem__)
    assert 0 < best < len(candidates) - 1
    found = calibrate(iter(candidates), TRACES, account, price=0.2)
    assert found.policy.rule == candidates[best]


# --- Calibration ---------------------------------------------------------------------------------

MANY = make_traces(seed=9, num=72)
TUNABLE = [
    rule for rule in CLASSES if rule not in (*COMPOSED, PonderThreshold, PosteriorMode, Sampling)
]


class Reached(NamedTuple):
    """What a candidate reached, by plain loops."""

    rule: StopRule
    recall: ReturnedIterate
    excess: float
    cost: float
    bound: float


@cache
def stops_on_many(rule: StopRule) -> list[int]:
    stops: list[int] = decisions(rule, MANY).tolist()
    return stops


@cache
def reach(rule: StopRule, recall: ReturnedIterate, account: CostUnit) -> Reached:
    losses, scored = MANY.loss.tolist(), MANY.excess.tolist()
    hold = MANY.signal("hold_logits").tolist()
    excess, cost = [], []
    for i, t in enumerate(stops_on_many(rule)):
        after = min(t + 1, T)
        end = {
            ReturnedIterate.NEXT: after,
            ReturnedIterate.CURRENT: t,
            ReturnedIterate.BEST: min(range(min(t, T - 1) + 1), key=losses[i].__getitem__),
            ReturnedIterate.LEARNED: t if t < T and hold[i][t] > 0 else after,
        }[recall]
        excess.append(scored[i][end])
        cost.append(after if account is CostUnit.GRADIENTS else t)
    bound = fmean(excess) + 1.6448536 * stdev(excess) / math.sqrt(len(excess))
    return Reached(rule, recall, fmean(excess), fmean(cost), bound)


@pytest.mark.parametrize("account", CostUnit)
@pytest.mark.parametrize("rule", TUNABLE, ids=lambda rule: rule.__name__)
def test_calibration_is_brute_force_over_candidates(rule: type[StopRule], account: CostUnit) -> None:
    recalls = RETURNABLE[account]
    gain = (MANY.excess.mean(0)[0] - MANY.excess.mean(0).min()).item() / T
    for name, level in (("price", 0.3), ("budget", 6.0), ("risk", 1.2)):
        table = costs(MANY.excess, level if name == "price" else gain)
        tried = [
            reach(setting, recall, account)
            for setting in rule.candidates(MANY, table)
            for recall in recalls
        ]
        if name == "price":
            best = min(tried, key=lambda r: r.excess + 0.3 * r.cost)
        elif name == "budget":
            best = min((r for r in tried if r.cost <= 6), key=lambda r: (r.excess, r.cost))
        else:
            best = min((r for r in tried if r.bound <= 1.2), key=lambda r: (r.cost, r.excess))
        found = rule.calibrate(MANY, account=account, recalls=recalls, **{name: level})
        assert found.mean_excess == pytest.approx(best.excess)
        assert found.mean_cost == pytest.approx(best.cost)
        assert found.excess_bound == pytest.approx(best.bound)
        assert (found.account, found.num_problems) == (account, 72)
        again = reach(*found.policy, account)
        assert (again.excess, again.cost) == pytest.approx((best.excess, best.cost))


def test_a_rule_calibrates_the_output_it_is_told_to() -> None:
    found = HazardThreshold.calibrate(MANY, price=0.3, account=CostUnit.GRADIENTS, output=BEFORE)
    assert isinstance(found.policy.rule, HazardThreshold)
    assert found.policy.rule.output == BEFORE
    assert found.policy.recall is ReturnedIterate.NEXT
    assert HazardThreshold.calibrate(MANY, price=0.3).policy.recall is ReturnedIterate.CURRENT


def test_the_risk_bound_holds_as_often_as_it_says() -> None:
    """One candidate, fresh calibration problems each time: its true mean is above the bound in
    one of twenty, so it is accepted at a risk just below the truth in one of twenty."""
    loss = torch.zeros(200, 3, dtype=DOUBLE)
    accepted = 0
    for seed in range(400):
        excess = randn(200, 3, seed=seed) + 1
        bound = calibrate(
            [FixedBudget(1)], Traces(loss, excess), CostUnit.UPDATES, risk=math.inf
        ).excess_bound
        accepted += bound <= 1.0
    assert 8 <= accepted <= 33  # 20 expected


@pytest.mark.parametrize(
    "wanted", [{}, {"price": 1.0, "budget": 2.0}, {"price": 1.0, "budget": 2.0, "risk": 3.0}]
)
def test_just_one_thing_can_be_wanted(wanted: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="exactly one of price, budget and risk"):
        Patience.calibrate(MANY, **wanted)


def test_too_few_problems_are_refused() -> None:
    with pytest.raises(InputError, match="at least 50 problems, got 49"):
        Patience.calibrate(MANY.select(torch.arange(49)), price=0.1)
    assert Patience.calibrate(MANY.select(torch.arange(50)), price=0.1).num_problems == 50


def test_what_no_candidate_reaches_is_refused_with_the_best_there_is() -> None:
    least = min(reach(rule, ReturnedIterate.NEXT, CostUnit.GRADIENTS).cost for rule in [FixedBudget(0)])
    with pytest.raises(InputError, match=f"at most 0.5 gradients .* attainable is {least:.4g}"):
        FixedBudget.calibrate(MANY, budget=0.5, account=CostUnit.GRADIENTS)
    lowest = min(reach(FixedBudget(n), ReturnedIterate.CURRENT, CostUnit.UPDATES).bound for n in range(T + 1))
    with pytest.raises(InputError, match=f"lowest bound attainable is {lowest:.4g}"):
        FixedBudget.calibrate(MANY, risk=-1.0)


def test_problems_that_diverged_are_left_out_and_counted() -> None:
    excess = MANY.excess.clone()
    excess[3, 5], excess[70, 12] = math.nan, math.inf
    spoilt = replace(MANY, excess=excess)
    kept = torch.tensor([i for i in range(72) if i not in (3, 70)])
    with pytest.warns(CalibrationWarning, match="2 of 72 problems are left out"):
        found = GradientNorm.calibrate(spoilt, price=0.3)
    assert found == GradientNorm.calibrate(MANY.select(kept), price=0.3)
    few = spoilt.select(torch.arange(50))
    with (
        pytest.warns(CalibrationWarning, match="1 of 50"),
        pytest.raises(InputError, match="got 49"),
    ):
        GradientNorm.calibrate(few, price=0.3)


@pytest.mark.parametrize(("account", "enough"), [(CostUnit.UPDATES, 3), (CostUnit.GRADIENTS, 2)])
def test_a_price_at_which_nothing_is_worth_computing_is_warned_of(
    account: CostUnit, enough: float
) -> None:
    """The first step gains 3, every later one 2; the first gradient is paid for at any price."""
    loss = (40.0 - 2 * torch.arange(13, dtype=DOUBLE)).expand(60, -1).clone()
    loss[:, 0] += 1
    traces = Traces(loss, loss)
    with pytest.warns(CalibrationWarning, match="every one of the 60 problems is best stopped"):
        found = FixedBudget.calibrate(traces, price=enough + 0.01, account=account)
    assert found.policy.rule == FixedBudget(0)
    found = FixedBudget.calibrate(traces, price=enough - 0.01, account=account)  # no warning
    assert found.policy.rule != FixedBudget(0)
    loss[7, 5] = -30.0  # one problem is worth going on for
    FixedBudget.calibrate(traces, price=enough + 0.01, account=account)
