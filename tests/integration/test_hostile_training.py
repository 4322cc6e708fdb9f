"""Training on problems of which some have losses that are not finite: left out, and counted."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_problems import BAD, EVILS, GOOD, NUM_PROBLEMS, TAME, good_problems, hostile_problems
from own_files import BOWLS

import haltwise
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.training import Trainer, TrainingSettings


class Fixed:
    """A family of one batch."""

    def __init__(self, batch: LeastSquaresBatch) -> None:
        self.batch = batch

    def sample(self, *arguments: object, **settings: object) -> LeastSquaresBatch:
        return self.batch


def trainer_on(batch: LeastSquaresBatch, directory: Path, **joint: Any) -> Trainer:
    settings = TrainingSettings.from_preset(
        "act",
        "regression-2d",
        {
            "horizon": 6,
            "price_range": 1.0,
            "joint": {"num_steps": 8, "batch_size": batch.num_problems, **joint},
            "halting": {"num_steps": 6, "num_recorded": 24, "batch_size": 8},
            "validation": {"every": 2, "num_problems": 16, "num_calibration": 32},
        },
    )
    trainer = Trainer(settings, directory)
    source: Any = trainer.source
    source.family = Fixed(batch)
    return trainer


@pytest.mark.parametrize("evil", EVILS)
def test_a_step_leaves_out_or_skips_what_is_not_finite_and_counts_it(
    evil: str, tmp_path: Path
) -> None:
    trainer = trainer_on(hostile_problems(evil), tmp_path, warmup=0.0)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    progress = next(trainer.run())
    after = trainer.model.state_dict()
    moved = any(not torch.equal(value, after[name]) for name, value in before.items())
    assert all(value.isfinite().all() for value in after.values())
    assert moved == math.isfinite(progress.loss) == (progress.num_skipped == 0)
    if evil in ("NaN", "infinite"):
        assert progress.num_nonfinite == len(BAD)
        assert moved
    if evil in TAME:
        assert (progress.num_nonfinite, progress.num_skipped) == (0, 0)
    assert moved or progress.num_skipped == 1


def test_the_meta_gradient_of_the_others_is_that_without_the_bad(tmp_path: Path) -> None:
    """Left out means left out: weights move as if the batch had never held them."""
    batches = {"mixed": hostile_problems("NaN"), "good": good_problems().select(GOOD)}
    weights = []
    for name, batch in batches.items():
        trainer = trainer_on(batch, tmp_path / name, warmup=1.0)
        next(trainer.run())
        weights.append(trainer.model.state_dict())
    assert batches["mixed"].num_problems == NUM_PROBLEMS
    for name, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][name])


@pytest.mark.parametrize("preset", ["act", "lstm"])
def test_a_training_that_keeps_no_weights_does_not_end_as_if_it_had(
    preset: str, tmp_path: Path
) -> None:
    """Problems that begin at their minimum: whatever a rule does, they get infinitely worse."""
    own = tmp_path / "own.py"
    own.write_text(BOWLS.replace("torch.zeros_like(center)", "center.clone()"))
    few = {
        "horizon": 4,
        "joint": {"num_steps": 2, "batch_size": 4},
        "validation": {"every": 1, "num_problems": 4},
    }
    settings = TrainingSettings.from_preset(preset, f"{own}:Bowls", few)
    trainer = Trainer(settings, tmp_path / "run")
    for _ in range(2):
        with pytest.raises(haltwise.InputError, match="so no weights are kept"):
            list(trainer.run())
        assert not (tmp_path / "run" / "best.safetensors").exists()
        trainer = Trainer.resume(tmp_path / "run")  # nothing else was lost
