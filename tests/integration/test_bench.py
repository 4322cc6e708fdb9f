"""`haltwise bench`: it goes on where it was, takes strangers in, and shows what it found."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from in_process import Result, haltwise

from haltwise._core.errors import DataWarning, InputError
from haltwise.bench.domain import Question, Sample, sample_runs
from haltwise.bench.domains import domains
from haltwise.bench.records import BenchCase, BenchCell, BenchRecord, captured
from haltwise.bench.run import GIVEN, RECORD, REFERENCE, BenchSettings, run_bench
from haltwise.cli.bench import command
from haltwise.curves.curves import Curves
from haltwise.report.bench import bench_tables, headline, judged_rule, write_bench
from haltwise.report.formats import num

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


def test_runs_made_for_other_settings_are_not_taken(tmp_path: Path) -> None:
    """Those of a bench that was interrupted before it had judged anything."""
    with pytest.raises(KeyboardInterrupt):
        run_bench(tmp_path, ["chain"], ["patience"], TINY, report=_interrupt)
    with pytest.raises(InputError, match="another num_runs"):
        run_bench(tmp_path, ["chain"], ["patience"], replace(TINY, num_runs=30))
    run_bench(tmp_path, ["chain"], ["patience"], TINY)


def test_a_bench_without_a_rule_that_applies_says_so() -> None:
    with pytest.raises(InputError, match="no rule applies to any case"):
        judged_rule(BenchRecord({}))


def _interrupt(unit: str, done: int, total: int, what: str) -> None:
    del unit, total, what
    if done:
        raise KeyboardInterrupt


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


DOMAIN = """
import numpy as np
from haltwise.bench.domain import Domain, Question
from haltwise.curves.curves import Curves

class Mine(Domain):
    title = "runs of mine"
    questions = (Question.GIVE_UP,)

    def curves(self, sample):
        speeds = np.linspace(0.02, 0.3, 60)[:, None]
        groups = [str(i % 12) for i in range(60)]
        return Curves.from_matrix(
            np.exp(-speeds * np.arange(30)), target=0.2, budget=40.0, group=groups
        )
"""

RECKLESS = """
import numpy as np
from haltwise.curves.rule import CurveRule

class Reckless(CurveRule):
    "Gives up everything at once."

    fixed_level = 1.0

    def score(self, curve):
        return np.zeros(curve.num_points)
"""


@pytest.mark.parametrize(
    "changed", ["budget=50.0", "budget=40.0, cost_unit='hours'"], ids=["budget", "unit"]
)
def test_a_domain_with_other_budgets_is_judged_anew(changed: str, tmp_path: Path) -> None:
    domain, rules = tmp_path / "mine.py", ["best-so-far", "fixed-budget"]
    domain.write_text(DOMAIN)
    run_bench(tmp_path / "out", [f"{domain}:Mine"], rules, TINY)
    domain.write_text(DOMAIN.replace("budget=40.0", changed))
    seen: list[str] = []
    run_bench(
        tmp_path / "out", [f"{domain}:Mine"], rules, TINY,
        report=lambda unit, done, total, what: seen.append(what if unit == "cell" else ""),
    )  # fmt: skip
    assert sorted(filter(None, seen)) == [f"{rule} on Mine, give-up" for rule in rules]


def test_a_rule_that_loses_more_than_it_may_is_not_ahead(tmp_path: Path) -> None:
    """It saves all of the cost, and loses all of the successes."""
    (tmp_path / "mine.py").write_text(DOMAIN)
    (tmp_path / "rule.py").write_text(RECKLESS)
    names, rules = [f"{tmp_path / 'mine.py'}:Mine"], ["best-so-far", f"{tmp_path}/rule.py:Reckless"]
    record = run_bench(tmp_path / "out", names, rules, TINY)
    assert "ahead of the best other rule in 0 of 3 comparisons" in headline(record, "Reckless")
    assert "in 3 of 3 comparisons" in headline(record, "best-so-far")
    (behind,) = bench_tables(record, "Reckless")[1:]
    assert (behind.name, [row[1] for row in behind.rows]) == ("bench-behind", [0, 0, 0])


@pytest.mark.parametrize("num_groups", [1, 2])
def test_who_breaks_the_promise_in_every_group_saves_nothing(num_groups: int) -> None:
    """Of two groups nothing is sure, and nobody would take such a rule."""
    groups = [str(number) for number in range(num_groups)]
    sums = {"runs": 30.0, "cost": 100.0, "failed": 70.0, "successes": 10.0}
    case = BenchCase(
        "here", Question.GIVE_UP, "title", 60, 0, "", ["0.05"], groups,
        {name: [value] * num_groups for name, value in sums.items()}, {},
    )  # fmt: skip
    record = BenchRecord({}, {"here/give-up": case})
    for rule, saved, lost in (("reckless", 60.0, 3.0), ("careful", 20.0, 0.0)):
        done = {"saved@0.05": [saved] * num_groups, "lost@0.05": [lost] * num_groups}
        cell = BenchCell("here", Question.GIVE_UP, rule, "", done, {}, 0.0)
        record.cells[f"here/give-up/{rule}"] = cell
    overview, duels = bench_tables(record, "reckless")
    assert [row[0] for row in overview.rows] == ["careful", "reckless", "oracle"]
    assert (duels.name, duels.rows[0][1:4]) == ("bench-behind", [0, "careful", 0.2])


def test_what_tables_could_not_tell_apart_is_refused(tmp_path: Path) -> None:
    for name in ("one.py", "other.py"):
        (tmp_path / name).write_text(RECKLESS)
    rules = [f"{tmp_path / name}:Reckless" for name in ("one.py", "other.py")]
    with pytest.raises(InputError, match="two rules are called Reckless"):
        run_bench(tmp_path / "out", ["chain"], rules, TINY)
    with pytest.raises(InputError, match="two domains are called chain"):
        run_bench(tmp_path / "out", ["chain", "chain"], ["patience"], TINY)


def test_rules_alike_are_neither_ahead_nor_behind(tmp_path: Path) -> None:
    record = bench_of(tmp_path, np.zeros(30, int), 0.02)
    cell = record.cells["ours/stop/fixed-budget"]
    record.cells["ours/stop/patience"] = replace(cell, rule="patience")
    record.cells["ours/stop/last-improvement-untuned"] = replace(cell, rule="patience")
    del record.cells[f"ours/stop/{GIVEN}"]
    assert [table.name for table in bench_tables(record, "patience")[1:]] == ["bench-level"]


def test_where_nothing_can_be_gained_it_says_so(tmp_path: Path) -> None:
    record = bench_of(tmp_path, np.zeros(30, int), 1000.0)
    assert headline(record, GIVEN) == (
        "These stops: no rule could gain anything over the best fixed budget"
    )
    page = write_bench(record, GIVEN, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "nan" not in re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    (tmp_path / "other").mkdir()
    record = bench_of(tmp_path / "other", np.zeros(30, int), 0.02)
    alone = {key: cell for key, cell in record.cells.items() if cell.rule == GIVEN}
    found = headline(replace(record, cells=alone), GIVEN)
    assert found == "These stops: there is no other rule to compare with"


def test_stops_of_runs_of_which_most_gain_nothing_are_judged(tmp_path: Path) -> None:
    """As when a model is tuned on: most are best as they were."""
    generator = np.random.default_rng(0)
    losses = 1 + 0.05 * np.arange(21) * generator.uniform(0.2, 1, (30, 1))
    losses[::3] = np.exp(-generator.uniform(0.1, 0.5, (10, 1)) * np.arange(21))
    stops = np.where(np.arange(30) % 3 == 0, 8, 0)
    np.savez(tmp_path / "tuned.npz", losses=losses, stops=stops, price=0.01)
    record = run_bench(tmp_path / "out", [str(tmp_path / "tuned.npz")], ["patience"], TINY)
    case, cell = record.cases["tuned/stop"], record.cells[f"tuned/stop/{GIVEN}"]
    table = np.minimum.accumulate(losses, 1) + 0.01 * np.arange(21)
    fixed, oracle = table.mean(0).min(), table.min(1).mean()
    gain = (fixed - table[np.arange(30), stops].mean()) / (fixed - oracle)
    assert captured(case, cell, case.keys[0]).value == pytest.approx(gain)
    np.savez(tmp_path / "worse.npz", losses=losses[1::3], stops=stops[1::3], price=0.01)
    with pytest.raises(InputError, match=r"no run in .* gains anything"):
        run_bench(tmp_path / "out", [str(tmp_path / "worse.npz")], ["patience"], TINY)


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


def test_stops_at_points_that_costs_merge_are_refused(tmp_path: Path) -> None:
    losses, stops = np.exp(-np.arange(6.0)) * np.ones((9, 1)), np.full(9, 3)
    path = tmp_path / "ours.npz"
    for costs in ([0, 1, 1, 2, 3, 4], [0, 1, np.nan, 2, 3, 4]):
        np.savez(path, losses=losses, stops=stops, price=0.02, costs=costs, groups=np.arange(9) % 3)
        with (
            pytest.warns(DataWarning, match="left out: 9 points"),
            pytest.raises(InputError, match="costs must rise from each point to the next"),
        ):
            run_bench(tmp_path / "out", [str(path)], ["fixed-budget"], TINY)


def test_what_cannot_be_run_is_said_before_anything_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", losses=[[2.0, 1.0]], stops=[0], price=1, group=[0])
    done = haltwise("bench", "--stops", "t.npz", "--judged", "other", cwd=tmp_path)
    assert "no rule 'other' is run, which --judged names" in done.stderr
    with pytest.warns(DataWarning, match="arrays that are not used, group; those that can be"):
        haltwise("bench", "--stops", "t.npz", "--rule", "fixed-budget", cwd=tmp_path)
    with pytest.raises(InputError, match="seed must be at least 0, got -1"):
        BenchSettings(seed=-1)


def test_the_command_prints_tables_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("haltwise.cli.bench.QUICK", TINY)
    out = tmp_path / "out"
    result = CliRunner().invoke(
        command,
        ["--quick", "--domain", "chain", "--rule", "patience", "--rule", "last-improvement",
         "--judged", "patience", "--jobs", "1", "--out", str(out), "--json",
         str(tmp_path / "all.json")],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "Stopping early: captured gain" in result.output
    assert "Patience: ahead of the best other rule in" in result.output
    assert "A stop returns the best point so far" in result.output
    page = (out / "bench.html").read_text(encoding="utf-8")
    assert "a chain of known law" in page
    assert "best causal rule" in page
    assert json.loads((tmp_path / "all.json").read_text())["cells"]


def given_stops(path: Path, **arrays: object) -> np.ndarray:
    """Write stops of exponential decays; the losses."""
    rates = np.random.default_rng(0).uniform(0.1, 1, 30)
    losses = np.exp(-rates[:, None] * np.arange(12))
    stops = (losses + 0.02 * np.arange(12)).argmin(1)
    np.savez(path, **{"losses": losses, "stops": stops, **arrays})
    return losses


def benched(folder: Path, *options: object) -> Result:
    few = ["--rule", "patience", "--rule", "fixed-budget", "--jobs", 1]
    return haltwise("bench", "--stops", "ours.npz", *few, *options, cwd=folder)


def test_the_price_of_given_stops_is_an_option_and_shown_as_given(tmp_path: Path) -> None:
    losses = given_stops(tmp_path / "ours.npz")
    refused = benched(tmp_path)
    assert refused.returncode == 2
    assert "ours.npz has no array price; give the price (--price)" in refused.stderr
    shown = []
    for options in (("--price", 0.02), ("--price", 0.03), ()):
        done = benched(tmp_path, *options)
        assert done.returncode == 0, done.stderr
        shown.append(done.stdout)
        given_stops(tmp_path / "ours.npz", price=0.02)  # the option goes over it
    assert [re.findall(r"\b0\.\d+\b", text) for text in shown[:2]] == [["0.02"], ["0.03"]]
    assert shown[2] == shown[0]
    key = 0.02 * 11 / np.median(losses[:, 0] - losses.min(1))
    page = (tmp_path / "bench/bench.html").read_text(encoding="utf-8")
    assert f"makes a price of {num(key)} of a whole budget" in page
    for price in ("nan", 0, -1):
        assert "finite number above 0" in benched(tmp_path, "--price", price).stderr
    alone = haltwise("bench", "--domain", "chain", "--price", 1, cwd=tmp_path)
    assert "name their file by --stops" in alone.stderr


def test_given_scores_that_rise_are_taken_for_what_they_are(tmp_path: Path) -> None:
    losses = given_stops(tmp_path / "ours.npz")
    falling = benched(tmp_path, "--price", 0.02)
    assert falling.stderr.count("--direction") == 0
    given_stops(tmp_path / "ours.npz", losses=1 - losses)
    with pytest.warns(DataWarning, match=r"higher is better, say so \(--direction max\)"):
        refused = benched(tmp_path, "--price", 0.02)
    assert "--direction max" in refused.stderr
    rising = benched(tmp_path, "--price", 0.02, "--direction", "max")
    assert rising.stdout == falling.stdout


def bench_of(folder: Path, stops: np.ndarray, price: float) -> BenchRecord:
    rates = np.random.default_rng(0).uniform(0.1, 1, 30)
    losses = np.exp(-rates[:, None] * np.arange(12))
    np.savez(folder / "ours.npz", losses=losses, stops=stops)
    rules = ["fixed-budget", "patience", "last-improvement-untuned"]
    return run_bench(folder / "out", [str(folder / "ours.npz")], rules, TINY, price=price)


def test_rules_that_gain_nothing_are_in_the_order_of_what_they_lose(tmp_path: Path) -> None:
    record = bench_of(tmp_path, np.zeros(30, int), 0.02)
    name, case = next(iter(record.cases.items()))
    bad = {rule: record.cells[f"{name}/{rule}"] for rule in record.rules(Question.STOP)}
    (key,) = case.keys
    top = max(case.fixed[key][0])
    for place, rule in enumerate(sorted(bad)):  # worse and worse, none worth anything
        sums = {f"charge@{key}": [10 * top * (1 + (place * 7) % 4)] * len(case.groups)}
        record.cells[f"{name}/{rule}"] = replace(bad[rule], sums=sums)
    rows = bench_tables(record, GIVEN)[0].rows[:-2]
    figures = [row[1] for row in rows]
    assert len(figures) == 4
    assert max(figures) < 0
    assert figures == sorted(figures, reverse=True)


def test_words_agree_in_number(tmp_path: Path) -> None:
    record = bench_of(tmp_path, np.zeros(30, int), 0.02)
    page = write_bench(record, GIVEN, tmp_path / "page.html").read_text(encoding="utf-8")
    texts = " ".join(
        [headline(record, GIVEN), *(t.title for t in bench_tables(record, GIVEN)), page]
    )
    assert "These stops: ahead" in texts
    assert not re.findall(r"\b1 [a-z]+s\b|stops is", texts)


@pytest.mark.parametrize("name", [name for name, domain in domains().items() if domain.is_made])
def test_made_domains_are_alike_each_time_and_have_groups(name: str) -> None:
    domain = domains()[name]
    small, again = (domain.curves(Sample(4, 3)) for _ in range(2))
    np.testing.assert_array_equal(small.values, again.values)
    assert len(np.unique(small.group)) > 1
    assert domain.scored is None or domain.scored in small.columns
    assert np.isfinite(small.values[small.offset[:-1]]).all()
    other = domain.curves(Sample(4, 4))
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
