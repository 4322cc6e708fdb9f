"""A shell completes commands and names, and waits for no library."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from haltwise.cli import cli, command_names, completion
from haltwise.models.loading import names
from haltwise.processes import process_families
from haltwise.tasks import families

LIGHT = "import sys; sys.modules['torch'] = None; "
CODE = "import sys; from haltwise.__main__ import main; sys.argv = ['haltwise']; main()"


def completed(line: str, cwd: Path, prefix: str = "") -> list[str]:
    """What bash is offered for the last word of a line."""
    words = line.split(" ")
    place = {"COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    done = subprocess.run(
        [sys.executable, "-c", prefix + CODE],
        env=os.environ | place | {"_HALTWISE_COMPLETE": "bash_complete"},
        cwd=cwd, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stderr == ""
    return [each.partition(",")[2] for each in done.stdout.splitlines() if each]


def test_the_help_has_the_line_that_asks_for_completion() -> None:
    lines = CliRunner().invoke(cli, ["--help"]).output.splitlines()
    assert 'eval "$(_HALTWISE_COMPLETE=bash_source haltwise)"    (or zsh_source)' in [
        line.strip() for line in lines
    ]
    assert max(map(len, lines)) <= 80


def test_names_are_those_that_importing_finds() -> None:
    assert completion.family_names() == sorted([*families(), *process_families()])
    assert completion.weight_names() == names()


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("haltwise wat", ["watch"]),
        ("haltwise train quad", ["quadratic-10d"]),
        ("haltwise evaluate student", ["student-t-10d"]),
        ("haltwise evaluate mi", ["mine"]),
        ("haltwise evaluate mine --family student", ["student-t-10d"]),
        ("haltwise evaluate --family student-t-10d mi", ["mine"]),
        ("haltwise report ", ["mine"]),
        ("haltwise judge tr", ["training-runs"]),
        ("haltwise replay runs.csv --model tr", ["training-runs"]),
        ("haltwise learn ru", ["ru"]),  # a file, which the shell completes
    ],
)
def test_names_are_completed_without_pytorch(line: str, some: list[str], tmp_path: Path) -> None:
    for run in ("mine", "other"):
        (tmp_path / "runs" / run).mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "config.json").write_text("{}")
    assert completed(line, tmp_path, LIGHT) == some


def test_the_table_of_options_is_that_of_the_commands() -> None:
    """`make completion` brings it up to date."""
    assert completion.written_option_table() == completion.option_table(command_names())


def test_options_are_completed_without_pytorch(tmp_path: Path) -> None:
    line = "haltwise train --out x regression-2d --family.num"
    assert completed(line, tmp_path, LIGHT) == ["--family.num-params"]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("haltwise train --family.num", []),
        ("haltwise train regression-2d --joint.estimator.", [
            "--joint.estimator.segment", "--joint.estimator.truncate"
        ]),
        ("haltwise evaluate x --le", ["--learners"]),
        ("haltwise bench --q", ["--quick"]),
        # Settings of what is chosen, which no table knows.
        ("haltwise train regression-2d --rule adam --rule.l", ["--rule.learning-rate"]),
        # A family that takes settings of the default rule away.
        ("haltwise train cifar10-cnn --rule.hidden", []),
    ],
)  # fmt: skip
def test_options_are_completed(
    line: str,
    found: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("_HALTWISE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(line.count(" ")))
    with pytest.raises(SystemExit):
        cli.main(args=[], prog_name="haltwise")
    out, err = capsys.readouterr()
    assert err == ""
    assert [each.partition(",")[2] for each in out.splitlines() if each] == found


def test_where_a_command_writes_is_called_by_one_name() -> None:
    table = completion.option_table(command_names())
    found = {
        option
        for options in table.values()
        for option in options
        if re.match(r"--(out|dest|directory|save|write)", option)
    }
    assert found == {"--out"}
