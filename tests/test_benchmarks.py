"""What the benchmark counts is what the traces say; how long it takes is nobody's business here."""

import functools
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner
from programs import program

import haltwise
from haltwise._core.random import stream
from haltwise.rollout import record
from haltwise.stop_rules import decisions
from haltwise.tasks import TaskBatch, family

NUM_PROBLEMS, PRICE = 4096, 0.0527

benchmark = functools.partial(program, folder=Path(__file__).parents[1] / "benchmarks")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    return benchmark("halting_saves")


@pytest.fixture(scope="module")
def optimizer() -> haltwise.OptimizerModel:
    return haltwise.load("regression-2d").double()


@pytest.fixture(scope="module")
def batch() -> TaskBatch:
    return family("regression-2d").sample(NUM_PROBLEMS, stream(3), dtype=torch.float64)


def test_gradients_executed_are_the_sum_of_halting_steps(
    bench: ModuleType, optimizer: haltwise.OptimizerModel, batch: TaskBatch
) -> None:
    full, own, alone, fixed = bench.compare(optimizer, batch, PRICE, repetitions=1)
    horizon = optimizer.card.horizon
    trajectory = optimizer.halting.attach(record(optimizer.rule, batch, horizon), PRICE)
    decided = decisions(optimizer.policy().rule, trajectory)
    # A stop decided at step t has seen t + 1 gradients.
    assert own.executed == own.steps == int((decided + 1).clamp_max(horizon).sum())
    assert own.executed - int(decided.sum()) <= NUM_PROBLEMS
    assert alone.executed == own.executed
    assert full.executed == NUM_PROBLEMS * horizon
    assert own.executed < fixed.executed < full.executed
    budget = fixed.executed // NUM_PROBLEMS
    mean = trajectory.excess.mean(0)
    assert mean[budget] <= own.excess < mean[budget - 1]
    assert fixed.excess == pytest.approx(float(mean[budget]))


def test_a_rule_alone_runs_as_far_as_it_is_told(
    bench: ModuleType, optimizer: haltwise.OptimizerModel, batch: TaskBatch
) -> None:
    few = batch.select(torch.arange(30))
    steps = torch.arange(30) % 6
    params = bench.run(optimizer.rule, few, steps)
    for step in range(6):
        reached = few.start if step == 0 else record(optimizer.rule, few, step).known("final")
        torch.testing.assert_close(params[steps == step], reached[steps == step])


def test_dear_gradients_are_those_of_the_same_losses(bench: ModuleType, batch: TaskBatch) -> None:
    params = torch.randn(batch.start.shape, generator=stream(4), dtype=torch.float64)
    dear = bench.widen(batch, 17)
    assert dear.factor.shape == (NUM_PROBLEMS, 17, 2)
    torch.testing.assert_close(dear.evaluate(params, 0), batch.evaluate(params, 0))


def test_the_benchmark_prints_both_tables(bench: ModuleType) -> None:
    arguments = ["regression-2d", "--num-problems", "64", "--num-rows", "5", "--repetitions", "1"]
    result = CliRunner().invoke(bench.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert result.output.count("own policy") == 2
    result = CliRunner().invoke(bench.main, ["student-t-10d"])
    assert result.exit_code == 2
    assert "regression" in result.output


def test_what_an_adaptive_layer_executes_is_what_its_items_were_told() -> None:
    adaptive = benchmark("adaptive")
    settings = adaptive.Settings(batch=32, length=4, dim=8, loops=6, repeats=1)
    for way in adaptive.WAYS:
        many = adaptive.sample(way, 4 * 32, settings, torch.Generator().manual_seed(0))
        inputs = many[:32]
        told = inputs[:, 0, -1] if way == "sequence" else inputs[..., -1]
        layer = adaptive.make_layer(way, settings)
        assert torch.equal(layer.run(inputs, 1.0).exits, told.long())
        _, once, turns = adaptive.measure(way, settings)
        assert once.executed == pytest.approx((told + 1).mean().item() / 6)
        assert once.executed <= once.computed <= 1
        assert max(once.shapes, turns.shapes) <= 5
        assert adaptive.same_alone(way, settings)


def test_ways_of_small_fits_find_the_same_minima() -> None:
    fits = benchmark("small_fits")
    x, y = fits.make(40)
    expected = fits.newton(x, y, 12)
    for name, way in {**fits.ours(x, y), **fits.by_torch(x, y), **fits.by_scipy(x, y, 1)}.items():
        rough = 0.5 if "adam" in name else 2e-2
        torch.testing.assert_close(way(), expected, rtol=0, atol=rough, msg=name)
    settings = ["--num-problems", "40", "--rounds", "1", "--no-peers"]
    result = CliRunner().invoke(fits.main, settings, catch_exceptions=False)
    assert result.output.count("haltwise newton") == 4


def test_evaluations_at_a_mean_excess_are_those_of_the_stop_that_leaves_it() -> None:
    fits = benchmark("price_or_tolerance")
    problem = fits.families(12)["logistic"]
    least = haltwise.solve(problem, method="newton", gtol=1e-9).loss
    case = fits.Case(problem, fits.ENGINES["newton"], least)
    counts = fits.evaluations(case, "price", None)
    assert counts.shape == (4,)
    known = counts == counts
    assert (fits.in_hindsight(case)[known] <= 1.01 * counts[known]).all()  # interpolated
    rough, fine = (haltwise.solve(problem, method="newton", price=p) for p in (10.0, 1e-5))
    low, high = (found.num_gradients.double().mean() for found in (rough, fine))
    assert all(low <= count <= high for count in counts if count == count)
    assert sorted(counts[2:]) == list(counts[2:])


def test_a_costly_batch_counts_what_solving_it_takes() -> None:
    inner = family("regression-10d").sample(20, stream(4))
    costly = benchmark("break_even").Costly(inner.start, inner, 0.0)
    found, expected = (haltwise.solve(batch, "regression-10d") for batch in (costly, inner))
    assert torch.equal(found.params, expected.params)
    assert costly.spent["gradients"] >= int(found.num_gradients.sum())


@pytest.mark.parametrize("size", [0.01, 100.0, torch.tensor([1.0, 30.0])])
def test_problems_in_other_units_are_the_same_problems(size: float | torch.Tensor) -> None:
    experiment = program("other_units", folder=Path(__file__).parents[1] / "experiments")
    inner = family("regression-2d").sample(100, stream(5))
    other = experiment.InOtherUnits.of(inner, size, 10.0)
    found = haltwise.solve(other, method="lbfgs", gtol=1e-4)
    torch.testing.assert_close(
        found.params * size, haltwise.solve(inner, method="lbfgs").params, rtol=1e-2, atol=1e-2
    )
