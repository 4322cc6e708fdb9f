"""The examples run, on settings so small that they learn nothing."""

import csv
import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.optimize
import torch
from click.testing import CliRunner
from haltwise.stop_rules.accounts import ReturnedIterate, StopPolicy

import haltwise
from haltwise import tasks
from haltwise._core.errors import CalibrationWarning
from haltwise._core.random import stream
from haltwise.rollout.early_exit import execute


def load_example(name: str) -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return load_example("parity")


@pytest.fixture(scope="module")
def per_group() -> ModuleType:
    return load_example("regression_per_group")


def test_parity_inputs_are_what_they_say(parity: ModuleType, generator: torch.Generator) -> None:
    inputs, target, count = parity.sample(500, 9, 2, 5, generator)
    assert sorted(set(count.tolist())) == [2, 3, 4, 5]
    for row, parity_bit, num_nonzero in zip(
        inputs.tolist(), target.tolist(), count.tolist(), strict=True
    ):
        assert set(row) <= {-1.0, 0.0, 1.0}
        assert sum(value != 0 for value in row) == num_nonzero
        assert parity_bit == row.count(1.0) % 2


def test_parity_prints_a_line_for_every_posterior_and_task(
    parity: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "NUM_TEST", 200)
    arguments = ["--updates", "4", "--num-seeds", "2"]
    result = CliRunner().invoke(parity.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()[2:]]
    rows, summaries = lines[:12], lines[12:]
    for task, posterior, *_, mean, _, half in summaries:
        both = [float(row[5]) - float(row[8]) for row in rows if row[:2] == [task, posterior]]
        assert float(mean) == pytest.approx(sum(both) / 2, abs=2e-3)
        assert float(half) == pytest.approx(12.706 * abs(both[0] - both[1]) / 2, abs=2e-2)
    assert len(summaries) == 6
    assert {(task, posterior) for task, posterior, *_ in rows} == {
        (task, posterior)
        for task in ("interpolation", "extrapolation")
        for posterior in parity.POSTERIORS
    }
    for row in rows:
        steps, *shares = map(float, (row[2], *row[5:]))
        assert 1 <= steps <= 4
        assert len(shares) == 9
        assert all(0 <= share <= 1 for share in shares)


def test_the_batched_lbfgs_finds_what_scipy_finds(
    per_group: ModuleType, tmp_path: Path, generator: torch.Generator
) -> None:
    path = tmp_path / "table.csv"
    per_group.draw_table(path, 6, generator)
    table = per_group.read_table(path, per_group.NOISE)
    for family in per_group.FAMILIES.values():
        problem = per_group.make_problem(family, table, slice(None), torch.float64)
        policy = StopPolicy(per_group.SmallGradient(12.0), ReturnedIterate.BEST)
        run = execute(per_group.LBFGS(), problem, policy, problem.start[:, 0], 200)
        num_evaluations = 0
        for number in range(6):
            single = problem.select(torch.tensor([number]))

            def both(
                x: np.ndarray, single: haltwise.FunctionBatch = single
            ) -> tuple[float, object]:
                seen = single.observe(torch.from_numpy(x)[None], 0)
                return seen.loss.item(), seen.grad[0].numpy()

            found = scipy.optimize.minimize(
                both, np.zeros(10), jac=True, method="L-BFGS-B", options={"gtol": 1e-5, "ftol": 0}
            )
            num_evaluations += found.nfev
            assert problem.observe_loss(run.params, 0)[number].item() == pytest.approx(
                found.fun, rel=1e-8
            )
        assert run.num_gradients.sum() < 1.3 * num_evaluations  # no strawman
    x, y = problem.data["x"][0].numpy(), problem.data["y"][0].numpy()
    expected = np.linalg.lstsq(x, y, rcond=None)[0]
    np.testing.assert_allclose(per_group.closed_form(problem)[0].numpy(), expected, atol=1e-8)


def test_a_regression_per_group_goes_from_csv_to_csv(
    per_group: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(per_group, "LEARNING_RATES", (0.3,))
    monkeypatch.setattr(per_group, "MAX_STEPS", 40)
    out = tmp_path / "coefficients.csv"
    arguments = ["--groups", "16", "--out", str(out)]
    result = CliRunner().invoke(per_group.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "least squares: 12 groups, 10 parameters each" in result.output
    assert "Against closed form it never pays." in result.output
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["group"] for row in rows] == [f"g{number:05}" for number in range(16)]
    # The table was drawn with seed 0; its least squares fit, in its own units, is near.
    path = tmp_path / "table.csv"
    per_group.draw_table(path, 16, torch.Generator().manual_seed(0))
    with path.open(newline="") as file:
        table = [row for row in csv.reader(file) if row[0] == "g00003"]
    numbers = np.array([row[1:] for row in table], float)
    design = np.column_stack((np.ones(len(numbers)), numbers[:, :-1]))
    columns = ["intercept", *(f"x{number}" for number in range(1, 10))]
    coefficients = np.array([float(rows[3][name]) for name in columns])
    residual = numbers[:, -1] - design @ coefficients
    least = np.linalg.lstsq(design, numbers[:, -1], rcond=None)[1].item()
    assert residual @ residual < 1.2 * least
    squares = residual @ residual / (2 * per_group.NOISE**2)
    assert float(rows[3]["loss"]) == pytest.approx(squares, rel=1e-3)


def test_the_frontier_is_a_figure_of_what_was_executed(tmp_path: Path) -> None:
    frontier = load_example("frontier")
    found = frontier.measure("regression-2d", 64, 7)
    optimizer = haltwise.load("regression-2d")
    problems = tasks.family("regression-2d").sample(64, stream(7, "test"))
    price = torch.full((64,), frontier.PRICES[frontier.MIDDLE])
    run = execute(optimizer, problems, optimizer.policy(), price, max_steps=40)
    spent, excess = found.learned[frontier.MIDDLE]
    assert spent == pytest.approx(run.num_gradients.double().mean().item())
    reached = problems.observe(run.params, 0).loss - problems.reference_loss
    assert excess == pytest.approx(reached.double().mean().item(), rel=1e-3)
    result = CliRunner().invoke(frontier.main, [str(tmp_path / "f.svg"), "--num-problems", "64"])
    assert result.exit_code == 0, result.output
    drawing = ElementTree.parse(tmp_path / "f.svg").getroot()
    assert drawing.tag.endswith("svg")
    assert "gradients a problem" in (drawing[0].text or "")


def test_a_loop_is_recorded_and_stopped() -> None:
    example = load_example("stop_your_own_loop")
    arguments = ["--runs", "40", "--test-runs", "12", "--rounds", "5", "--head-steps", "3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # so few runs
        result = CliRunner().invoke(example.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    table = {line[:14].strip(): line[14:].split() for line in lines[2:]}
    assert {"oracle", "learned", "patience", "best fixed"} < set(table)
    # What was stopped for real cost what the recordings said it would.
    assert float(lines[0].split()[-1]) == pytest.approx(float(table["learned"][0]), abs=2e-4)
