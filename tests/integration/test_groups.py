"""Tables by group: every row is in its group once, padding is told apart, bad cells are named."""

from fractions import Fraction
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
        ({}, "shop", {"x": ["x"], "y": []}, "columns names none for 'y'; name at least one"),
        ({"y": [1, -(10**400), None] * 2}, "shop", None, "'y' .* holds -1000.* row 1.* beyond"),
        ({"y": [10**5000] * 6}, "shop", None, "'y' of the table holds .* in row 0.* beyond 1.798e"),
        ({"y": [Fraction(10**400)] * 6}, "shop", None, "'y' of the table holds .* beyond 1.798e"),
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


def test_numbers_that_a_narrow_dtype_does_not_hold_are_refused() -> None:
    large = {**TABLE, "y": [1.0, 2.0, 1e300, 4.0, 5.0, 6.0]}
    assert from_groups(large, "shop").data["y"].max() == 1e300
    with pytest.raises(InputError, match=r"'y' .* is beyond the range of torch.float32 in 1 rows"):
        from_groups(large, "shop", dtype=torch.float32)


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


@pytest.mark.parametrize("by", [0, np.int64(0), [0]])
@pytest.mark.parametrize("library", ["pandas", "dictionary"])
def test_columns_that_are_called_by_numbers_are_taken(by: Any, library: str) -> None:
    table: Any = {0: ["b", "a", "b"], 1: [1.0, 2.0, 3.0], 2: [4.0, 5.0, 6.0]}
    if library == "pandas":
        table = pytest.importorskip("pandas").DataFrame(table)
    groups = from_groups(table, by, {"x": [1, 2], "y": 2})
    assert groups.keys == ["b", "a"]
    assert groups.data["x"][0].tolist() == [[1.0, 4.0], [3.0, 6.0]]
    assert groups.data["y"][1].tolist() == [5.0, 5.0]
    assert sorted(from_groups(table, by, [1]).data) == ["1", "mask"]
    with pytest.raises(InputError, match="the table has no column '7'; it has '0', '1', '2'"):
        from_groups(table, 7)


@pytest.mark.parametrize("by", [None, 3.5, [None], [["shop"]], {"shop"}, np.float64(0)])
def test_what_names_no_column_is_refused(by: Any) -> None:
    with pytest.raises(InputError, match=r"(by|column) must be"):
        from_groups(TABLE, by)


def test_columns_are_remembered_by_name() -> None:
    groups = from_groups(TABLE, "shop", {"design": ["x", "y"], "plain": "y"})
    assert groups.by == ("shop",)
    assert groups.columns == {"design": ("x", "y"), "plain": ("y",)}
    assert from_groups(TABLE, ["shop", "x"]).by == ("shop", "x")
    assert from_groups(TABLE, "shop").columns == {"x": ("x",), "y": ("y",)}


@pytest.mark.parametrize(
    ("written", "keys"),
    [
        (["36", "4", "36", "-1", "0"], [36, 4, -1, 0]),
        (["36.0", "4.0", "36.0", "-1.0", "0.0"], [36, 4, -1, 0]),  # as pandas writes ints with gaps
        (["007", "4", "36"], ["007", "4", "36"]),
        (["7", "07", "36"], ["7", "07", "36"]),
        (["1", "1.0", "2"], ["1", "1.0", "2"]),
        (["1.5", "2.0"], ["1.5", "2.0"]),
        (["1", "2", "c"], ["1", "2", "c"]),
        (["-0", "1"], ["-0", "1"]),
        (["+1", "2"], ["+1", "2"]),
        (["1e3", "2"], ["1e3", "2"]),
        (["1_000", "2"], ["1_000", "2"]),
        (["٣", "2"], ["٣", "2"]),  # a digit of another script
        (["9223372036854775807", "1"], [9223372036854775807, 1]),
        (["9223372036854775808", "1"], ["9223372036854775808", "1"]),
        (["1" * 5000, "1"], ["1" * 5000, "1"]),
        (["True", "False"], ["True", "False"]),
    ],
)
def test_keys_of_a_file_are_whole_numbers_where_all_are_written_so(
    written: list[str], keys: list[Any], tmp_path: Path
) -> None:
    path = tmp_path / "table.csv"
    path.write_text("key,x\n" + "".join(f"{key},{n}\n" for n, key in enumerate(written)))
    found = from_groups(path, "key").keys
    assert found == keys
    assert [type(key) for key in found] == [type(key) for key in keys]


def test_keys_of_several_columns_are_whole_numbers_one_column_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("shop,code,x\n1,01,5\n2,02,6\n,03,7\n1,01,8\n")
    groups = from_groups(path, ["shop", "code"], drop_missing=True)
    assert groups.keys == [(1, "01"), (2, "02")]
    with pytest.raises(InputError, match="no 'shop' in 1 rows"):
        from_groups(path, ["shop", "code"])


def test_keys_of_a_frame_stay_what_they_are() -> None:
    assert from_groups({"key": ["36", "4"], "x": [1, 2]}, "key").keys == ["36", "4"]


def shifted(params: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
    inner = params[:, :1] + (x @ params[:, 1:].unsqueeze(-1)).squeeze(-1)
    return ((y - inner).square() * mask).sum(1)


def test_results_go_back_to_the_table_they_came_from(tmp_path: Path) -> None:
    """From a file as from the frame that pandas reads of it, by the column of groups."""
    pandas = pytest.importorskip("pandas")
    generator = np.random.default_rng(1)
    path = tmp_path / "table.csv"
    frame = pandas.DataFrame(
        {
            "clinic": generator.permutation(np.repeat([12, 7, 36], 9)),
            "age": generator.normal(size=27),
            "dose": generator.normal(size=27),
        }
    )
    frame["y"] = frame["clinic"] + 2 * frame["age"] - frame["dose"]
    frame.to_csv(path, index=False)
    names = {"x": ["age", "dose"], "y": "y"}
    for table in (path, frame):
        groups = from_groups(table, "clinic", names)
        batch = FunctionBatch(np.zeros((3, 3)), shifted, groups.data)
        solution = haltwise.solve(batch, method="newton", standard_errors=True)
        found = solution.to_frame(groups, names=["intercept", *groups.columns["x"]])
        assert found.index.name == "clinic"
        assert list(found.columns[:6]) == [
            *("intercept", "age", "dose"),
            *("intercept_se", "age_se", "dose_se"),
        ]
        merged = pandas.read_csv(path).join(found.add_suffix("_fit"), on="clinic")
        np.testing.assert_allclose(merged["intercept_fit"], merged["clinic"], rtol=1e-9)
        np.testing.assert_allclose(merged["age_fit"], 2.0, rtol=1e-9)
        np.testing.assert_allclose(merged["dose_fit"], -1.0, rtol=1e-9)
        assert found.to_csv().startswith("clinic,intercept,age,dose,")
    plain = solution.to_frame(groups.keys)
    assert list(plain.columns[:3]) == ["params[0]", "params[1]", "params[2]"]
    assert plain.index.name is None


def test_several_columns_of_groups_are_levels_of_the_index() -> None:
    pytest.importorskip("pandas")
    groups = from_groups({**TABLE, "day": [1, 2] * 3}, ["shop", "day"], ["x"])
    batch = FunctionBatch({"a": np.ones(5)}, lambda params, **_: params["a"].square(), groups.data)
    found = haltwise.solve(batch, method="newton").to_frame(index=groups)
    assert found.index.names == ["shop", "day"]
    assert found.index[0] == ("b", 1)
    two = from_groups(TABLE, "shop")
    with pytest.raises(InputError, match="index must have one label for each of the 5 problems"):
        haltwise.solve(batch, method="newton").to_frame(index=two)


@pytest.mark.parametrize(
    ("start", "names", "message"),
    [
        (np.ones((2, 3)), ["a", "b"], r"names must be one for each of the 3 numbers of params"),
        (np.ones((2, 3)), "abc", r"names must be one for each"),
        (np.ones((2, 3)), ["a", "b", 3], r"names must be one for each"),
        (np.ones((2, 3)), ["a", "b", "a"], r"would be called 'a'; give"),
        (np.ones((2, 3)), {"w": ["a", "b", "c"]}, r"names are of 'w'.* 'params'"),
        ({"w": np.ones((2, 3))}, ["a", "b", "c"], r"a dictionary .*'w'"),
        ({"w": np.ones((2, 3))}, {"v": ["a", "b", "c"]}, r"names are of 'v'.* 'w'"),
        ({"w": np.ones((2, 3))}, {"w": ["a"]}, r"names\['w'\] must be one for each of the 3"),
    ],
)
def test_names_of_columns_that_will_not_do(start: Any, names: Any, message: str) -> None:
    pytest.importorskip("pandas")
    solution = haltwise.solve(FunctionBatch(start, sum_of_squares), method="newton")
    with pytest.raises(InputError, match=message):
        solution.to_frame(names=names)


def sum_of_squares(params: Any) -> Tensor:
    values = params.values() if isinstance(params, dict) else [params]
    return sum((value.reshape(len(value), -1).square().sum(1) for value in values), torch.zeros(()))


def test_numbers_of_named_parameters_are_named_too() -> None:
    pytest.importorskip("pandas")
    start = {"w": np.ones((2, 2)), "b": np.ones(2), "c": np.ones((2, 2, 1))}
    solution = haltwise.solve(FunctionBatch(start, sum_of_squares), method="newton")
    found = solution.to_frame(names={"w": ["age", "dose"], "b": ["base"]})
    assert list(found.columns[:5]) == ["age", "dose", "base", "c[0,0]", "c[1,0]"]
