"""The examples run, on settings so small that they learn nothing."""

import importlib.util
import sys
import warnings
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner

import haltwise
from haltwise import tasks
from haltwise._core.errors import CalibrationWarning
from haltwise._core.random import stream


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


def test_the_frontier_is_a_figure_of_what_was_executed(tmp_path: Path) -> None:
    frontier = load_example("frontier")
    found = frontier.measure("regression-2d", 64, 7)
    problems = tasks.family("regression-2d").sample(64, stream(7, "test"))
    price = frontier.PRICES[frontier.MIDDLE]
    solution = haltwise.solve(problems, "regression-2d", price=price, max_steps=40, guard=False)
    cost, excess = found.learned[frontier.MIDDLE]
    assert cost == pytest.approx(solution.num_gradients.double().mean().item())
    reached = solution.loss - problems.reference_loss
    assert excess == pytest.approx(reached.double().mean().item(), rel=1e-3)
    result = CliRunner().invoke(frontier.main, [str(tmp_path / "f.svg"), "--num-problems", "64"])
    assert result.exit_code == 0, result.output
    drawing = ElementTree.parse(tmp_path / "f.svg").getroot()
    assert drawing.tag.endswith("svg")
    assert "gradients a problem" in (drawing[0].text or "")


def test_a_family_from_a_file_is_trained_on_and_solved(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "run"), "--joint-steps", "2"]
    arguments += ["--halting-steps", "2", "--num-recorded", "64"]
    example = load_example("my_family")
    result = CliRunner().invoke(example.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "gradients of at most 40" in result.output
    assert haltwise.load(tmp_path / "run").card.family is not None


def test_a_loop_is_recorded_and_stopped() -> None:
    example = load_example("stop_your_own_loop")
    arguments = ["--runs", "40", "--test-runs", "12", "--rounds", "5", "--halting-steps", "3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # so few runs
        result = CliRunner().invoke(example.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    table = {line[:14].strip(): line[14:].split() for line in lines[2:]}
    assert {"oracle", "learned", "patience", "fixed"} < set(table)
    # Runs that were stopped cost what the recordings forecast.
    assert float(lines[0].split()[-1]) == pytest.approx(float(table["learned"][0]), abs=2e-4)
