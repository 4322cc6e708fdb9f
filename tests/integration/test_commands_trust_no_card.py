"""Weights may be anybody's: no command executes a file or obeys a text because a card has it."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from in_process import haltwise
from own_files import write_own
from tiny_runs import TINY_OPTIONS

from haltwise import InputError, load
from haltwise._core.errors import CheckpointWarning
from haltwise._core.files import load_tensors, save_tensors
from haltwise.cli.options import family_of
from haltwise.cli.printing import print_table
from haltwise.models.loading import find
from haltwise.report.page import Column, Table

FEW = ["--num-problems", 40, "--horizon", 4]
COMMANDS = {
    "evaluate": ["evaluate", "run", "--no-learners", *FEW],
    "evaluate beside": [
        "evaluate",
        "regression-2d",
        "--compare",
        "run",
        "--no-learners",
        *FEW,
    ],
    "study": ["study", "run", "--seeds", 2, *FEW],
    "diagnose": ["diagnose", "run", *FEW],
    "explore": ["explore", "run", "--num-problems", 2, "--horizon", 4],
}


@dataclass(frozen=True)
class Trained:
    """A run, the file that its card names, and the one that shows it was executed."""

    folder: Path
    mine: Path
    executed: Path

    @classmethod
    def by(cls, folder: Path, *options: object) -> "Trained":
        found = cls(folder, *write_own(folder))
        done = haltwise("train", *options, *TINY_OPTIONS, "--out", "run", cwd=folder)
        assert done.returncode == 0, done.stderr
        return found


@pytest.fixture(scope="module")
def own_rule(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained.by(tmp_path_factory.mktemp("rule"), "regression-2d", "--rule", "mine.py:Halved")


@pytest.fixture(scope="module")
def own_family(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("family")
    return Trained.by(folder, "mine.py:Bowls", "--family.size", 2)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_rule_is_executed_only_where_it_is_named(command: str, own_rule: Trained) -> None:
    own = ["--own", f"{own_rule.mine}:Halved"]
    own_rule.executed.unlink()
    refused = haltwise(*COMMANDS[command], cwd=own_rule.folder)
    assert (refused.returncode, own_rule.executed.exists()) == (2, False), refused.stderr
    assert " ".join(own) in refused.stderr
    done = haltwise(*COMMANDS[command], *own, cwd=own_rule.folder)
    assert done.returncode == 0, done.stderr


def test_models_beside_and_reports_execute_nothing_either(own_rule: Trained) -> None:
    own = ["--own", f"{own_rule.mine}:Halved"]
    own_rule.executed.unlink()
    beside = ["study", "regression-2d", "--halter", "a=run", "--seeds", 2, *FEW]
    assert " ".join(own) in haltwise(*beside, cwd=own_rule.folder).stderr
    assert not own_rule.executed.exists()
    assert haltwise(*COMMANDS["evaluate"], *own, cwd=own_rule.folder).returncode == 0
    own_rule.executed.unlink()
    # A page shows what was recorded: it reads the card and needs no code of the rule.
    assert haltwise("report", "run", cwd=own_rule.folder).returncode == 0
    own_rule.executed.touch(exist_ok=False)


@pytest.mark.parametrize("command", ["evaluate", "study", "diagnose", "explore"])
def test_a_family_is_executed_only_where_it_is_named(command: str, own_family: Trained) -> None:
    own_family.executed.unlink()
    refused = haltwise(*COMMANDS[command], cwd=own_family.folder)
    assert (refused.returncode, own_family.executed.exists()) == (2, False)
    named = ["--family", f"{own_family.mine}:Bowls"]
    assert f"add {' '.join(named)}" in refused.stderr
    assert "weights may come from anywhere" in refused.stderr
    done = haltwise(*COMMANDS[command], *named, cwd=own_family.folder)
    assert done.returncode == 0, done.stderr
    if command == "evaluate":  # no least loss is known of the bowls; what took long is shown
        for optimizer in ("adam", "rmsprop"):
            assert optimizer in done.stdout.partition("Optimizers")[2]
        assert "excess" not in done.stdout


def test_a_family_named_again_is_the_one_trained_on(own_family: Trained) -> None:
    mine, card = own_family.mine, load(own_family.folder / "run").card
    found = family_of(card, f"{mine}:Bowls", {}, None)
    assert found.dim == 2
    changed = {"family": {"settings": {"size": 5}}}
    assert family_of(card, f"{mine}:Bowls", changed, None).dim == 5
    assert family_of(card, "quadratic-10d", {}, None).dim == 10


def test_own_takes_a_file(tmp_path: Path) -> None:
    done = haltwise("evaluate", "regression-2d", "--own", "Halved", cwd=tmp_path)
    assert done.returncode == 2
    assert "--own takes PATH.py:NAME, got 'Halved'" in done.stderr


TITLE = "\x1b]0;mine\x07\x1b[2J\u202e\ud800[/red]"


def test_a_table_shows_hostile_text_as_it_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(Table("name", TITLE, [Column(TITLE, str)], [[TITLE]], note=TITLE))
    shown = "".join(capsys.readouterr().out.split())
    assert shown.count(r"\x1b]0;mine\x07\x1b[2J\u202e\ud800[/red]") == 4
    assert shown.isprintable()
    assert str(InputError(TITLE)).isprintable()
    assert str(CheckpointWarning(TITLE)).isprintable()


EVALUATE = """
import sys
from haltwise.__main__ import main
for path in sys.argv[1:]:
    sys.argv[1:] = ["evaluate", path]
    try:
        main()
    except SystemExit as left:
        assert left.code == 2
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_no_text_of_weights_reaches_a_terminal_as_it_stands(tmp_path: Path) -> None:
    import pty

    paths = []
    for place in ("family", "method", "tensor"):
        tensors, document = load_tensors(find("regression-2d"))
        if place == "tensor":
            tensors[f"\x1b]0;{place}\x07"] = torch.zeros(1)
        else:
            document["card"][place]["name"] = f"\x1b]0;{place}\x07"
        paths.append(str(tmp_path / f"{place}-weights"))
        save_tensors(Path(paths[-1]), tensors, document)
    seen = bytearray()

    def read(descriptor: int) -> bytes:
        seen.extend(piece := os.read(descriptor, 1024))
        return piece

    pty.spawn([sys.executable, "-c", EVALUATE, *paths], read)
    assert seen.count(b"]0;") >= len(paths)  # each is named, and spelled out
    assert b"\x1b]0;" not in seen
