"""Recommendations: every figure against its definition, and the choice that follows from them."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from own_files import BOWLS
from test_guard import rosenbrock
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError, Recommendation
from haltwise._core.errors import DataWarning
from haltwise._core.random import stream
from haltwise.cli import cli
from haltwise.evaluation.optimizers import LEARNING_RATES
from haltwise.evaluation.recommend import LBFGS, Trial
from haltwise.tasks import TaskBatch, family

FEW = ("regression-2d", "regression-10d")
PRICE = 0.05


@pytest.fixture(scope="module")
def problems() -> TaskBatch:
    return family("regression-10d").sample(40, torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def found(problems: TaskBatch) -> Recommendation:
    return haltwise.recommend(problems, FEW, price=PRICE, num_problems=24, max_steps=40)


def timeless(found: Recommendation) -> Recommendation:
    return replace(found, trials=tuple(replace(trial, seconds=0.0) for trial in found.trials))


def trial(found: Recommendation, name: str) -> Trial:
    return next(each for each in found.trials if each.name == name)


def halves(problems: TaskBatch, number: int) -> tuple[TaskBatch, TaskBatch]:
    chosen = torch.randperm(problems.num_problems, generator=stream(0, "recommend"))[:number]
    return problems.select(chosen[: number // 2]), problems.select(chosen[number // 2 :])


def test_a_seed_gives_the_same_and_another_another(
    problems: TaskBatch, found: Recommendation
) -> None:
    again, other = (
        haltwise.recommend(problems, FEW, price=PRICE, num_problems=24, max_steps=40, seed=seed)
        for seed in (0, 1)
    )
    assert timeless(again) == timeless(found)
    assert timeless(other) != timeless(found)


def test_j_is_loss_and_price_and_orders_the_table(found: Recommendation) -> None:
    assert {each.name for each in found.trials} == {*FEW, "adam", "adam 1e-3", LBFGS}
    for each in found.trials:
        assert each.j == pytest.approx(each.loss + PRICE * each.num_gradients)
    js = [each.j for each in found.trials]
    assert js == sorted(js)
    assert found.use == next(each.name for each in found.trials if each.fits is not False)
    assert (found.num_judged, found.num_tuning) == (12, 12)
    lines = repr(found).splitlines()
    assert len(lines) == 2 + len(found.trials)
    assert lines[-1] == found.sentence
    assert len(set(map(len, lines[:-1]))) == 1


def test_shipped_optimizers_do_as_solve_does(problems: TaskBatch, found: Recommendation) -> None:
    _, judged = halves(problems, 24)
    for name in FEW:
        solution, own = haltwise.solve(judged, name, price=PRICE, max_steps=40), trial(found, name)
        excess = judged.score(solution.params, 0).excess
        assert own.loss == pytest.approx(excess.double().mean().item(), rel=1e-5)
        assert own.num_gradients == solution.num_gradients.double().mean()
        assert own.handed_over == solution.fallback.double().mean()
    assert trial(found, "regression-10d").fits


def test_adam_is_torch_s_at_the_rate_and_steps_of_the_other_half(
    problems: TaskBatch, found: Recommendation
) -> None:
    tuning, judged = halves(problems, 24)

    def curve(batch: TaskBatch, rate: float) -> list[float]:
        params = batch.start.clone().requires_grad_()
        optimizer, losses = torch.optim.Adam([params], rate), []
        for step in range(41):
            score = batch.score(params.detach(), step)
            losses.append(score.excess.double().mean().item())
            params.grad = score.grad
            optimizer.step()
        return losses

    for name, rates in (("adam 1e-3", (1e-3,)), ("adam", LEARNING_RATES[::3])):
        j = {
            (rate, step): loss + PRICE * step
            for rate in rates
            for step, loss in enumerate(curve(tuning, rate))
            if np.isfinite(loss)
        }
        rate, step = min(j, key=j.__getitem__)
        assert trial(found, name).num_gradients == step
        assert trial(found, name).loss == pytest.approx(curve(judged, rate)[step], rel=1e-3)


def test_lbfgs_is_used_where_it_wins() -> None:
    problems = family("quadratic-10d").sample(24, stream(0))
    found = haltwise.recommend(problems, ["quadratic-10d"], price=0.003)
    assert found.use == LBFGS
    assert found.sentence.startswith('Use haltwise.solve(problems, method="lbfgs", price=0.003)')
    assert "prices a problem than that of quadratic-10d" in found.sentence
    assert trial(found, LBFGS).loss < 0.1 < trial(found, "adam").loss
    # What is advised does what was tried.
    solution = haltwise.solve(halves(problems, 24)[1], method="lbfgs", price=0.003)
    assert trial(found, LBFGS).num_gradients == solution.num_gradients.double().mean()


def bowls(start: Tensor) -> FunctionBatch:
    """Quadratic bowls around zero."""
    return FunctionBatch(start, lambda params: (params.square() * torch.tensor([1.0, 9.0])).sum(1))


def test_adam_is_recommended_with_the_rate_and_steps_that_were_tried() -> None:
    """Of losses that a seed disturbs nothing else is tried."""
    problems = family("regression-10d-noisy").sample(24, stream(5))
    found = haltwise.recommend(problems, [], price=PRICE, max_steps=40)
    own = trial(found, "adam")
    assert found.use == "adam"
    assert own.learning_rate in LEARNING_RATES
    assert found.sentence.startswith(
        f"Use Adam at a rate of {own.learning_rate:.3g} for {own.num_gradients:.0f} steps"
    )
    assert trial(found, "adam 1e-3").learning_rate == 1e-3
    judged = halves(problems, 24)[1]
    params = judged.start.clone().requires_grad_()
    optimizer = torch.optim.Adam([params], own.learning_rate)
    for step in range(int(own.num_gradients)):
        params.grad = judged.observe(params.detach(), step).grad
        optimizer.step()
    excess = judged.score(params.detach(), 0).excess.double().mean().item()
    assert own.loss == pytest.approx(excess, rel=1e-3)


@pytest.mark.parametrize("names", [[], list(FEW)])
def test_where_nothing_is_worth_its_price_nothing_is_recommended(
    names: list[str], problems: TaskBatch
) -> None:
    found = haltwise.recommend(problems, names, price=1e6, num_problems=16)
    assert found.use == "nothing"
    assert found.sentence == (
        "Leave these problems as they start: at a price of 1e+06 a gradient nothing that was tried "
        "gains what it costs."
    )
    assert all(each.j >= trial(found, "adam").j for each in found.trials)


def test_nothing_is_better_than_steps_that_the_other_half_called_for() -> None:
    """The problems to tune on are far from their minimum, those judged by are at it."""
    chosen = torch.randperm(8, generator=stream(0, "recommend"))
    start = torch.zeros(8, 2)
    start[chosen[:4]] = 3.0
    found = haltwise.recommend(bowls(start), [], price=0.5)
    assert trial(found, "adam").num_gradients > 0
    assert found.use == "nothing"


def test_the_call_that_is_advised_names_the_steps_where_they_were_used_up() -> None:
    problems = family("quadratic-10d").sample(24, stream(0))
    found = haltwise.recommend(problems, [], price=1e-6, max_steps=6)
    ends = 'method="lbfgs", price=1e-06, max_steps=6)'
    assert f"Use haltwise.solve(problems, {ends}" in found.sentence
    solution = haltwise.solve(halves(problems, 24)[1], method="lbfgs", price=1e-6, max_steps=6)
    assert trial(found, LBFGS).num_gradients == solution.num_gradients.double().mean()


def test_problems_of_a_family_may_be_in_named_parameters_with_bounds(tmp_path: Path) -> None:
    own = tmp_path / "own.py"
    bounds = '{"center": center}, bounds={"size": haltwise.interval(-9, 9)}'
    named = BOWLS.replace("params - center", "params['size'] - center")
    named = named.replace("torch.zeros_like(center)", "{'size': torch.zeros_like(center)}")
    own.write_text(named.replace('{"center": center}', bounds))
    found = haltwise.recommend(family(f"{own}:Bowls"), FEW, price=PRICE, num_problems=8)
    assert {each.name for each in found.trials} == {LBFGS, "adam", "adam 1e-3", *FEW}
    assert all(math.isfinite(each.j) for each in found.trials)


def test_where_nothing_fits_it_says_so() -> None:
    problem = FunctionBatch(torch.tensor([[-1.2, 1.0]]).repeat(8, 1), rosenbrock)
    found = haltwise.recommend(problem, ["student-t-10d", "quadratic-10d"])
    assert all(each.fits is not True for each in found.trials)
    assert found.use in (LBFGS, "adam", "adam 1e-3")
    assert found.sentence.endswith("; nothing shipped fits these problems.")
    start = rosenbrock(problem.start).double().mean().item()
    assert found.price == pytest.approx(start / 500, rel=1e-3)


def broken_bowls(rows: Tensor) -> FunctionBatch:
    """Bowls whose loss is NaN wherever one is, on the problems at `rows`."""
    broken = torch.zeros(8)
    broken[rows] = math.nan
    start = torch.randn(8, 2, generator=stream(0))
    return FunctionBatch(
        start, lambda params, away: params.square().sum(1) + away, {"away": broken}
    )


def test_problems_that_begin_at_nan_are_left_out_and_counted() -> None:
    with pytest.warns(DataWarning, match="2 of 8 problems are left out: they begin with a loss"):
        found = haltwise.recommend(broken_bowls(torch.tensor([1, 6])), ["regression-2d"])
    assert (found.num_judged, found.num_tuning) == (3, 3)
    assert all(math.isfinite(each.j) for each in found.trials)
    assert "nan" not in found.sentence


def test_one_problem_is_tuned_on_itself() -> None:
    problem = FunctionBatch(torch.tensor([[-1.2, 1.0]]), rosenbrock)
    found = haltwise.recommend(problem, ["regression-2d"], max_steps=20)
    assert (found.num_judged, found.num_tuning) == (1, 0)


def test_stochastic_losses_have_no_lbfgs() -> None:
    found = haltwise.recommend(
        family("regression-10d-noisy"), ["regression-10d-noisy-adam"], num_problems=16
    )
    assert {each.name for each in found.trials} == {
        "adam",
        "adam 1e-3",
        "regression-10d-noisy-adam",
    }
    assert trial(found, "regression-10d-noisy-adam").handed_over == 0


def test_what_cannot_take_the_problems_is_skipped_unless_named(
    problems: TaskBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        sys.modules["haltwise.evaluation.recommend"],  # the function has the name of its file
        "names",
        lambda: ["cifar10-cnn", "regression-2d", "regression-2d-lstm"],
    )
    found = haltwise.recommend(problems, price=PRICE, num_problems=4, max_steps=10)
    assert set(found.skipped) == {"cifar10-cnn"}
    assert "coordinates" in found.skipped["cifar10-cnn"]
    assert "regression-2d" in repr(found)
    assert "regression-2d-lstm" not in repr(found)  # it does not stop by itself
    with pytest.raises(InputError, match="cifar10-cnn cannot be tried: "):
        haltwise.recommend(problems, ["cifar10-cnn"], price=PRICE, num_problems=4)


def test_impossible_questions_are_refused(problems: TaskBatch) -> None:
    for wrong, message in (
        ({"price": -1.0}, "price must be a finite number above 0"),
        ({"max_steps": 0}, "max_steps must be"),
        ({"num_problems": 0}, "num_problems must be"),
    ):
        with pytest.raises(InputError, match=message):
            haltwise.recommend(problems, FEW, **wrong)
    with pytest.raises(InputError, match="must be a TaskBatch or a TaskFamily, got list"):
        haltwise.recommend([1.0])  # type: ignore[arg-type]
    flat = FunctionBatch(torch.ones(4, 2), lambda params: 0 * params.sum(1) + 1)
    with pytest.raises(InputError, match=r"L-BFGS does not lower the losses, .* give a price"):
        haltwise.recommend(flat, FEW)
    with pytest.warns(DataWarning, match="6 of 8"):
        haltwise.recommend(broken_bowls(torch.arange(6)), [], price=1.0)
    with pytest.raises(InputError, match="none of 8 problems begins with a finite loss"):
        haltwise.recommend(broken_bowls(torch.arange(8)), [])


def test_the_command_prints_and_writes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "found.json"
    words = "recommend quadratic-10d --optimizer quadratic-10d --num-problems 8 --price 0.003"
    done = CliRunner().invoke(cli, [*words.split(), "--json", str(path)], catch_exceptions=False)
    assert done.exit_code == 0
    written = json.loads(path.read_text())
    assert written["sentence"] in done.output
    assert written["use"] == LBFGS
    for each in written["trials"]:
        assert each["name"] in done.output
