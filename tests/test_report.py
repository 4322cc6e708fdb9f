"""The page: self-contained, safe against hostile names, and true to its records."""

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from haltwise.stop_rules.accounts import costs

from haltwise import InputError
from haltwise.evaluation import Evaluation
from haltwise.evaluation.records import save_record
from haltwise.evaluation.statistics import rank_correlation
from haltwise.report import write_report
from haltwise.report.figures import record_panels, training
from haltwise.report.formats import num, percent
from haltwise.report.page import slug, to_json
from haltwise.report.reading import Range, paired_difference
from haltwise.report.tables import flatten, rules_table
from haltwise.report.words import first_objective, summarize

PRICE, STEPS, NUM = 0.1, 6, 40
HOSTILE = "<script>alert(1)</script>"
RULES = ("rule", "gradient_norm", "logistic")


def make_record(name: str = "act", family: str = "regression-2d") -> Evaluation:
    """A record that is small and consistent: every figure follows from its arrays."""
    generator = torch.Generator().manual_seed(3)
    scale = torch.rand(NUM, 1, generator=generator) * 20 + 1
    excess = scale * 0.4 ** torch.arange(STEPS + 1)
    table = excess.double() + PRICE * torch.arange(STEPS + 1)
    best = table.min(1)
    ends = {
        "rule": best.indices,
        "gradient_norm": (best.indices + 1).clamp_max(STEPS),
        "logistic": (best.indices - 2).clamp_min(0),
    }
    increments = torch.rand(NUM, STEPS, 2, generator=generator) - 0.4
    fixed = table.mean(0).min(0)

    def mean(values: torch.Tensor, end: torch.Tensor) -> float:
        return values.double().gather(1, end.unsqueeze(1)).mean().item()

    def gain(end: torch.Tensor) -> dict[str, float]:
        value = (fixed.values.item() - mean(table, end)) / (
            fixed.values.item() - best.values.mean().item()
        )
        return {"value": value, "low": value - 0.05, "high": value + 0.05}

    accounts = ("updates", "gradients")
    steps = {
        rule: {
            "mean": end.double().mean().item(),
            "sd": end.double().std().item(),
            "excess_at_stop": mean(excess, end),
            "share_at_horizon": 0.0,
        }
        for rule, end in {**ends, "oracle": best.indices}.items()
    }
    j = {rule: mean(table, end) for rule, end in ends.items()}
    j |= {"oracle": best.values.mean().item(), "fixed": fixed.values.item()}
    gains = {rule: gain(end) for rule, end in ends.items()}
    summary: dict[str, Any] = {
        "family": family,
        "family_settings": {"num_params": 2},
        "optimizer": name,
        "price": PRICE,
        "seed": 7,
        "num_problems": NUM,
        "horizon": STEPS,
        "num_nonfinite": 0,
        "fixed_budget": int(fixed.indices),
        "j": {key: dict(j) for key in accounts},
        "captured_gain": dict.fromkeys(accounts, gains["rule"]),
        "captured_gain_by_rule": {key: copy.deepcopy(gains) for key in accounts},
        "steps": {key: copy.deepcopy(steps) for key in accounts},
        "permuted_j": dict.fromkeys(accounts, j["rule"] + 0.5),
        "frontier": {
            "hull": list(range(STEPS + 1)),
            "rule": [
                {"shift": 0.0, "mean_steps": 3.0, "mean_excess": 0.5, "fixed_at_same_steps": 0.9}
            ],
        },
        "executed": {
            "gradient_evaluations": 150,
            "gradient_evaluations_of_the_full_horizon": NUM * STEPS,
            "outcomes": {"halted": NUM, "out_of_steps": 0, "nonfinite": 0},
            "seconds": 0.5,
            "seconds_of_the_full_horizon": 1.0,
        },
        "tuned_optimizers": {"adam": {"learning_rate": 0.1, "at_edge_of_grid": False}},
        "comparisons": {},
        "curves": {
            key: {"mean": excess.double().mean(0).tolist(), "median": [1.0] * (STEPS + 1)}
            for key in (name, "adam")
        },
        "lbfgs": {"num_problems": 8, "mean_by_gradient_evaluations": [9.0, 1.0, 1e-30, None]},
    }
    arrays = {"excess": excess, "increments": increments, "oracle": best.indices}
    for key in accounts:
        for rule, end in ends.items():
            arrays[f"end.{key}.{rule}"] = end
            arrays[f"j.{key}.{rule}"] = costs(excess, 0.1).gather(1, end.unsqueeze(1)).squeeze(1)
    return Evaluation(summary, arrays)


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


def page_of(directory: Path, *records: Evaluation) -> Page:
    for record in records:
        save_record(record, directory)
    return Page(write_report(directory, directory / "report.html"))


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    directory = tmp_path_factory.mktemp("run")
    log = [{"step": s, "loss": 9.0 / s, "price_adjusted_loss": 3.0 / s} for s in (1, 2)]
    text = "\n".join(json.dumps(entry) for entry in log)
    (directory / "log.jsonl").write_text(text + '\n{"step": 3, "lo', encoding="utf-8")
    return page_of(directory, make_record())


def test_page_makes_no_request(page: Page) -> None:
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


def test_page_has_every_figure_and_its_numbers(page: Page) -> None:
    figures = {a["data-figure"] for _, a in page.tags if "data-figure" in a}
    assert figures == set(page.embedded["figures"])
    assert len(figures) == 7  # six of the record, one of the training log
    buttons = {a["data-csv"] for _, a in page.tags if "data-csv" in a}
    assert buttons == set(page.embedded["data"])
    for data in page.embedded["data"].values():
        assert data["rows"]
        assert all(len(row) == len(data["columns"]) for row in data["rows"])


def test_page_shows_no_nan(page: Page) -> None:
    words = re.findall(r"[A-Za-z]+", page.text)
    assert not {"nan", "NaN", "None", "inf", "Infinity", "Undefined"} & set(words)


def test_csv_equals_the_summary() -> None:
    record = make_record()
    data = rules_table(record, "x").data
    for row in data.rows:
        values = dict(zip(data.columns, row, strict=True))
        rule = str(values["rule"])
        for account in ("updates", "gradients"):
            assert values[f"{account}_j"] == record.summary["j"][account][rule]
            if rule in RULES:
                gain = record.summary["captured_gain_by_rule"][account][rule]
                assert values[f"{account}_gain_low"] == gain["low"]
                steps = record.summary["steps"][account][rule]
                assert values[f"{account}_sd_stop"] == steps["sd"]


def test_parts_of_j_add_up() -> None:
    panels = record_panels(make_record(), "x")
    for name, j, excess, paid in panels[0].data.rows:
        assert isinstance(j, float), name
        assert excess is not None
        assert paid is not None
        assert float(excess) + float(paid) == pytest.approx(j)


@pytest.mark.parametrize("where", ["optimizer", "family", "curve", "comparison", "rule"])
def test_hostile_names_stay_text(where: str, tmp_path: Path) -> None:
    record = make_record(HOSTILE if where == "optimizer" else "act")
    if where == "family":
        # A family's name is part of the file's, which cannot hold a slash.
        save_record(record, tmp_path)
        path = next(tmp_path.glob("*.json"))
        path.write_text(json.dumps(record.summary | {"family": HOSTILE}), encoding="utf-8")
        page = Page(write_report(tmp_path, tmp_path / "report.html"))
    else:
        summary = record.summary
        if where == "curve":
            summary["curves"][HOSTILE] = summary["curves"]["adam"]
        elif where == "comparison":
            summary["comparisons"][HOSTILE] = copy.deepcopy(summary)
        elif where == "rule":
            for account in summary["j"]:
                summary["j"][account][HOSTILE] = 5.0
        page = page_of(tmp_path, record)
    assert sum(tag == "script" for tag, _ in page.tags) == 3
    assert page.embedded  # the JSON was not ended early
    document = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert HOSTILE not in document
    legends = [
        str(trace.get("name"))
        for figure in page.embedded["figures"].values()
        for trace in figure["data"]
    ]
    assert not any("<" in name for name in legends)  # plotly reads names as HTML
    if where != "curve":
        assert HOSTILE in page.text


def test_words_when_the_rule_wins() -> None:
    words = summarize(make_record())
    text = " ".join(words.sentences)
    assert words.verdict == "gain"
    assert words.headline.startswith("Stopping itself captures 100")
    assert "It beats gradient norm, the best of the 2 rules" in text
    assert "fewer" in text
    assert "0.500 s instead of 1.00 s" in text
    assert not words.warnings


def test_words_when_the_rule_loses() -> None:
    record = make_record()
    summary = record.summary
    bad = torch.zeros(NUM, dtype=torch.int64)
    for account in ("updates", "gradients"):
        record.arrays[f"end.{account}.rule"] = bad
        record.arrays[f"j.{account}.rule"] = record.arrays["excess"][:, 0]
        summary["j"][account]["rule"] = record.arrays["excess"][:, 0].double().mean().item()
        summary["captured_gain_by_rule"][account]["rule"] = {
            "value": -3.0,
            "low": -4.0,
            "high": -2.0,
        }
        summary["steps"][account]["rule"] |= {"mean": 6.0, "excess_at_stop": 11.0}
        summary["permuted_j"][account] = 0.0
    summary["executed"] |= {"gradient_evaluations": NUM * STEPS, "seconds": 2.0}
    words = summarize(record)
    text = " ".join(words.sentences)
    assert words.verdict == "loss"
    assert "loses" in words.headline
    assert "It is beaten by gradient norm" in text
    assert "beats" not in text
    assert "worse than that budget" in text
    assert "a higher mean excess loss" in text
    assert "gains nothing" in text
    assert "none saved" in text
    assert "yet it took 2.00 s" in text
    assert "fewer" not in text
    panel = record_panels(record, "x")[0]
    assert "4th of 4" in panel.title


def test_words_when_nothing_is_sure() -> None:
    record = make_record()
    gain = {"value": 0.02, "low": -0.1, "high": 0.1}
    record.summary["captured_gain_by_rule"]["gradients"]["rule"] = gain
    words = summarize(record)
    assert words.verdict == "unclear"
    assert "cannot be told from" in words.headline


def test_warnings_name_what_is_wrong() -> None:
    record = make_record()
    record.summary["num_nonfinite"] = 3
    record.summary["tuned_optimizers"]["adam"]["at_edge_of_grid"] = True
    record.summary["curves"]["adam"]["num_nonfinite"] = 2
    record.summary["steps"]["gradients"]["rule"]["share_at_horizon"] = 0.4
    warnings = " ".join(summarize(record).warnings)
    assert "3 problems met" in warnings
    assert "adam lies at the edge" in warnings
    assert "adam on 2 problems" in warnings
    assert "40" in warnings


def test_first_objective_in_words() -> None:
    record = make_record()
    record.summary["first_objective"] = {
        "act": "act",
        "lstm": "lstm",
        "gradients": {
            "act_cost": 5.0,
            "act_excess": 0.5,
            "lstm_excess_at_same_cost": 0.8,
            "lstm_cost_for_equal_excess": 10,
        },
        "updates": {
            "act_cost": 5.0,
            "act_excess": 0.5,
            "lstm_excess_at_same_cost": 0.2,
            "lstm_cost_for_equal_excess": 4,
        },
    }
    gradients, updates = first_objective(record)
    assert "needs 10" in gradients
    assert f"so {percent(0.5)} of the computation is saved" in gradients
    assert "is lower" in gradients
    assert "so nothing is saved" in updates
    assert "is higher" in updates
    record.summary["first_objective"]["gradients"]["lstm_cost_for_equal_excess"] = None
    assert "never gets there" in first_objective(record)[0]


def prune(tree: Any) -> list[tuple[str, ...]]:
    """The path of every entry of nested dictionaries."""
    paths: list[tuple[str, ...]] = []
    for key, value in tree.items() if isinstance(tree, dict) else ():
        paths += [(key,), *((key, *rest) for rest in prune(value))]
    return paths


@pytest.mark.parametrize("replacement", ["missing", None, math.nan])
def test_incomplete_records_are_shown_as_far_as_they_go(replacement: object) -> None:
    whole = make_record()
    for path in prune(whole.summary):
        record = Evaluation(copy.deepcopy(whole.summary), whole.arrays)
        parent = record.summary
        for key in path[:-1]:
            parent = parent[key]
        if replacement == "missing":
            del parent[path[-1]]
        else:
            parent[path[-1]] = replacement
        words = summarize(record)
        first_objective(record)
        rules_table(record, "x")
        said = " ".join([words.headline, *words.sentences, *words.warnings])
        assert not {"nan", "None"} & set(re.findall(r"\w+", said)), path
        if len(path) == 1 and replacement == "missing":
            assert "NaN" not in to_json([p.data.rows for p in record_panels(record, "x")]), path


def test_figures_of_records_without_arrays() -> None:
    record = make_record()
    record.arrays.clear()
    panels = record_panels(record, "x")
    assert len(panels) == 4
    assert record_panels(Evaluation({}, {}), "x") == []


def test_figures_of_a_hazard() -> None:
    record = make_record()
    rule = {"kind": "HazardThreshold", "threshold": 0.5, "output": 1}
    record.summary["stop_rules"] = {"updates": {"rule": rule}, "gradients": {"rule": rule}}
    generator = torch.Generator().manual_seed(1)
    record.arrays["hazard_logits"] = torch.randn(NUM, STEPS, 2, generator=generator)
    posterior = next(p for p in record_panels(record, "x") if p.data.name == "x-posterior")
    assert "hazards" in posterior.note
    for row in posterior.data.rows:
        numbers = [value for value in row[2:] if isinstance(value, float)]
        assert sum(numbers) == pytest.approx(1, abs=1e-4)


def test_figures_with_infinite_numbers() -> None:
    record = make_record()
    record.arrays["excess"][0, 3] = math.inf
    record.arrays["increments"][1] = math.nan
    record.summary["curves"]["adam"]["mean"][2] = None
    text = to_json(
        [(p.figure.to_plotly_json()["data"], p.data.rows) for p in record_panels(record, "x")]
    )
    assert "NaN" not in text
    assert "Infinity" not in text


def test_several_records_on_one_page(tmp_path: Path) -> None:
    other = make_record(family="diabetes")
    other.summary["price"] = 0.0101
    page = page_of(tmp_path, make_record(), other)
    assert "2 evaluations" in page.text
    anchors = {a["href"] for t, a in page.tags if t == "a"}
    assert anchors == {f"#{a['id']}" for t, a in page.tags if t == "section" and "id" in a}
    assert sum("plotly.js v" in script[:500] for script in page.scripts) == 1


def test_empty_directory(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no evaluation"):
        write_report(tmp_path, tmp_path / "report.html")


def test_unreadable_card_is_said_not_raised(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").write_bytes(b"broken")
    assert "unreadable" in page_of(tmp_path, make_record()).text


def test_training_needs_two_points() -> None:
    assert training([]) is None
    assert training([{"step": 1, "loss": math.nan}, {"step": 2}]) is None
    panel = training([{"step": s, "price_adjusted_loss": v} for s, v in ((1, 2.0), (2, 5.0))])
    assert panel is not None
    assert "the lowest was 2.00 at meta-step 1" in panel.title


def test_paired_difference() -> None:
    record = make_record()
    difference = paired_difference(record, "gradients", "rule", "gradient_norm")
    j = record.summary["j"]["gradients"]
    assert difference is not None
    assert difference.value == pytest.approx(j["rule"] - j["gradient_norm"])
    assert difference.low < difference.value < difference.high
    assert paired_difference(record, "gradients", "rule", "unknown") is None


def test_rank_correlation_shares_ties() -> None:
    from scipy.stats import spearmanr

    first = torch.tensor([1.0, 2.0, 2.0, 4.0, 0.0, math.nan], dtype=torch.float64)
    second = torch.tensor([3.0, 3.0, 1.0, 5.0, 0.0, 1.0], dtype=torch.float64)
    expected = spearmanr(first[:5].numpy(), second[:5].numpy()).statistic
    assert rank_correlation(first, second) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (0.0, "0"), (0.0527, "0.0527"), (11.2019, "11.2"), (999.7, "1,000"),
        (8984.0, "8,984"), (-0.5, "−0.500"), (2.2e-30, "2.2e−30"), (123.4, "123"), (1e9, "1.0e+09"),
    ],
)  # fmt: skip
def test_num(value: float | None, text: str) -> None:
    assert num(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.86, "86"), (0.998, "99.8"), (-0.004, "−0.4"), (1.0, "100"), (0.0, "0")]
)
def test_percent_never_rounds_to_none_or_all(value: float, text: str) -> None:
    assert percent(value).startswith(f"{text}\N{NARROW NO-BREAK SPACE}")


def test_small_helpers() -> None:
    assert slug(f"{HOSTILE}../../etc") == "script-alert-1-script-..-..-etc"
    assert json.loads(to_json({"a": [HOSTILE, math.nan]})) == {"a": [HOSTILE, None]}
    assert flatten({"a": {"b": [1, 2.5], "c": {}}, "d": None}) == [
        ("a.b", "1, 2.5"),
        ("a.c", "–"),
        ("d", "–"),
    ]
    assert Range(1, 0, 2).value == 1
