"""The stopping report against brute force, closed forms and bad input."""

import copy
import itertools
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from haltwise import InputError
from haltwise._core.random import stream
from haltwise.cli import main
from haltwise.evaluation import CostUnit, Evaluation, stopping_report
from haltwise.evaluation.records import save_record
from haltwise.evaluation.statistics import (
    NUM_RESAMPLES,
    budget_for_loss,
    randomized_budget,
    resamples,
    weighted_quantiles,
)
from haltwise.report import write_report, write_stopping_report
from haltwise.report.stopping import conclusion, summarize_stopping, warnings

DOUBLE = torch.float64
N, T, PRICE = 60, 8, 0.1


def make_losses(num: int = N, steps: int = T, *, seed: int = 0) -> Tensor:
    """Noisy, falling curves whose best stops are spread over the horizon."""
    generator = stream(seed, "losses")
    rate = torch.rand(num, 1, generator=generator, dtype=DOUBLE) + 0.1
    fall = 4 * torch.exp(-rate * torch.arange(steps + 1))
    return fall + 0.1 * torch.randn(num, steps + 1, generator=generator, dtype=DOUBLE)


LOSSES = make_losses()
STEPS = torch.arange(T + 1, dtype=DOUBLE)
TABLE = LOSSES + PRICE * STEPS
ORACLE = TABLE.argmin(1)
STOPS = (ORACLE + torch.randint(-1, 2, (N,), generator=stream(1))).clamp(0, T)
HAZARDS = torch.rand(N, T, generator=stream(2), dtype=DOUBLE)
DIPS = torch.ones(N, T + 1, dtype=DOUBLE)
DIPS[torch.arange(N), torch.arange(N) % T] = 0  # each problem is solved at one step only
SEEDS = torch.arange(N) % 6 + 10


def judged(losses: Tensor = LOSSES, stops: Tensor = STOPS, **settings: Any) -> dict[str, Any]:
    settings = {"price": PRICE, "opponents": False} | settings
    return stopping_report(losses, stops, **settings)


def ended(decided: int, account: CostUnit) -> int:
    return decided if account is CostUnit.UPDATES else min(decided + 1, T)


both_accounts = pytest.mark.parametrize("account", CostUnit)


# --- Every figure by brute force -----------------------------------------------------------------


@both_accounts
def test_j_gain_and_regret_are_those_of_a_loop(account: CostUnit) -> None:
    report = judged(account=account)
    ends = [ended(stop, account) for stop in STOPS.tolist()]
    rule = [TABLE[i, end].item() for i, end in enumerate(ends)]
    oracle = [min(row) for row in TABLE.tolist()]
    fixed = min((sum(column) / N, t) for t, column in enumerate(zip(*TABLE.tolist(), strict=True)))
    mean_rule, mean_oracle = sum(rule) / N, sum(oracle) / N
    assert report["j"]["rule"]["value"] == pytest.approx(mean_rule)
    assert report["j"]["oracle"]["value"] == pytest.approx(mean_oracle)
    assert report["j"]["fixed"]["value"] == pytest.approx(fixed[0])
    assert report["fixed_budget"] == fixed[1]
    gain = (fixed[0] - mean_rule) / (fixed[0] - mean_oracle)
    assert report["captured_gain"]["value"] == pytest.approx(gain)
    assert report["regret"]["mean"]["value"] == pytest.approx(mean_rule - mean_oracle)
    regrets = sorted(a - b for a, b in zip(rule, oracle, strict=True))
    for entry in report["regret"]["quantiles"]:
        place = math.ceil(entry["level"] * N - 1e-9) - 1
        assert entry["value"] == pytest.approx(regrets[place])
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert report["num_problems"] == N
    assert report["num_steps"] == T


@both_accounts
def test_gains_at_other_prices(account: CostUnit) -> None:
    report = judged(account=account, prices=[0.02, 0.5])
    for entry, price in zip(report["captured_gain_by_price"], (0.02, 0.5), strict=True):
        assert entry["price"] == price
        table = (LOSSES + price * STEPS).tolist()
        rule = sum(table[i][ended(s, account)] for i, s in enumerate(STOPS.tolist())) / N
        oracle = sum(map(min, table)) / N
        fixed = min(sum(column) / N for column in zip(*table, strict=True))
        assert entry["gain"]["value"] == pytest.approx((fixed - rule) / (fixed - oracle))
    default = judged()["captured_gain_by_price"]
    assert [entry["price"] / PRICE for entry in default] == pytest.approx([0.25, 0.5, 1, 2, 4])
    assert default[2]["gain"] == pytest.approx(judged()["captured_gain"])


@both_accounts
def test_dealt_at_random_is_the_mean_over_all_deals(account: CostUnit) -> None:
    report = judged(account=account)
    ends = [ended(stop, account) for stop in STOPS.tolist()]
    dealt = sum(TABLE[i, end].item() for i in range(N) for end in ends) / N**2
    assert report["permutation"]["j"] == pytest.approx(dealt)
    skill = dealt - report["j"]["rule"]["value"]
    assert report["permutation"]["skill"]["value"] == pytest.approx(skill)


@pytest.mark.parametrize("rise", [0.0, 0.3])
def test_the_frontier_beats_every_mix_of_two_budgets(rise: float) -> None:
    """A fine grid over pairs of budgets and their shares finds nothing better."""
    losses = LOSSES + rise * (STEPS - 4).clamp_min(0)  # late steps may harm
    stops = STOPS if rise == 0 else (STOPS + 3).clamp_max(T)
    report = judged(losses, stops)["frontier"]
    loss, steps = report["mean_loss"]["value"], report["mean_steps"]["value"]
    means = losses.mean(0).tolist()
    assert report["mean_loss_by_budget"] == pytest.approx(means)
    shares = torch.linspace(0, 1, 2001, dtype=DOUBLE)
    at_steps, for_loss = math.inf, math.inf
    for a, b in itertools.combinations(range(T + 1), 2):
        mixed_steps, mixed_loss = a + shares * (b - a), means[a] + shares * (means[b] - means[a])
        if (mixed_steps <= steps).any():
            at_steps = min(at_steps, mixed_loss[mixed_steps <= steps].min().item())
        if (mixed_loss <= loss).any():
            for_loss = min(for_loss, mixed_steps[mixed_loss <= loss].min().item())
    assert report["fixed_loss_at_equal_steps"]["value"] == pytest.approx(at_steps, abs=2e-3)
    assert report["fixed_steps_for_equal_loss"]["value"] == pytest.approx(for_loss, abs=6e-3)
    assert report["saved_steps"]["value"] == pytest.approx(for_loss - steps, abs=6e-3)
    assert report["loss_below_fixed"]["value"] == pytest.approx(at_steps - loss, abs=2e-3)
    assert report["equal_loss_reached"]


def test_a_loss_no_budget_reaches_is_said() -> None:
    report = judged(DIPS, torch.arange(N) % T)
    frontier = report["frontier"]
    assert not frontier["equal_loss_reached"]
    assert frontier["fixed_steps_for_equal_loss"]["value"] == T
    assert "no fixed budget of up to 8.00 has so low a loss" in conclusion(report)
    assert "at least" in conclusion(report)


def test_budget_for_loss_inverts_randomized_budget() -> None:
    curve = torch.tensor([5.0, 4.5, 1.0, 2.0, 0.9, 0.2], dtype=DOUBLE)
    for cost in torch.linspace(0, 5, 23, dtype=DOUBLE).tolist():
        assert budget_for_loss(curve, randomized_budget(curve, cost)) == pytest.approx(cost)
    assert budget_for_loss(curve, 6.0) == 0
    assert budget_for_loss(curve, 0.1) == math.inf


@both_accounts
def test_degeneracy(account: CostUnit) -> None:
    from scipy.stats import spearmanr

    report = judged(account=account)["degeneracy"]
    ends = np.array([ended(stop, account) for stop in STOPS.tolist()])
    oracle = ORACLE.numpy()
    assert report["sd"] == pytest.approx(ends.std(ddof=1))
    assert report["oracle_sd"] == pytest.approx(oracle.std(ddof=1))
    assert report["sd_ratio"]["value"] == pytest.approx(ends.std() / oracle.std())
    assert report["rank_correlation"] == pytest.approx(spearmanr(ends, oracle).statistic)
    assert report["share_at_horizon"] == pytest.approx((ends == T).mean())
    assert report["share_at_0"] == pytest.approx((ends == 0).mean())


@both_accounts
def test_reliability_counts_what_the_oracle_reaches(account: CostUnit) -> None:
    report = judged(account=account, hazards=HAZARDS)["reliability"]
    cases: dict[int, list[tuple[int, float, bool]]] = {}
    for i in range(N):
        # The decisions 0, 1, ... and what each leads to; the last is forced.
        options = [TABLE[i, t].item() for t in range(account is CostUnit.GRADIENTS, T + 1)]
        best = options.index(min(options))
        for t in range(min(best + 1, len(options) - 1)):
            hazard = HAZARDS[i, t].item()
            cases.setdefault(int(hazard * 10), []).append((i, hazard, t == best))
    total = sum(map(len, cases.values()))
    assert report["num_cases"] == total
    assert [round(10 * entry["low"]) for entry in report["bins"]] == sorted(cases)
    error = 0.0
    for entry in report["bins"]:
        mine = cases[round(10 * entry["low"])]
        frequency = sum(event for *_, event in mine) / len(mine)
        hazard = sum(value for _, value, _ in mine) / len(mine)
        per_problem = [sum(i == j for j, *_ in mine) for i in range(N)]
        assert entry["num_cases"] == len(mine)
        assert entry["mean_hazard"] == pytest.approx(hazard)
        assert entry["frequency"]["value"] == pytest.approx(frequency)
        effective = len(mine) ** 2 / sum(m * m for m in per_problem)
        assert entry["effective_cases"] == pytest.approx(effective)
        error += len(mine) / total * abs(hazard - frequency)
    assert report["expected_calibration_error"] == pytest.approx(error)


def test_a_true_hazard_is_reliable() -> None:
    """Problems whose best step is drawn from the hazards themselves."""
    num, steps = 4000, 10
    hazards = 0.6 * torch.rand(num, steps, generator=stream(5), dtype=DOUBLE)
    draws = torch.rand(num, steps, generator=stream(6), dtype=DOUBLE) < hazards
    best = torch.where(draws.any(1), draws.int().argmax(1), steps)
    losses = torch.ones(num, steps + 1, dtype=DOUBLE)
    losses[torch.arange(num), best] = -5
    report = judged(losses, best, hazards=hazards)["reliability"]
    assert report["expected_calibration_error"] < 0.02
    for entry in report["bins"]:
        frequency = entry["frequency"]
        half = frequency["high"] - frequency["low"]
        assert abs(entry["mean_hazard"] - frequency["value"]) < half
    assert judged(losses, best, hazards=hazards**2)["reliability"][
        "expected_calibration_error"
    ] > 0.1  # fmt: skip


@both_accounts
def test_seconds_count_every_question(account: CostUnit) -> None:
    report = judged(account=account, seconds_per_step=2.0, seconds_per_decision=0.5)
    used = []
    for stop in STOPS.tolist():
        asked = len([t for t in range(T) if t <= stop])
        used.append(2.0 * ended(stop, account) + 0.5 * asked)
    mean = sum(used) / N
    seconds = report["seconds"]
    assert seconds["per_problem"]["value"] == pytest.approx(mean)
    assert seconds["saved_of_horizon"]["value"] == pytest.approx(2.0 * T - mean)
    needed = report["frontier"]["fixed_steps_for_equal_loss"]["value"]
    assert seconds["saved_of_equal_loss"]["value"] == pytest.approx(2.0 * needed - mean)


def test_seeds_are_judged_one_by_one() -> None:
    losses, stops = LOSSES.clone(), STOPS.clone()
    stops[SEEDS == 12] = 0  # worse than any sensible budget
    losses[SEEDS == 13] = math.nan
    report = judged(losses, stops, seeds=SEEDS)
    entries = {entry["seed"]: entry for entry in report["seeds"]["by_seed"]}
    assert list(entries) == [10, 11, 12, 13, 14, 15]
    gains = []
    for seed in (10, 11, 12, 14, 15):
        table, stop = TABLE[seed == SEEDS], stops[seed == SEEDS]
        rule = table.gather(1, stop[:, None]).mean().item()
        fixed, oracle = table.mean(0).min().item(), table.min(1).values.mean().item()
        assert entries[seed]["j"] == pytest.approx(rule)
        gains.append((fixed - rule) / (fixed - oracle))
        assert entries[seed]["captured_gain"] == pytest.approx(gains[-1])
    over = report["seeds"]["over_seeds"]["captured_gain"]
    assert over["mean"] == pytest.approx(np.mean(gains))
    assert over["sd"] == pytest.approx(np.std(gains, ddof=1))
    assert [entry["seed"] for entry in report["seeds"]["failures"]] == [12, 13]
    assert entries[13]["num_left_out"] == 10
    assert report["resampled"] == "seeds"
    assert "Seed 12 failed" in " ".join(warnings(report))


# --- Closed forms --------------------------------------------------------------------------------


def test_the_oracles_stops_capture_everything() -> None:
    report = judged(stops=ORACLE)
    assert report["captured_gain"] == pytest.approx({"value": 1, "low": 1, "high": 1})
    assert report["regret"]["mean"] == pytest.approx({"value": 0, "low": 0, "high": 0})
    assert report["degeneracy"]["rank_correlation"] == pytest.approx(1)
    assert report["degeneracy"]["sd_ratio"]["value"] == pytest.approx(1)


def test_the_best_fixed_budget_captures_nothing_and_has_no_skill() -> None:
    budget = int(TABLE.mean(0).argmin())
    report = judged(stops=torch.full((N,), budget))
    assert report["captured_gain"]["value"] == pytest.approx(0)
    assert report["captured_gain"]["high"] == pytest.approx(0)
    for figure in report["permutation"]["skill"].values():
        assert figure == pytest.approx(0, abs=1e-12)
    assert report["degeneracy"]["sd"] == 0
    assert report["degeneracy"]["rank_correlation"] is None
    assert any("fixed budget" in warning for warning in report["warnings"])


def test_permuted_stops_have_no_skill() -> None:
    skills = []
    for trial in range(20):
        dealt = ORACLE[torch.randperm(N, generator=stream(7, trial))]
        skill = judged(stops=dealt)["permutation"]["skill"]
        skills.append((skill["value"], skill["low"] <= 0 <= skill["high"]))
    assert abs(np.mean([value for value, _ in skills])) < 0.05
    assert sum(covered for _, covered in skills) >= 16
    assert judged(stops=ORACLE)["permutation"]["skill"]["low"] > 0


# --- Intervals -----------------------------------------------------------------------------------


def test_resamples_draw_whole_clusters() -> None:
    clusters = torch.tensor([0, 0, 1, 2, 2, 2])
    weights = torch.cat(list(resamples(6, stream(0), clusters)))
    assert weights.shape == (NUM_RESAMPLES, 6)
    assert torch.equal(weights[:, 0], weights[:, 1])
    assert torch.equal(weights[:, 3], weights[:, 5])
    assert (weights[:, [0, 2, 3]].sum(1) == 3).all()
    single = torch.cat(list(resamples(6, stream(0))))
    assert (single.sum(1) == 6).all()
    assert single.mean(0) == pytest.approx(torch.ones(6), abs=0.1)


def test_weighted_quantiles_repeat_values_as_often_as_weighed() -> None:
    values = torch.randn(9, generator=stream(0), dtype=DOUBLE)
    weights = torch.randint(0, 4, (20, 9), generator=stream(1)).double()
    levels = torch.tensor([0.1, 0.5, 0.9, 1.0], dtype=DOUBLE)
    found = weighted_quantiles(values, weights, levels)
    for row, weight in zip(found.tolist(), weights.long(), strict=True):
        repeated = sorted(values.repeat_interleave(weight).tolist())
        for value, level in zip(row, levels.tolist(), strict=True):
            assert value == repeated[math.ceil(level * len(repeated) - 1e-9) - 1]


def test_intervals_cover_what_they_should() -> None:
    """J, skill and saved steps of a population of 20,000, from samples of 150."""
    population = make_losses(20_000, seed=9)
    table = population + PRICE * STEPS
    stops = (table.argmin(1) + torch.randint(-1, 2, (20_000,), generator=stream(8))).clamp(0, T)

    def figures(report: dict[str, Any]) -> list[dict[str, float]]:
        return [
            report["j"]["rule"],
            report["permutation"]["skill"],
            report["frontier"]["saved_steps"],
            report["degeneracy"]["sd_ratio"],
            report["captured_gain"],
        ]

    truth = [figure["value"] for figure in figures(judged(population, stops))]
    covered = torch.zeros(len(truth))
    for trial in range(30):
        chosen = torch.randint(20_000, (150,), generator=stream(10, trial))
        found = figures(judged(population[chosen], stops[chosen]))
        covered += torch.tensor(
            [f["low"] <= true <= f["high"] for f, true in zip(found, truth, strict=True)]
        )
    assert (covered >= 25).all(), covered


def test_problems_of_one_seed_count_once() -> None:
    """Ten copies of every problem, told apart by seed only: no surer than the originals."""
    copies = LOSSES.repeat(10, 1), STOPS.repeat(10)
    alone = judged()["j"]["rule"]
    naive = judged(*copies)["j"]["rule"]
    clustered = judged(*copies, seeds=torch.arange(N).repeat(10))["j"]["rule"]
    width = [figure["high"] - figure["low"] for figure in (alone, naive, clustered)]
    assert width[1] < 0.5 * width[0]
    assert width[2] == pytest.approx(width[0], rel=0.1)


def test_the_same_generator_gives_the_same_report() -> None:
    first, second = (judged(opponents=True, generator=stream(3)) for _ in range(2))
    assert first == second
    assert judged() == judged()


# --- Opponents -----------------------------------------------------------------------------------


@both_accounts
def test_opponents_are_judged_where_they_were_not_tuned(account: CostUnit) -> None:
    report = judged(opponents=True, account=account)
    assert set(report["opponents"]) == {"fixed", "plateau", "patience"}
    rule = report["j"]["rule"]["value"]
    for name, entry in report["opponents"].items():
        assert entry["difference"]["value"] == pytest.approx(rule - entry["j"]["value"])
        assert entry["j"]["value"] >= report["j"]["oracle"]["value"]
        assert len(entry["settings"]) == 2, name
    assert report["opponents"]["fixed"]["j"]["value"] >= report["j"]["fixed"]["value"] - 1e-12


def test_cross_fitting_pays_for_what_hindsight_does_not() -> None:
    """Pure noise: a budget that is best on one half is no better than any on the other."""
    noise = torch.randn(40, 30, generator=stream(11), dtype=DOUBLE)
    report = judged(noise, torch.zeros(40, dtype=torch.int64), price=1e-6, opponents=True)
    assert report["opponents"]["fixed"]["j"]["value"] > report["j"]["fixed"]["value"] + 0.1


def test_opponents_see_what_is_observed() -> None:
    blind = judged(opponents=True, observed=torch.zeros_like(LOSSES))["opponents"]
    seeing = judged(opponents=True)["opponents"]
    assert blind["fixed"]["j"]["value"] == pytest.approx(seeing["fixed"]["j"]["value"])
    assert blind["patience"]["j"]["value"] > seeing["patience"]["j"]["value"]


# --- What goes wrong -----------------------------------------------------------------------------


def test_problems_that_are_not_finite_are_left_out_and_counted() -> None:
    losses, stops = LOSSES.clone(), STOPS.clone()
    losses[3, T], losses[40, 0] = math.inf, math.nan
    stops[3], stops[40] = 1, 0
    report = judged(losses, stops, hazards=HAZARDS)
    kept = torch.tensor([i for i in range(N) if i not in (3, 40)])
    same = judged(LOSSES[kept], STOPS[kept], hazards=HAZARDS[kept])
    assert report["rows_left_out"] == [3, 40]
    assert report["num_left_out"] == 2
    assert report["num_left_out_at_nonfinite_loss"] == 1
    assert "rows 3, 40" in report["warnings"][0]
    for name in ("j", "captured_gain", "reliability", "frontier"):
        assert report[name] == same[name]


@pytest.mark.parametrize(("price", "where"), [(100.0, "step 0"), (1e-9, f"all {T} steps")])
def test_a_price_that_leaves_nothing_to_decide_is_said(price: float, where: str) -> None:
    losses = torch.linspace(1, 0, T + 1, dtype=DOUBLE) * torch.linspace(1, 2, N)[:, None]
    report = judged(losses, price=price)
    assert where in report["warnings"][0]
    assert report["captured_gain"] == {"value": None, "low": None, "high": None}
    assert "undefined" in conclusion(report)
    json.dumps(report, allow_nan=False)


def test_one_seed_and_few_seeds() -> None:
    assert judged(seeds=torch.zeros(N, dtype=torch.int64))["resampled"] == "problems"
    assert "3 seeds are rough" in " ".join(judged(seeds=SEEDS % 3)["warnings"])


def nan_at(values: Tensor, row: int) -> Tensor:
    values = values.clone()
    values[row, 0] = math.nan
    return values


BAD: list[tuple[dict[str, Any], str]] = [
    ({"price": 0.0}, "price must be a finite number above 0"),
    ({"price": math.nan}, "price must be a finite number above 0"),
    ({"prices": [0.1, -1.0]}, "got -1.0"),
    ({"losses": LOSSES[0]}, r"losses must have shape \[n, T\+1\]"),
    ({"losses": LOSSES[:, :1]}, "T at least 1"),
    ({"stops": STOPS[:-1]}, r"stops must have shape \[60\]"),
    ({"stops": STOPS.double()}, "stops must be integers, got float64"),
    ({"stops": STOPS + T + 1}, "longer than the data"),
    ({"stops": STOPS - 20}, r"stops must lie in 0\.\.8"),
    ({"hazards": HAZARDS[:, :-1]}, r"hazards must have shape \[60, 8\]"),
    ({"hazards": HAZARDS * 2}, r"probabilities in \[0, 1\]"),
    ({"hazards": nan_at(HAZARDS, 2)}, r"probabilities in \[0, 1\], got nan"),
    ({"observed": HAZARDS}, "observed must have shape"),
    ({"seeds": SEEDS.double()}, "seeds must be integers"),
    ({"seeds": SEEDS[:3]}, "seeds must have shape"),
    ({"losses": LOSSES * math.nan}, "every one of the 60 problems"),
    ({"losses": LOSSES[:19], "stops": STOPS[:19]}, "at least 20 problems, got 19"),
    ({"losses": LOSSES[:0], "stops": STOPS[:0]}, "at least 20 problems, got 0"),
    ({"losses": nan_at(LOSSES[:20], 3), "stops": STOPS[:20]}, "got 19 after 1 with NaN"),
    ({"seconds_per_step": 0.0}, "seconds per step must be above 0"),
    ({"seconds_per_decision": -1.0}, "seconds per decision must be at least 0"),
    ({"seconds_per_decision": 1.0}, "need seconds per step"),
]


@pytest.mark.parametrize(("settings", "sentence"), BAD)
def test_bad_input_is_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        judged(**settings)


# --- The command ---------------------------------------------------------------------------------


@pytest.fixture
def command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """`haltwise stopping-report` in `tmp_path`: exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["haltwise", "stopping-report", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        return (code, *capsys.readouterr())

    return run


Command = Callable[..., tuple[int, str, str]]


def save(directory: Path, **arrays: Any) -> None:
    np.savez(directory / "t.npz", **arrays)


def test_the_command_writes_what_the_call_returns(command: Command, tmp_path: Path) -> None:
    arrays = {"losses": LOSSES, "stops": STOPS, "hazards": HAZARDS, "runs": SEEDS}
    save(tmp_path, **{name: value.numpy() for name, value in arrays.items()})
    code, output, errors = command(
        *("t.npz", "--price", PRICE, "--prices", "0.05,0.2", "--account", "gradients"),
        *("--seed-array", "runs", "--seconds-per-step", 0.01, "--seconds-per-decision", 0.001),
        *("--json", "out.json", "--html", "out.html"),
    )
    assert code == 0, errors
    expected = stopping_report(
        LOSSES,
        STOPS,
        price=PRICE,
        prices=[0.05, 0.2],
        account=CostUnit.GRADIENTS,
        hazards=HAZARDS,
        seeds=SEEDS,
        seconds_per_step=0.01,
        seconds_per_decision=0.001,
    )
    assert json.loads((tmp_path / "out.json").read_text()) == expected
    said = " ".join(output.split())
    assert " ".join(conclusion(expected).split()) in said
    for word in ("patience", "rank correlation", "95 % interval", "Over 6 seeds"):
        assert word in said, word
    assert (tmp_path / "out.html").stat().st_size > 100_000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.html", "out.json", "t.npz"]


@pytest.mark.parametrize(
    ("change", "arguments", "sentence"),
    [
        (None, ("missing.npz", "--price", 1), "there is no file missing.npz"),
        (None, ("t.npz",), "--price"),
        (None, ("t.npz", "--price", 0), "price must be a finite number above 0"),
        (None, ("t.npz", "--price", 1, "--prices", "1;2"), "--prices must be numbers"),
        (None, ("t.npz", "--price", 1, "--seed-array", "runs"), "has no array runs"),
        (lambda a: a.pop("stops"), ("t.npz", "--price", 1), "has no array stops"),
        (lambda a: a.update(stops=a["stops"] + 0.5), ("t.npz", "--price", 1), "stops must be int"),
        (lambda a: a.update(stops=a["stops"] + 99), ("t.npz", "--price", 1), "longer than the dat"),
        (
            lambda a: a.update(losses=np.array([{}], dtype=object)),
            ("t.npz", "--price", 1),
            "no .npz file of plain arrays",
        ),
        (
            lambda a: a.update(losses=a["losses"].astype(str)),
            ("t.npz", "--price", 1),
            "losses must be real numbers",
        ),
        (lambda a: a.update(losses=a["losses"][:9]), ("t.npz", "--price", 1), "stops must have sh"),
    ],
)
def test_the_command_refuses_bad_input_in_a_sentence(
    change: Callable[[dict[str, Any]], object] | None,
    arguments: tuple[object, ...],
    sentence: str,
    command: Command,
    tmp_path: Path,
) -> None:
    arrays: dict[str, Any] = {"losses": LOSSES.numpy(), "stops": STOPS.numpy()}
    if change is not None:
        change(arrays)
    save(tmp_path, **arrays)
    code, _, errors = command(*arguments, "--json", "out.json")
    assert code == 2
    assert sentence in errors
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04broken"])
def test_files_that_are_no_archives_are_refused(
    content: bytes, command: Command, tmp_path: Path
) -> None:
    (tmp_path / "t.npz").write_bytes(content)
    code, _, errors = command("t.npz", "--price", 1)
    assert code == 2
    assert len(errors.strip().splitlines()) == 1
    assert "numpy.savez" in errors


def test_a_single_array_is_refused(command: Command, tmp_path: Path) -> None:
    np.save(tmp_path / "t.npy", LOSSES.numpy())
    code, _, errors = command("t.npy", "--price", 1)
    assert code == 2
    assert "single array" in errors


# --- In words and on the page --------------------------------------------------------------------


def text_of(path: Path) -> str:
    page = path.read_text(encoding="utf-8")
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_words_follow_the_figures() -> None:
    good, bad = judged(opponents=True), judged(stops=T - ORACLE, opponents=True)
    assert "The stops capture" in conclusion(good)
    assert "are saved" in conclusion(good)
    assert summarize_stopping(good).verdict == "gain"
    assert "lose to the best fixed budget" in conclusion(bad)
    assert "nothing is saved" in conclusion(bad)
    assert "beaten by" in conclusion(bad)
    assert summarize_stopping(bad).verdict == "loss"
    missed = judged(DIPS, (torch.arange(N) + 1) % T)
    assert "harms" in " ".join(summarize_stopping(missed).sentences)


def test_records_show_their_stopping_reports(tmp_path: Path) -> None:
    summary: dict[str, Any] = {"optimizer": "act", "family": "f", "price": PRICE, "seed": 1}
    summary["horizon"] = T
    summary["stopping_report"] = {
        account.value: judged(account=account, hazards=HAZARDS) for account in CostUnit
    }
    save_record(Evaluation(summary, {}), tmp_path)
    text = text_of(write_report(tmp_path, tmp_path / "report.html"))
    assert "Do the stops vary as the oracle’s do?" in text
    assert "Captured gain" in text or "capture least at" in text
    for account in CostUnit:
        assert f"Counted in {account.value}, the hazard is off by" in text


def paths(tree: Any) -> list[tuple[Any, ...]]:
    """The path of every entry of nested dictionaries and lists."""
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [
        path
        for key, value in entries
        for path in (
            (key,),
            *((key, *rest) for rest in (paths(value) if isinstance(value, (dict, list)) else ())),
        )
    ]


def test_incomplete_reports_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    whole = judged(
        opponents=True, hazards=HAZARDS, seeds=SEEDS, seconds_per_step=1.0, prices=[PRICE]
    )
    fields = ("j", "captured_gain", "frontier", "regret", "degeneracy", "seconds", "seeds")
    for path in paths(whole):
        if len(path) > 2 and (path[0] not in fields or isinstance(path[1], int)):
            continue
        report = copy.deepcopy(whole)
        parent: Any = report
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = None
        words = summarize_stopping(report)
        said = " ".join([words.headline, *words.sentences, *words.warnings])
        assert not {"nan", "None"} & set(re.findall(r"\w+", said)), path
    for key in whole.keys() - {"account"}:
        partial = {name: value for name, value in whole.items() if name != key}
        write_stopping_report(partial, tmp_path / "out.html", "<script>x")
        assert "<script>x" not in (tmp_path / "out.html").read_text(encoding="utf-8")
