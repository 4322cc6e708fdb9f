"""The data directory is an argument that is handed on, on no card and in no variable."""

import dataclasses
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import haltwise
from tiny_runs import TINY_OPTIONS as TINY

from haltwise import InputError, load, tasks
from haltwise.tasks.module import ModuleBatch
from haltwise.training import train


@pytest.fixture(autouse=True)
def variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tmp_path / "of the variable"))
    (tmp_path / "of the variable").mkdir()


def num_images(family: tasks.TaskFamily) -> int:
    batch = family.sample(1, torch.Generator().manual_seed(0))
    assert isinstance(batch, ModuleBatch)
    return len(batch.task.train)


def test_the_argument_comes_before_the_variable(tiny_images: Path, tmp_path: Path) -> None:
    default = tasks.family("mnist-mlp")
    with pytest.raises(InputError, match=r"of the variable has neither train-images"):
        num_images(default)
    shutil.copytree(tiny_images / "mnist", tmp_path / "of the variable" / "mnist")
    assert num_images(default) == 240
    with pytest.raises(InputError, match=r"there is no data directory .*none; name a directory"):
        num_images(tasks.family("mnist-mlp", data_dir=tmp_path / "none"))
    assert num_images(tasks.family("cifar10-cnn", data_dir=tiny_images)) == 200


def test_it_is_no_setting_of_the_family(tiny_images: Path) -> None:
    bound = tasks.family("mnist-mlp", {"num_hidden": 3}, data_dir=tiny_images)
    plain = tasks.family("mnist-mlp", {"num_hidden": 3})
    assert (bound.data_dir, plain.data_dir) == (tiny_images, None)
    assert bound == plain
    assert hash(bound) == hash(plain)
    assert str(tiny_images) not in json.dumps(dataclasses.asdict(bound)) + repr(bound)
    assert plain.with_data_dir(str(tiny_images)).data_dir == tiny_images
    assert tasks.family("regression-2d", data_dir=tiny_images).dim == 2  # reads none
    with pytest.raises(InputError, match="unknown setting of mnist-mlp 'data_dir'"):
        tasks.family("mnist-mlp", {"data_dir": str(tiny_images)})


SMALL = ["--validation.num-calibration", "8", "--validation.num-problems", "4", "--horizon", "2"]
SMALL += ["--joint.num-steps", "2", "--joint.batch-size", "2", "--halting.num-steps", "2"]
SMALL += ["--family.num-score", "4", "--family.num-hidden", "2"]
FEW: list[object] = ["--family", "mnist-mlp-40", "--num-problems", 32, "--horizon", 2]
FEW += ["--family.batch-size", 2, "--family.num-hidden", 2, "--family.num-score", 4]


def test_commands_hand_it_on_and_leave_it_off_the_card(tiny_images: Path, tmp_path: Path) -> None:
    before = os.environ["HALTWISE_DATA_DIR"]
    mixed = ["--mixed-with", '["mnist-mlp"]']
    for command in (
        ["train", "digits-mlp", *TINY, *SMALL, *mixed, "--out", "run"],
        ["train", "--resume", "run"],
        ["evaluate", "run", *FEW],
        ["study", "run", *FEW, "--seeds", 2],
        ["diagnose", "run", *FEW],
    ):
        if command[0] != "train":
            refused = haltwise(*command, cwd=tmp_path)
            assert refused.returncode == 2
            assert "; name a directory that holds mnist" in refused.stderr
        done = haltwise(*command, "--data-dir", tiny_images, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert os.environ["HALTWISE_DATA_DIR"] == before
    card = json.dumps(load(tmp_path / "run").card.to_json())
    assert str(tiny_images) not in card + (tmp_path / "run" / "config.json").read_text()


def test_the_command_on_the_card_is_the_typed_one_without_it(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for option in (["--data-dir", str(tiny_images)], [f"--data-dir={tiny_images}"]):
        words = ["train", "regression-2d", *option, *TINY, "--out", f"run-{len(option)}"]
        monkeypatch.setattr("sys.argv", ["haltwise", *words])
        assert haltwise(*words, cwd=tmp_path).returncode == 0
        typed = load(tmp_path / words[-1]).card.provenance["command"]
        assert typed.startswith("haltwise train regression-2d --joint.num-steps 6 ")


def test_the_library_takes_it(tiny_images: Path, tmp_path: Path) -> None:
    tiny: dict[str, Any] = {
        "horizon": 2,
        "joint": {"num_steps": 2, "batch_size": 2},
        "halting": {"num_steps": 2, "num_recorded": 4, "batch_size": 2},
        "validation": {"num_problems": 2, "num_calibration": 2},
    }
    run = train("mnist-mlp", tmp_path / "run", data_dir=tiny_images, **tiny)
    bound = tasks.family("mnist-mlp", data_dir=tiny_images)
    alone = {"joint": {"num_steps": 0, "batch_size": 2}}
    again = train(bound, tmp_path / "again", rule_from=str(run), **tiny | alone)
    assert str(tiny_images) not in json.dumps(load(again).card.to_json())


def test_nothing_in_the_package_writes_to_the_environment() -> None:
    writes = re.compile(r"environ\[[^]]*\]\s*=|environ\.(setdefault|update|pop)|putenv|unsetenv")
    for path in Path(tasks.__file__).parents[1].rglob("*.py"):
        assert not writes.search(path.read_text()), path
