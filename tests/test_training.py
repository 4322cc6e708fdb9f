"""Meta-training: reproducible, resumable, and it learns."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from haltwise import InputError, load
from haltwise.checkpoint import load_tensors
from haltwise.halting.stopping import HazardThreshold, PonderThreshold, PosteriorMode
from haltwise.runlog import read_log
from haltwise.training import POSTERIORS, PRESETS, Trainer, TrainingConfig


def tiny(preset: str = "act", **changes: object) -> TrainingConfig:
    settings: dict[str, object] = {
        "num_meta_steps": 8,
        "batch_size": 8,
        "horizon": 6,
        "segment": 4,
        "num_validation": 16,
        "validate_every": 2,
        "warmup": 0.25,
    }
    return TrainingConfig.from_preset(preset, "regression-2d", **{**settings, **changes})


def finish(trainer: Trainer) -> Trainer:
    for _ in trainer.run():
        pass
    return trainer


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_its_weights_load(preset: str, tmp_path: Path) -> None:
    finish(Trainer(tiny(preset), tmp_path / "run", command="haltwise train"))
    optimizer = load(tmp_path / "run")
    assert optimizer.card["config"]["preset"] == preset
    assert optimizer.card["command"] == "haltwise train"
    assert ("thresholds" in optimizer.card) == (preset == "act")
    assert [record["step"] for record in read_log(tmp_path / "run")] == [2, 4, 6, 8]


@pytest.mark.parametrize("posterior", [name for name in POSTERIORS if name != "none"])
def test_every_posterior_trains_the_head_and_stops_by_its_rule(
    posterior: str, tmp_path: Path
) -> None:
    trainer = finish(Trainer(tiny(posterior=posterior, num_validation=64), tmp_path / "run"))
    assert trainer.num_nonfinite == 0
    last = trainer.optimizer.head.weights[-1]
    assert bool(last[:2].any()) == (posterior in ("softmax", "both"))  # zero in a new head
    assert bool(last[2:].any()) == (posterior != "softmax")
    rules = {"softmax": PosteriorMode, "graves": PonderThreshold}
    assert type(load(tmp_path / "run").stop_rule()) is rules.get(posterior, HazardThreshold)


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    runs = [
        finish(Trainer(tiny(seed=seed), tmp_path / name)).optimizer.state_dict()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not all(torch.equal(value, runs[2][name]) for name, value in runs[0].items())


@pytest.mark.parametrize("stopped_after", [1, 4, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(stopped_after: int, tmp_path: Path) -> None:
    whole = finish(Trainer(tiny(), tmp_path / "whole"))
    broken = Trainer(tiny(), tmp_path / "broken")
    for progress in broken.run():
        if progress.step == stopped_after:
            break
    broken.save()
    resumed = finish(Trainer.resume(tmp_path / "broken"))
    for name, value in whole.optimizer.state_dict().items():
        assert torch.equal(value, resumed.optimizer.state_dict()[name]), name
    best = [load_tensors(tmp_path / run / "best.safetensors")[0] for run in ("whole", "broken")]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())


def test_it_learns(tmp_path: Path) -> None:
    trainer = Trainer(tiny("lstm", num_meta_steps=60, batch_size=32, validate_every=60), tmp_path)
    before = trainer._metrics["mean_loss"]
    finish(trainer)
    assert trainer._metrics["mean_loss"] < 0.7 * before


def test_the_rule_is_frozen_while_the_head_goes_on(tmp_path: Path) -> None:
    trainer = Trainer(tiny(head_only=0.5, num_meta_steps=4, validate_every=1), tmp_path)
    states = [
        {name: value.clone() for name, value in trainer.optimizer.state_dict().items()}
        for _ in trainer.run()
    ]
    changed = {name for name in states[1] if not torch.equal(states[1][name], states[3][name])}
    assert changed
    assert all(name.startswith("head.") for name in changed)


def test_nonfinite_problems_are_left_out_and_counted(tmp_path: Path) -> None:
    trainer = Trainer(tiny(), tmp_path)
    sample = trainer.family.sample

    class Broken:
        """The family with one problem of a batch made NaN."""

        def sample(self, *args: object, **kwargs: object) -> object:
            batch = sample(*args, **kwargs)  # type: ignore[arg-type]
            target = batch.target.clone()  # type: ignore[attr-defined]
            target[0] = math.nan
            return replace(batch, target=target)  # type: ignore[call-arg]

    trainer.family = Broken()  # type: ignore[assignment]
    trainer._meta_step()
    assert trainer.num_nonfinite == 1
    assert all(value.isfinite().all() for value in trainer.optimizer.state_dict().values())


def test_a_directory_with_a_run_is_not_overwritten(tmp_path: Path) -> None:
    Trainer(tiny(), tmp_path)
    with pytest.raises(InputError, match="holds a run already"):
        Trainer(tiny(), tmp_path)


def test_resuming_what_is_no_run_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no run"):
        Trainer.resume(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="is not JSON"):
        Trainer.resume(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("price", 0.0),
        ("price", math.nan),
        ("horizon", 0),
        ("batch_size", 0),
        ("continuation", 1.0),
        ("learning_rate", -1.0),
        ("warmup", 2.0),
        ("price_range", 0.5),
        ("posterior", "dirichlet"),
    ],
)
def test_impossible_settings_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        tiny(**{name: value})  # type: ignore[arg-type]


def test_configurations_survive_json() -> None:
    config = tiny("thesis")
    assert TrainingConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    with pytest.raises(InputError, match="did you mean 'horizon'"):
        tiny(horizn=3)
