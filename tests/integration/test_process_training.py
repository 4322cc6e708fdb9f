"""Families of processes from a file: only when to halt them is learned."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from in_process import haltwise
from tiny_runs import TINY, finish

from haltwise import InputError, load_halting
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
    run = train(family, tmp_path / "run", price=price, horizon=horizon, **settings)
    model = load_halting(run)
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
