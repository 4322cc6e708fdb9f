"""Records to tables: cells as readers see them, and the numbers behind them for CSV files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from haltwise.evaluation import Evaluation
from haltwise.report.formats import MISSING, interval, num, percent, plain, spread
from haltwise.report.palette import ACCOUNTS, label
from haltwise.report.reading import (
    finite_list,
    get,
    items,
    mapping,
    name_at,
    number,
    range_of,
)

__all__ = [
    "Data",
    "Table",
    "comparison_table",
    "first_objective_table",
    "flatten",
    "heads_table",
    "learning_table",
    "overview_table",
    "rules_table",
]

Cell = str | float | None


@final
@dataclass(frozen=True)
class Data:
    """What a CSV file holds.

    Attributes:
        name: The file's name without its ending.
        columns: Headings.
        rows: Unrounded numbers; None is an empty field.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


@final
@dataclass(frozen=True)
class Table:
    """A table to read.

    Attributes:
        title: Its heading.
        columns: Headings; the first column names the rows.
        rows: Formatted cells.
        data: The numbers behind them.
        strong: The row that matters most.
        note: How to read it.
        links: Where the names of the rows lead, if anywhere.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    data: Data
    strong: int | None = None
    note: str = ""
    links: Sequence[str] = ()


_MEASURES = ("j", "gain", "gain_low", "gain_high", "mean_stop", "sd_stop", "excess_at_stop")
_ORDER = (
    "rule", "rule_calibrated", "rule_after_gradient", "posterior_mode", "logistic",
    "gradient_norm", "patience", "plateau", "fixed", "oracle",
)  # fmt: skip


def rules_table(record: Evaluation, stem: str) -> Table:
    """J, captured gain and stops of every rule, in both accounts."""
    summary = record.summary
    present = {name for account in ACCOUNTS for name in mapping(summary, "j", account)}
    names = [name for name in _ORDER if name in present] + sorted(present - set(_ORDER))
    rows, raw = [], []
    for name in names:
        cells, numbers = [label(name)], []
        for account in ACCOUNTS:
            values = measures(summary, account, name)
            gain = range_of(summary, "captured_gain_by_rule", account, name)
            cells += [num(values[0]), interval(gain), spread(values[4], values[5])]
            numbers += values
        rows.append(cells)
        raw.append([name, *numbers])
    heads = [f"{head}, {account}" for account in ACCOUNTS for head in ("J", "gain", "stop")]
    columns = [f"{account}_{measure}" for account in ACCOUNTS for measure in _MEASURES]
    return Table(
        title="Every rule, both accounts",
        columns=["stop rule", *heads],
        rows=rows,
        data=Data(f"{stem}-rules", ["rule", *columns], raw),
        strong=names.index("rule") if "rule" in names else None,
        note=(
            "J: mean excess loss at the stop plus price times cost, lower is better. "
            "Gain: captured gain with its 95 % interval; 1 is the oracle, 0 the best fixed "
            "budget, below 0 worse than that. Stop: mean ± standard deviation, in steps."
        ),
    )


def measures(summary: Mapping[str, Any], account: str, name: str) -> list[float | None]:
    """One rule's numbers in the order of `_MEASURES`."""
    gain = [
        number(summary, "captured_gain_by_rule", account, name, key)
        for key in ("value", "low", "high")
    ]
    steps = [
        number(summary, "steps", account, name, key) for key in ("mean", "sd", "excess_at_stop")
    ]
    j = number(summary, "j", account, name)
    budget, price = number(summary, "fixed_budget"), number(summary, "price")
    if name == "fixed" and budget is not None:
        rest = None if j is None or price is None else j - price * budget
        steps = [budget, 0.0, rest]
    return [j, *gain, *steps]


def overview_table(records: Sequence[Evaluation], anchors: Sequence[str]) -> Table:
    """One line per record, where a page holds several."""
    rows, raw = [], []
    for record in records:
        summary = record.summary
        gain = range_of(summary, "captured_gain_by_rule", "gradients", "rule")
        saved = saved_share(summary)
        values = measures(summary, "gradients", "rule")
        rows.append(
            [
                f"{name_at(summary, 'optimizer')} on {name_at(summary, 'family')}",
                plain(number(summary, "price")),
                plain(number(summary, "seed")),
                interval(gain) or MISSING,
                spread(values[4], values[5]),
                percent(saved),
            ]
        )
        raw.append(
            [
                name_at(summary, "optimizer"),
                name_at(summary, "family"),
                number(summary, "price"),
                number(summary, "seed"),
                *values,
                saved,
            ]
        )
    return Table(
        title=f"{len(records)} evaluations",
        columns=["evaluation", "price", "seed", "gain", "stop", "gradients saved"],
        rows=rows,
        data=Data(
            "evaluations",
            ["optimizer", "family", "price", "seed", *_MEASURES, "gradients_saved"],
            raw,
        ),
        note=(
            "Counted in gradients. Gain: captured gain with its 95 % interval. Saved: gradient "
            "evaluations not made, of the full horizon's."
        ),
        links=[f"#{anchor}" for anchor in anchors],
    )


def saved_share(summary: Mapping[str, Any]) -> float | None:
    """Share of the full horizon's gradient evaluations that were not made."""
    used = number(summary, "executed", "gradient_evaluations")
    full = number(summary, "executed", "gradient_evaluations_of_the_full_horizon")
    return None if used is None or not full else 1 - used / full


def first_objective_table(record: Evaluation, stem: str) -> Table | None:
    """The thesis' first objective: the LSTM optimizer at equal cost and at equal loss."""
    result = get(record.summary, "first_objective")
    if not isinstance(result, Mapping):
        return None
    keys = ("act_cost", "act_excess", "lstm_excess_at_same_cost", "lstm_cost_for_equal_excess")
    raw, rows = [], []
    for account in ACCOUNTS:
        values = [number(result, account, key) for key in keys]
        if values[0] is None:
            continue
        raw.append([account, *values])
        cost = "not reached" if values[3] is None else count_of(values[3])
        rows.append([account, f"{values[0]:.1f}", num(values[1]), num(values[2]), cost])
    if not rows:
        return None
    return Table(
        title="Against the LSTM optimizer without halting",
        columns=[
            "account",
            "mean cost, stopping itself",
            "excess loss there",
            "LSTM's excess loss at equal cost",
            "LSTM's cost for equal loss",
        ],
        rows=rows,
        data=Data(f"{stem}-first-objective", ["account", *keys], raw),
    )


def count_of(value: float) -> str:
    """A budget: whole steps."""
    return f"{value:.0f}"


def comparison_table(record: Evaluation, stem: str) -> Table | None:
    """Other self-stopping optimizers on the same problems, side by side."""
    summary = record.summary
    others = get(summary, "comparisons")
    if not isinstance(others, Mapping) or not others:
        return None
    price = {"price": summary.get("price")}
    entries = [(name_at(summary, "optimizer"), summary)]
    entries += [
        (str(name), {**price, **other})
        for name, other in others.items()
        if isinstance(other, Mapping)
    ]
    rows, raw = [], []
    for name, entry in entries:
        cells: list[str] = [name]
        numbers: list[Cell] = []
        for account in ACCOUNTS:
            values = measures(entry, account, "rule")
            gain = range_of(entry, "captured_gain_by_rule", account, "rule")
            oracle = number(entry, "j", account, "oracle")
            cells += [num(values[0]), num(oracle), interval(gain), spread(values[4], values[5])]
            numbers += [*values, oracle]
        rows.append(cells)
        raw.append([name, *numbers])
    heads = [
        f"{head}, {account}" for account in ACCOUNTS for head in ("J", "oracle's J", "gain", "stop")
    ]
    columns = [
        f"{account}_{measure}" for account in ACCOUNTS for measure in (*_MEASURES, "oracle_j")
    ]
    return Table(
        title="Self-stopping optimizers side by side",
        columns=["optimizer", *heads],
        rows=rows,
        data=Data(f"{stem}-comparisons", ["optimizer", *columns], raw),
        strong=0,
        note=(
            "J compares across optimizers. The gain does not quite: each is measured against the "
            "best fixed budget and the oracle on that optimizer's own trajectories."
        ),
    )


def flatten(tree: object, prefix: str = "") -> list[tuple[str, str]]:
    """Nested settings as lines of a dotted name and a value."""
    if isinstance(tree, Mapping) and tree:
        lines = []
        for key, value in tree.items():
            lines += flatten(value, f"{prefix}.{key}" if prefix else str(key))
        return lines
    if isinstance(tree, float):
        shown = f"{tree:.6g}" if abs(tree) < float("inf") else MISSING
    elif tree is None or tree in ({}, ""):
        shown = MISSING
    elif isinstance(tree, list):
        shown = ", ".join(text for entry in tree for _, text in flatten(entry))
    else:
        shown = str(tree)
    return [(prefix, shown)]


def learning_table(record: Evaluation, stem: str) -> Table | None:
    """How networks learn without stopping: losses seen, and test examples classified."""
    summary = record.summary
    names = [str(name) for name in mapping(summary, "held_out")]
    if not names:
        return None
    rows, raw = [], []
    for name in names:
        seen = [loss for loss in finite_list(summary, "curves", name, "observed")[1:] if loss]
        rate = number(summary, "tuned_optimizers", name, "learning_rate")
        accuracy, sd = (number(summary, "held_out", name, k) for k in ("accuracy", "accuracy_sd"))
        total, last = (sum(seen), sum(seen[-5:]) / len(seen[-5:])) if seen else (None, None)
        share = MISSING if accuracy is None else f"{accuracy:.4f} ± {sd or 0:.4f}"
        rows.append([name, MISSING if rate is None else num(rate), num(last), num(total), share])
        raw.append([name, rate, last, total, accuracy, sd])
    return Table(
        title="Learning without stopping",
        columns=["optimizer", "learning rate", "last loss", "sum of losses", "test accuracy"],
        rows=rows,
        data=Data(
            f"{stem}-learning",
            ["optimizer", "learning_rate", "last_loss", "sum", "accuracy", "accuracy_sd"],
            raw,
        ),
        note=(
            "Losses are those of the minibatches as they come, mean over problems: of the last "
            "five steps, and summed over all. Accuracy on all test examples after the last step, "
            "mean ± standard deviation over problems. Learning rates were tuned on other problems."
        ),
    )


def heads_table(study: Mapping[str, Any], account: str) -> Table | None:
    """Captured gain of heads that share a rule, a column a price; None where there are none."""
    results = [entry for entry in items(study, "results") if name_at(entry, "account") == account]
    names = list(mapping(results[0], "heads")) if results else []
    if not names:
        return None
    rows, raw = [], []
    for name in names:
        cells, numbers = [name], []
        for entry in results:
            mean, sd = (number(entry, "heads", name, "captured_gain", k) for k in ("mean", "sd"))
            more = range_of(entry, "heads", name, "difference")
            cells.append(MISSING if mean is None or sd is None else f"{mean:.3f} ± {sd:.3f}")
            numbers += [mean, sd, *(more or (None, None, None))]
        rows.append(cells)
        raw.append([name, *numbers])
    prices = [plain(number(entry, "price")) for entry in results]
    measures = ("gain", "sd", "j_above_first", "j_above_first_low", "j_above_first_high")
    seeds = len(items(results[0], "seeds"))
    return Table(
        title=f"Captured gain of heads on {name_at(study, 'family')}, counted in {account}",
        columns=["head", *(f"price {price}" for price in prices)],
        rows=rows,
        data=Data(
            f"heads-{account}",
            ["head", *(f"{measure}_{price}" for price in prices for measure in measures)],
            raw,
        ),
        strong=0,
        note=(
            f"Mean ± standard deviation over {seeds} seeds of problems; 1 is the oracle, 0 the "
            "best fixed budget. All heads judge the same trajectories; each threshold was "
            "calibrated on separate problems."
        ),
    )
