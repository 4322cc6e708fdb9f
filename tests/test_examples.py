"""The examples run, on settings so small that they learn nothing."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from click.testing import CliRunner


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    path = Path(__file__).parents[1] / "examples" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
