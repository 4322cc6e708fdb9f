"""The order of rows and of costs, against slow twins."""

import contextlib
import itertools
import sys
import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from haltwise import InputError
from haltwise._core.errors import DataWarning
from haltwise.curves import Curves
from haltwise.curves.curves import Direction

COST = st.integers(0, 6)
VALUE = st.sampled_from((np.nan, 1.0, 2.0, 3.0))
POINTS = st.lists(st.tuples(COST, VALUE, VALUE), min_size=1, max_size=12)


def quiet_runs(points: list[tuple[float, ...]]) -> tuple[Curves, list[str]]:
    cost, first, second = map(list, zip(*points, strict=True))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        made = Curves.from_runs([{"cost": cost, "a": first, "b": second}], metric="a")
    return made, [str(entry.message) for entry in caught]


def merged(*rows: tuple[float, ...]) -> tuple[float, ...]:
    """The last known entry of each column."""
    return tuple(
        next((x for x in reversed(column) if not np.isnan(x)), np.nan)
        for column in zip(*rows, strict=True)
    )


@pytest.mark.parametrize(("direction", "best"), [("min", -np.inf), ("max", np.inf)])
def test_a_metric_that_is_infinitely_good_is_of_a_run_that_diverged(
    direction: Any, best: float
) -> None:
    with pytest.warns(DataWarning, match="'loss' is -?inf at 1 points, better than any number"):
        found = Curves.from_matrix([[0.0, best, 0.0]], direction=direction)
    assert found.values.ravel().tolist() == [0, -best, 0]
    assert not found.with_targets(1.0 if direction == "max" else -1.0).succeeded.any()


@given(POINTS)
def test_a_run_goes_on_from_where_its_cost_goes_back_to(points: list[tuple[float, ...]]) -> None:
    kept: list[tuple[float, ...]] = []
    held = 0  # points of which everything is kept
    sizes: list[int] = []
    for _, rows in itertools.groupby(points, key=lambda point: point[0]):
        block = list(rows)
        whole = merged(*block)
        while kept and kept[-1][0] >= whole[0]:
            kept.pop()
            held -= sizes.pop()
        kept.append(whole)
        sizes.append(sum(np.array_equal(merged(whole, row), whole, True) for row in block))
        held += sizes[-1]
    made, messages = quiet_runs(points)
    np.testing.assert_equal(np.column_stack([made.cost, made.values]), np.array(kept))
    lost = len(points) - held
    expected = [f"left out: {lost} points that later ones of the same or a lower cost replace"]
    assert messages == (expected if lost else [])


@given(st.data())
def test_rows_of_a_table_stand_in_any_order(data: st.DataObject) -> None:
    rows = [
        {"run": run, "group": run[0], "step": float(step), "loss": float(step) + 0.5, "acc": np.nan}
        for run in ("ax", "ay", "bx")
        for step in data.draw(st.sets(st.integers(0, 20), min_size=1))
    ]
    # Another column, measured at the same costs and written in rows of its own.
    rows += [{**row, "loss": np.nan, "acc": 0.25} for row in rows if data.draw(st.booleans())]
    shuffled = data.draw(st.permutations(rows))

    def made(table: list[dict[str, Any]]) -> Curves:
        frame = {name: [row[name] for row in table] for name in table[0]}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the rows of", DataWarning)
            curves = Curves.from_frame(frame, cost="step", metric="loss")
        return curves.select(np.argsort(curves.name))

    one, other = made(rows), made(shuffled)
    for name in ("cost", "values", "offset", "group", "name", "budget"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.num_points.sum() == len({(row["run"], row["step"]) for row in rows})


def framed(rows: list[tuple[Any, ...]]) -> Curves:
    frame = dict(zip(("run", "cost", "a", "b"), zip(*rows, strict=True), strict=True))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DataWarning)
        return Curves.from_frame(frame, cost="cost", metric="a", direction="min")


@given(st.lists(POINTS, min_size=2, max_size=3), st.randoms())
def test_runs_may_be_interleaved(runs: list[list[tuple[float, ...]]], random: Any) -> None:
    rows = [
        [(name, 0, 1.0, 1.0), *((name, *point) for point in points)]
        for name, points in zip("xyz", runs, strict=False)
    ]
    order = [run for run, points in enumerate(rows) for _ in points]
    random.shuffle(order)
    left = [iter(points) for points in rows]
    found = framed([next(left[run]) for run in order])
    for points in rows:
        name, alone = points[0][0], framed(points)
        if name not in found.name:  # it never measured the metric, while another did
            assert np.isnan(alone.values[:, 0]).all()
            continue
        mine = found[found.name.tolist().index(name)]
        np.testing.assert_equal(mine.cost, alone.cost)
        np.testing.assert_equal(mine.columns["a"], alone.values[:, 0])


def test_a_resumed_run_in_a_table_is_not_sorted() -> None:
    frame = {"run": ["x"] * 5, "step": [0, 1, 2, 1, 2], "loss": [9.0, 8.0, 7.0, 5.0, 4.0]}
    with pytest.warns(DataWarning, match="left out: 2 points that later ones"):
        found = Curves.from_frame(frame, cost="step", metric="loss")
    assert found.values[:, 0].tolist() == [9, 5, 4]


def test_names_and_groups_of_another_number_are_refused() -> None:
    runs = [{"loss": [1.0]}, {"loss": [2.0]}]
    for name in ("name", "group", "task"):
        wrong: Any = {name: ["x"]}
        with pytest.raises(InputError, match=f"{name} must have one entry for each of 2 runs"):
            Curves.from_runs(runs, metric="loss", **wrong)
    with pytest.raises(InputError, match="column 'loss' of run '0' must hold real numbers"):
        Curves.from_runs([{"loss": ["x"]}], metric="loss")


@pytest.mark.parametrize(
    ("budget", "target", "early"),
    [
        (9.0, 0.0, False),
        (11.0, 0.0, False),  # one of its gaps short: the next point would lie at the budget
        (13.0, 0.0, True),  # two of them
        (13.0, 1.0, False),  # it met its target, and nothing more is asked of it
    ],
)
def test_a_run_was_ended_early_that_had_room_for_another_point(
    budget: float, target: float, early: bool
) -> None:
    run = {"step": [1.0, 3.0, 4.0, 6.0, 7.0, 9.0], "loss": [3.0, 2.5, 2.0, 1.5, 1.0, 1.0]}
    curves = Curves.from_runs([run], metric="loss", cost="step", target=target, budget=budget)
    assert curves.censored.tolist() == [early]


@pytest.mark.parametrize("direction", ["min", "max"])
@pytest.mark.parametrize(("quantile", "place"), [(0.9, 1), (0.7, 3), (0.5, 5), (0.2, 8)])
def test_a_quantile_of_peers_falls_short_of_the_target_they_set(
    direction: Direction, quantile: float, place: int
) -> None:
    """Of eleven runs, counted from the best on; what diverged or is not known last is no better."""
    sign = 1 if direction == "min" else -1
    finals = np.arange(11.0)
    losses = np.stack([np.full(11, 20.0), finals, finals], 1)
    losses[3, 2] = np.nan  # its last known metric is 3
    losses[10, 1:] = np.inf
    order = np.random.default_rng(0).permutation(11)
    curves = Curves.from_matrix(
        sign * np.concatenate((losses[order], losses[order] - 100)),
        direction=direction,
        task=["a"] * 11 + ["b"] * 11,
    )
    found = curves.targets_among_peers(quantile)
    assert set(found.target) == {sign * place, sign * (place - 100)}
    met = found.succeeded.reshape(2, 11).sum(1)
    assert met.tolist() == [place + 1] * 2


def test_a_budget_that_is_unknown_is_the_most_that_a_run_of_its_task_spent() -> None:
    runs = [{"loss": np.ones(num)} for num in (5, 9, 3, 7)]
    curves = Curves.from_runs(
        runs, metric="loss", budget=[20.0, np.nan, np.nan, np.nan], task=["a", "a", "b", "b"]
    )
    assert curves.budget.tolist() == [20.0, 8.0, 6.0, 6.0]  # what is known stays
    assert curves.with_budgets().budget.tolist() == curves.budget.tolist()


LABELLED = st.lists(st.tuples(COST, st.integers(0, 3)), min_size=4, max_size=16)


@given(LABELLED)
def test_runs_that_a_column_tells_apart_are_seen_as_its_definition_says(
    rows: list[tuple[int, int]],
) -> None:
    spent, labels = (list(column) for column in zip(*rows, strict=True))
    pieces = [[c for c, each in rows if each == label] for label in dict.fromkeys(labels)]
    rising = [piece == sorted(set(piece)) for piece in pieces]
    soon = max(max(piece[:2]) for piece in pieces if piece[0] == min(p[0] for p in pieces))
    expected = (
        spent != sorted(set(spent))
        and 2 <= len(pieces) <= len(rows) / 2
        and all(rising)
        and all(piece[0] <= soon for piece in pieces)
    )
    frame = {"run": ["a"] * len(rows), "cost": spent, "loss": [1.0] * len(rows), "of": labels}
    outcome: Any = contextlib.nullcontext()
    if expected:
        outcome = pytest.raises(InputError, match="begins again for each 'of'")
    with outcome, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        Curves.from_frame(frame, cost="cost", metric="loss")


def test_a_column_of_many_values_takes_no_more_lines_than_one_of_few() -> None:
    """A long log that counts epochs and holds a learning rate: once it took minutes."""

    def lines(num: int) -> int:
        steps, run = np.arange(10 * num), 0

        def count(frame: Any, event: str, value: Any) -> Any:
            nonlocal run
            run += event == "line"
            return count

        frame = {"epoch": steps // 100, "loss": 1.0 / (1 + steps), "rate": 1 - steps // 10 / num}
        before = sys.gettrace()
        sys.settrace(count)
        try:
            Curves.from_frame(frame, cost="epoch", metric="loss")
        finally:
            sys.settrace(before)
        return run

    with pytest.warns(DataWarning, match="left out"):
        assert lines(5000) < 2 * lines(500)
