"""What trackers and tuners leave on the disk: one run is one run, whatever files it has."""

import gzip
import json
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from haltwise import InputError
from haltwise._core.errors import DataWarning
from haltwise.curves import Curves, read


def written(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def read_chosen(path: Path, **settings: Any) -> Curves:
    """The runs, with what nobody names chosen."""
    with pytest.warns(DataWarning, match="nobody named them"):
        return read(path, **settings)


# ------------------------------------------------------------------------------------- TensorBoard


def test_a_summary_of_hyperparameters_is_no_run(tmp_path: Path) -> None:
    summary_writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    for name in ("a", "b"):
        writer = summary_writer(str(tmp_path / name))
        for step in range(4):
            writer.add_scalar("loss", 3 - step, step)
        writer.add_hparams({"lr": 0.1}, {"hparam/acc": 0.9})
        writer.close()
    with pytest.warns(DataWarning, match="the metric is 'loss'"):
        found = read(tmp_path)
    assert found.name.tolist() == ["a", "b"]
    assert found[0].loss.tolist() == [3, 2, 1, 0]


def test_folders_called_by_data_sets_are_one_run(tmp_path: Path) -> None:
    summary_writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    for name in ("a", "b"):
        for split, worst in (("train", 2), ("validation", 5)):
            writer = summary_writer(str(tmp_path / name / split))
            for step in range(3):
                writer.add_scalar("epoch_loss", worst - step, step)
                writer.add_scalar("epoch_accuracy", step, step)
            writer.close()
    with pytest.warns(DataWarning, match="the metric is 'validation/epoch_loss'"):
        found = read(tmp_path)
    assert found.name.tolist() == found.group.tolist() == ["a", "b"]
    assert found[1].loss.tolist() == [5, 4, 3]
    assert found[1].columns["train/epoch_loss"].tolist() == [2, 1, 0]
    with pytest.warns(DataWarning, match="the metric is"):
        (alone,) = read(tmp_path / "a")
    assert alone.loss.tolist() == [5, 4, 3]
    only = summary_writer(str(tmp_path / "c" / "train"))  # nothing beside it: a run of that name
    only.add_scalar("epoch_loss", 1.0, 0)
    only.close()
    assert read(tmp_path / "c", metric="epoch_loss").name.tolist() == ["train"]


def test_files_opened_in_one_second_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    summary_writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    for number, values in ((9, (5, 4, 3)), (10, (2, 1))):
        writer = summary_writer(str(tmp_path / str(number)))
        for step, value in enumerate(values, start=number - 9):
            writer.add_scalar("loss", value, step)
        writer.close()
        (path,) = (tmp_path / str(number)).iterdir()
        written(tmp_path / "run" / ".keep", "")
        path.rename(tmp_path / "run" / f"events.out.tfevents.1700000000.vm.1.{number}")
        path.parent.rmdir()
    with pytest.warns(DataWarning, match="restarted: 2 points"):
        (run,) = read(tmp_path / "run", metric="loss")
    assert run.loss.tolist() == [5, 2, 1]


def test_tables_called_by_data_sets_are_warned_of(tmp_path: Path) -> None:
    for name in ("a/train", "a/val", "b/train"):
        written(tmp_path / f"{name}.csv", "step,loss\n0,2\n1,1\n")
    with pytest.warns(DataWarning, match=r"train\.csv and val\.csv in .*a count as runs of their"):
        assert read(tmp_path, cost="step", metric="loss").num_runs == 3
    written(tmp_path / "a/val.csv", "run,step,loss\nx,0,2\ny,0,1\n")  # of several runs
    assert read(tmp_path, cost="step", metric="loss").num_runs == 4
    (tmp_path / "a/val.csv").unlink()
    assert read(tmp_path, cost="step", metric="loss").num_runs == 2


# ----------------------------------------------------------------------------------------- DVCLive


def test_files_of_dvclive_are_columns_of_one_run(tmp_path: Path) -> None:
    for run in ("a", "b"):
        written(tmp_path / run / "plots/metrics/train/loss.tsv", "step\tloss\n0\t2\n1\t1\n2\t.5\n")
        written(tmp_path / run / "plots/metrics/val/loss.tsv", "step\tloss\n0\t5\n2\t4\n")
        written(tmp_path / run / "metrics.json", '{"step": 2}')
    found = read_chosen(tmp_path)
    assert found.name.tolist() == ["a", "b"]
    assert (found.metric, found.cost_unit) == ("val/loss", "steps")
    np.testing.assert_equal(found[0].columns["val/loss"], [5, np.nan, 4])
    assert found[1].columns["train/loss"].tolist() == [2, 1, 0.5]
    (alone,) = read_chosen(tmp_path / "a" / "plots")
    assert alone.columns["train/loss"].tolist() == [2, 1, 0.5]
    written(tmp_path / "a/plots/metrics/acc.tsv", "step\tother\n0\t1\n")
    with pytest.raises(InputError, match=r"acc\.tsv has no columns step and acc"):
        read(tmp_path)


# ---------------------------------------------------------------------------------------- CatBoost


def catboost_info(folder: Path, losses: list[float | None], **others: Any) -> None:
    """As CatBoost 1.2 writes it: a round between two evaluations has no entry."""
    meta = {
        "test_sets": ["test"],
        "test_metrics": [
            {"best_value": "Max", "name": "Own"},
            {"best_value": "Min", "name": "RMSE"},
        ],
        "learn_metrics": [{"best_value": "Min", "name": "RMSE"}],
        "iteration_count": 100,
        "learn_sets": ["learn"],
    }
    rounds = [
        {"learn": [1.0], "iteration": place, "passed_time": 0.5 * place, "test": [10 - loss, loss]}
        for place, loss in enumerate(losses)
        if loss is not None
    ]
    written(
        folder / "catboost_training.json", json.dumps({"meta": meta | others, "iterations": rounds})
    )
    for name in ("learn", "test"):
        written(folder / f"{name}_error.tsv", "iter\tRMSE\n0\t1\n1\t2\n")
        written(folder / name / "events.out.tfevents", "")


def test_a_training_of_catboost_is_one_run_whatever_it_wrote(tmp_path: Path) -> None:
    for name in ("a", "b"):
        catboost_info(tmp_path / name, [3.0, None, 1.0])
    found = read(tmp_path, target=8)
    assert found.name.tolist() == ["a", "b"]
    assert (found.metric, found.direction, found.cost_unit) == (
        "validation-Own",
        "max",
        "iteration",
    )
    assert found[0].cost.tolist() == [1, 3]
    assert found[0].columns["validation-RMSE"].tolist() == [3, 1]
    assert found[0].columns["seconds"].tolist() == [0, 1]
    assert found.budget.tolist() == [100, 100]
    assert found.succeeded.all()
    assert read(tmp_path / "a" / "test_error.tsv").metric == "validation-Own"
    catboost_info(tmp_path / "c", [2.0], test_sets=["test", "test1"])
    assert read(tmp_path / "c", metric="validation_0-RMSE")[0].loss.tolist() == [2]
    written(tmp_path / "c" / "catboost_training.json", '{"meta": {}}')
    with pytest.raises(InputError, match="is no log of a training of CatBoost"):
        read(tmp_path / "c")


# --------------------------------------------------------------------------------------------- Ray


def test_a_trial_of_ray_is_one_run_whatever_it_wrote(tmp_path: Path) -> None:
    for trial, rate in (("train_0", 0.1), ("train_1", 0.2)):
        results = [
            {
                "val_loss": 3.0 - step,
                "training_iteration": step,
                "time_total_s": 10.0 * step,
                "time_this_iter_s": 10.0,
                "trial_id": f"id{trial[-1]}",
                "config": {"lr": rate},
            }
            for step in (1, 2, 3)
        ]
        folder = tmp_path / "exp" / trial
        written(folder / "result.json", "".join(json.dumps(each) + "\n" for each in results))
        written(folder / "params.json", json.dumps({"lr": rate}))
        written(folder / "progress.csv", "val_loss,training_iteration,trial_id\n2,1,x\n1,2,x\n")
        written(folder / "events.out.tfevents.1.vm", "")
    found = read_chosen(tmp_path, group="config.lr")
    assert found.name.tolist() == ["exp/train_0", "exp/train_1"]
    assert found.group.tolist() == ["0.1", "0.2"]
    assert (found.metric, found.cost_unit) == ("val_loss", "training_iteration")
    assert found[0].cost.tolist() == [1, 2, 3]
    seconds = read_chosen(tmp_path / "exp/train_0/result.json", cost="time_total_s")
    assert seconds[0].cost.tolist() == [10, 20, 30]
    beside = read_chosen(tmp_path / "exp/train_0/progress.csv")
    assert beside[0].columns["config.lr"].tolist() == [0.1, 0.1, 0.1]
    table = read_chosen(tmp_path, format="csv")  # asked for, so read as such
    assert (table.num_points.tolist(), table.cost_unit) == ([2, 2], "training_iteration")


# ------------------------------------------------------------------------------------------ MLflow


def mlflow_database(path: Path) -> Path:
    with closing(sqlite3.connect(path)) as database:
        database.executescript(
            """
            CREATE TABLE experiments (experiment_id INTEGER, name TEXT);
            CREATE TABLE "runs" (run_uuid TEXT, name TEXT, experiment_id INTEGER,
                lifecycle_stage TEXT, start_time BIGINT);
            CREATE TABLE params (key TEXT, value TEXT, run_uuid TEXT);
            CREATE TABLE metrics (key TEXT, value FLOAT, timestamp BIGINT, run_uuid TEXT,
                step BIGINT, is_nan BOOLEAN);
            INSERT INTO experiments VALUES (1, 'e');
            INSERT INTO runs VALUES ('u1', 'good', 1, 'active', 1), ('u2', NULL, 1, 'active', 2),
                ('u3', 'gone', 1, 'deleted', 3), ('u4', 'empty', 1, 'active', 4);
            INSERT INTO params VALUES ('lr', '0.1', 'u1'), ('lr', '0.2', 'u2'), ('lr', '1', 'u3');
            INSERT INTO metrics VALUES
                ('val_loss', 3.0, 1000, 'u1', 0, 0), ('val_loss', 2.0, 3000, 'u1', 1, 0),
                ('train_loss', 1.0, 2000, 'u1', 1, 0),
                ('val_loss', 0.0, 1000, 'u2', 1, 1),
                ('val_loss', 1.7976931348623157e308, 1000, 'u2', 0, 0),
                ('system/cpu', 5.0, 1000, 'u2', 9, 0),
                ('val_loss', 1.0, 1000, 'u3', 0, 0);
            """
        )
    return path


def test_the_database_of_mlflow(tmp_path: Path) -> None:
    found = read_chosen(mlflow_database(tmp_path / "mlflow.db"), group="params.lr")
    assert found.name.tolist() == ["good", "u2"]
    assert found.group.tolist() == ["0.1", "0.2"]
    assert found.task.tolist() == ["e", "e"]
    assert found[0].columns["val_loss"].tolist() == [3, 2]
    np.testing.assert_equal(found[0].columns["train_loss"], [np.nan, 1])
    assert found[0].columns["seconds"].tolist() == [0, 2]
    assert found[1].columns["val_loss"].tolist() == [np.inf, np.inf]  # NaN and infinite: diverged
    assert found[1].cost.tolist() == [0, 1]


def test_the_folder_of_mlflow(tmp_path: Path) -> None:
    for run, name in (("aaa", "first"), ("bbb", "second")):
        folder = tmp_path / "mlruns" / "12" / run
        written(folder / "meta.yaml", f"run_id: {run}")
        written(folder / "params/lr", "0.1")
        written(folder / "tags/mlflow.runName", name)
        written(folder / "artifacts/table.csv", "step,loss\n0,1\n")
        written(folder / "metrics/val/loss", "1000 3.0 0\n2000 2.0 1\n3000 nan 2\n")
        written(folder / "metrics/count", "1000 7 0\n1500 8 0\n2000 9 0\n")  # nobody gave a step
    found = read_chosen(tmp_path / "mlruns")
    assert found.name.tolist() == ["first", "second"]
    assert found[0].columns["val/loss"].tolist() == [3, 2, np.inf]
    assert found[0].columns["count"].tolist() == [7, 8, 9]
    assert found[0].columns["seconds"].tolist() == [0, 1, 2]
    written(tmp_path / "mlruns/12/aaa/metrics/val/loss", "1000 oops 0\n")
    with pytest.raises(InputError, match="holds '1000 oops 0', not a time, a value and a step"):
        read(tmp_path / "mlruns")


def test_other_databases_are_of_no_format(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with closing(sqlite3.connect(path)) as database:
        database.execute("CREATE TABLE points (loss FLOAT)")
        database.commit()
    with pytest.raises(InputError, match=r"other\.db is of no known format"):
        read(path)
    whole = mlflow_database(tmp_path / "mlflow.db").read_bytes()
    path.write_bytes(whole[:5000])
    with pytest.raises(InputError, match=r"cannot read the database .*other\.db"):
        read(path)
    with closing(sqlite3.connect(tmp_path / "mlflow.db")) as database:  # could compute for ever
        database.execute("ALTER TABLE metrics RENAME TO points")
        database.execute("CREATE VIEW metrics AS SELECT * FROM points")
        database.commit()
    with pytest.raises(InputError, match="is of no known format"):
        read(tmp_path / "mlflow.db")


# ------------------------------------------------------------------------------------------ Optuna


def study_with(storage: Any, **settings: Any) -> Any:
    """A study of which the oracle is Optuna itself."""
    optuna = pytest.importorskip("optuna")
    study = optuna.create_study(storage=storage, study_name="s", **settings)

    def objective(trial: Any) -> float:
        rate: float = trial.suggest_float("lr", 0, 1)
        trial.suggest_categorical("kind", ["adam", "sgd"])
        trial.suggest_int("units", 1, 9)
        for step in range(5):
            diverged = trial.number == 1 and step == 4
            trial.report(float("nan") if diverged else rate + 1 / (1 + step), step)
            if trial.number == 2 and step == 3:
                raise optuna.TrialPruned
        if trial.number == 3:
            raise ArithmeticError
        return rate

    study.optimize(objective, n_trials=5, catch=ArithmeticError)
    return study


@contextmanager
def storage_of(kind: str, path: Path) -> Iterator[Any]:
    storages: Any = pytest.importorskip("optuna").storages
    if kind == "journal":
        yield storages.JournalStorage(storages.journal.JournalFileBackend(str(path)))
        return
    storage = storages.RDBStorage(f"sqlite:///{path}")
    yield storage
    storage.engine.dispose()


@pytest.mark.parametrize("kind", ["database", "journal"])
def test_a_study_of_optuna(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "study"
    with storage_of(kind, path) as storage:
        check_study(path, study_with(storage, direction="maximize"))


def check_study(path: Path, study: Any) -> None:
    with pytest.warns(DataWarning, match="1 of 5 trials in .* neither completed nor pruned"):
        found = read(path, group="params_kind")
    trials = [trial for trial in study.trials if trial.number != 3]
    assert found.name.tolist() == [f"trial {trial.number}" for trial in trials]
    assert found.group.tolist() == [trial.params["kind"] for trial in trials]
    assert (found.metric, found.direction, found.cost_unit) == ("value", "max", "steps")
    assert set(found.task.tolist()) == {"s"}
    for run, trial in zip(found, trials, strict=True):
        values = [*trial.intermediate_values.values()]
        assert run.cost.tolist() == [*trial.intermediate_values]
        np.testing.assert_equal(run.columns["value"], np.nan_to_num(values, nan=-np.inf))
    with pytest.warns(DataWarning, match="neither completed nor pruned"):
        units = read(path, group="params_units").group.tolist()
    assert units == [str(trial.params["units"]) for trial in trials]


def test_a_storage_of_optuna_that_contradicts_itself(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    with storage_of("database", path) as storage:
        study_with(storage, direction="maximize")
    with closing(sqlite3.connect(path)) as database:
        database.execute("UPDATE study_directions SET direction = 'SIDEWAYS'")
        database.commit()
    with (
        pytest.warns(DataWarning, match="neither completed nor pruned"),
        pytest.raises(InputError, match=r"study\.db contradicts itself"),
    ):
        read(path)


def test_a_journal_may_be_packed(tmp_path: Path) -> None:
    with storage_of("journal", tmp_path / "study") as storage:
        study_with(storage)
    packed = tmp_path / "study.log.gz"
    packed.write_bytes(gzip.compress((tmp_path / "study").read_bytes()))
    with pytest.warns(DataWarning, match="neither completed nor pruned"):
        assert read(packed).num_runs == 4


def test_a_study_without_reports_has_no_runs(tmp_path: Path) -> None:
    optuna = pytest.importorskip("optuna")
    with storage_of("database", tmp_path / "study.db") as storage:
        optuna.create_study(storage=storage).optimize(lambda _: 1.0, n_trials=2)
    with pytest.raises(InputError, match=r"has reported a value \(trial.report\)"):
        read(tmp_path / "study.db")
    written(tmp_path / "journal.log", '{"op_code":0,"study_name":"s","directions":[7]}\n')
    with pytest.raises(InputError, match=r"line 1 of .* is none of a journal of Optuna's"):
        read(tmp_path / "journal.log")


# -------------------------------------------------------------------------------- Weights & Biases


def varint(number: int) -> bytes:
    low = number & 0x7F
    return bytes([low]) if number < 0x80 else bytes([low | 0x80]) + varint(number >> 7)


def message(*fields: tuple[int, bytes]) -> bytes:
    return b"".join(varint(field << 3 | 2) + varint(len(value)) + value for field, value in fields)


def items(field: int, values: dict[str, Any]) -> bytes:
    return message(
        *(
            (
                field,
                message(
                    *((2, part.encode()) for part in name.split("|")),
                    (16, json.dumps(value).encode()),
                ),
            )
            for name, value in values.items()
        )
    )


def wandb_log(*records: bytes) -> bytes:
    """Records in blocks of 32 KB, parts of them where they do not fit."""
    found = bytearray(b":W&B\xe1\xbe\x00")
    for record in records:
        rest, begun = record, False
        while True:
            left = 2**15 - len(found) % 2**15
            if left < 7:
                found += bytes(left)
                left = 2**15
            part, rest = rest[: left - 7], rest[left - 7 :]
            kind = (3 if rest else 4) if begun else (2 if rest else 1)
            checksum = zlib.crc32(bytes([kind]) + part)
            found += checksum.to_bytes(4, "little") + len(part).to_bytes(2, "little")
            found += bytes([kind]) + part
            begun = True
            if not rest:
                break
    return bytes(found)


def wandb_run(name: str, losses: list[float], *, first: int = 0, long: int = 0) -> bytes:
    described = message(
        (3, b"p"), (4, items(1, {"lr": 0.1, "_wandb": {}, "net": {"width": 3}})), (8, name.encode())
    )
    points = [
        message(
            (
                2,
                items(
                    1, {"_step": step, "_runtime": 2.0 * step, "val|loss": loss, "n": "x" * long}
                ),
            )
        )
        for step, loss in enumerate(losses, first)
    ]
    return wandb_log(message((17, described)), *points)


def test_files_of_weights_and_biases(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b")):
        folder = tmp_path / "wandb" / f"offline-run-20260101_00000{number}-id{number}"
        written(folder / "files/wandb-summary.json", '{"loss": 1}')
        written(folder / "logs/debug.log", '{"pid": 1}\n{"pid": 2}\n')
        losses = [3.0, float("nan"), 1.0 + number] * 9
        (folder / f"run-id{number}.wandb").write_bytes(wandb_run(name, losses, long=9000))
    (tmp_path / "wandb" / "debug.log").symlink_to(folder / "logs" / "debug.log")
    (tmp_path / "wandb" / "latest-run").symlink_to(folder)
    with pytest.warns(DataWarning, match="nobody named them|NaN at 18 points"):
        found = read(tmp_path / "wandb", cost="_step")
    assert [name.rpartition("/")[-1] for name in found.name.tolist()] == ["a", "b"]
    assert found[1].columns["val.loss"].tolist() == [3, np.inf, 2] * 9
    assert found[1].columns["_runtime"].tolist() == [2 * step for step in range(27)]
    with pytest.warns(DataWarning, match="nobody named them|NaN at"):
        again = read(tmp_path / "wandb" / "latest-run", group="config.net.width")
    assert (again.num_runs, again.cost_unit, again.group.tolist()) == (1, "runtime", ["3"])


def test_a_run_of_weights_and_biases_that_was_resumed_is_one(tmp_path: Path) -> None:
    for folder, first, losses in (
        ("run-20260102_000000-id", 2, [7.0, 6.0]),
        ("offline-run-20260101_000000-id", 0, [9.0, 8.0, 7.5]),
        ("run-20260103_000000-other", 0, [1.0]),
    ):
        path = tmp_path / folder / f"run-{folder.rpartition('-')[-1]}.wandb"
        path.parent.mkdir()
        path.write_bytes(wandb_run("a", losses, first=first))
    with pytest.warns(DataWarning, match="1 points that later ones"):
        found = read(tmp_path, cost="_step", metric="val.loss")
    assert [run.loss.tolist() for run in found] == [[9, 8, 7, 6], [1]]
    assert found[0].cost.tolist() == [0, 1, 2, 3]


def test_a_run_of_weights_and_biases_without_its_log(tmp_path: Path) -> None:
    written(tmp_path / "run-20260101_000000-id" / "logs" / "debug.log", '{"pid": 1}\n{"pid": 2}\n')
    with pytest.raises(InputError, match="holds no log of a run, only what lies beside one"):
        read(tmp_path)


def test_a_damaged_file_of_weights_and_biases(tmp_path: Path) -> None:
    path = tmp_path / "run-x.wandb"
    whole = wandb_run("a", [3.0, 2.0, 1.0])
    path.write_bytes(whole[:-3])  # it is being written
    with pytest.warns(DataWarning, match="in the middle of a record|nobody named"):
        assert read(path)[0].loss.tolist() == [3, 2]
    path.write_bytes(whole[:60] + b"?" + whole[61:])
    with pytest.raises(InputError, match="corrupt or no log of Weights & Biases"):
        read(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is empty"):
        read(path)
    path.write_bytes(wandb_log(message((2, b"\xff\xff"))))
    with pytest.raises(InputError, match="a record that is none"):
        read(path)
