"""One run shared by several workers: the same bits, whoever does what."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny_runs import assert_same_run, finish, tiny
from workers import sharded, together

from haltwise import InputError
from haltwise._core.files import load_tensors
from haltwise._core.workers import Workers
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.training import Trainer
from haltwise.training.sharding import differentiate_shards
from haltwise.training.sources import FamilySource


def test_two_workers_give_the_bits_of_one(alone: Path, tmp_path: Path) -> None:
    together(2, tmp_path / "run")
    assert_same_run(alone, tmp_path / "run")


def test_the_number_of_shards_is_part_of_the_recipe(alone: Path, tmp_path: Path) -> None:
    finish(Trainer(sharded(num_shards=2), tmp_path))
    one, other = (load_tensors(path / "best.safetensors")[0] for path in (alone, tmp_path))
    assert not torch.equal(one["rule.readout_weight"], other["rule.readout_weight"])


def test_the_gradient_is_the_mean_over_all_finite_problems(tmp_path: Path) -> None:
    """Of shards that hold 4 and no finite problems, those of the first count in full."""
    trainer = Trainer(sharded("lstm", num_shards=2), tmp_path)
    learner = trainer._learner
    weights = learner.adam.learning
    result = learner.phase.differentiate(0, 0)
    assert (len(result.losses), result.num_left_out) == (4, 0)
    expected = [None if weight.grad is None else 2 * weight.grad for weight in weights]
    assert isinstance(trainer.source, FamilySource)
    family = trainer.source.family

    class Half:
        calls = 0

        def sample(self, *arguments: object, **settings: object) -> object:
            self.calls += 1
            batch = family.sample(*arguments, **settings)  # type: ignore[arg-type]
            assert isinstance(batch, LeastSquaresBatch)
            broken = torch.full_like(batch.target, torch.nan)
            return batch if self.calls == 1 else replace(batch, target=broken)

    trainer.source.family = Half()  # type: ignore[assignment]
    loss, num_left_out, _ = differentiate_shards(learner.phase, 0, weights, Workers(), 2)
    assert loss == pytest.approx(2 * result.losses.sum().item() / learner.phase.batch_size)
    assert num_left_out == 4
    for weight, gradient in zip(weights, expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient)


def test_more_workers_than_shards_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="4 workers share 1 virtual shards"):
        Trainer(tiny(), tmp_path / "run", workers=Workers(0, 4))
    with pytest.raises(InputError, match=r"must be a multiple of run\.num_shards = 3"):
        sharded(num_shards=3)
    assert not (tmp_path / "run").exists()
