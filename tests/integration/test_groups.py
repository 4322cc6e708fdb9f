"""Tables by group: every row is in its group once, padding is told apart, bad cells are named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import haltwise
from haltwise import FunctionBatch, InputError, from_groups
from haltwise._core.errors import DataWarning

TABLE: dict[str, Any] = {
    "shop": ["b", "a", "b", "c", "a", "b"],
    "x": [1, 2, 3, 4, 5, 6],
    "y": [0.5, 1.5, 2.5, 3.5, 4.5, 5.5],
}
CSV = "shop,x,y\nb,1,0.5\na,2,1.5\nb,3,2.5\nc,4,3.5\na,5,4.5\nb,6,5.5\n"


@given(
    rows=st.lists(st.tuples(st.integers(-3, 3), st.floats(-9, 9)), min_size=1, max_size=30),
    single=st.booleans(),
)
def test_groups_hold_the_rows_of_a_slow_loop(
    rows: list[tuple[int, float]], *, single: bool
) -> None:
    dtype = torch.float32 if single else torch.float64
    own: dict[int, list[float]] = {}
    for key, value in rows:
        own.setdefault(key, []).append(value)
    keys, values = (np.array(column) for column in zip(*rows, strict=True))
    groups = from_groups({"key": keys, "value": values}, "key", dtype=dtype)
    assert groups.keys == list(own)
    assert len(groups) == len(own)
    assert groups.counts.tolist() == [len(value) for value in own.values()]
    for padded, mask, expected in zip(
        groups.data["value"], groups.data["mask"], own.values(), strict=True
    ):
        assert padded.dtype == dtype
        assert mask.tolist() == [True] * len(expected) + [False] * (len(mask) - len(expected))
        assert padded[mask].tolist() == torch.tensor(expected, dtype=dtype).tolist()
        assert (padded[~mask] == padded[mask][-1]).all()


def test_columns_are_put_together_and_renamed() -> None:
    groups = from_groups(TABLE, "shop", {"design": ["x", "y"], "one": ["x"], "plain": "y"})
    assert repr(groups).startswith("Groups(3 of 1 to 3 rows, 6 in all: design [3, 3, 2], one [3, ")
    assert groups.data["design"][0].tolist() == [[1.0, 0.5], [3.0, 2.5], [6.0, 5.5]]
    assert groups.data["one"].shape == (3, 3, 1)
    assert groups.data["plain"].shape == (3, 3)
    assert sorted(from_groups(TABLE, "shop", ["y"]).data) == ["mask", "y"]


def test_several_columns_tell_groups_apart() -> None:
    table = {**TABLE, "day": np.array(["2020-01-01", "2020-01-02"] * 3, dtype="M8[ns]")}
    groups = from_groups(table, ["shop", "day"], ["x"])
    assert [key[0] for key in groups.keys] == ["b", "a", "c", "a", "b"]
    assert groups.keys[0][1].startswith("2020-01-01")
    assert groups.counts.tolist() == [2, 1, 1, 1, 1]


@pytest.mark.parametrize("library", ["pandas", "polars", "pyarrow"])
def test_data_frames_are_taken(library: str) -> None:
    made: Any = pytest.importorskip(library)
    frame = (made.table if library == "pyarrow" else made.DataFrame)(TABLE)
    assert_same(from_groups(frame, "shop"), from_groups(TABLE, "shop"))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_file_is_the_table_that_it_holds(delimiter: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(CSV.replace(",", delimiter))
    assert_same(from_groups(path, "shop"), from_groups(TABLE, "shop"))
    assert_same(from_groups(str(path), "shop", ["y"]), from_groups(TABLE, "shop", ["y"]))


def assert_same(one: haltwise.Groups, other: haltwise.Groups) -> None:
    assert one.keys == other.keys
    assert one.data.keys() == other.data.keys()
    assert all(torch.equal(value, other.data[name]) for name, value in one.data.items())


def test_each_group_is_fitted_as_by_itself() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.integers(12, 40, 9)
    key = generator.permutation(np.repeat(np.arange(9), sizes))
    x = generator.normal(size=(len(key), 2))
    y = x @ [1.0, -2.0] + generator.normal(size=len(key))
    table = {"key": key, "x0": x[:, 0], "x1": x[:, 1], "y": y}
    groups = from_groups(table, "key", {"x": ["x0", "x1"], "y": "y"})

    def loss(params: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        residual = y - (x @ params.unsqueeze(-1)).squeeze(-1)
        return (residual.square() * mask).sum(1) / 2

    problem = FunctionBatch(torch.zeros(9, 2, dtype=torch.float64), loss, groups.data)
    solution = haltwise.solve(problem, method="auto", standard_errors=True)
    for number, name in enumerate(groups.keys):
        own = key == name
        best, *_ = np.linalg.lstsq(x[own], y[own])
        errors = np.sqrt(np.diag(np.linalg.inv(x[own].T @ x[own])))
        assert solution.standard_errors is not None
        torch.testing.assert_close(
            solution.standard_errors.params[number], torch.from_numpy(errors)
        )
        assert np.abs((solution.params[number].numpy() - best) / errors).max() < 1e-6


NAN = float("nan")


@pytest.mark.parametrize(
    ("change", "by", "given", "message"),
    [
        ({}, "shops", None, "the table has no column 'shops'; it has 'shop', 'x', 'y'"),
        ({}, "shop", ["z"], "has no column 'z'"),
        ({}, [], None, "by must name at least one column"),
        ({}, "shop", "x", "columns must be names, or a dictionary"),
        ({}, "shop", [], "columns must be names"),
        (
            {"y": [1, 2, None, "4", "five", "six"]},
            "shop",
            None,
            "'y' of the table holds the text 'five' in row 4; mend or encode it.*columns=",
        ),
        ({"y": [object()] * 6}, "shop", None, "'y' of the table holds no numbers .*columns="),
        (
            {"y": [1, 2, NAN, 4, NAN, 6]},
            "shop",
            None,
            "missing or infinite in 2 rows.* 'b'",
        ),
        ({"y": [1, 2, 3, None, 5, 6]}, "shop", None, "in 1 rows, the first of them in group 'c'"),
        ({"shop": [1, 2, NAN, 3, 1, 2]}, "shop", None, "no 'shop' in 1 rows, .* number 2"),
        ({"shop": ["a", None, "a", "b", "", "b"]}, "shop", None, "no 'shop' in 1 rows"),
        ({"mask": [1] * 6}, "shop", None, "a column is called 'mask'"),
        ({"y": [1.0]}, "shop", None, "vectors of one length"),
    ],
)
def test_tables_that_will_not_do(change: dict[str, Any], by: Any, given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_groups({**TABLE, **change}, by, given)


def test_rows_with_gaps_are_left_out_where_that_is_asked_for() -> None:
    gaps = {"y": [1, NAN, 3, None, 5, 6], "shop": ["a", "b", "c", "b", None, "a"]}
    groups = from_groups(gaps, "shop", drop_missing=True)
    assert groups.keys == ["a", "c"]
    assert groups.data["y"][groups.data["mask"]].tolist() == [1, 6, 3]
    with pytest.raises(InputError, match="missing or infinite in 1 rows"):  # infinities are no gaps
        from_groups({**gaps, "y": [np.inf, NAN, 3, 4, 5, 6]}, "shop", drop_missing=True)


def test_other_things_that_will_not_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a data frame or columns by name were expected, got int"):
        from_groups(3, "shop")
    with pytest.raises(InputError, match="dtype must be"):
        from_groups(TABLE, "shop", dtype=torch.float16)
    with pytest.raises(InputError, match="no rows"):
        from_groups({"shop": np.array([]), "x": np.array([])}, "shop")
    path = tmp_path / "table.csv"
    path.write_text(CSV.replace("3.5", "n. a.").replace("\n", "\n\n", 1))  # a row that is empty
    with pytest.raises(InputError, match=r"'y' of .*table.csv holds the text 'n. a.' in row 6;"):
        from_groups(path, "shop")
    path.write_text(CSV.replace("3.5", ""))
    with pytest.raises(InputError, match=r"'y' of .*csv is missing or infinite in 1 rows"):
        from_groups(path, "shop")
    path.write_text(CSV.replace(",", ";").replace("3.5", "3,5"))
    with pytest.raises(InputError, match=r"holds the text '3,5' in row 5 .*decimal=','"):
        from_groups(path, "shop")
    path.write_text("shop,x\n")
    with pytest.raises(InputError, match="no rows"):
        from_groups(path, "shop")
    path.write_text(CSV + "c,1")
    with pytest.warns(DataWarning, match="ends in the middle of a row"):
        assert from_groups(path, "shop").counts.sum() == 6


def test_one_group_far_longer_than_the_rest_does_not_fill_the_memory() -> None:
    key = np.concatenate((np.zeros(100_000), np.arange(1, 100_000))).astype(np.int64)
    with pytest.raises(InputError, match="group 0 has 100,000 rows, half of the groups at most 1:"):
        from_groups({"key": key, "x": key}, "key")
