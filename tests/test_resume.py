"""Runs that were killed, damaged or changed: they go on exactly, or say why not."""

import json
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_training import assert_same_run, by_adam, finish, tiny

from haltwise import InputError
from haltwise._core.errors import CheckpointWarning
from haltwise._core.files import load_tensors, save_tensors
from haltwise._core.tensors import require_like
from haltwise.tasks import TaskBatch
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.training import Trainer
from haltwise.training.run.directory import RunDirectory, differences
from haltwise.training.run.log import read_log


def leave(directory: Path, after: int) -> RunDirectory:
    """A run whose process vanished after so many steps."""
    for progress in Trainer(tiny(), directory).run():
        if progress.step == after:
            break
    return RunDirectory(directory, 3)


def test_the_last_few_checkpoints_are_kept(tmp_path: Path) -> None:
    finish(Trainer(tiny(num_checkpoints=2), tmp_path))
    assert [step for step, _ in RunDirectory(tmp_path, 2).checkpoints()] == [14, 12]


@pytest.mark.parametrize("after", [5, 11])
@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "foreign"])
def test_a_corrupt_checkpoint_is_passed_over_and_the_one_before_used(
    damage: str, after: int, tmp_path: Path
) -> None:
    finish(Trainer(tiny(), tmp_path / "whole"))
    (_, path), *_ = leave(tmp_path / "broken", after).checkpoints()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {
        "flip": bytes(content),
        "truncate": bytes(content[: len(content) // 2]),
        "empty": b"",
        "foreign": b"PK\x03\x04",
    }
    path.write_bytes(damaged[damage])
    with pytest.warns(CheckpointWarning, match=path.name):
        trainer = Trainer.resume(tmp_path / "broken")
    assert trainer.step == after - after % 2 - 2
    finish(trainer)
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_without_one_good_checkpoint_is_refused(tmp_path: Path) -> None:
    for _, path in leave(tmp_path, 5).checkpoints():
        path.write_bytes(b"")
    with pytest.warns(CheckpointWarning), pytest.raises(InputError, match="to begin anew"):
        Trainer.resume(tmp_path)


def test_checkpoints_that_nobody_may_list_are_not_taken_for_none(tmp_path: Path) -> None:
    """To begin anew would overwrite them; a file in place of the directory stands for the lock."""
    leave(tmp_path, 5)
    (tmp_path / "checkpoints").rename(tmp_path / "away")
    (tmp_path / "checkpoints").write_bytes(b"")
    with pytest.raises(InputError, match=r"cannot read .*checkpoints"):
        Trainer.resume(tmp_path)


def test_weights_for_use_are_restored_from_the_checkpoint(tmp_path: Path) -> None:
    finish(Trainer(tiny(), tmp_path))
    best = tmp_path / "best.safetensors"
    weights, card = load_tensors(best)
    for damage in (lambda: best.write_bytes(best.read_bytes()[:100]), best.unlink):
        damage()
        Trainer.resume(tmp_path)
        found, found_card = load_tensors(best)
        assert found_card == card
        assert all(torch.equal(value, found[name]) for name, value in weights.items())


def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    leave(tmp_path, 5)
    torn = [tmp_path / ".best.safetensors.1.tmp", tmp_path / "checkpoints" / ".step.2.tmp"]
    for path in torn:
        path.write_bytes(b"half")
    Trainer.resume(tmp_path)
    assert not any(path.exists() for path in torn)


def test_another_configuration_is_refused_with_the_differences(tmp_path: Path) -> None:
    leave(tmp_path, 5)
    assert Trainer.resume(tmp_path, config=tiny()).step == 4
    with pytest.raises(InputError, match=r"\(optimizer.head_width: 64 -> 5; seed: 0 -> 7\)"):
        Trainer.resume(tmp_path, config=tiny(seed=7, head_width=5))
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    document["config"]["learning_rate"] = 0.1
    path.write_text(json.dumps(document))  # behind the checkpoints' back
    with pytest.raises(InputError, match=r"\(config.learning_rate: 0.003 -> 0.1\)"):
        Trainer.resume(tmp_path)


def test_differences_are_named_wherever_they_are() -> None:
    one = {"a": [1, 2], "b": {"c": None, "d": 1}, "e": 1}
    assert differences(one, one | {"e": 1.0}) == []
    assert differences(one, {"a": [1, 3], "b": {"c": 0, "d": True}}) == [
        "a: [1, 2] -> [1, 3]",
        "b.c: None -> 0",
        "b.d: 1 -> True",
        "e: 1 -> nothing",
    ]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("now.weights.rule.readout_weight", torch.zeros(1)),  # would broadcast
        ("now.weights.rule.readout_weight", torch.zeros(4, 20, dtype=torch.float64)),
        ("best.head.weights.0", torch.zeros(1)),
        ("now.adam.exp_avg.rule.readout_weight", torch.zeros(1)),
        ("now.surplus", torch.zeros(1)),
    ],
)
def test_tensors_of_another_shape_or_dtype_are_refused(
    name: str, value: torch.Tensor, tmp_path: Path
) -> None:
    (_, path), *_ = leave(tmp_path, 5).checkpoints()
    tensors, metadata = load_tensors(path)
    save_tensors(path, {**tensors, name: value}, metadata)
    with pytest.raises(InputError, match=name.split(".", 1)[1].replace("[", r"\[")):
        Trainer.resume(tmp_path)


def test_every_difference_of_tensors_is_seen() -> None:
    good = {"a": torch.zeros(2), "b": torch.zeros(2, 3)}
    require_like({name: value.clone() for name, value in good.items()}, good)
    for bad in (
        {"a": good["a"]},
        good | {"c": good["a"]},
        good | {"a": torch.zeros(3)},
        good | {"b": torch.zeros(3, 2)},
        good | {"a": torch.zeros(2, dtype=torch.int64)},
    ):
        with pytest.raises(InputError):
            require_like(bad, good)


def test_counts_are_those_of_an_uninterrupted_run(tmp_path: Path) -> None:
    """Recordings are made again after an interruption; what they leave out counts once."""

    def left_out(directory: Path, cuts: tuple[int, ...]) -> tuple[int, list[object]]:
        trainer = Trainer(by_adam(), directory)
        for cut in (*cuts, 10**9):
            blight(trainer)
            for progress in trainer.run():
                if progress.step == cut:
                    trainer.save()
                    break
            if cut < 10**9:
                trainer = Trainer.resume(directory)
        return trainer.num_nonfinite, [dict(entry) for entry in read_log(directory)]

    whole = left_out(tmp_path / "whole", ())
    assert whole[0] > 0
    assert left_out(tmp_path / "broken", (1, 2, 5)) == whole


def blight(trainer: Trainer) -> None:
    """Make every fifth problem NaN."""
    sample = trainer.problems.sample

    def blighted(num_problems: int, generator: torch.Generator) -> TaskBatch:
        batch = sample(num_problems, generator)
        assert isinstance(batch, LeastSquaresBatch)
        target = batch.target.clone()
        target[::5] = math.nan
        return replace(batch, target=target)

    trainer.problems.sample = blighted  # type: ignore[method-assign]


# --- Divergence ----------------------------------------------------------------------------------


def diverging(directory: Path, after: int, times: int) -> Trainer:
    """A run whose weights explode at a step, as long as the learning rate is above a bound."""
    return sabotage(
        Trainer(tiny("lstm", num_meta_steps=12, learning_rate=1e-3), directory), after, times
    )


def sabotage(trainer: Trainer, after: int, times: int) -> Trainer:
    step = trainer._update

    def update(loss: float) -> float:
        value = step(loss)
        if trainer.step + 1 == after and trainer._num_rollbacks < times:
            trainer.optimizer.rule_parameters()[0].data.fill_(1e30)
        return value

    trainer._update = update  # type: ignore[method-assign]
    return trainer


def test_a_diverged_training_returns_to_its_last_good_state(tmp_path: Path) -> None:
    trainer = finish(diverging(tmp_path, 5, times=2))
    rollbacks = [entry for entry in read_log(tmp_path) if "event" in entry]
    assert [entry["to_step"] for entry in rollbacks] == [4, 4]
    assert [entry["learning_rate"] for entry in rollbacks] == pytest.approx([3e-4, 9e-5])
    assert trainer.step == 12
    assert all(value.isfinite().all() for value in trainer.optimizer.state_dict().values())
    steps = [entry["step"] for entry in read_log(tmp_path)]
    assert steps == [2, 4, 6, 6, 6, 8, 10, 12]


def test_it_is_given_up_after_so_many_times(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged at step 6, now with learning rate 2\.7e-05"):
        finish(diverging(tmp_path, 5, times=99))
    assert torch.isfinite(load_tensors(tmp_path / "best.safetensors")[0]["rule.biases.0"]).all()


@pytest.mark.parametrize("cut", range(1, 13))
@pytest.mark.parametrize("saves", [True, False])
def test_rollbacks_are_the_same_after_an_interruption(
    cut: int, saves: bool, tmp_path: Path
) -> None:
    finish(diverging(tmp_path / "whole", 7, times=2))

    def until(trainer: Trainer) -> Iterator[int]:
        for progress in trainer.run():
            yield progress.step

    broken = diverging(tmp_path / "broken", 7, times=2)
    for number, _ in enumerate(until(broken), start=1):
        if number == cut:
            break
    if saves:
        broken.save()
    finish(sabotage(Trainer.resume(tmp_path / "broken"), 7, times=2))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_meta_steps_without_a_finite_gradient_are_skipped_and_counted(tmp_path: Path) -> None:
    trainer = Trainer(tiny("lstm"), tmp_path)
    before = {name: value.clone() for name, value in trainer.optimizer.state_dict().items()}
    differentiate, weight = trainer._joint_shard, trainer._learning[0]

    def spoiled(shard: int) -> tuple[torch.Tensor, int, int]:
        found = differentiate(shard)
        assert weight.grad is not None
        weight.grad.fill_(math.inf)
        return found

    trainer._joint_shard = spoiled  # type: ignore[method-assign]
    assert math.isnan(trainer._meta_step())
    assert trainer.num_skipped == 1
    assert trainer.num_nonfinite == 0
    after = trainer.optimizer.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
