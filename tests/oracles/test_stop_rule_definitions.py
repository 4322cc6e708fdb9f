"""Every stop rule against its definition in plain Python and hand-made curves."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from draws import DOUBLE
from stop_rule_cases import AFTER, BEFORE, TRAJECTORY, N, T

from haltwise import InputError
from haltwise.processes import Trajectory
from haltwise.stop_rules import (
    FixedBudget,
    GradientNorm,
    HazardThreshold,
    Logistic,
    Patience,
    Plateau,
    PonderThreshold,
    PosteriorMode,
    StopRule,
    decisions,
)


def test_patience_is_tried_up_to_the_horizon() -> None:
    for num, longest in ((5, 12), (41, 40), (1500, 1000)):
        run = Trajectory(torch.rand(2, num), torch.zeros(2, num))
        assert max(rule.length for rule in Patience.candidates(run, run.excess)) == longest


def test_patience_is_tried_at_falls_that_were_seen() -> None:
    still = Trajectory(torch.full((4, 9), 3.0), torch.zeros(4, 9))
    assert {rule.tolerance for rule in Patience.candidates(still, still.excess)} == {0.0}


def fixed_budget(rule: FixedBudget, i: int, t: int) -> bool:
    return t >= rule.budget


def gradient_norm(rule: GradientNorm, i: int, t: int) -> bool:
    return TRAJECTORY.known("log_grad_norm")[i, t].item() <= rule.log_tolerance


def plateau(rule: Plateau, i: int, t: int) -> bool:
    return t > 0 and (TRAJECTORY.loss[i, t - 1] - TRAJECTORY.loss[i, t]).item() <= rule.tolerance


def patience(rule: Patience, i: int, t: int) -> bool:
    lowest, at = math.inf, 0
    for step, loss in enumerate(TRAJECTORY.loss[i, : t + 1].tolist()):
        if loss < lowest - rule.tolerance:
            lowest, at = loss, step
    return t - at >= rule.length


def posterior_mode(rule: PosteriorMode, i: int, t: int) -> bool:
    increment = TRAJECTORY.known("increments")[i, t, rule.time].item()
    return t >= rule.min_steps and increment <= 0


def hazard_threshold(rule: HazardThreshold, i: int, t: int) -> bool:
    return TRAJECTORY.known("hazard_logits")[i, t, rule.time].item() >= rule.threshold


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def ponder_threshold(rule: PonderThreshold, i: int, t: int) -> bool:
    logits = TRAJECTORY.known("halting_logits")[i, : t + 1, rule.time].tolist()
    return math.fsum(map(sigmoid, logits)) >= 1 - rule.epsilon


def logistic(rule: Logistic, i: int, t: int) -> bool:
    norm, loss = TRAJECTORY.known("log_grad_norm")[i, t].item(), TRAJECTORY.loss[i, t].item()
    inputs = (norm, math.asinh(loss), t, math.log1p(t))
    score = math.fsum(w * x for w, x in zip(rule.weights, inputs, strict=True))
    return score >= rule.threshold


@pytest.mark.parametrize(
    ("rules", "stops"),
    [
        ([FixedBudget(n) for n in (0, 1, 5, T - 1, T, T + 5)], fixed_budget),
        ([GradientNorm(level) for level in (-3.0, -0.5, 1.0)], gradient_norm),
        ([Plateau(level) for level in (-1.0, 0.0, 0.3)], plateau),
        ([Patience(n, level) for n in (1, 2, 5) for level in (0.0, 0.4)], patience),
        (
            [PosteriorMode(time, least) for time in (AFTER, BEFORE) for least in (0, 7)],
            posterior_mode,
        ),
        (
            [HazardThreshold(), HazardThreshold(-1.0, AFTER), HazardThreshold(1.0, BEFORE)],
            hazard_threshold,
        ),
        (
            [PonderThreshold(e, time) for e in (0.01, 0.5, 0.9) for time in (AFTER, BEFORE)],
            ponder_threshold,
        ),
        ([Logistic((-1.0, -0.5, 0.2, 0.1), level) for level in (-2.0, 0.0, 2.0)], logistic),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_decisions_follow_the_definition(
    rules: list[StopRule], stops: Callable[[StopRule, int, int], bool]
) -> None:
    seen = set()
    for rule in rules:
        expected = [next((t for t in range(T) if stops(rule, i, t)), T) for i in range(N)]
        assert decisions(rule, TRAJECTORY).tolist() == expected
        seen |= set(expected)
    assert len(seen) > 4


def curve(*losses: float) -> Trajectory:
    """One item that ends with a loss no rule may see."""
    loss = torch.tensor([[*losses, -100.0]], dtype=DOUBLE)
    return Trajectory(loss, loss)


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


@pytest.mark.parametrize("epsilon", [0.0, 1.0, -0.1, math.nan])
def test_an_epsilon_that_means_nothing_is_refused(epsilon: float) -> None:
    with pytest.raises(InputError, match=r"epsilon must lie in \(0, 1\)"):
        PonderThreshold(epsilon)


def test_a_single_increment_decides_with_the_gradient_in_hand_alone() -> None:
    single = Trajectory(
        TRAJECTORY.loss,
        TRAJECTORY.excess,
        outputs={"increments": TRAJECTORY.known("increments")[..., AFTER]},
    )
    found = decisions(PosteriorMode(AFTER, 1), single)
    assert torch.equal(found, decisions(PosteriorMode(AFTER, 1), TRAJECTORY))
    with pytest.raises(InputError, match="decide with the gradient in hand alone"):
        decisions(PosteriorMode(BEFORE), single)


def test_a_step_that_earns_just_its_price_is_not_taken() -> None:
    even = torch.tensor([[0.5, 0.0, 0.5]], dtype=DOUBLE)
    found = replace(curve(3, 2, 1), outputs={"increments": even})
    assert decisions(PosteriorMode(AFTER), found).tolist() == [1]
