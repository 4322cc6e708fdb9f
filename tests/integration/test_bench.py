"""`haltwise bench`: it goes on where it was, takes strangers in, and shows what it found."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from haltwise._core.errors import InputError
from haltwise.bench.domain import Question, Sample, sample_runs
from haltwise.bench.domains import domains
from haltwise.bench.run import GIVEN, RECORD, REFERENCE, BenchSettings, run_bench
from haltwise.cli.bench import command
from haltwise.curves.curves import Curves

TINY = BenchSettings(num_runs=24, num_folds=2, prices=(0.1,))

RULE = """
from dataclasses import dataclass
from haltwise.curves.rule import CurveRule

@dataclass(frozen=True)
class Slow(CurveRule):
    "Gives up what is slow."

    def score(self, curve):
        return -curve.loss
"""


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    seen: list[str] = []
    first = run_bench(tmp_path, ["chain"], ["patience", "fixed-budget"], TINY)
    assert set(first.cells) == {
        f"chain/stop/{rule}" for rule in ("patience", "fixed-budget", REFERENCE)
    }
    document = json.loads((tmp_path / RECORD).read_text())
    # As if it had been interrupted before the last cell.
    del document["cells"]["chain/stop/fixed-budget"]
    document["cells"]["chain/stop/patience"]["seconds"] = 123.0
    (tmp_path / RECORD).write_text(json.dumps(document))
    again = run_bench(
        tmp_path, ["chain"], ["patience", "fixed-budget"], TINY,
        report=lambda unit, done, total, what: seen.append(what if unit == "cell" else ""),
    )  # fmt: skip
    assert [what for what in seen if what] == ["fixed-budget on chain, stop"]
    assert again.cells["chain/stop/patience"].seconds == 123.0
    for name, cell in first.cells.items():
        assert again.cells[name].sums == cell.sums


def test_other_settings_are_refused(tmp_path: Path) -> None:
    run_bench(tmp_path, ["chain"], ["fixed-budget"], TINY)
    with pytest.raises(InputError, match="another seed; name another directory"):
        run_bench(tmp_path, ["chain"], ["fixed-budget"], replace(TINY, seed=1))


def test_a_rule_and_a_domain_of_ones_own(tmp_path: Path) -> None:
    rule = tmp_path / "mine.py"
    rule.write_text(RULE)
    seen: list[str] = []
    for _ in range(2):
        record = run_bench(
            tmp_path / "out", ["kmeans"], [f"{rule}:Slow"], TINY,
            report=lambda unit, done, total, what: seen.append(what if unit == "cell" else ""),
        )  # fmt: skip
    assert record.cells["kmeans/stop/Slow"].sums["charge@0.1"]
    assert [what for what in seen if what] == ["Slow on kmeans, stop"]
    rule.write_text(RULE.replace("-curve.loss", "curve.losses"))
    with pytest.raises(InputError, match=r"mine.py, line 10: AttributeError"):
        run_bench(tmp_path / "out", ["kmeans"], [f"{rule}:Slow"], TINY)
    with pytest.raises(InputError, match="did you mean 'patience'"):
        run_bench(tmp_path / "out", ["kmeans"], ["patiense"], TINY)


def test_domains_without_data_are_left_out_with_a_sentence(tmp_path: Path) -> None:
    record = run_bench(tmp_path, ["taskset", "chain"], ["fixed-budget"], TINY)
    assert "--data-dir" in record.skipped["taskset"]
    assert list(record.cases) == ["chain/stop"]


def test_somebodys_stops_are_judged_beside_the_rules(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    rates = generator.uniform(0.1, 1, 30)
    losses = np.exp(-rates[:, None] * np.arange(12))
    price = 0.02
    best = (losses + price * np.arange(12)).argmin(1)
    path = tmp_path / "ours.npz"
    np.savez(path, losses=losses, stops=best, price=price, groups=np.arange(30) % 3)
    record = run_bench(tmp_path / "out", [str(path)], ["fixed-budget"], TINY)
    (case,) = record.cases.values()
    (key,) = case.keys
    given = record.cell("ours/stop", GIVEN)
    assert given is not None
    # These stops are the oracle's, and the price of a budget is counted in typical gains.
    np.testing.assert_allclose(given.sums[f"charge@{key}"], case.sums[f"oracle@{key}"])
    gain = np.median(losses[:, 0] - losses.min(1))
    assert float(key) == pytest.approx(price * 11 / gain, rel=1e-5)
    np.savez(path, losses=losses, stops=best + 20, price=price)
    with pytest.raises(InputError, match="run 0 stops at"):
        run_bench(tmp_path / "new", [str(path)], ["fixed-budget"], TINY)


def test_the_command_prints_tables_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltwise.cli.bench.QUICK", TINY)
    out = tmp_path / "out"
    result = CliRunner().invoke(
        command,
        ["--quick", "--domain", "chain", "--rule", "patience", "--rule", "last-improvement",
         "--judged", "patience", "--jobs", "1", "--output", str(out), "--json",
         str(tmp_path / "all.json")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Stopping early: captured gain" in result.output
    assert "Patience is ahead of the best other rule in" in result.output
    page = (out / "bench.html").read_text(encoding="utf-8")
    assert "a chain of known law" in page
    assert "best causal rule" in page
    assert json.loads((tmp_path / "all.json").read_text())["cells"]


@pytest.mark.parametrize("name", [name for name, domain in domains().items() if domain.is_made])
def test_made_domains_are_alike_each_time_and_have_groups(name: str) -> None:
    domain = domains()[name]
    small, again = (domain.curves(Sample(8, 3)) for _ in range(2))
    np.testing.assert_array_equal(small.values, again.values)
    assert len(np.unique(small.group)) > 1
    assert domain.scored is None or domain.scored in small.columns
    assert np.isfinite(small.values[small.offset[:-1]]).all()
    other = domain.curves(Sample(8, 4))
    assert other.values.shape != small.values.shape or not np.array_equal(
        other.values, small.values, equal_nan=True
    )
    assert domain.title
    assert Question.STOP in domain.questions


def test_a_sample_takes_each_group_alike() -> None:
    groups = ["a"] * 60 + ["b"] * 30 + ["c"] * 10
    curves = Curves.from_matrix(np.arange(300.0).reshape(100, 3), group=groups)
    taken = sample_runs(curves, Sample(20, 0))
    names, counts = np.unique(taken.group, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"a": 12, "b": 6, "c": 2}
    assert taken.num_runs == 20
    assert sample_runs(curves, Sample(500, 0)) is curves
