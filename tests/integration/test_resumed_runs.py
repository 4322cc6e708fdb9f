"""Runs that were killed, damaged or changed: they go on exactly, or say why not."""

import json
import math
import shutil
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_files import BOWLS
from tiny_runs import ALL, JOINT, TINY, assert_same_run, by_adam, diverging, finish, leave, tiny

from haltwise import InputError, load, solve
from haltwise._core.errors import CheckpointWarning
from haltwise._core.files import load_tensors, save_tensors
from haltwise._core.nested_settings import merge
from haltwise._core.tensors import require_like
from haltwise.stop_rules import CostUnit, FixedBudget
from haltwise.tasks import family
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.training import Trainer, TrainingSettings
from haltwise.training.gradients import Estimate
from haltwise.training.run.directory import RunDirectory, differences
from haltwise.training.run.log import read_log


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    directory = tmp_path_factory.mktemp("whole")
    finish(Trainer(tiny(), directory))
    return directory


@pytest.fixture(scope="module")
def left(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose process vanished after five steps."""
    directory = tmp_path_factory.mktemp("left")
    leave(directory, 5)
    return directory


@pytest.fixture
def at_five(left: Path, tmp_path: Path) -> RunDirectory:
    """A copy of it."""
    shutil.copytree(left, tmp_path, dirs_exist_ok=True)
    return RunDirectory(tmp_path, 3)


def broken_off(directory: Path, after: int, *, saves: bool, **changes: Any) -> None:
    """Leave a run as a signal does, or a power cut."""
    trainer = Trainer(tiny(**changes), directory)
    for progress in trainer.run():
        if progress.step == after:
            break
    if saves:
        trainer.save()


@pytest.mark.parametrize(
    ("after", "saves"),
    [
        *((after, True) for after in (1, 5, JOINT - 1, JOINT, JOINT + 1, ALL - 1)),
        *((after, False) for after in (1, 4, 5, JOINT, JOINT + 1)),
    ],
)
def test_a_resumed_run_equals_an_uninterrupted_one(
    after: int, saves: bool, whole: Path, tmp_path: Path
) -> None:
    """Interrupted in either phase or just between them, by a signal or by a power cut."""
    broken_off(tmp_path, after, saves=saves)
    resumed = finish(Trainer.resume(tmp_path))
    for name, value in load(whole).state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    assert_same_run(whole, tmp_path)


def test_so_does_that_of_a_hand_designed_rule(tmp_path: Path) -> None:
    finish(Trainer(by_adam(), tmp_path / "whole"))
    leave(tmp_path / "broken", 3, by_adam())
    finish(Trainer.resume(tmp_path / "broken"))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_may_be_cut_between_its_best_weights_and_its_checkpoint(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The halter's first best weights replace those it began from, which are needed no more."""
    save = Trainer.save

    def cut(trainer: Trainer) -> None:
        if trainer.step > JOINT:
            raise KeyboardInterrupt
        save(trainer)

    monkeypatch.setattr(Trainer, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        finish(Trainer(tiny(), tmp_path))
    monkeypatch.undo()
    finish(Trainer.resume(tmp_path))
    assert_same_run(whole, tmp_path)


def test_a_run_cut_just_before_its_calibration_is_calibrated_when_resumed(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:

    def cut(trainer: Trainer) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "_calibrate", cut)
    with pytest.raises(KeyboardInterrupt):
        finish(Trainer(tiny(), tmp_path))
    monkeypatch.undo()
    with pytest.raises(InputError, match="do not know when to stop yet"):
        load(tmp_path).policy()
    finish(Trainer.resume(tmp_path))
    assert_same_run(whole, tmp_path)


def test_an_interrupted_run_never_stops_by_another_rule_in_silence(tmp_path: Path) -> None:
    """Its weights load, but whoever asks when to stop is told to finish it or to give a rule."""
    problems = family("regression-2d").sample(5, torch.Generator().manual_seed(0))
    for settings in (by_adam(), tiny(), tiny(method="softmax")):
        run = tmp_path / settings.rule.name / settings.method.name
        leave(run, 2, settings)
        model = load(run)
        for unit in (None, *CostUnit):
            with pytest.raises(InputError, match="finish it with haltwise train --resume"):
                model.policy(unit)
        with pytest.raises(InputError, match="or give a stop rule"):
            solve(problems, run)
        assert solve(problems, run, stop=FixedBudget(3)).num_gradients.tolist() == [4] * 5
        finish(Trainer.resume(run))
        assert solve(problems, run).outcome.shape == (5,)


def test_the_last_few_checkpoints_are_kept(tmp_path: Path) -> None:
    finish(Trainer(tiny(run={"num_checkpoints": 2}), tmp_path))
    assert [step for step, _ in RunDirectory(tmp_path, 2).checkpoints()] == [14, 12]


@pytest.mark.parametrize(
    ("damage", "after"), [("flip", 5), ("truncate", 11), ("empty", 11), ("foreign", 5)]
)
def test_a_corrupt_checkpoint_is_passed_over_and_the_one_before_used(
    damage: str, after: int, whole: Path, tmp_path: Path
) -> None:
    (_, path), *_ = leave(tmp_path, after).checkpoints()
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
        trainer = Trainer.resume(tmp_path)
    assert trainer.step == after - after % 2 - 2
    finish(trainer)
    assert_same_run(whole, tmp_path)


def test_a_run_without_one_good_checkpoint_is_refused(
    at_five: RunDirectory, tmp_path: Path
) -> None:
    for _, path in at_five.checkpoints():
        path.write_bytes(b"")
    with pytest.warns(CheckpointWarning), pytest.raises(InputError, match="to begin anew"):
        Trainer.resume(tmp_path)


@pytest.mark.usefixtures("at_five")
def test_checkpoints_that_cannot_be_listed_are_not_taken_for_none(tmp_path: Path) -> None:
    """To begin anew would overwrite them. A file in place of the directory cannot be listed."""
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


@pytest.mark.usefixtures("at_five")
def test_what_a_killed_process_left_half_written_is_removed(tmp_path: Path) -> None:
    torn = [tmp_path / ".best.safetensors.1.tmp", tmp_path / "checkpoints" / ".step.2.tmp"]
    for path in torn:
        path.write_bytes(b"half")
    Trainer.resume(tmp_path)
    assert not any(path.exists() for path in torn)


@pytest.mark.usefixtures("at_five")
def test_other_settings_are_refused_with_the_differences(tmp_path: Path) -> None:
    assert Trainer.resume(tmp_path, settings=tiny()).step == 4
    with pytest.raises(InputError, match=r"\(halter.width: 64 -> 5; seed: 0 -> 7\)"):
        Trainer.resume(tmp_path, settings=tiny(seed=7, halter={"width": 5}))
    path = tmp_path / "config.json"
    document = json.loads(path.read_text())
    document["settings"]["adam"]["learning_rate"] = 0.1
    path.write_text(json.dumps(document))  # behind the checkpoints' back
    with pytest.raises(InputError, match=r"\(settings.adam.learning_rate: 0.003 -> 0.1\)"):
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
        ("best.halting.halter.weights.0", torch.zeros(1)),
        ("now.adam.exp_avg.rule.readout_weight", torch.zeros(1)),
        ("now.surplus", torch.zeros(1)),
    ],
)
def test_tensors_of_another_shape_or_dtype_are_refused(
    name: str, value: torch.Tensor, at_five: RunDirectory, tmp_path: Path
) -> None:
    (_, path), *_ = at_five.checkpoints()
    tensors, metadata = load_tensors(path)
    save_tensors(path, {**tensors, name: value}, metadata)
    with pytest.raises(InputError, match=name.split(".", 1)[1].replace("[", r"\[")):
        Trainer.resume(tmp_path)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("best_rank", [0]),
        ("best_rank", [0, "low"]),
        ("best_rank", 3),
        ("num_records", -1),
        ("num_records", 1.5),
        ("counters", {"seconds": "long"}),
        ("counters", {"left_out": {"joint": None}}),
        ("command", 3),
        ("now", {"step": 99}),
        ("now", {"step": 2}),
        ("now", {"diverged": "no"}),
        ("now", {"metrics": {}}),
        ("now", {"metrics": {"price_adjusted_loss": "low"}}),
        ("now", {"phase": "halting"}),
        ("now", {"phase": ["joint"]}),
        ("best", {"price": "cheap"}),
    ],
)
def test_a_checkpoint_of_other_types_is_refused(
    place: str, value: Any, at_five: RunDirectory, tmp_path: Path
) -> None:
    (_, path), *_ = at_five.checkpoints()
    tensors, metadata = load_tensors(path)
    save_tensors(path, tensors, merge(metadata, {place: value}))
    if value == {"metrics": {}}:
        metadata["now"]["metrics"] = {}
        save_tensors(path, tensors, metadata)
    with pytest.raises(InputError):
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


def test_counts_are_those_of_an_uninterrupted_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recordings are made again after an interruption; what they leave out counts once."""
    kind = type(family(by_adam().family.name))
    sample = kind.sample

    def blighted(*arguments: Any, **settings: Any) -> LeastSquaresBatch:
        batch = sample(*arguments, **settings)
        assert isinstance(batch, LeastSquaresBatch)
        target = batch.target.clone()
        target[::5] = math.nan
        return replace(batch, target=target)

    monkeypatch.setattr(kind, "sample", blighted)

    def left_out(directory: Path, cuts: tuple[int, ...]) -> tuple[int, list[object]]:
        trainer = Trainer(by_adam(), directory)
        for cut in (*cuts, 10**9):
            for progress in trainer.run():
                if progress.step == cut:
                    trainer.save()
                    break
            if cut < 10**9:
                trainer = Trainer.resume(directory)
        return trainer.num_nonfinite, [dict(entry) for entry in read_log(directory)]

    whole = left_out(tmp_path / "whole", ())
    assert whole[0] == 4 + 5 + 7  # of 16 for validation, 24 recorded, 32 for calibration
    assert left_out(tmp_path / "broken", (1, 2, 5)) == whole


# --- Divergence ----------------------------------------------------------------------------------


def test_a_diverged_training_returns_to_its_last_good_state(tmp_path: Path) -> None:
    trainer = finish(diverging(tmp_path, 5, times=2))
    rollbacks = [entry for entry in read_log(tmp_path) if "event" in entry]
    assert [entry["to_step"] for entry in rollbacks] == [4, 4]
    assert [entry["learning_rate"] for entry in rollbacks] == pytest.approx([3e-4, 9e-5])
    assert trainer.step == 12
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())
    steps = [entry["step"] for entry in read_log(tmp_path)]
    assert steps == [2, 4, 6, 6, 6, 8, 10, 12]


def test_it_is_given_up_after_so_many_times(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged at step 6, now with learning rate 2\.7e-05"):
        finish(diverging(tmp_path, 5, times=99))
    assert torch.isfinite(load_tensors(tmp_path / "best.safetensors")[0]["rule.biases.0"]).all()


def test_meta_steps_without_a_finite_gradient_are_skipped_and_counted(tmp_path: Path) -> None:
    trainer = Trainer(tiny("lstm"), tmp_path)
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    phase, weight = trainer._learner.phase, trainer._learner.adam.learning[0]
    differentiate = phase.differentiate

    def spoiled(shard: int, step: int) -> Estimate:
        found = differentiate(shard, step)
        assert weight.grad is not None
        weight.grad.fill_(math.inf)
        return found

    phase.differentiate = spoiled  # type: ignore[method-assign]
    loss, _ = trainer._learner.meta_step(interrupt=False)
    assert math.isnan(loss)
    assert trainer.num_skipped == 1
    assert trainer.num_nonfinite == 0
    after = trainer.model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


# --- The directory -------------------------------------------------------------------------------


def test_a_directory_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    Trainer(tiny(), tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        Trainer(tiny(), tmp_path)


def test_an_empty_directory_of_checkpoints_is_free(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    Trainer(tiny(), tmp_path)


@pytest.mark.parametrize(
    "name", ["best.safetensors", "log.jsonl", "checkpoints/step-00099999.safetensors"]
)
def test_what_is_left_of_a_run_is_not_overwritten(name: str, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / name).write_bytes(b"the only weights of a week")
    with pytest.raises(InputError, match="would be overwritten; move it or choose another"):
        Trainer(tiny(), tmp_path)
    assert (tmp_path / name).read_bytes() == b"the only weights of a week"


def test_resuming_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        Trainer.resume(tmp_path)
    for text, sentence in (
        ("{", "is not JSON"),
        ("{}", "is damaged: it holds no settings"),
        ('{"settings": 3}', "is damaged"),
        ('{"settings": {"horizon": 0}}', "is damaged: horizon must be at least 1"),
    ):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InputError, match=sentence):
            Trainer.resume(tmp_path)


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path: Path) -> None:
    """Neither begun twice at once nor gone on with while it is trained; freed when it ends."""
    one = Trainer(tiny(), tmp_path / "run")
    steps = one.run()
    assert isinstance(steps, Generator)
    next(steps)
    with pytest.raises(InputError, match="is being trained by another process"):
        Trainer.resume(tmp_path / "run")
    steps.close()
    other = Trainer.resume(tmp_path / "run")
    with pytest.raises(InputError, match="is being trained by another process"):
        finish(one)
    finish(other)


@pytest.mark.parametrize("running", [True, False])
def test_a_directory_that_was_replaced_is_left_to_the_new_run(
    running: bool, tmp_path: Path
) -> None:
    """Somebody removes it, or its lock, while a training goes on, and begins another there."""
    run = tmp_path / "run"
    old = Trainer(tiny(seed=1), run).run()
    next(old)
    shutil.rmtree(run)
    new = Trainer(tiny(seed=2), run)
    steps = new.run() if running else iter(finish(new).run())
    next(steps, None)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match="is being trained by another process"):
        list(old)
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_a_lock_that_cannot_be_written_is_no_reason_to_go_without(tmp_path: Path) -> None:
    leave(tmp_path, 2)
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(InputError, match=r"cannot write .*\.lock: "):
        Trainer.resume(tmp_path)


def test_of_two_that_begin_at_once_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both find the directory free; the other has begun while this one validates."""
    begin = Trainer._begin
    others: list[Trainer] = []

    def slowly(trainer: Trainer) -> None:
        if not others:
            others.append(trainer)
            others.append(Trainer(tiny(seed=2), tmp_path))
        begin(trainer)

    monkeypatch.setattr(Trainer, "_begin", slowly)
    with pytest.raises(InputError, match="is being trained by another process"):
        Trainer(tiny(seed=1), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["settings"]["seed"] == 2
    finish(others[1])


@pytest.mark.parametrize("changes", [False, True])
def test_a_file_of_ones_own_that_has_changed_since_is_told(changes: bool, tmp_path: Path) -> None:
    path, run = tmp_path / "mine.py", tmp_path / "run"
    path.write_text(BOWLS)
    own = TrainingSettings.from_preset("act", f"{path}:Bowls", TINY)
    leave(run, 3, own)
    if changes:
        path.write_text(BOWLS.replace("zeros_like(center)", "ones_like(center)"))
        with pytest.warns(CheckpointWarning, match=r"mine\.py has changed since the checkpoint"):
            Trainer.resume(run).save()
    Trainer.resume(run)  # a warning would be an error
