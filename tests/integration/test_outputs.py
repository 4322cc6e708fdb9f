"""No command writes over what it reads, or over one of its outputs with another."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import pytest
from click.testing import CliRunner
from in_process import haltwise

from haltwise import InputError
from haltwise._core.locks import locked
from haltwise.bench.run import RECORD, BenchSettings, run_bench
from haltwise.cli import cli, command_names, completion
from haltwise.cli import learn as learn_command
from haltwise.cli.places import PathType
from haltwise.curves.shipped import load_curve_rule
from haltwise.curves.stop_model import StopModel
from haltwise.curves.stopping import learn_to_stop

CONTENT = b"of somebody's"
REFUSED = 2  # exit code


def writing() -> Iterator[tuple[str, click.Parameter]]:
    """Every option of every command that takes a file to write."""
    for name in command_names():
        for param in completion.command(name).params:
            if (
                isinstance(param.type, PathType)
                and param.type.writes
                and not param.type.is_directory
            ):
                yield name, param


WRITING = [*writing()]
each_option = pytest.mark.parametrize(
    ("name", "param"), WRITING, ids=[f"{name} {param.opts[0]}" for name, param in WRITING]
)


def line(name: str, read: str) -> list[str]:
    """A command that reads `read`."""
    given = [name]
    for param in completion.command(name).params:
        if isinstance(param, click.Argument):
            given.append(read)
        elif param.required:
            given += [param.opts[0], {"kind": "cost"}.get(param.name or "", "1")]
    return given if read in given else [*given, "--domain", read]  # bench


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """With something to read, and links to it."""
    (tmp_path / "read/inner").mkdir(parents=True)
    file = tmp_path / "read/inner/file.json"
    file.write_bytes(CONTENT)
    (tmp_path / "symbolic.json").symlink_to(file)
    os.link(file, tmp_path / "hard.json")
    (tmp_path / "read/broken").symlink_to("nowhere")
    (tmp_path / "runs").symlink_to("read")
    return tmp_path


def test_these_commands_write_files() -> None:
    found = [f"{name} {param.opts[0]}" for name, param in WRITING]
    assert {"judge --json", "judge --html", "report --out", "replay --out"} < {*found}
    assert len(found) >= 15


@pytest.mark.parametrize("path", ["read/inner/file.json", "symbolic.json", "hard.json"])
@pytest.mark.parametrize("read", ["read/inner/file.json", "read", "inner", "read/inner/../inner"])
@each_option
def test_what_is_read_is_not_written(
    name: str, param: click.Parameter, read: str, path: str, folder: Path
) -> None:
    done = haltwise(*line(name, read), param.opts[0], path, cwd=folder)
    assert done.returncode == REFUSED
    assert f"{param.opts[0]} {path} would overwrite" in done.stderr
    assert done.stderr.count("\n") == 1
    assert (folder / "read/inner/file.json").read_bytes() == CONTENT
    assert (folder / path).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--compare", "read"),
        ("--baseline", "read/inner"),
        ("--family", "read/inner/file.py:Name"),
        ("--data-dir", "read"),
    ],
)
def test_what_options_name_is_not_written(option: str, value: str, folder: Path) -> None:
    for name in ("file.json", "file.py"):
        (folder / "read/inner" / name).write_bytes(CONTENT)
    path = f"read/inner/file.{'py' if ':' in value else 'json'}"
    done = haltwise("evaluate", "regression-2d", option, value, "--json", path, cwd=folder)
    assert f"--json {path} would overwrite" in done.stderr
    done = haltwise("study", "x", "--halter", "a=read", "--json", path, cwd=folder)
    assert f"--json {path} would overwrite" in done.stderr


def test_a_class_of_ones_own_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("class Own: pass\n")
    words = ("--own", "own.py:Own", "--json", "own.py")
    done = haltwise("diagnose", "regression-2d", *words, cwd=tmp_path)
    assert "--json own.py would overwrite" in done.stderr


@each_option
def test_an_output_of_before_may_be_written_again(
    name: str, param: click.Parameter, tmp_path: Path
) -> None:
    assert isinstance(param.type, PathType)
    (tmp_path / "read").mkdir()
    (tmp_path / "read/old").write_bytes(param.type.begin + b"rest")
    done = haltwise(*line(name, "read"), param.opts[0], "read/old", cwd=tmp_path)
    assert "would overwrite" not in done.stderr  # it fails later, for there is nothing to read


def test_what_commands_write_begins_as_is_said(tmp_path: Path) -> None:
    """Or they could not write it again where it lies in a folder that they read."""
    losses = 5 - np.cumsum(np.random.default_rng(0).random((50, 11)), 1)
    (tmp_path / "in").mkdir()
    np.savez(tmp_path / "in/t.npz", losses=losses, stops=np.full(50, 3))
    words = ["stopping-report", "in/t.npz", "--price", 0.05]
    for _ in range(2):
        done = haltwise(*words, "--json", "in/a", "--html", "in/b", cwd=tmp_path)
        assert done.returncode == 0
    for option, path in (("json_path", "in/a"), ("html_path", "in/b")):
        (kind,) = (
            param.type
            for param in completion.command("stopping-report").params
            if param.name == option
        )
        assert isinstance(kind, PathType)
        assert (tmp_path / path).read_bytes().startswith(kind.begin)


@pytest.mark.parametrize("other", ["x.out", "./x.out", "new/../x.out"])
def test_two_outputs_are_two_files(other: str, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    words = ("judge", "training-runs", "none.csv", "--json", "x.out", "--html", other)
    done = haltwise(*words, cwd=tmp_path)
    assert done.returncode == REFUSED
    assert "are one file; name another for one" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("bench --out b --json b/bench.html", "--json b/bench.html is a file that --out b writes"),
        ("bench --out b --json b/bench.json", "--json b/bench.json is a file that --out b writes"),
        ("bench --out b --stops b/curves/x.npz", "b/curves/x.npz, which is read, lies where --out"),
        ("bench --out new --json b/x.safetensors", "is the name of weights; give it another"),
        ("learn b --out b", "--out b is a directory that is read; name another"),
        ("learn new/record.json --out new", "new/record.json, which is read, lies where --out new"),
        ("train-monitor b --price 1 --out b", "--out b is a directory that is read"),
        (
            "train-monitor b --price 1 --out m --test-runs c --json m/config.json",
            "--json m/config.json is a file that --out m writes",
        ),
        (
            "train-monitor b --price 1 --test-runs c --json runs/b-monitor/log.jsonl",
            "log.jsonl is a file that is written in runs/b-monitor, too",
        ),
        ("train-monitor b --price 1 --out new --test-runs c", "new/report.html would be overwr"),
        ("learn x.csv --out new", "there is no model in new, but new/record.json would be"),
        ("bench --out old --rule patience", "old holds no bench, for there is no bench.json, but"),
        ("bench --out c --domain chain", "c holds no bench, .* c/curves/chain.npz would be over"),
    ],
)
def test_directories_are_kept_apart_as_well(words: str, sentence: str, tmp_path: Path) -> None:
    files = ["b/curves/x.npz", "new/record.json", "new/report.html", "old/bench.html", "x.csv"]
    for name in (*files, "c/curves/chain.npz"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(CONTENT)
    done = haltwise(*words.split(), cwd=tmp_path)
    assert done.returncode == REFUSED
    assert re.search(sentence, done.stderr), done.stderr
    for name in (*files, "c/curves/chain.npz"):
        assert (tmp_path / name).read_bytes() == CONTENT


def test_a_namesake_in_runs_is_not_what_is_read(tmp_path: Path) -> None:
    for name in ("b", "runs/b"):
        (tmp_path / name).mkdir(parents=True)
    done = haltwise("train-monitor", "b", "--price", 1, "--out", "runs/b", cwd=tmp_path)
    assert "there are no recorded runs in b" in done.stderr
    (tmp_path / "b").rmdir()
    done = haltwise("explore", "b", "--out", "runs/b", cwd=tmp_path)
    assert "runs/b is a directory; name a file in it" in done.stderr


# --- Two at once --------------------------------------------------------------------------------


def test_two_benches_do_not_write_to_one_directory(tmp_path: Path) -> None:
    settings = BenchSettings(num_runs=24, num_folds=2, prices=(0.1,))
    with (
        locked(tmp_path / ".lock", ""),
        pytest.raises(InputError, match=r"another bench writes to .*; wait for it, or name"),
    ):
        run_bench(tmp_path, ["chain"], ["patience"], settings)
    assert not (tmp_path / RECORD).exists()
    run_bench(tmp_path, ["chain"], ["patience"], settings)  # it is free again


def test_the_second_of_two_who_learn_overwrites_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = np.exp(-np.random.default_rng(0).uniform(0.05, 0.5, (24, 1)) * np.arange(30))
    rows = [f"{run},{k},{loss:.6f}" for run, row in enumerate(losses) for k, loss in enumerate(row)]
    (tmp_path / "runs.csv").write_text("\n".join(["run,epoch,loss", *rows, ""]))
    words = ["learn", "runs.csv", "--metric", "loss", "--cost", "epoch", "--stop-early"]

    def meanwhile(*args: object, **kwargs: object) -> object:
        monkeypatch.setattr(learn_command, "learn_to_stop", learn_to_stop)
        done = haltwise(*words, "--price", 0.02, "--out", "out", cwd=tmp_path)
        assert done.returncode == 0
        return learn_to_stop(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(learn_command, "learn_to_stop", meanwhile)
    monkeypatch.chdir(tmp_path)
    second = CliRunner().invoke(cli, [*words, "--price", "0.01", "--out", "out"])
    assert "there is a file out/model.safetensors already" in str(second.exception)
    model = load_curve_rule(tmp_path / "out")
    assert isinstance(model, StopModel)
    assert model.card.price == 0.02
