"""Families from a user's file, and runs found by their names."""

import shutil
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from in_process import haltwise
from own_files import BOWLS, HEAD
from test_examples import load_example
from tiny_runs import TINY_OPTIONS as TINY

from haltwise import InputError, load, solve
from haltwise.models import Choice, loading
from haltwise.tasks import family
from haltwise.training import train

EXAMPLE = Path(__file__).parents[1] / "examples" / "my_family.py"

GOOD = f"{BOWLS}\nbig = Bowls(5)\nother = 7\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(GOOD)
    return path


def test_a_class_or_an_instance_with_settings(file: Path) -> None:
    for name, settings, dim in (("Bowls", {}, 3), ("Bowls", {"size": 4}, 4), ("big", {}, 5)):
        found = family(f"{file}:{name}", settings)
        assert found.dim == dim
        batch = found.sample(6, torch.Generator().manual_seed(0))
        assert batch.start.shape == (6, dim)


def test_a_file_is_taken_whatever_the_default_device(file: Path) -> None:
    with torch.device("meta"):
        assert family(f"{file}:Bowls").dim == 3


def instead(text: str, other: str) -> str:
    assert text in GOOD
    return GOOD.replace(text, other)


OWN = (
    HEAD
    + """
@dataclass(frozen=True)
class Own(TaskBatch):
    center: torch.Tensor

    @property
    def reference_loss(self):
        return self.start.new_zeros(len(self.start))

    def observe(self, params, step):
        from haltwise.tasks import Observation
        loss = (params - self.center).square().sum(1)
        # noise
        return Observation(loss, 2 * (params - self.center))
"""
    + GOOD[len(HEAD) :].replace(
        'haltwise.FunctionBatch(torch.zeros_like(center), bowl, {"center": center})',
        "Own(torch.zeros_like(center), center)",
    )
)

CASES = {
    "no method": (
        GOOD[: GOOD.index("    def _sample")],
        r"line 10: Bowls lacks _sample; define `def _sample\(self, num_problems, generator\):`",
    ),
    "no batch": (
        instead("return haltwise.FunctionBatch", "return (lambda *x: 3)"),
        r"line 10: Bowls\._sample must return a TaskBatch .*, got int",
    ),
    "batch lacks": (
        HEAD
        + "class Batch(TaskBatch):\n    pass\n"
        + GOOD[len(HEAD) :].replace("haltwise.FunctionBatch(", "Batch("),
        r"line 21: TypeError: Can't instantiate abstract class Batch .*observe.*reference_loss",
    ),
    "shape": (
        instead("sum(1)", "sum()"),
        r"line 10: the loss must return one value per problem, .* got shape \[\]$",
    ),
    "loss": (instead("(params - center)", "(params @ center)"), r"line 7: RuntimeError: mat1 and"),
    "dim": (instead("self.size\n\n", "0\n\n"), r"line 10: Bowls\.dim must be a number"),
    "start": (
        instead("return self.size", "return self.size + 1"),
        r"start of 2 problems of Bowls must have shape \[2, 4\], got \[2, 3\]",
    ),
    "nowhere": (instead("zeros_like(center)", "full_like(center, torch.inf)"), "is not finite"),
    "random": (instead("generator=generator, ", ""), r"draws other problems from the same gener"),
    "random loss": (
        instead("sum(1)", "sum(1) + torch.randn(len(params))"),
        r"line 10: .*each loss must be a function of its own row .* and not random",
    ),
    "random own loss": (
        OWN.replace("# noise", "loss = loss + torch.randn(len(params))"),
        r"the loss .*beside it|the loss differs when it is computed again .*draw what is random in",
    ),
    "mixed": (
        instead("sum(1)", "sum(1) + params.mean()"),
        r"the loss of problem 0 .* changes with the problems beside it",
    ),
    "mixed own": (
        OWN.replace("# noise", "loss = loss - loss.mean()"),
        r"the loss of a problem changes with the problems beside it",
    ),
    "no reference": (
        OWN.replace("new_zeros(len(self.start))", "new_full((len(self.start),), torch.nan)"),
        r"the excess loss is not finite where the loss is; reference_loss of Bowls must be finite",
    ),
    "json": (
        instead("size: int = 3", "size: int = 3\n    kind: object = torch.int8"),
        r"line 10: the fields of Bowls must be JSON values, .*dtype is not JSON serializable",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_a_family_that_does_not_work_is_told_why(case: str, tmp_path: Path) -> None:
    text, sentence = CASES[case]
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(InputError, match=sentence) as caught:
        family(f"{path}:Bowls")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_family_may_have_a_problem_that_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    for text in (GOOD, OWN):
        before, line = "    def _sample", "        center[0] = torch.nan\n        return "
        head, tail = text.split(before)
        path.write_text(head + before + tail.replace("        return ", line, 1))
        assert family(f"{path}:Bowls").dim == 3


def test_other_things_in_a_file_are_no_families(file: Path) -> None:
    for name, sentence in (
        ("other", r"other must be a subclass of haltwise\.tasks\.TaskFamily or an instance of one"),
        ("Nothing", "defines no Nothing; it has Bowls, big"),
    ):
        with pytest.raises(InputError, match=sentence):
            family(f"{file}:{name}")
    with pytest.raises(InputError, match="unknown setting of Bowls 'sise'; did you mean 'size'"):
        family(f"{file}:Bowls", {"sise": 3})
    with pytest.raises(InputError, match=r"which family of the file to use; name mine\.py:NAME"):
        family("mine.py")


def test_a_run_remembers_its_file_and_every_command_takes_it(file: Path, tmp_path: Path) -> None:
    result = haltwise("train", "mine.py:Bowls", "--family.size", 2, *TINY, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "runs/Bowls-act"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    assert load(tmp_path / "runs" / "Bowls-act").card.family == Choice(f"{file}:Bowls", {"size": 2})
    run = Path("..") / "runs" / "Bowls-act"
    sizes = ["--num-problems", 40, "--horizon", 4, "--threads", 1]
    for command in (
        ["evaluate", run, "--family", f"{file}:Bowls", *sizes],
        ["evaluate", run, "--family", f"{file}:big", *sizes],
        ["study", run, "--family", f"{file}:Bowls", "--seeds", 2, *sizes],
        ["report", run],
        ["train", "--resume", run],
    ):
        done = haltwise(*command, cwd=elsewhere)
        assert done.returncode == 0, (command, done.stderr)
        assert str(file) not in done.stdout  # called by its short name
    page = (tmp_path / "runs" / "Bowls-act" / "report.html").read_text("utf-8")
    assert " on Bowls" in page
    file.rename(tmp_path / "moved.py")
    done = haltwise("evaluate", run, "--family", f"{file}:Bowls", *sizes, cwd=elsewhere)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert f"there is no file {file}" in done.stderr
    done = haltwise("evaluate", run, "--family", "../moved.py:Bowls", *sizes, cwd=elsewhere)
    assert done.returncode == 0, done.stderr


def test_a_run_is_found_by_its_name_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`runs/NAME` under the working directory, unless NAME is shipped or a path."""
    weights = loading.find("regression-2d")
    run = tmp_path / "runs" / "mine"
    run.mkdir(parents=True)
    shutil.copy(weights, run / "best.safetensors")
    monkeypatch.chdir(tmp_path)
    assert load("mine").card == load("regression-2d").card
    problems = family("regression-2d").sample(3, torch.Generator().manual_seed(0))
    assert solve(problems, "mine").loss.shape == (3,)
    sizes = ["--num-problems", 40, "--horizon", 4, "--threads", 1]
    for command in (
        ["evaluate", "mine", "--compare", "regression-2d-thesis", *sizes],
        ["study", "regression-2d", "--halter", "m=mine", "--seeds", 2, *sizes],
        ["report", "mine"],
        ["train", "regression-2d", "--rule-from", "mine", "--out", "x", *TINY],
        ["train", "--resume", "x"],
    ):
        done = haltwise(*command, cwd=tmp_path)
        assert done.returncode == 0, (command, done.stderr)
    assert (run / "report.html").exists()
    (tmp_path / "mine").mkdir()  # a path comes first
    with pytest.raises(InputError, match=r"mine holds no weights yet.* not the directory of a run"):
        load("mine")


def test_the_library_trains_a_family_of_ones_own(tmp_path: Path) -> None:
    example = load_example("my_family")
    arguments = ["--joint-steps", "4", "--halting-steps", "4", "--num-recorded", "64"]
    result = CliRunner().invoke(
        example.main, [*arguments, "--out", str(tmp_path / "run")], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "gradients of at most 40" in result.output
    card = load(tmp_path / "run").card
    assert card.family == Choice(f"{EXAMPLE}:Decays", {"num_observations": 20})

    class Local(example.Decays):  # type: ignore[misc, name-defined]
        pass

    with pytest.raises(InputError, match=r"must be defined at the top of a \.py file"):
        train(Local(), tmp_path / "other")


def test_the_example_says_no_more_than_it_needs() -> None:
    """The library in under 15 lines: what stands in `main` besides its options."""
    text = EXAMPLE.read_text().partition("threads(1)\n")[2].partition("\n\n\nif __name__")[0]
    assert len(text.strip().splitlines()) < 15
    command = EXAMPLE.read_text().partition("    haltwise train ")[2].splitlines()[0]
    assert "my_family.py:Decays" in command
