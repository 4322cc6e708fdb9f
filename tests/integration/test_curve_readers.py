"""Formats of recorded runs, written by the tools themselves or by hand."""

import gzip
import io
import json
import lzma
import math
import os
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loops import record_runs

from haltwise import InputError
from haltwise._core.errors import DataWarning
from haltwise.curves import Curves, learn_to_stop, read
from haltwise.curves.readers import readers

NAMED: dict[str, Any] = {"cost": "step", "metric": "loss"}
TABLE = "run,group,step,loss,acc\na,g,0,3.0,.1\na,g,1,2.0,\nb,h,0,5.0,.2\nb,h,2,,.3\nb,h,3,4.5,.4\n"


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def same(one: Curves, other: Curves) -> bool:
    return (
        one.columns == other.columns
        and one.metric == other.metric
        and one.direction == other.direction
        and one.cost_unit == other.cost_unit
        and all(
            np.array_equal(getattr(one, name), getattr(other, name))
            for name in ("cost", "offset", "name", "group", "task")
        )
        and all(
            np.array_equal(getattr(one, name), getattr(other, name), equal_nan=True)
            for name in ("values", "target", "budget")
        )
    )


# ------------------------------------------------------------------------------------------ tables


@pytest.mark.parametrize("suffix", ["csv", "tsv", "csv.gz", "csv.xz"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_a_table_of_all_runs(tmp_path: Path, suffix: str, line_end: str) -> None:
    text = TABLE.replace("\n", line_end)
    if suffix == "tsv":
        text = text.replace(",", "\t")
    content = b"\xef\xbb\xbf" + text.encode()
    packs: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "xz": lzma.compress}
    pack = packs.get(suffix[4:], bytes)
    path = tmp_path / f"all.{suffix}"
    path.write_bytes(pack(content))
    found = read(path, target=2.5, **NAMED)
    assert found.name.tolist() == ["g/a", "h/b"]
    assert found.group.tolist() == ["g", "h"]
    assert found.cost.tolist() == [0, 1, 0, 2, 3]
    assert found.columns == ("loss", "acc")
    np.testing.assert_equal(found.values[:, 0], [3, 2, 5, np.nan, 4.5])
    np.testing.assert_equal(found.values[:, 1], [0.1, np.nan, 0.2, 0.3, 0.4])
    assert found.succeeded.tolist() == [True, False]
    assert found.budget.tolist() == [3, 3]
    assert found.cost_unit == "step"
    named = read(path, target=2.5, **NAMED, cost_unit="epochs")
    assert named.cost_unit == "epochs"
    assert named.cost.tolist() == found.cost.tolist()


def test_one_run_a_file_and_groups_by_folder(tmp_path: Path) -> None:
    for group in ("one", "two"):
        for name in ("a", "b"):
            written(tmp_path / group / f"{name}.csv", "step,loss\n0,2\n1,1\n")
    (tmp_path / "notes.yaml").write_text("no curves")
    found = read(tmp_path, group="folder", **NAMED)
    assert found.name.tolist() == ["one/a", "one/b", "two/a", "two/b"]
    assert found.group.tolist() == ["one", "one", "two", "two"]
    assert read(tmp_path, group=["x", "x", "y", "z"], **NAMED).group.tolist() == list("xxyz")


def test_targets_budgets_and_groups_from_columns(tmp_path: Path) -> None:
    text = "trial,step,acc,goal,limit,seed\n1,0,.5,.7,9,3\n1,1,.8,.7,9,3\n2,0,.1,.9,7,4\n"
    path = written(tmp_path / "t.csv", text)
    found = read(path, cost="step", metric="acc", target="goal", budget="limit", group="seed")
    assert found.direction == "max"
    assert found.target.tolist() == [0.7, 0.9]
    assert found.budget.tolist() == [9, 7]
    assert found.group.tolist() == ["3", "4"]
    assert found.success.tolist() == [1, -1]
    with pytest.raises(InputError, match="'acc' changes within run"):
        read(path, cost="step", metric="acc", target="acc")
    kept = read(path, cost="step", metric="acc", columns=["goal"])
    assert kept.columns == ("acc", "goal")


def test_frames_and_files_are_treated_alike(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", TABLE)
    frame = {
        "run": ["b", "a", "b", "a", "b"],
        "group": np.array(["h", "g", "h", "g", "h"], object),
        "step": [3, 1, 2, 0, 0],
        "loss": [4.5, 2.0, None, 3.0, 5.0],
        "acc": [0.4, np.nan, 0.3, 0.1, 0.2],
    }
    with pytest.warns(DataWarning, match="were sorted"):
        found = Curves.from_frame(frame, **NAMED)
    order = np.argsort(found.name)
    assert same(found.select(order), read(path, **NAMED))


def test_a_missing_number_of_a_frame_has_either_sign() -> None:
    """Some arithmetic makes NaN with the sign set, such as inf - inf on many processors."""
    frame = {"run": ["a"] * 3, "step": [0, 1, 2], "loss": [3.0, math.copysign(math.nan, -1), 1.0]}
    np.testing.assert_equal(Curves.from_frame(frame, **NAMED)[0].loss, [3, np.nan, 1])


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_data_frames(library: str) -> None:
    made = pytest.importorskip(library).DataFrame(
        {"run": ["a", "a", "b"], "step": [0, 1, 0], "loss": [2.0, None, 3.0]}
    )
    found = Curves.from_frame(made, **NAMED)
    np.testing.assert_equal(found.values[:, 0], [2, np.nan, 3])


@pytest.mark.parametrize(("last", "are_times"), [(1.71e9, True), (1.8e9, False)])
def test_large_costs_are_times_of_day_where_no_run_takes_years(
    last: float, are_times: bool, tmp_path: Path
) -> None:
    """A run from 1.7e9 to 1.8e9 seconds would have taken three years; tokens grow so."""
    path = written(tmp_path / "run.csv", f"at,loss\n1.7e9,3\n{last},2\n")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = read(path, cost="at", metric="loss")
    assert found.cost.tolist() == ([0.0, last - 1.7e9] if are_times else [1.7e9, last])
    assert any("times of day" in str(each.message) for each in caught) is are_times


def test_a_frame_of_times(tmp_path: Path) -> None:
    times = np.array(["2026-01-01T00:00:10", "2026-01-01T00:00:40"], "datetime64[s]")
    with pytest.warns(DataWarning, match="times of day"):
        found = Curves.from_frame({"when": times, "loss": [2.0, 1.0]}, cost="when", metric="loss")
    assert found.cost.tolist() == [0, 30]
    tokens = {"tokens": [1e9, 2e9], "loss": [2.0, 1.0]}
    assert Curves.from_frame(tokens, cost="tokens", metric="loss").cost.tolist() == [1e9, 2e9]


# --------------------------------------------------------------------------- what nobody has named


def test_what_is_chosen_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "epoch,step,seconds,loss,val_loss,val_acc\n1,2,3,4,5,6\n")
    with pytest.warns(DataWarning) as caught:
        found = read(path)
    assert [str(entry.message) for entry in caught] == [
        "nobody named them, so the metric is 'val_loss' (lower is better) and the cost is "
        "'seconds'; name cost= and metric= to choose"
    ]
    assert (found.metric, found.direction, found.cost_unit) == ("val_loss", "min", "seconds")


@pytest.mark.parametrize(
    ("names", "metric", "cost"),
    [
        ("_step,_runtime,_timestamp,eval/loss,train/loss", "eval/loss", "_runtime"),
        ("global_step,epoch,eval_loss,loss", "eval_loss", "global_step"),
        ("iteration,validation_0-rmse,validation_0-rmse-std", "validation_0-rmse", "iteration"),
        ("epoch,train_loss,test_loss,lr", "train_loss", "epoch"),
        ("Step,Loss/train,Accuracy/val", "Accuracy/val", "Step"),
    ],
)
def test_columns_by_their_usual_names(tmp_path: Path, names: str, metric: str, cost: str) -> None:
    width = names.count(",") + 1
    rows = "".join(",".join([str(row)] * width) + "\n" for row in (1, 2))
    path = written(tmp_path / "t.csv", f"{names}\n{rows}")
    with pytest.warns(DataWarning, match="nobody named"):
        found = read(path)
    assert found.metric == metric
    assert cost not in found.columns
    assert found.cost.tolist() == [1, 2]


def test_time_that_is_not_always_known_is_no_cost(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "step,seconds,loss\n0,,3\n1,5,2\n")
    with pytest.warns(DataWarning, match="the cost is 'step'"):
        assert read(path).num_points.tolist() == [2]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("step,loss_a,loss_b\n0,1,2\n", "loss_a and loss_b could all be it; name it"),
        ("step,global_step,loss\n0,0,2\n", "step and global_step could all be it"),
        ("step,score\n0,2\n", "which column is the metric. no name says so"),
        ("run,step,loss\n", "holds no rows"),
        ("", "t.csv is empty"),
        ("run;step;loss\na;0;3,5\n", "'loss' of .* holds the text '3,5' in row 2 .its comma"),
        ("step,acc\n0,50%\n", "the column 'acc' of .* holds the text '50%' in row 2"),
        ('step,loss\n"1,000",3\n"2,000",2\n', "'step' of .*'1,000'.* name another cost"),
        ("run|step|loss\na|0|3\n", "has one column, 'run|step|loss', and no numbers in it"),
        ("# by me\nstep,loss\n0,3\n", "2 cells in row 2, .* or the first, which names"),
        ("1,2,3\n4,5,6\n", "does not begin with a line that names its columns"),
        ("step,step,loss\n1,2,3\n", "two columns 'step'"),
        ("step,loss\n1,2,3\n", "3 cells in row 2, but 2 columns"),
        ("step,loss\n1\n2,3\n", "1 cells in row 2, but 2 columns"),
        ('step,loss\n1,"' + "9" * 200_000, "no table of values after row"),
        ("step,loss\n0,9\n5,8\n0,9\n5,7\n", "as if there were several runs; name the column"),
        ("step,loss\n-1,9\n5,8\n", "the cost of run 't' goes down to -1"),
    ],
)
def test_tables_that_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = written(tmp_path / "t.csv", text)
    with pytest.raises(InputError, match=message):
        read(path)


def test_settings_that_are_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", TABLE.replace("acc", "score"))
    for settings, message in (
        ({"metric": "lose"}, "no column 'lose' of numbers; name one of step, loss, score"),
        ({"metric": "score", "cost": "step"}, "a lower or a higher 'score' better"),
        ({"run": "trial"}, "no column 'trial' of runs; name one of run, group, step"),
        ({**NAMED, "group": "team"}, "run 'g/a' has no 'team'; name one of"),
        ({**NAMED, "target": "run"}, "'run' holds texts"),
        ({**NAMED, "target": [1.0]}, "target must be one number or one for each of 2 runs"),
        ({**NAMED, "group": ["x"]}, "group must have one entry for each of 2 runs"),
        ({"format": "cvs"}, "unknown format 'cvs'; did you mean 'csv'"),
    ):
        with pytest.raises(InputError, match=message):
            read(path, **settings)


def test_runs_that_leave_their_target_empty_have_none(tmp_path: Path) -> None:
    text = "run,step,loss,goal,cap\na,0,3,2,\na,1,1,2,\nb,0,3,,9\nb,1,1,,9\n"
    found = read(written(tmp_path / "t.csv", text), **NAMED, target="goal", budget="cap")
    np.testing.assert_equal(found.target, [2, np.nan])
    assert found.budget.tolist() == [1, 9]  # the most that a run spent, where none is named
    with pytest.raises(InputError, match="run 'a' has no 'aim'; name one of"):
        read(tmp_path / "t.csv", **NAMED, target="aim")


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    """A pipe without a writer would be waited for without end."""
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        read(tmp_path / "pipe.csv")
    with pytest.raises(InputError, match=r"there is no file or folder [^ ]*$"):
        read(tmp_path / "none.csv", data_dir=tmp_path)
    with pytest.raises(InputError, match="name a file or a folder of recorded runs, got None"):
        read(None)  # type: ignore[arg-type]


def test_a_metric_that_is_no_column_is_not_replaced_by_another(tmp_path: Path) -> None:
    Curves.from_matrix([[3.0, 2.0]], target=2.0).save(tmp_path / "sound.npz")
    with np.load(tmp_path / "sound.npz") as sound:
        np.savez(tmp_path / "broken.npz", **{**sound, "metric": np.array(["a", "b"])})
    with pytest.raises(InputError, match="which is no column"):
        read(tmp_path / "broken.npz")


def test_an_unknown_format_lists_those_there_are(tmp_path: Path) -> None:
    path = written(tmp_path / "t.pdf", "%PDF")
    with pytest.raises(InputError, match=r"no known format; those are algoperf, .*npz.*csv"):
        read(path)
    with pytest.raises(InputError, match=r"no file in .* is of a known format; those are"):
        read(tmp_path)
    with pytest.raises(InputError, match="there is no file or folder"):
        read(tmp_path / "none")
    written(tmp_path / "t.csv", TABLE)
    written(tmp_path / "t.jsonl", "{}")
    with pytest.raises(InputError, match=r"several formats, csv \(1\) and jsonl \(1\)"):
        read(tmp_path)
    assert read(tmp_path, format="csv", **NAMED).num_runs == 2


def test_a_column_of_numbers_and_texts_is_left_out_and_said(tmp_path: Path) -> None:
    rows = "".join(f"{step},{step},1\n" for step in range(200_000))
    path = written(tmp_path / "t.csv", f"step,loss,note\n{rows}200000,3,oops\n")
    sentence = f"the column 'note' of {path} holds the text 'oops' in row 200002"
    with pytest.warns(DataWarning, match=f"{sentence}: the column is left out"):
        assert read(path, **NAMED).columns == ("loss",)
    with pytest.raises(InputError, match=f"{sentence}; mend it"):
        read(path, cost="step", metric="note")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("t.csv", "step,loss\n0,3\n\n1,oops\n2,1\n", "the text 'oops' in row 4; mend"),
        ("t.csv", "step;loss\n0;3\n1;2,5\n", "'2,5' in row 3 .its comma is no decimal point"),
        ("t.csv", "step;loss\n0;3,5\n1;2,5\n", "'3,5' in row 2 .its comma is no decimal point"),
        (
            "t.csv",
            "run,step,loss\nb,1,2\na,1,3\na,0,?\nb,0,??\n",
            "'[?]' in row 4",
        ),
        ("t.jsonl", '{"step": 0, "loss": 3}\n\n{"step": 1, "loss": "oops"}\n', "in row 3;"),
    ],
    ids=["text", "comma", "all commas", "runs", "jsonl"],
)
def test_a_text_where_a_number_should_be_is_named(
    tmp_path: Path, name: str, text: str, sentence: str
) -> None:
    with pytest.raises(InputError, match=f"the column 'loss' of .*{name} holds .*{sentence}"):
        read(written(tmp_path / name, text), **NAMED)


def test_texts_that_are_the_same_throughout_a_run_are_labels(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "run,step,loss,size\na,0,3,64\na,1,2,64\nb,0,3,auto\n")
    assert read(path, group="size", **NAMED).group.tolist() == ["64", "auto"]


@pytest.mark.parametrize("nan", ["nan", "NaN", "-nan"])
def test_nan_that_is_written_is_a_run_that_diverged(tmp_path: Path, nan: str) -> None:
    """What is not measured is left empty, or written as loggers write it."""
    for missing in ("", "null", "NA", "-"):
        path = written(tmp_path / "t.csv", f"step,loss,aside\n0,3,{nan}\n1,{missing},1\n2,{nan},\n")
        found = read(path, **NAMED)
        np.testing.assert_equal(found.values, [[3, np.nan], [np.nan, 1], [np.inf, np.nan]])
        assert found.columns == ("loss", "aside")
        found = read(path, direction="max", **NAMED)
        np.testing.assert_equal(found.values[:, 0], [3, np.nan, -np.inf])
    path = written(tmp_path / "t.csv", f"step,loss\n0,{nan}\n1,2\n2,{nan}\n")
    with pytest.warns(DataWarning, match="'loss' is NaN at 1 points, with numbers after them"):
        assert read(path, **NAMED).values.ravel().tolist() == [np.inf, 2, np.inf]


def test_a_row_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "step,loss\n0,3\n1,2\n2")
    with pytest.warns(DataWarning, match="ends in the middle of a row"):
        assert read(path, **NAMED).num_points.tolist() == [2]
    path = written(tmp_path / "t.jsonl", '{"step": 0, "loss": 3}\n{"step": 1, "lo')
    with pytest.warns(DataWarning, match="ends in the middle of a line"):
        assert read(path, **NAMED).num_points.tolist() == [1]
    with pytest.raises(InputError, match=r"line 2 of .* is not JSON"):
        read(written(path, '{"step": 0, "loss": 3}\n{"step\n{"step": 1, "loss": 2}\n'), **NAMED)


# ------------------------------------------------------------------------------------------ loggers


def test_weights_and_biases(tmp_path: Path) -> None:
    chart = (
        '"Step","sun-1 - val/loss","sun-1 - val/loss__MIN","sun-1 - val/loss__MAX",'
        '"a - b - val/loss","a - b - val/loss__MIN","a - b - val/loss__MAX"\n'
        '"0","3","3","3","","",""\n"10","2","2","2","5","5","5"\n'
    )
    with pytest.warns(DataWarning, match="the metric is 'val/loss'"):
        found = read(written(tmp_path / "chart.csv", chart))
    assert found.name.tolist() == ["sun-1", "a - b"]
    assert found.columns == ("val/loss",)
    assert found.cost.tolist() == [0, 10, 10]
    assert found.values.ravel().tolist() == [3, 2, 5]
    lines = [
        {"_step": 0, "_runtime": 1.5, "eval": {"loss": 3.0}, "run": "x", "h": {"bins": [1, 2]}},
        {"_step": 1, "_runtime": 2.5, "eval": {"loss": "NaN"}, "run": "x", "ok": True},
        {"_step": 0, "_runtime": 0.5, "eval": {"loss": "Infinity"}, "run": "y", "note": None},
    ]
    text = "\n".join(map(json.dumps, lines))
    found = read(written(tmp_path / "h.jsonl", text), cost="_runtime", metric="eval.loss")
    assert found.cost.tolist() == [1.5, 2.5, 0.5]
    np.testing.assert_equal(found.values[:, found.columns.index("eval.loss")], [3, np.inf, np.inf])


def test_a_table_with_a_column_of_runs_is_no_chart(tmp_path: Path) -> None:
    rows = "step,run,loss - train,loss - val\n1,a,3,4\n2,a,2,3\n1,b,5,6\n"
    found = read(written(tmp_path / "runs.csv", rows), cost="step", metric="loss - val")
    assert (found.name.tolist(), found.num_points.tolist()) == (["a", "b"], [2, 1])


def test_runs_may_be_named_late_in_a_log(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [{"note": number} for number in range(2**14 + 1)]
    lines += [{"run": run, "step": step, "loss": 1.0} for run in ("a", "b") for step in range(3)]
    path = written(tmp_path / "log.jsonl", "\n".join(map(json.dumps, lines)))
    for run in (None, "run"):
        with pytest.warns(DataWarning, match="have no 'run'|they have no point"):
            assert read(path, **NAMED, run=run).name.tolist() == ["a", "b"]
    with pytest.raises(InputError, match="no column 'trial' of runs; name one of note, run"):
        read(path, **NAMED, run="trial")


def test_tensorboard(tmp_path: Path) -> None:
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    first = writer(str(tmp_path / "a"), filename_suffix=".1")
    for step in range(10):
        first.add_scalar("loss", 10 - step, step, walltime=100 + step)
        if step % 5 == 4:
            first.add_scalar("val", 20 - step, step, walltime=100 + step)
            first.add_histogram("weights", np.arange(9.0), step)
    first.add_text("note", "hello")
    first.close()
    again = writer(str(tmp_path / "a"), filename_suffix=".2", purge_step=8)
    for step in (8, 9, 10):
        again.add_scalar("loss", 50 - step, step, walltime=1000 + step, new_style=True)
    again.close()
    other = writer(str(tmp_path / "b"))
    other.add_scalar("loss", 1.5, 3)
    other.add_scalar("val", 1.5, 3)
    other.close()
    with pytest.warns(DataWarning, match="restarted: 3 points"):
        found = read(tmp_path, metric="val", direction="min")
    assert found.name.tolist() == ["a", "b"]
    assert found[0].cost.tolist() == list(range(11))
    assert found[0].columns["loss"].tolist() == [*range(10, 2, -1), 42, 41, 40]
    np.testing.assert_equal(found[0].columns["val"], [*[np.nan] * 4, 16, *[np.nan] * 6])
    seconds = found[0].columns["seconds"]  # the pause of 890 seconds is not counted
    np.testing.assert_allclose(seconds, [*range(8), 7, 8, 9])
    path = min((tmp_path / "a").iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:-3])
    with pytest.warns(DataWarning, match="in the middle of a record"):
        read(path, **NAMED)
    spoiled = bytearray(content)
    spoiled[content.index(b"loss") + 7] ^= 1
    path.write_bytes(spoiled)
    with pytest.raises(InputError, match="corrupt or no event file"):
        read(path, **NAMED)


def test_folders_that_add_scalars_makes_are_no_runs(tmp_path: Path) -> None:
    summary_writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    for name in ("a", "b"):
        writer = summary_writer(str(tmp_path / name))
        for step in range(3):
            writer.add_scalar("lr", 0.1, step)
            writer.add_scalars("all/loss", {"train": 2 - step, "val": 3 - step}, step)
        writer.close()
    other = summary_writer(str(tmp_path / "a" / "all_loss_more"))  # of several tags, so a run
    for tag in ("lr", "all/loss_val"):
        other.add_scalar(tag, 1.0, 0)
    other.close()
    found = read(tmp_path, metric="all/loss_val")
    runs = dict(zip(found.name.tolist(), found, strict=True))
    assert sorted(runs) == ["a", "a/all_loss_more", "b"]
    assert runs["a"].columns["all/loss_val"].tolist() == [3, 2, 1]
    assert runs["b"].columns["all/loss_train"].tolist() == [2, 1, 0]
    assert runs["a/all_loss_more"].num_points == 1


def test_lightning(tmp_path: Path) -> None:
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    for _ in range(2):
        logger = loggers.CSVLogger(str(tmp_path), name="digits")
        for epoch in range(3):
            logger.log_metrics({"train_loss": 3.0 - epoch, "epoch": epoch}, step=4 * epoch + 3)
            logger.log_metrics({"val_loss": 4.0 - epoch, "epoch": epoch}, step=4 * epoch + 3)
        logger.save()
    found = read(tmp_path, metric="val_loss")
    assert found.name.tolist() == ["digits/version_0", "digits/version_1"]
    assert found[0].cost.tolist() == [3, 7, 11]
    assert found[0].columns["train_loss"].tolist() == [3, 2, 1]
    assert found[0].columns["val_loss"].tolist() == [4, 3, 2]


def test_transformers(tmp_path: Path) -> None:
    state = pytest.importorskip("transformers").TrainerState(max_steps=20, num_train_epochs=2)
    for step in range(1, 11):
        state.log_history.append({"loss": 1 / step, "epoch": step / 10, "step": step})
        if step % 5 == 0:
            state.log_history.append({"eval_loss": 2 / step, "epoch": step / 10, "step": step})
            state.global_step = step
            folder = tmp_path / "run" / f"checkpoint-{step}"
            folder.mkdir(parents=True)
            state.save_to_json(str(folder / "trainer_state.json"))
    state.log_history.append({"train_runtime": 9.0, "train_loss": 0.3, "step": 10})
    state.save_to_json(str(tmp_path / "run" / "trainer_state.json"))
    found = read(tmp_path)
    assert found.name.tolist() == ["run"]
    assert sorted(found.columns) == ["epoch", "eval_loss", "loss"]
    assert (found.metric, found.budget.tolist()) == ("eval_loss", [20])
    np.testing.assert_allclose(found[0].columns["loss"], 1 / np.arange(1, 11))
    np.testing.assert_equal(found[0].columns["eval_loss"][[3, 4, 9]], [np.nan, 0.4, 0.2])
    assert read(tmp_path, cost="epoch").budget.tolist() == [2]
    state.global_step = 11
    state.log_history.append({"eval_loss": float("nan"), "epoch": 1.1, "step": 11})
    state.save_to_json(str(tmp_path / "run" / "trainer_state.json"))
    assert read(tmp_path)[0].columns["eval_loss"][-1] == np.inf


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("[" * 100_000, "is not JSON"),
        ('{"log_history": [1]}', "no log_history, a list of objects"),
        ('{"log_history": []}', "no entry with a step"),
        ('{"log_history": [{"step": 1}]}', "no column of numbers|which column is the metric"),
        ('{"log_history": [' + ",".join(["{}"] * 1_500_000) + "]}", "too many to be parsed"),
    ],
)
def test_hostile_documents(tmp_path: Path, document: str, message: str) -> None:
    path = written(tmp_path / "trainer_state.json", document)
    with pytest.raises(InputError, match=message):
        read(path)


def test_our_own_recordings(tmp_path: Path) -> None:
    for scored in (False, True):
        folder = tmp_path / str(scored)
        record_runs(folder, range(2), scored=scored)
        found = read(folder)
        assert found.num_runs == 2
        assert found.metric == ("score" if scored else "loss")
        assert found[0].cost.tolist() == list(range(found[0].num_points))
        assert "log_grad" in found.columns


# ----------------------------------------------------------------------------------------- archives


def test_a_saved_record_is_read_back(tmp_path: Path) -> None:
    made = Curves.from_runs(
        [
            {"seconds": [0.5, 2.0], "acc": [0.1, np.nan], "steps": [1, 2]},
            {"seconds": [1.0], "acc": [-np.inf]},
        ],
        cost="seconds",
        metric="acc",
        direction="max",
        target=[0.5, np.nan],
        budget=9.0,
        group=["g", "ä"],
        task=["t", "u"],
        name=["x", "y"],
    )
    made.save(tmp_path / "c.npz")
    assert same(read(tmp_path / "c.npz"), made)
    assert same(read("c.npz", data_dir=tmp_path), made)


def test_a_matrix_of_losses(tmp_path: Path) -> None:
    losses = np.array([[3.0, 2.0, np.nan], [3.0, np.nan, 1.0]])
    np.savez(tmp_path / "m.npz", losses=losses, target=[2.5, 0.5], group=["a", "b"])
    expected = Curves.from_matrix(losses, target=[2.5, 0.5], group=["a", "b"])
    assert same(read(tmp_path / "m.npz"), expected)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_hostile_archives(tmp_path: Path) -> None:
    path = tmp_path / "x.npz"

    def pack(**contents: bytes) -> None:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents.items():
                archive.writestr(f"{name}.npy", content)

    def array(value: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, value)
        return buffer.getvalue()

    good = array(np.ones((2, 3)))
    for contents, message in (
        ({"losses": array(np.array([None, 1]))}, "no .npz file of plain arrays"),
        ({"losses": good.replace(b"(2, 3)", b"(2, 4)")}, "not as long as its header says"),
        ({"losses": good.replace(b"(2, 3), }", b"(9**99,)}")}, "no .npz file of plain arrays"),
        ({"losses": good, "zeros": bytes(300 * 2**20)}, "too many for so small a file"),
        ({"losses": array(np.ones(3))}, "not as they must be"),
        ({"losses": array(np.array([["a"]]))}, "x.npz: losses must hold real numbers .*'a'"),
        ({"losses": array(np.ones((2, 3)) * 1j)}, "x.npz: losses must hold real .* complex"),
        ({"losses": array(np.zeros((2, 3), "M8[s]"))}, "x.npz: losses must hold real .* times"),
        ({"losses": good, "costs": array(np.ones(3) * 1j)}, "x.npz: costs .* complex"),
        ({"losses": good, "target": array(np.array(1j))}, "x.npz: target .* complex"),
        ({"losses": good, "budget": array(np.array(1j))}, "x.npz: budget .* complex"),
        ({"losses": good, "group": array(np.array(["a"]))}, "not as they must be"),
        ({"losses": array(np.full((2, 3), np.nan))}, "no column|no numbers|which column"),
    ):
        pack(**contents)
        with pytest.raises(InputError, match=message):
            read(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(InputError, match="no known format"):
        read(path)


def test_a_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"step,loss\n" + (b"1," + b"0" * 90_000 + b"\n") * 500))
    with pytest.raises(InputError, match="too much for so small a file"):
        read(path, **NAMED)


def test_columns_that_nearly_nobody_fills_are_refused(tmp_path: Path) -> None:
    lines = "".join(f'{{"step": {i}, "loss": 1, "c{i}": 1}}\n' for i in range(9000))
    with pytest.raises(InputError, match=r"would not fit into the memory|too many to be held"):
        read(written(tmp_path / "t.jsonl", lines), **NAMED)
    lines = "".join(f'{{"c{i}": 1}}\n' for i in range(20000))
    with pytest.raises(InputError, match="more than 10000 columns"):
        read(written(tmp_path / "t.jsonl", lines), **NAMED)


def test_general_formats_are_asked_last() -> None:
    assert list(readers())[-3:] == ["csv", "jsonl", "matrix"]


def test_logs_without_a_point_are_left_out_of_a_folder(tmp_path: Path) -> None:
    written(tmp_path / "a.csv", "step,loss,val_loss\n0,3,\n1,2,2.5\n")
    for name, text in (("b.csv", ""), ("c.csv", "step,loss,val_loss\n")):
        written(tmp_path / name, text)
        with pytest.raises(InputError, match=r"is empty|holds no rows"):
            read(tmp_path / name)
    written(tmp_path / "d.csv", "step,loss,val_loss\n0,3,\n1,2,\n")  # it was never validated
    with pytest.warns(DataWarning) as caught:
        found = read(tmp_path, cost="step", metric="val_loss")
    assert found.name.tolist() == ["a"]
    messages = [str(each.message) for each in caught]
    assert any("left out: 2 of 4 logs without a point; " in each for each in messages)
    assert "left out: 1 of 2 runs: they never measured 'val_loss'" in messages


def test_rows_that_do_not_say_their_run_are_counted(tmp_path: Path) -> None:
    text = "group,run,step,loss\n x ,a,0,3\nx,a,1,2\nx,,0,5\n,b,0,4\n"
    with pytest.warns(DataWarning) as caught:
        found = read(written(tmp_path / "t.csv", text), cost="step", metric="loss")
    assert found.num_points.tolist() == [2, 1, 1]  # blanks around a name make no other run
    assert found.group.tolist() == ["x", "x", ""]
    for name in ("run", "group"):
        assert (
            sum(
                f"1 of 4 rows of {tmp_path / 't.csv'} have no '{name}'" in str(w.message)
                for w in caught
            )
            == 1
        )


def test_a_run_that_diverged_in_a_chart_ends_at_the_worst(tmp_path: Path) -> None:
    text = '"Step","a - loss","a - loss__MIN","b - loss"\n0,3,3,""\n1,NaN,NaN,4\n2,NaN,NaN,3\n'
    found = read(written(tmp_path / "t.csv", text), metric="loss")
    assert found[0].columns["loss"].tolist() == [3, np.inf, np.inf]
    assert found[1].cost.tolist() == [1, 2]
    path = written(tmp_path / "u.csv", 'Step,a - loss\n"1,000",3\n')
    with pytest.raises(InputError, match=r"'Step' of .* holds the text '1,000'"):
        read(path, metric="loss")


def test_a_metric_that_is_nan_throughout_diverged(tmp_path: Path) -> None:
    path = written(tmp_path / "t.csv", "step,loss\n0,nan\n1,nan\n")
    assert read(path, cost="step", metric="loss").values[:, 0].tolist() == [np.inf, np.inf]


def test_texts_in_other_encodings_and_headers_over_lines(tmp_path: Path) -> None:
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "t.csv").write_bytes("step,loss\n0,3\n".encode(encoding))
        with pytest.raises(InputError, match="iconv -f UTF-16 -t UTF-8"):
            read(tmp_path / "t.csv")
    path = written(tmp_path / "t.csv", 'step,"loss\n(nats)"\n0,3\n1,2\n')
    assert read(path, cost="step", metric="loss\n(nats)").values[:, 0].tolist() == [3, 2]


def test_data_frames_of_pandas_keep_their_index() -> None:
    pandas = pytest.importorskip("pandas")
    plain = {"run": ["a", "a", "b"], "step": [0, 1, 0], "loss": [3.0, 2.0, 4.0]}
    frame = pandas.DataFrame(plain)
    expected = Curves.from_frame(plain, cost="step", metric="loss")
    for indexed in (
        frame.set_index(["run", "step"]),
        frame.set_index("step"),
        frame.set_index("step", drop=False),
        frame.assign(run=frame["run"].astype("category"), step=frame["step"].astype("Int64")),
    ):
        found = Curves.from_frame(indexed, cost="step", metric="loss")
        assert found.name.tolist() == expected.name.tolist()
        np.testing.assert_array_equal(found.cost, expected.cost)
    frame["done"] = pandas.array([True, None, False], dtype="boolean")
    found = Curves.from_frame(frame, cost="step", metric="loss")
    np.testing.assert_array_equal(found[0].columns["done"], [1, np.nan])
    days = pandas.to_datetime(["2026-01-01", "2026-01-02", "2026-01-01"]).tz_localize("Asia/Tokyo")
    with pytest.warns(DataWarning, match="times of day"):
        found = Curves.from_frame(frame.assign(at=days), cost="at", metric="loss")
    assert found.cost.tolist() == [0, 86400, 0]
    frame.columns = pandas.MultiIndex.from_product([["log"], frame.columns])
    found = Curves.from_frame(frame, run="log.run", cost="log.step", metric="log.loss")
    assert found.num_points.tolist() == [2, 1]
    twice = pandas.concat([frame, frame], axis=1)
    with pytest.raises(InputError, match=r"has two columns 'log.run'; rename one"):
        Curves.from_frame(twice)


def test_columns_may_be_tensors_and_have_numbers_for_names() -> None:
    torch = pytest.importorskip("torch")
    loss = torch.tensor([3.0, 2.0], dtype=torch.bfloat16, requires_grad=True)
    found = Curves.from_frame({0: [0, 1], 1: loss}, cost=0, metric=1, direction="min")
    assert found.values[:, 0].tolist() == [3, 2]


@pytest.mark.parametrize("zone", [None, "UTC"])
def test_times_of_pandas_are_no_costs(zone: str | None) -> None:
    pandas = pytest.importorskip("pandas")
    times = pandas.Series(pandas.to_datetime(["2026-01-01", "2026-01-02"]).tz_localize(zone))
    for given in (times, times - times[0], list(times)):
        with pytest.raises(InputError, match=r"column 'cost' .*, got times; give seconds"):
            Curves.from_runs([{"cost": given, "loss": [3.0, 2.0]}], metric="loss")


def test_losses_may_be_tensors_that_require_gradients() -> None:
    torch = pytest.importorskip("torch")
    loss = torch.tensor([[3.0, 2.0], [3.0, 1.0]], dtype=torch.bfloat16, requires_grad=True)
    for given in (loss, list(loss), [list(row) for row in loss]):
        found = Curves.from_matrix(given, target=loss[:, 1])
        assert found.values[:, 0].tolist() == [3, 2, 3, 1]
        assert found.target.tolist() == [2, 1]
    assert Curves.from_runs([{"loss": loss[1]}], metric="loss").values[:, 0].tolist() == [3, 1]


def test_what_is_missing_in_arrays_of_pandas_is_nan() -> None:
    pandas = pytest.importorskip("pandas")
    loss = pandas.array([3.0, None, 2.0], dtype="Float64")
    found = Curves.from_runs([{"loss": loss}], metric="loss")
    np.testing.assert_array_equal(found.values[:, 0], [3, np.nan, 2])
    found = Curves.from_frame({"step": [0, 1, 2], "loss": loss}, cost="step", metric="loss")
    np.testing.assert_array_equal(found.values[:, 0], [3, np.nan, 2])


HIDDEN = np.ma.masked_equal([[3.0, -999.0], [3.0, 2.0]], -999.0)
MOMENTS = np.array([["2026-01-01", "2026-01-02"]] * 2, "M8[s]")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (HIDDEN, "is a masked array, .* fill it by .*nan"),
        (list(HIDDEN), "is a masked array, .* fill it by .*nan"),
        (np.ones((2, 2)) + 1j, "must hold real numbers, got complex ones; give their size"),
        ((np.ones((2, 2)) + 1j).astype(object), "must hold real numbers"),
        (MOMENTS, "must hold real numbers, got times; give seconds"),
        (MOMENTS - MOMENTS[0, 0], "must hold real numbers, got times; give seconds"),
        ([[MOMENTS[0, 0], None], [1.0, 2.0]], "must hold real numbers, got times"),
        ([[10**400, 1]] * 2, "must hold real numbers .*too large"),
        ([["3", "low"]] * 2, "must hold real numbers .*low"),
        (np.zeros((2, 2), "f8,f8"), "must hold real numbers"),
    ],
)
def test_what_cannot_be_real_numbers_without_loss_is_refused(wrong: Any, message: str) -> None:
    losses = np.array([[3.0, 2.0], [3.0, 1.0]])
    frame = {"run": ["a", "a", "b", "b"], "step": [0, 1] * 2, "loss": losses.flatten()}
    makers: dict[str, Callable[[], Any]] = {
        "losses": lambda: Curves.from_matrix(wrong),
        "costs": lambda: Curves.from_matrix(losses, wrong),
        "target": lambda: Curves.from_matrix(losses, target=wrong[0]),
        "budget": lambda: Curves.from_frame(frame, budget=wrong[0], **NAMED),
        "column 'loss' of run '0'": lambda: Curves.from_runs([{"loss": wrong[0]}], metric="loss"),
        "returned": lambda: learn_to_stop(Curves.from_frame(frame, **NAMED), 0.1, returned=wrong),
    }
    for name, make in makers.items():
        with pytest.raises(InputError, match=f"{name} {message}"):
            make()


@pytest.mark.parametrize("column", ["step", "loss"])
def test_numbers_beyond_all_others_are_no_divergence(column: str, tmp_path: Path) -> None:
    table: dict[str, list[Any]] = {"step": [0, 1, 2], "loss": [3.0, 2.0, 1.0]}
    table[column][1] = 10**400
    rows = [*zip(*table.values(), strict=True)]
    (tmp_path / "log.csv").write_text("\n".join(f"{one},{two}" for one, two in [table, *rows]))
    objects = (json.dumps(dict(zip(table, row, strict=True))) for row in rows)
    (tmp_path / "log.jsonl").write_text("\n".join(objects))
    ways: list[Callable[[], Curves]] = [
        lambda: Curves.from_frame(table, **NAMED),
        lambda: read(tmp_path / "log.csv", **NAMED),
        lambda: read(tmp_path / "log.jsonl", **NAMED),
    ]
    for make in ways:
        with pytest.raises(InputError, match=f"column {column!r} of .* holds the text '10000"):
            make()
    table[column][1] = 10**5000  # which Python writes out no more
    with pytest.raises(InputError, match=f"column {column!r} holds no numbers, nor what can be"):
        Curves.from_frame(table, **NAMED)


def test_runs_that_are_refused() -> None:
    one: Any = [{"loss": [3.0, 2.0]}]
    settings: Any
    for runs, settings, message in (
        (one[0], {}, "runs must be a list with one dictionary a run"),
        (one, {"budget": -1}, "a budget must be finite and not negative, got .-1"),
        (one, {"budget": np.inf}, "a budget must be finite and not negative, got .inf"),
        (one, {"target": "low"}, "target must hold real numbers .*'low'.*give one or one for each"),
        (one, {"cost": [0.0, 1.0]}, r"cost must be the name of a column, got \[0.0, 1.0\]"),
        (one, {"group": [np.nan]}, "group has no entry for run .0."),
        (one, {"group": np.ma.masked_equal([7], 7)}, "group has no entry for run .0."),
    ):
        with pytest.raises(InputError, match=message):
            Curves.from_runs(runs, metric="loss", **settings)
    with pytest.raises(InputError, match=r"losses must hold .*; fill shorter rows up with NaN"):
        Curves.from_matrix([[3.0, 2.0], [1.0]])
    with pytest.raises(InputError, match="costs must hold real numbers"):
        Curves.from_matrix([[3.0, 2.0]], [[0.0, 1.0], [0.0]])
    with pytest.raises(InputError, match=r"of one column or more, got shape \[2, 0\]"):
        Curves.from_matrix([[], []])
    with pytest.raises(InputError, match="cost and metric both name 'loss'"):
        Curves.from_frame({"loss": [3, 2]}, cost="loss", metric="loss")


@pytest.mark.parametrize("name", ["time", "elapsed", "minutes"])
def test_how_long_a_step_took_is_not_what_was_spent(name: str, tmp_path: Path) -> None:
    times = {"time": [12.1, 11.9, 12.3, 11.8], "elapsed": [0.0, 10.0, 0.0, 10.0]}.get(
        name, [60] * 4
    )
    rows = [(run, step, 4.0 - step, times[step]) for run in ("a", "b") for step in range(4)]
    header = ("run", "step", "val_loss", name)
    (tmp_path / "runs.csv").write_text("\n".join(",".join(map(str, r)) for r in (header, *rows)))
    objects = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
    (tmp_path / "runs.jsonl").write_text("\n".join(objects))
    for path in sorted(tmp_path.iterdir()):
        with pytest.warns(DataWarning, match="the cost is 'step'"):
            curves = read(path)
        assert curves[1].columns["val_loss"].tolist() == [4.0, 3.0, 2.0, 1.0]


@pytest.mark.parametrize("kind", ["project", 7, 0.1, "split"])
def test_runs_that_a_column_nobody_named_tells_apart_are_not_merged(kind: Any) -> None:
    other = {"project": ("red", "blue"), 7: (7, 8), 0.1: (0.1, 0.2)}.get(kind, ("train", "val"))
    table: dict[str, list[Any]] = {"run": [], "of": [], "seconds": [], "loss": []}
    for place, name in enumerate(other):
        for step in range(4):
            rows = ("a", name, 1.0 + step * (1 + 0.1 * place), 3.0 - step)
            for column, value in zip(table.values(), rows, strict=True):
                column.append(value)
    named: Any = {"cost": "seconds", "metric": "loss"}
    message = "in run 'a' the cost 'seconds' begins again for each 'of', as if there were 2 runs"
    with pytest.raises(InputError, match=message):
        Curves.from_frame(table, **named)
    assert Curves.from_frame(table, **named, group="of").num_points.tolist() == [4, 4]
    # Resumed on another machine: the second piece begins where the first had come to.
    table["seconds"][4:] = [3.5, 4.5, 5.5, 6.5]
    with pytest.warns(DataWarning, match="were sorted"):
        assert Curves.from_frame(table, **named).num_points.tolist() == [8]
    # Each value measures something else: one run.
    table["seconds"][4:] = table["seconds"][:4]
    table["val"], table["loss"][4:] = [np.nan] * 4 + [2.0] * 4, [np.nan] * 4
    with pytest.warns(DataWarning, match=r"were sorted|left out"):
        assert Curves.from_frame(table, **named).num_points.tolist() == [4]


def test_rows_of_a_long_table_are_told_by_their_numbers(tmp_path: Path) -> None:
    """It is read in blocks and portions: a gap or a cut in one must not shift the others."""
    path, num = tmp_path / "runs.csv", 70_000
    lines = ["run,step,loss", *(f"r{step // 100},{step},{step}.5" for step in range(num))]
    lines[3000:3000] = ["", ""]
    named: Any = {"cost": "step", "metric": "loss"}
    path.write_text("\n".join([*lines, "r700,7"]))
    with pytest.warns(DataWarning, match="ends in the middle of a row"):
        curves = read(path, **named)
    assert curves.num_runs == num // 100
    np.testing.assert_array_equal(curves.values[:, 0], np.arange(num) + 0.5)
    for row, cells in ((1500, "r1,2,3,4"), (69_000, "r1,2,3,4"), (66_000, "r1,2")):
        wrong = [*lines]
        wrong[row - 1] = cells
        path.write_text("\n".join(wrong))
        with pytest.raises(InputError, match=f"{cells.count(',') + 1} cells in row {row},"):
            read(path, **named)
    lines[65_999] = "r1,2,x"
    path.write_text("\n".join(lines))
    with pytest.raises(InputError, match=r"'loss' of .* holds the text 'x' in row 66000"):
        read(path, **named)
