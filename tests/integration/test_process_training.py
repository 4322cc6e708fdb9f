"""Families of processes from a file: only when to halt them is learned."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import haltwise
from tiny_runs import TINY, finish

from haltwise import InputError, load, load_halting, run
from haltwise._core.nested_settings import Choice
from haltwise._core.plugins import load_object
from haltwise.models import HaltingModel
from haltwise.processes import ProcessFamily
from haltwise.rollout import record_process
from haltwise.stop_rules import CostUnit, decisions
from haltwise.training import Trainer, TrainingSettings, train

PATH = Path(__file__).parents[1] / "own" / "own_process.py"
NAME = f"{PATH}:SquareRoots"


def square_roots(decades: float) -> ProcessFamily:
    """The family as a script has it that defines or imports it."""
    sys.modules.pop("own_process", None)
    sys.path.insert(0, str(PATH.parent))
    try:
        import own_process

        family: ProcessFamily = own_process.SquareRoots(decades)
        return family
    finally:
        sys.path.remove(str(PATH.parent))


def test_a_call_trains_what_stops_newton_s_iteration_well(tmp_path: Path) -> None:
    """Its stops capture most of what the best fixed budget leaves to gain, by loops over items."""
    price, horizon, num = 1.0, 20, 400
    settings: dict[str, Any] = {
        "halting": {"num_steps": 200, "num_recorded": 1024, "batch_size": 64},
        "validation": {"every": 100, "num_problems": 256, "num_calibration": 1024},
    }
    family = square_roots(5.0)
    directory = train(family, tmp_path / "run", price=price, horizon=horizon, **settings)
    model = load_halting(directory)
    assert isinstance(model, HaltingModel)
    card = model.card
    assert (card.rule, card.unit, card.price_range) == (None, CostUnit.UPDATES, 3.0)
    assert card.family == Choice(NAME, {"decades": 5.0})

    process = family.sample(num, torch.Generator().manual_seed(1))
    trajectory = model.attach(record_process(process, horizon), price)
    stops = decisions(model.policy().rule, trajectory).tolist()
    costs = [
        [loss + price * step for step, loss in enumerate(losses)]
        for losses in trajectory.excess.tolist()
    ]
    mean = sum(row[stop] for row, stop in zip(costs, stops, strict=True)) / num
    oracle = sum(map(min, costs)) / num
    fixed = min(sum(row[step] for row in costs) / num for step in range(horizon + 1))
    assert oracle < fixed
    assert (fixed - mean) / (fixed - oracle) > 0.8


def test_the_command_needs_no_more_than_the_name(tmp_path: Path) -> None:
    small = ["--horizon", 6, "--halting.num-steps", 4, "--halting.num-recorded", 16]
    small += ["--validation.num-problems", 16, "--validation.num-calibration", 16]
    done = haltwise("train", NAME, *small, "--family.decades", 2, "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model = load_halting(tmp_path / "run")
    assert model.card.family == Choice(NAME, {"decades": 2.0})
    finish(Trainer.resume(tmp_path / "run"))  # its file is found again
    with pytest.raises(InputError, match=r"stop processes, .* use it by haltwise\.run\(process, "):
        load(tmp_path / "run")
    report = haltwise("report", "run", cwd=tmp_path)
    assert "stops processes, of which no evaluations are kept; write" in report.stderr
    for options, sentence in (
        (["--rule", "adam", "--rule.learning-rate", 0.1], "processes move by themselves, so"),
        (["--mixed-with", "regression-2d"], "drop mixed_with, which names families of problems"),
        (["--rule-from", "regression-2d"], "drop rule 'lstm'"),
        (["--family.decade", 2], "No such option '--family.decade'"),
        (["--method", "none"], "there is nothing to train: rule none has no weights"),
    ):
        done = haltwise("train", NAME, *small, *options, "--out", "other", cwd=tmp_path)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert not (tmp_path / "other").exists()


def test_settings_of_a_process_are_checked_with_near_names(tmp_path: Path) -> None:
    for settings, sentence in (
        ({"decade": 2.0}, "unknown setting of SquareRoots 'decade'; did you mean 'decades'"),
        ({"decades": "two"}, "decades must be float, got 'two'"),
    ):
        chosen = TrainingSettings.from_preset("act", NAME, TINY, {"family": {"settings": settings}})
        with pytest.raises(InputError, match=sentence):
            Trainer(chosen, tmp_path / "run")


def test_a_family_that_no_file_defines_is_refused(tmp_path: Path) -> None:
    kind = load_object(NAME, ProcessFamily, "family of processes")

    class Local(kind):  # type: ignore[misc,valid-type]
        pass

    with pytest.raises(InputError, match=r"must be defined at the top of a \.py file"):
        train(Local(), tmp_path / "run")


NEEDLES = """\
from dataclasses import dataclass

import torch

from haltwise.processes import Process, ProcessFamily, ProcessStep


class Needle(Process):
    def __init__(self, found_at):
        self.found_at = found_at

    @property
    def num_items(self):
        return len(self.found_at)

    def init(self):
        return {"step": torch.zeros_like(self.found_at)}

    def step(self, step, state):
        left = self.found_at - state["step"]
        seen = self.observe(step, (left > 0).float())
        shown = seen._replace(readout=(left.unsqueeze(1) <= 4).float())
        return ProcessStep(shown, {"step": state["step"] + 1})

    def result(self, state):
        return state["step"].float()

    def select(self, index):
        return Needle(self.found_at[index])


@dataclass(frozen=True)
class Needles(ProcessFamily):
    def sample(self, num_items, generator, *, dtype=torch.float32, device="cpu"):
        return Needle(torch.randint(1, 13, (num_items,), generator=generator))
"""


def test_a_model_reads_what_a_process_shows_of_its_inner_state(tmp_path: Path) -> None:
    """The loss falls at once, when it is known from the read-out alone that it soon will."""
    path = tmp_path / "needles.py"
    path.write_text(NEEDLES)
    name, price, horizon, num = f"{path}:Needles", 0.15, 12, 300
    settings: dict[str, Any] = {
        "halting": {"num_steps": 200, "num_recorded": 1024, "batch_size": 64},
        "validation": {"every": 100, "num_problems": 256, "num_calibration": 1024},
    }
    train(name, tmp_path / "run", price=price, price_range=1.0, horizon=horizon, **settings)
    model = load_halting(tmp_path / "run")
    assert model.readout_size == model.card.readout_size == 1
    process = load_object(name, ProcessFamily, "family")().sample(
        num, torch.Generator().manual_seed(1)
    )
    stopped = run(process, model)
    found = process.found_at
    # Those that are found within four steps are worth their price, the others are not.
    assert (stopped.num_updates == torch.where(found <= 4, found, 0)).double().mean() > 0.95
    blind = HaltingModel(replace(model.card, readout_size=0))
    for one, other in ((blind, process), (model, square_roots(1.0).sample(4, torch.Generator()))):
        with pytest.raises(InputError, match=r"reads \d numbers of the inner state .* shows \d"):
            run(other, one)
    done = haltwise("evaluate", "run", "--family", name, "--num-problems", 64, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("kind", "shown"), [("double", "double"), ("double", "long"), ("float", "bool")]
)
def test_processes_may_show_numbers_of_any_kind(tmp_path: Path, kind: str, shown: str) -> None:
    """Losses in double precision, read-outs that count: solvers compute in what they need."""
    path = tmp_path / "needles.py"
    text = NEEDLES.replace("(left > 0).float()", f"(left > 0).{kind}()")
    text = text.replace("(left.unsqueeze(1) <= 4).float()", f"(left.unsqueeze(1) <= 4).{shown}()")
    path.write_text(text.replace('state["step"].float()', 'state["step"]'))
    few = {**TINY, "halting": {**TINY["halting"], "num_steps": 6}}
    train(f"{path}:Needles", tmp_path / "run", price=0.15, **few)
    process = load_object(f"{path}:Needles", ProcessFamily, "family")().sample(
        9, torch.Generator().manual_seed(1)
    )
    model = load_halting(tmp_path / "run")
    stopped = run(process, model)
    trajectory = model.attach(record_process(process, TINY["horizon"]), 0.15)
    assert torch.equal(stopped.num_updates, decisions(model.policy().rule, trajectory))
