"""The report: self-contained, safe against hostile names, and true to its records."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from reported_runs import (
    HORIZON,
    NAME,
    PRICE,
    judged_stops,
    small_evaluation,
    small_study,
    write_run,
)

from haltwise import InputError
from haltwise._core.json import to_json
from haltwise.evaluation import Evaluation, Interval, StoppingRecord
from haltwise.evaluation.records import STUDY, HeldOutRecord
from haltwise.report import write_report, write_stopping_report
from haltwise.report.figures import frontier, loss_curves, reliability, training
from haltwise.report.formats import facts, joined, num, percent, short, slug
from haltwise.report.page import Column, Table
from haltwise.report.stopping import headline, sentences, verdict
from haltwise.stop_rules import BASELINES, CostUnit

GRADIENTS = CostUnit.GRADIENTS
HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "link", "circle", "path"}


class Page(HTMLParser):
    """Tags, visible text and scripts of a page; elements must be closed in order."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.size = path.stat().st_size
        self.feed(path.read_text(encoding="utf-8"))
        assert self._open == []
        self.text = re.sub(r"[ \n]+", " ", " ".join(self.words))
        self.embedded: Any = json.loads(self.scripts[0])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self._open.pop() == tag, self.getpos()

    def handle_data(self, data: str) -> None:
        if self._open[-1:] == ["script"]:
            self.scripts[-1] += data
        elif self._open[-1:] != ["style"]:
            self.words.append(data)

    def values(self, attribute: str) -> list[str]:
        """Every value of an attribute."""
        return [value for _, each in self.tags if (value := each.get(attribute))]

    def column(self, table: str, name: str) -> list[Any]:
        """A column of what is downloaded of a table."""
        found = next(each for key, each in self.embedded["tables"].items() if table in key)
        return [row[found["columns"].index(name)] for row in found["rows"]]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = write_run(tmp_path_factory.mktemp("pages") / "my-run")
    (run / STUDY).write_text(json.dumps(to_json(small_study())), encoding="utf-8")
    return Page(write_report(run, run / "report.html"))


def page_of(evaluation: Evaluation, directory: Path) -> Page:
    run = write_run(directory / "run", evaluation)
    return Page(write_report(run, run / "report.html"))


def changed(**changes: Any) -> Evaluation:
    evaluation = small_evaluation()
    return Evaluation(replace(evaluation.record, **changes), evaluation.arrays)


def judged(**changes: Any) -> StoppingRecord:
    """The evaluation's record in gradients with other figures of the stops judged."""
    record = small_evaluation().record.stopping[GRADIENTS]
    return replace(record, rules=record.rules | {"learned": replace(record.stops, **changes)})


# ------------------------------------------------------------------------------------ the page


def test_page_makes_no_request(page: Page) -> None:
    links = [
        link for name in ("src", "href", "action", "data", "poster") for link in page.values(name)
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = [each["content"] for _, each in page.tags if each.get("http-equiv")]
    assert "default-src 'none'" in str(policy[0])
    assert not re.search(
        r"@import|fetch\(|import\(|XMLHttp|https?://(?!www\.w3\.org/2000/svg)", page.scripts[1]
    )


def test_pages_are_small(page: Page) -> None:
    assert page.size < 200_000


def test_page_can_be_used_without_seeing_or_pointing(page: Page) -> None:
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    assert set(page.values("aria-labelledby")) <= set(ids)
    assert {link[1:] for link in page.values("href") if link[0] == "#"} <= set(ids)
    for tag, attributes in page.tags:
        classes = (attributes.get("class") or "").split()
        if tag == "button" or "canvas" in classes or "scroll" in classes:
            assert attributes.get("aria-label"), attributes
        if "scroll" in classes:
            assert attributes["tabindex"] == "0"
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    assert ("html", {"lang": "en"}) in page.tags


def test_every_figure_and_table_has_data(page: Page) -> None:
    assert set(page.values("data-figure")) == set(page.embedded["figures"])
    assert len(page.embedded["figures"]) == 5  # four of the evaluation, one of the training log
    drawn = page.embedded["figures"] | page.embedded["tables"]
    assert set(page.values("data-csv")) == set(drawn)
    for figure in page.embedded["figures"].values():
        series = [each for panel in figure["panels"] for each in panel["series"]]
        assert series
        assert all(len(each["x"]) == len(each["y"]) > 0 for each in series)
    for table in page.embedded["tables"].values():
        assert table["rows"]
        assert all(len(row) == len(table["columns"]) for row in table["rows"])


def test_rules_are_shown_as_recorded(page: Page) -> None:
    for unit, record in small_evaluation().record.stopping.items():
        table = f"rules-{unit.value}"
        names = page.column(table, "stop rule")
        assert names[0] == "learned"
        assert set(names) == set(record.rules)
        for row, name in enumerate(names):
            stops = record.rules[name]
            shown: dict[str, float | None] = {
                "J": stops.j.value,
                "J (low)": stops.j.low,
                "captured gain": stops.gain.value,
            }
            gain_high = None if name in ("fixed", "oracle") else stops.gain.high
            shown |= {"captured gain (high)": gain_high, "cost": stops.mean_cost}
            shown |= {"excess at the stop": stops.mean_excess}
            shown |= {"at the horizon": stops.share_at_horizon}
            found = [page.column(table, column)[row] for column in shown]
            assert found == [
                None if value is None else pytest.approx(value, rel=1e-5)
                for value in shown.values()
            ]
            assert f"{num(stops.j.value)} [{num(stops.j.low)}, {num(stops.j.high)}]" in page.text


def test_key_figures_come_first(page: Page) -> None:
    record = small_evaluation().record.stopping[GRADIENTS]
    first = page.text[: page.text.index("Stop rules")]
    for share in (record.stops.gain, record.frontier.saved):
        assert percent(share.value) in first
    best = min((record.rules[name] for name in BASELINES), key=lambda stops: stops.j.value)
    assert percent(best.gain.value) in first
    assert f"best fixed budget, {record.fixed_budget}" in first
    assert f"{small_evaluation().record.execution.num_gradients:,} gradients" in first


def test_optimizers_are_shown_as_recorded(page: Page) -> None:
    record = small_evaluation().record
    assert page.column("optimizers", "optimizer") == list(record.curves)
    sums = page.column("optimizers", f"sum of mean excess, steps 1 to {HORIZON}")
    expected = [sum(curve.mean[1:]) for curve in record.curves.values()]
    assert sums == pytest.approx(expected, rel=1e-5)
    other = record.others["regression-2d-mode"][GRADIENTS].stops.j.value
    j = page.column("optimizers", "J of its own stops")
    assert j[:2] == pytest.approx([record.stopping[GRADIENTS].stops.j.value, other], rel=1e-5)
    assert j[2:] == [None] * 5  # they never stop


def test_study_is_shown_as_recorded(page: Page) -> None:
    study, tables = small_study(), page.embedded["tables"]
    for cell in study.cells:
        table = tables[f"study-margins-{cell.unit.value}"]
        values = dict(zip(table["columns"], table["rows"][0], strict=True))
        own, best = cell.rules[cell.judged], cell.rules[cell.best_baseline]
        assert values["J"] == pytest.approx(sum(own.j) / 2, rel=1e-5)
        more = values["its J above that (low)"]
        assert more == pytest.approx(best.difference.low, rel=1e-5)
        assert values["seeds failed"] == len(cell.failures)
    failures = sum(len(cell.failures) for cell in study.cells)
    assert f"in {4 - failures} of 4 trials" in page.text


def test_card_and_training_are_shown(page: Page) -> None:
    assert "my-run moves parameters by lstm and learned by stick-breaking" in page.text
    assert "Training took 300 meta-steps" in page.text
    assert "went from 0.0300 to 0.0100" in page.text
    assert "method.name" in page.text
    assert "nan" not in re.findall(r"\w+", page.text.lower())


def test_directories_without_evaluations_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="haltwise evaluate"):
        write_report(tmp_path, tmp_path / "report.html")


@pytest.mark.parametrize("what", ["curves", "cells"])
def test_records_that_do_not_fit_together_are_refused(what: str, tmp_path: Path) -> None:
    kept = {} if what == "curves" else small_evaluation().record.curves
    write_run(tmp_path, changed(curves=kept))
    if what == "cells":
        (tmp_path / STUDY).write_text(json.dumps({**to_json(small_study()), "cells": []}))
    with pytest.raises(InputError, match="do not fit together"):
        write_report(tmp_path, tmp_path / "report.html")


@pytest.mark.parametrize("where", ["optimizer", "family", "curve", "rule", "setting"])
def test_hostile_names_stay_text(where: str, tmp_path: Path) -> None:
    record = small_evaluation().record
    stopping = record.stopping[GRADIENTS]
    rules = stopping.rules | {HOSTILE: stopping.rules["patience"]}
    curves = record.curves | {HOSTILE: record.curves["adam"]}
    changes: dict[str, dict[str, Any]] = {
        "optimizer": {"optimizer": HOSTILE},
        "family": {"family": HOSTILE},
        "curve": {"curves": curves},
        "rule": {"stopping": record.stopping | {GRADIENTS: replace(stopping, rules=rules)}},
        "setting": {"family_settings": {HOSTILE: HOSTILE}},
    }
    page = page_of(changed(**changes[where]), tmp_path)
    assert len(page.scripts) == 2
    assert HOSTILE not in (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "alert(1)" in page.text


def test_paths_are_shortened_to_names(tmp_path: Path) -> None:
    own = "/home/someone/work/mine.py:Mine"
    settings = {"images": "/data/secret/mnist", "ratio": "1/2"}
    page = page_of(
        changed(optimizer="/runs/secret/x", family=own, family_settings=settings), tmp_path
    )
    assert "x on mine.py:Mine" in page.text
    assert "1/2" in page.text
    assert not re.search(r"/home|secret", json.dumps(page.embedded) + page.text)


@pytest.mark.parametrize("accuracy", [0.75, math.nan])
def test_networks_without_classes_have_no_accuracy(accuracy: float, tmp_path: Path) -> None:
    record, seen = small_evaluation().record, HeldOutRecord(0.25, 0.1, accuracy, 0.0)
    evaluation = changed(
        execution=replace(record.execution, held_out=seen),
        curves={name: replace(curve, held_out=seen) for name, curve in record.curves.items()},
    )
    text = page_of(evaluation, tmp_path).text
    assert "come to a loss of 0.25" in text
    assert ("accuracy of 75" in text) == ("test accuracy" in text) == (accuracy == 0.75)


def test_missing_numbers_are_dashes(tmp_path: Path) -> None:
    nowhere = Interval(math.nan, math.nan, math.nan)
    record = judged(gain=nowhere, rank_correlation=math.nan, sd_cost=math.nan)
    stopping = {unit: replace(record, unit=unit) for unit in CostUnit}
    page = page_of(changed(stopping=stopping), tmp_path)
    assert "nothing can be gained" in page.text
    assert not {"nan", "None", "inf"} & set(re.findall(r"\w+", page.text))


# --------------------------------------------------------------------------- words and figures


@pytest.mark.parametrize(
    ("low", "colour", "said"),
    [
        (0.7, "gain", "captures 80"),
        (-0.9, "loss", "is better"),
        (-0.1, "unclear", "cannot be told"),
    ],
)
def test_headline_follows_the_interval(low: float, colour: str, said: str) -> None:
    record = judged(gain=Interval(low + 0.1, low, low + 0.2))
    assert verdict(record) == colour
    assert said in headline(record)


@pytest.mark.parametrize(
    ("low", "said"),
    [
        (0.2, "25 % [20, 30] are saved"),
        (-0.3, "take 25 % [20, 30] more"),
        (-0.05, "it is not sure"),
    ],
)
def test_savings_are_against_budgets_of_equal_excess(low: float, said: str) -> None:
    record = judged(mean_excess=1.0)
    budgets = replace(record.frontier, saved=Interval(low + 0.05, low, low + 0.1))
    text = " ".join(sentences(replace(record, frontier=budgets)))
    assert said in text.replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert f"budgets mixed at random need {num(budgets.cost_for_equal_excess)} gradients" in text
    never = replace(budgets, mean_excess=[100.0] * (HORIZON + 1))
    text = " ".join(sentences(replace(record, frontier=never)))
    best = record.fixed_budget
    assert f"no fixed budget of up to {HORIZON} comes so low. They take " in text
    share = percent(abs(1 - record.stops.mean_cost / best))
    more = "less" if record.stops.mean_cost <= best else "more"
    assert f"{share} {more} than the best, {best}, which leaves 100." in text


@pytest.mark.parametrize(
    ("low", "said"),
    [(0.5, "They beat"), (-1.5, "They are beaten by"), (-0.5, "They cannot be told")],
)
def test_the_best_baseline_is_named(low: float, said: str) -> None:
    record = small_evaluation().record.stopping[GRADIENTS]
    more = Interval(low + 0.5, low, low + 1)
    best = replace(record.rules["patience"], j=Interval(0, 0, 0), difference=more)
    text = " ".join(sentences(replace(record, rules=record.rules | {"patience": best})))
    assert re.search(f"{said}.* patience, the best of 4", text)


def test_frontier_agrees_with_its_own_point() -> None:
    record = small_evaluation().record.stopping[GRADIENTS]
    (panel,) = frontier(record, "x").drawing.panels
    drawn = {series.name: series for series in panel.series}
    settings = drawn["learned rule, other settings"]
    assert list(zip(settings.x, settings.y, strict=True)) == [
        pytest.approx(point, rel=1e-5) for point in record.frontier.settings
    ]
    assert drawn["fixed budgets"].y == pytest.approx(record.frontier.mean_excess, rel=1e-5)
    own, stops = drawn["learned rule"], record.stops
    assert (*own.x, *own.y) == pytest.approx((stops.mean_cost, stops.mean_excess), rel=1e-5)


@pytest.mark.parametrize(("factor", "side"), [(0.5, " below the"), (2.0, " not below the")])
def test_frontier_title_compares_with_mixed_budgets(factor: float, side: str) -> None:
    record = small_evaluation().record.stopping[GRADIENTS]
    cost, budgets = 3, record.frontier
    assert cost in budgets.hull
    theirs = budgets.mean_excess[cost]
    figure = frontier(judged(mean_cost=float(cost), mean_excess=factor * theirs), "x")
    assert f"{side} {num(theirs)} of fixed budgets" in figure.title


def test_loss_title_is_true_beside_every_curve() -> None:
    record = small_evaluation().record
    better = [*record.lbfgs[:-1], 1e-30]
    assert "1.0e−30, by L-BFGS" in loss_curves(replace(record, lbfgs=better), "x").title
    own = replace(record.curves[NAME], mean=[*record.curves[NAME].mean[:-1], 1e-31])
    alone = replace(record, lbfgs=better, curves=record.curves | {NAME: own})
    assert "1.0e−31, the lowest of 8 optimizers" in loss_curves(alone, "x").title


def test_reliability_is_drawn_where_there_are_hazards() -> None:
    record = judged_stops()
    figure = reliability(record, "x")
    assert figure is not None
    assert record.reliability is not None
    assert list(figure.drawing.panels[0].series[1].y) == [
        pytest.approx(each.frequency.value, rel=1e-5) for each in record.reliability.bins
    ]
    assert num(record.reliability.error) in figure.title
    assert reliability(replace(record, reliability=None), "x") is None


def test_training_needs_a_log() -> None:
    assert training([]) is None
    assert training([{"step": 1, "loss": 1.0}]) is None
    rising = training([{"step": n, "price_adjusted_loss": n / 8} for n in (2, 1, 3)])
    assert rising is not None
    assert rising.title.endswith("went from 0.250 to 0.375, its lowest was 0.125")


def test_warnings_name_what_is_wrong(tmp_path: Path) -> None:
    record = small_evaluation().record
    adam = replace(record.curves["adam"], at_edge=True, num_nonfinite=2)
    stopping = {unit: replace(each, num_left_out=3) for unit, each in record.stopping.items()}
    text = page_of(changed(curves=record.curves | {"adam": adam}, stopping=stopping), tmp_path).text
    assert "Left out: 3 problems that did not stay finite" in text
    assert "learning rate of adam" in text
    assert "adam on 2 problems" in text


def test_stops_of_others_have_a_page(tmp_path: Path) -> None:
    record = judged_stops()
    page = Page(write_stopping_report(record, tmp_path / "stops.html", f"mine {HOSTILE}"))
    assert len(page.scripts) == 2
    assert f"price {PRICE} per step, counted in updates" in page.text
    assert percent(record.stops.gain.value) in page.text
    assert page.column("rules", "stop rule")[0] == "given"
    assert page.column("rules", "J")[0] == pytest.approx(record.stops.j.value, rel=1e-5)
    assert len(page.embedded["figures"]) == 2
    assert "the best of 3 baselines" in page.text  # without gradients: two rules and a budget


# ------------------------------------------------------------------------------------- formats


def test_an_interval_takes_three_columns() -> None:
    rows: list[list[Any]] = [["a", Interval(1.0, 0.5, math.inf)], ["b", None]]
    table = Table("x", "x", [Column("name", str), Column("J", None)], rows)
    assert table.embedded() == {
        "columns": ["name", "J", "J (low)", "J (high)"],
        "rows": [["a", 1.0, 0.5, None], ["b", None, None, None]],
    }
    assert (table.headings, table.cells) == (["name"], [["a"], ["b"]])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.nan, "–"), (0.0, "0"), (0.0527, "0.0527"), (11.2019, "11.2"), (999.7, "1,000"),
        (8984.0, "8,984"), (-0.5, "−0.500"), (2.2e-30, "2.2e−30"), (123.4, "123"), (1e9, "1.0e+09"),
    ],
)  # fmt: skip
def test_num(value: float, text: str) -> None:
    assert num(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.86, "86"), (0.998, "99.8"), (-0.004, "−0.4"), (1.0, "100"), (0.0, "0")]
)
def test_percent_never_rounds_to_none_or_all(value: float, text: str) -> None:
    assert percent(value) == f"{text}\N{NARROW NO-BREAK SPACE}%"


def test_names_and_facts() -> None:
    assert slug(f"{HOSTILE}../../etc") == "script-alert-1-script-..-..-etc"
    assert short("python /a/b/c.py --x=/d/e runs/f and/or") == "python c.py --x=e runs/f and/or"
    assert (joined(["a"]), joined(["a", "b", "c"])) == ("a", "a, b and c")
    tree = {"a": {"b": [1, 2.5], "c": []}, "d": None, "e": "/x/y"}
    assert facts(tree) == [("a.b", "1, 2.5"), ("a.c", "–"), ("d", "–"), ("e", "y")]


def test_a_table_without_rows_is_downloaded_with_its_headings() -> None:
    """That of a question to which no rule that was run has an answer."""
    table = Table("none", "None", [Column("rule", str), Column("gain")], [])
    assert table.embedded() == {"columns": ["rule", "gain"], "rows": []}
