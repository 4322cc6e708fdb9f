"""The page: self-contained, safe against hostile names, and true to its records."""

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from evaluation_cases import NUM, STEPS, changed, make_evaluation
from in_process import haltwise
from stopping_cases import HAZARDS, judged

from haltwise import InputError
from haltwise.evaluation import Evaluation, Interval
from haltwise.evaluation.records import load_evaluations, save_evaluation
from haltwise.report import figures, tables, write_report, write_stopping_report
from haltwise.report.formats import Share, Spread, num, percent, text
from haltwise.report.page import slug
from haltwise.report.palette import label
from haltwise.report.tables import flatten, rules_table
from haltwise.report.words import summarize_evaluation
from haltwise.stop_rules import CostUnit

HOSTILE = "<script>alert(1)</script>"
GRADIENTS = CostUnit.GRADIENTS


class Page(HTMLParser):
    """Tags, visible text and the scripts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._inside = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))

    @property
    def embedded(self) -> Any:
        return json.loads(self.scripts[0])


def page_of(directory: Path, *evaluations: Evaluation) -> Page:
    for each in evaluations:
        save_evaluation(each.record, each.arrays, directory)
    return Page(write_report(directory, directory / "report.html"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    directory = tmp_path_factory.mktemp("run")
    log = [{"step": s, "loss": 9.0 / s, "price_adjusted_loss": 3.0 / s} for s in (1, 2)]
    lines = "\n".join(json.dumps(entry) for entry in log)
    (directory / "log.jsonl").write_text(lines + '\n{"step": 3, "lo', encoding="utf-8")
    return page_of(directory, make_evaluation())


def test_the_page_makes_no_request(page: Page) -> None:
    fetching = {"src", "href", "srcset", "data", "action", "poster", "background", "formaction"}
    links = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in fetching and value
    ]
    assert all(link.startswith(("#", "data:")) for link in links)
    policy = [a["content"] for t, a in page.tags if a.get("http-equiv")]
    assert "default-src 'none'" in str(policy[0])
    assert sum("plotly.js v" in script[:500] for script in page.scripts) == 1
    assert not re.search(r"@import|url\(", "".join(page.scripts[2:]))


def test_the_page_has_every_figure_and_its_numbers(page: Page) -> None:
    drawn = {a["data-figure"] for _, a in page.tags if "data-figure" in a}
    assert drawn == set(page.embedded["figures"])
    assert len(drawn) == 10  # eight of the evaluation, two of the training log
    buttons = {a["data-csv"] for _, a in page.tags if "data-csv" in a}
    assert buttons == set(page.embedded["data"])
    for data in page.embedded["data"].values():
        assert data["rows"]
        assert all(len(row) == len(data["columns"]) for row in data["rows"])
    words = re.findall(r"[A-Za-z]+", page.text)
    assert not {"nan", "NaN", "None", "inf", "Infinity", "Undefined"} & set(words)


def test_tables_hold_the_figures_of_the_record() -> None:
    stopping = make_evaluation().record.stopping[GRADIENTS]
    table = rules_table(stopping)
    data = table.data
    for row in data["rows"]:
        values = dict(zip(data["columns"], row, strict=True))
        (name,) = (key for key in stopping.rules if label(key) == values["stop rule"])
        found = stopping.rules[name]
        assert values["J"] == found.j.value
        assert values["cost"] == found.mean_cost
        assert values["cost, sd"] == found.sd_cost
        if name not in ("fixed", "oracle"):
            assert values["captured gain, low"] == found.gain.low
    assert table.rows[table.strong or 0][0] == "learned rule"
    texts = table.texts
    assert [row[1] for row in texts] == [num(row[1]) for row in data["rows"]]


def test_parts_of_j_add_up_and_the_ranking_is_true() -> None:
    stopping = make_evaluation().record.stopping[CostUnit.UPDATES]
    panel = figures.parts_of_j(stopping)
    parts: dict[str, float] = {}
    for _, value, name in panel.plot.data["rows"]:
        parts[name] = parts.get(name, 0) + value
    assert parts["learned rule"] == pytest.approx(stopping.stops.j.value)
    assert "the lowest of 3 rules" in panel.title
    worse = replace(stopping, judged="logistic")
    assert "place 3 of 3; the lowest is" in figures.parts_of_j(worse).title


def test_titles_stay_true_beside_all_that_is_drawn() -> None:
    evaluation = make_evaluation()
    losses = figures.losses(evaluation.record)
    assert "Of 2 optimizers that take a gradient a step, act has the lowest" in losses.title
    assert "L-BFGS, with a line search, comes lower still" in losses.title
    behind = changed(evaluation, lbfgs=[9.0, 8.0, 7.0])
    assert "L-BFGS" not in figures.losses(behind.record).title
    record = evaluation.record
    curves = {"act": record.curves["adam"], "adam": record.curves["act"]}
    second = figures.losses(changed(evaluation, curves=curves).record).title
    assert "adam has the lowest" in second
    assert "; act has" in second
    frontier = figures.frontier(record.stopping[GRADIENTS])
    needed = record.stopping[GRADIENTS].frontier.cost_for_equal_excess
    assert num(needed) in frontier.title or "no fixed budget" in frontier.title
    assert "full horizon" not in " ".join(summarize_evaluation(record).sentences)


def test_the_frontier_holds_the_point_of_the_rule_itself(tmp_path: Path) -> None:
    """A learned iterate is returned at the rule's own threshold and at all others."""
    options = ["--num-problems", 64, "--horizon", 12, "--baseline", "none"]
    assert haltwise("evaluate", "regression-2d", *options, cwd=tmp_path).returncode == 0
    ((record, _),) = load_evaluations(tmp_path / "runs" / "regression-2d")
    stopping = record.stopping[GRADIENTS]
    cost, excess = stopping.stops.mean_cost, stopping.stops.mean_excess
    nearest = min(stopping.frontier.settings, key=lambda point: abs(point[0] - cost))
    assert nearest[0] == pytest.approx(cost, abs=0.5)
    assert nearest[1] < 2 * excess
    assert nearest[1] > 0.5 * excess


@pytest.mark.parametrize("where", ["optimizer", "family", "curve", "other", "rule"])
def test_hostile_names_stay_text(where: str, tmp_path: Path) -> None:
    evaluation = make_evaluation(HOSTILE if where == "optimizer" else "act")
    record = evaluation.record
    stopping = record.stopping[GRADIENTS]
    if where == "family":
        evaluation = changed(evaluation, family=HOSTILE)
    elif where == "curve":
        evaluation = changed(evaluation, curves={**record.curves, HOSTILE: record.curves["adam"]})
    elif where == "other":
        evaluation = changed(evaluation, others={HOSTILE: record.stopping})
    elif where == "rule":
        rules = {**stopping.rules, HOSTILE: stopping.rules["logistic"]}
        both = {**record.stopping, GRADIENTS: replace(stopping, rules=rules)}
        evaluation = changed(evaluation, stopping=both)
    page = page_of(tmp_path, evaluation)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert page.embedded  # the JSON was not ended early
    assert HOSTILE not in (tmp_path / "report.html").read_text(encoding="utf-8")
    legends = [
        str(trace.get("name"))
        for figure in page.embedded["figures"].values()
        for trace in figure["data"]
    ]
    assert not any("<" in name for name in legends)  # plotly reads names as HTML
    assert HOSTILE in page.text


def test_words_of_an_evaluation() -> None:
    words = summarize_evaluation(make_evaluation().record)
    sentences = " ".join(words.sentences)
    assert words.verdict == "gain"
    assert words.headline.startswith("The stops capture")
    assert "They beat the best of 2 rules tuned on other problems, gradient norm" in sentences
    assert "150 gradient evaluations in 0.500 s; the best fixed budget takes 200" in sentences
    assert f"{NUM} halted by themselves" in sentences
    assert [tile.name for tile in words.tiles][:2] == [
        "captured gain, in gradients",
        "gradients saved at equal loss",
    ]


def test_warnings_name_what_is_wrong() -> None:
    evaluation = make_evaluation()
    record = evaluation.record
    adam = replace(record.curves["adam"], at_edge=True, num_nonfinite=2)
    stopping = replace(record.stopping[GRADIENTS], num_left_out=3)
    evaluation = changed(
        evaluation,
        curves={**record.curves, "adam": adam},
        stopping={**record.stopping, GRADIENTS: stopping},
    )
    warnings = " ".join(summarize_evaluation(evaluation.record).warnings)
    assert "3 problems met" in warnings
    assert "adam lies at the edge" in warnings
    assert "adam on 2 problems" in warnings


def test_what_other_optimizers_need_for_equal_loss() -> None:
    """The thesis' first objective: less computation than without stopping, for equal loss."""
    record = make_evaluation().record
    stops, mean = record.stopping[GRADIENTS].stops, record.curves["adam"].mean
    (row,) = (row for row in tables.optimizers_table(record).rows if row[0] == "adam")
    low = int(stops.mean_cost)
    share = stops.mean_cost - low
    assert row[2] == pytest.approx((1 - share) * mean[low] + share * mean[low + 1])
    assert row[3] == next((t for t in range(STEPS + 1) if mean[t] <= stops.mean_excess), None)
    assert row[5] == pytest.approx(sum(mean[1:]))


def test_numbers_that_are_not_finite_leave_gaps(tmp_path: Path) -> None:
    evaluation = make_evaluation()
    curve = evaluation.record.curves["adam"]
    curve = replace(curve, mean=[math.nan, *curve.mean[1:]], high=[math.inf] * (STEPS + 1))
    curves = {**evaluation.record.curves, "adam": curve}
    page = page_of(tmp_path, changed(evaluation, curves=curves))
    traces = [t for f in page.embedded["figures"].values() for t in f["data"]]
    (adam,) = (t for t in traces if t.get("name") == "adam" and t["mode"] == "lines")
    assert adam["y"][0] is None
    assert adam["y"][1] is not None


def test_several_evaluations_on_one_page(tmp_path: Path) -> None:
    other = changed(make_evaluation(family="diabetes"), price=0.0101)
    page = page_of(tmp_path, make_evaluation(), other)
    assert "2 evaluations" in page.text
    anchors = {a["href"] for t, a in page.tags if t == "a"}
    places = {f"#{a['id']}" for t, a in page.tags if t == "section" and "id" in a}
    assert anchors == {"#evaluation-1", "#evaluation-2"} <= places
    assert sum("plotly.js v" in script[:500] for script in page.scripts) == 1


def test_a_study_is_shown_beside_the_evaluations(tmp_path: Path) -> None:
    found = make_evaluation()
    save_evaluation(found.record, found.arrays, tmp_path)
    options = ["--seeds", 2, "--num-problems", 32, "--horizon", 6, "--json", "study.json"]
    assert haltwise("study", "regression-2d", *options, cwd=tmp_path).returncode == 0
    done = haltwise("report", tmp_path, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = Page(tmp_path / "report.html")
    assert "regression-2d on regression-2d: captured gain, counted in updates" in page.text
    assert "of 2 seeds failed" in page.text


def test_an_empty_directory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        write_report(tmp_path, tmp_path / "report.html")


def test_an_unreadable_card_is_said_not_raised(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"broken")
    assert "unreadable" in page_of(tmp_path, make_evaluation()).text


def test_the_page_of_a_stopping_report(tmp_path: Path) -> None:
    record = judged(hazards=HAZARDS, baselines=True)
    page = Page(write_stopping_report(record, tmp_path / "x.html", HOSTILE))
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert HOSTILE in page.text
    assert "the hazard is off by" in page.text
    assert "given stops" in page.text
    assert len(page.embedded["figures"]) == 3


def test_training_needs_two_points() -> None:
    assert figures.training([]) == []
    assert (
        figures.training([{"step": 1, "loss": None}, {"step": 2}, {"step": 3, "loss": 1.0}]) == []
    )
    log = [{"step": s, "price_adjusted_loss": v} for s, v in ((1, 2.0), (2, 1.5), (3, 5.0))]
    (panel,) = figures.training(log)
    assert "from 2.00 to 5.00; its lowest is 1.50, at meta-step 2" in panel.title


def test_the_posterior_that_is_drawn_is_the_record() -> None:
    evaluation = make_evaluation()
    panel = figures.posterior(evaluation.record, evaluation.arrays)
    assert panel is not None
    rows = [row for row in panel.plot.data["rows"] if str(row[0]).startswith("row ")]
    sums = torch.zeros(NUM, dtype=torch.float64)
    for name, _, value in rows:
        sums[int(name.removeprefix("row ")) - 1] += value
    assert sums == pytest.approx(torch.ones(NUM), abs=1e-4)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"), (0.0, "0"), (0.0527, "0.0527"), (11.2019, "11.2"), (999.7, "1,000"),
        (8984.0, "8,984"), (-0.5, "−0.500"), (2.2e-30, "2.2e−30"), (123.4, "123"), (1e9, "1.0e+09"),
        (math.nan, "–"), (7, "7"), (12345, "12,345"), ("x", "x"), (Share(0.5), "50\u202f%"),
        (Interval(0.5, 0.25, 0.75), "0.500 [0.250, 0.750]"), (Spread(1.0, 2.0), "1.00 ± 2.00"),
        (Interval(math.nan, math.nan, math.nan), "–"), (Spread(math.nan, 0.0), "–"),
    ],
)  # fmt: skip
def test_cells(value: Any, shown: str) -> None:
    assert text(value) == shown


@pytest.mark.parametrize(
    ("value", "shown"), [(0.86, "86"), (0.998, "99.8"), (-0.004, "−0.4"), (1.0, "100"), (0.0, "0")]
)
def test_percent_never_rounds_to_none_or_all(value: float, shown: str) -> None:
    assert percent(value) == f"{shown}\N{NARROW NO-BREAK SPACE}%"


def test_small_helpers() -> None:
    assert slug(f"{HOSTILE}../../etc") == "script-alert-1-script-..-..-etc"
    assert flatten({"a": {"b": [1, 2.5], "c": {}}, "d": None}) == [
        ("a.b", "1, 2.5"),
        ("a.c", "–"),
        ("d", "–"),
    ]
