"""Meta-training: reproducible, resumable, and it learns."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from haltwise.stop_rules.accounts import costs
from haltwise.training.problems import FamilyProblems

from haltwise import InputError, load
from haltwise import update_rules as rules
from haltwise._core.files import load_tensors, save_tensors
from haltwise._core.random import stream
from haltwise.models.optimizer_model import ModelConfig
from haltwise.rollout.record import record
from haltwise.stop_rules import HazardThreshold, PonderThreshold, PosteriorMode
from haltwise.tasks import family
from haltwise.training import POSTERIORS, PRESETS, Trainer, TrainingConfig
from haltwise.training.run.directory import RunDirectory
from haltwise.training.run.log import read_log


def tiny(preset: str = "act", **changes: object) -> TrainingConfig:
    settings: dict[str, object] = {
        "num_meta_steps": 8,
        "batch_size": 8,
        "horizon": 6,
        "segment": 4,
        "num_validation": 16,
        "validate_every": 2,
        "warmup": 0.25,
        "num_recorded": 24,
        "head_batch_size": 8,
        "num_calibration": 32,
    }
    if preset == "act":
        settings["head_steps"] = 6
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
    steps = list(range(2, 15 if preset == "act" else 9, 2))  # rule and head, then the head alone
    assert [record["step"] for record in read_log(tmp_path / "run")] == steps


def test_a_run_cut_just_before_its_calibration_is_calibrated_when_resumed(tmp_path: Path) -> None:
    finish(Trainer(tiny(), tmp_path / "run"))
    path = tmp_path / "run" / "best.safetensors"
    weights, card = load_tensors(path)
    save_tensors(path, weights, {key: card[key] for key in card if key != "thresholds"})
    finish(Trainer.resume(tmp_path / "run"))
    assert load_tensors(path)[1] == card


def test_a_head_is_trained_for_the_rule_of_another_run(tmp_path: Path) -> None:
    source = finish(Trainer(tiny("lstm"), tmp_path / "lstm"))
    trained = load_tensors(tmp_path / "lstm" / "best.safetensors")[0]
    config = tiny(rule_from=str(tmp_path / "lstm"), num_meta_steps=0)
    assert config.optimizer.rule_settings == source.config.optimizer.rule_settings
    finish(Trainer(config, tmp_path / "act"))
    weights = load_tensors(tmp_path / "act" / "best.safetensors")[0]
    for name, value in trained.items():
        assert torch.equal(weights[name], value) == name.startswith("rule."), name
    again = tiny(
        rule_from=str(tmp_path / "lstm"), head_from=str(tmp_path / "act"), num_meta_steps=0
    )
    begun = Trainer(again, tmp_path / "head").optimizer.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in weights.items())
    with pytest.raises(InputError, match="has other settings"):
        Trainer(replace(again, optimizer=ModelConfig(head_memory=3)), tmp_path / "odd")
    (tmp_path / "lstm" / "best.safetensors").unlink()  # not needed any more
    assert Trainer.resume(tmp_path / "act").step == 6
    with pytest.raises(InputError, match="drop rule"):
        tiny(rule_from="regression-2d-lstm", rule="adam")
    finish(Trainer(tiny("lstm"), tmp_path / "again"))
    config = replace(config, rule_from=str(tmp_path / "again"))
    with pytest.raises(InputError, match="other settings"):
        Trainer(
            replace(config, optimizer=ModelConfig(rule_settings={"hidden_size": 8})),
            tmp_path / "other",
        )


def test_a_run_that_would_train_nothing_is_refused(tmp_path: Path) -> None:
    config = tiny("lstm", rule="sgd", rule_settings={"learning_rate": 0.1})
    with pytest.raises(InputError, match="nothing to train: rule sgd"):
        Trainer(config, tmp_path / "run")


@pytest.mark.parametrize("family", ["mnist-mlp", "digits-mlp", "cifar10-cnn"])
def test_a_new_rule_for_networks_is_normalized_gradient_descent(family: str) -> None:
    """Its updates have size .03 and oppose the gradient; random ones teach nothing but to rest."""
    config = TrainingConfig.from_preset("lstm", family).optimizer
    rule = rules.make(config.rule, config.rule_settings, torch.Generator().manual_seed(0))
    grad = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(1))
    update = rule.update(grad, rule.init(grad)).update
    assert (torch.nn.functional.cosine_similarity(update, -grad) > 0.95).all()
    assert update.square().mean().sqrt().item() == pytest.approx(0.03, rel=0.2)


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
    assert type(load(tmp_path / "run").policy().rule) is rules.get(posterior, HazardThreshold)


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    runs = [
        finish(Trainer(tiny(seed=seed), tmp_path / name)).optimizer.state_dict()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not all(torch.equal(value, runs[2][name]) for name, value in runs[0].items())


JOINT, ALL = 8, 14  # steps of rule and head together, and with those of the head alone


def interrupt(directory: Path, after: int, *, saves: bool) -> None:
    trainer = Trainer(tiny(), directory)
    for progress in trainer.run():
        if progress.step == after:
            break
    if saves:
        trainer.save()


def assert_same_run(one: Path, other: Path) -> None:
    """The last checkpoint with Adam's moments, the best weights, their card, and the log."""
    files = [
        (RunDirectory(directory, 1).checkpoints()[0][1], directory / "best.safetensors")
        for directory in (one, other)
    ]
    for paths in zip(*files, strict=True):
        (tensors, card), (others, other_card) = map(load_tensors, paths)
        assert tensors.keys() == others.keys()
        for key, value in tensors.items():
            assert torch.equal(value, others[key]), (paths, key)
        for document in (card, other_card):
            document.pop("seconds")
            document.get("best", {}).pop("seconds", None)
        assert card == other_card
    logs = [
        [{key: entry[key] for key in entry if key != "time"} for entry in read_log(directory)]
        for directory in (one, other)
    ]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("saves", [True, False])
@pytest.mark.parametrize("after", [1, 4, 5, JOINT - 1, JOINT, JOINT + 1, JOINT + 2, ALL - 1])
def test_a_resumed_run_equals_an_uninterrupted_one(after: int, saves: bool, tmp_path: Path) -> None:
    """Interrupted in either phase or just between them, by a signal or by a power cut."""
    whole = finish(Trainer(tiny(), tmp_path / "whole"))
    interrupt(tmp_path / "broken", after, saves=saves)
    resumed = finish(Trainer.resume(tmp_path / "broken"))
    for name, value in whole.optimizer.state_dict().items():
        assert torch.equal(value, resumed.optimizer.state_dict()[name]), name
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


def test_a_run_may_be_cut_between_its_best_weights_and_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head's first best weights replace those it began from, which are needed no more."""
    finish(Trainer(tiny(), tmp_path / "whole"))
    save = Trainer.save

    def cut(trainer: Trainer) -> None:
        if trainer.step > JOINT:
            raise KeyboardInterrupt
        save(trainer)

    monkeypatch.setattr(Trainer, "save", cut)
    with pytest.raises(KeyboardInterrupt):
        finish(Trainer(tiny(), tmp_path / "broken"))
    monkeypatch.undo()
    finish(Trainer.resume(tmp_path / "broken"))
    best = [load_tensors(tmp_path / run / "best.safetensors")[0] for run in ("whole", "broken")]
    assert all(torch.equal(value, best[1][name]) for name, value in best[0].items())


def test_it_learns(tmp_path: Path) -> None:
    trainer = Trainer(tiny("lstm", num_meta_steps=200, batch_size=32, validate_every=200), tmp_path)
    before = trainer._metrics["mean_loss"]
    finish(trainer)
    assert trainer._metrics["mean_loss"] < 0.7 * before


def test_the_rule_is_frozen_at_its_best_while_the_head_goes_on(tmp_path: Path) -> None:
    config = tiny(validate_every=1, learning_rate=0.2)  # so high that the last is not the best
    trainer, states, best = Trainer(config, tmp_path), [], []
    for _ in trainer.run():
        states.append({k: v.clone() for k, v in trainer.optimizer.state_dict().items()})
        path = tmp_path / "best.safetensors"
        best.append(load_tensors(path)[0] if path.exists() else {})
    assert len(states) == trainer.num_steps == ALL
    for step, (before, after) in enumerate(itertools.pairwise(states), start=1):
        changed = {
            name.split(".")[0] for name, value in before.items() if (value != after[name]).any()
        }
        if step < 0.25 * JOINT:
            assert changed == {"rule"}  # warmup
        elif step != JOINT:  # where the rule goes back to its best
            assert changed == ({"rule", "head"} if step < JOINT else {"head"})
    rule = [name for name in best[-1] if name.startswith("rule.")]
    assert not all(torch.equal(states[JOINT - 1][name], best[JOINT - 1][name]) for name in rule)
    for name, value in best[JOINT - 1].items():
        if name.startswith("rule."):
            assert torch.equal(states[-1][name], value)


def by_adam(**changes: object) -> TrainingConfig:
    optimizer = ModelConfig("adam", {"learning_rate": 0.3})
    return replace(tiny(), optimizer=optimizer, **changes)  # type: ignore[arg-type]


def test_a_hand_designed_rule_trains_its_head_only(tmp_path: Path) -> None:
    trainer = Trainer(by_adam(), tmp_path / "whole")
    assert trainer.num_steps == trainer.config.head_steps == 6
    before = {name: value.clone() for name, value in trainer.optimizer.state_dict().items()}
    finish(trainer)
    assert all(name.startswith("head.") for name in before)
    assert any(
        (value != trainer.optimizer.state_dict()[name]).any() for name, value in before.items()
    )
    loaded = load(tmp_path / "whole")
    assert loaded.rule == trainer.optimizer.rule
    assert len(loaded.card["thresholds"]) == 2
    broken = Trainer(by_adam(), tmp_path / "broken")
    for progress in broken.run():
        if progress.step == 3:
            break
    finish(Trainer.resume(tmp_path / "broken"))
    assert_same_run(tmp_path / "whole", tmp_path / "broken")


@pytest.mark.parametrize("objective", ["free-energy", "distillation", "value"])
def test_a_head_learns_when_to_stop_a_rule_that_learns_nothing(
    objective: str, tmp_path: Path
) -> None:
    """Uncalibrated, it captures nine tenths of what there is to gain over a fixed budget."""
    changes = {"posterior": "stick-breaking", "num_validation": 128, "num_recorded": 512}
    longer = {"horizon": 30, "head_steps": 120, "head_batch_size": 128, "validate_every": 120}
    fixed_price = {"price": 2.0, "price_range": 1.0, "hazard_objective": objective}
    trainer = finish(Trainer(by_adam(**changes, **longer, **fixed_price), tmp_path))
    table = costs(trainer._recorded("validation", 128).excess.double(), 2.0)
    oracle, fixed = table.min(1).values.mean().item(), table.mean(0).min().item()
    assert oracle < trainer._metrics["price_adjusted_loss"] < oracle + 0.1 * (fixed - oracle)


def test_nonfinite_problems_are_left_out_and_counted(tmp_path: Path) -> None:
    trainer = Trainer(tiny(), tmp_path)
    assert isinstance(trainer.problems, FamilyProblems)
    sample = trainer.problems.family.sample

    class Broken:
        """The family with one problem of a batch made NaN."""

        def sample(self, *args: object, **kwargs: object) -> object:
            batch = sample(*args, **kwargs)  # type: ignore[arg-type]
            target = batch.target.clone()  # type: ignore[attr-defined]
            target[0] = math.nan
            return replace(batch, target=target)  # type: ignore[call-arg]

    trainer.problems.family = Broken()  # type: ignore[assignment]
    trainer._meta_step()
    assert trainer.num_nonfinite == 1
    recording = trainer._recorded("recorded", 24)
    assert recording.num_problems == 23
    assert recording.finite.all()
    assert trainer.num_nonfinite == 2
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
        ("hazard_objective", "hope"),
        ("final_hazard_temperature", 0.0),
        ("head_steps", -1),
        ("num_recorded", 0),
        ("head_batch_size", 0),
        ("num_calibration", 0),
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


def test_a_head_learns_from_several_families_in_equal_parts(tmp_path: Path) -> None:
    config = tiny(mixed_with=["regression-10d-smooth", "rosenbrock-2d"])
    trainer = Trainer(config, tmp_path)
    told: list[tuple[int, int]] = []
    trainer.report_recording = lambda *done: told.append(done)
    found = trainer._recorded("recorded", 24)
    assert told == [(8, 24), (16, 24), (24, 24)]
    assert found.num_problems == 24
    assert found.params.shape == (24, 0)  # of several sizes
    rule = trainer.optimizer.rule
    for place, (name, path) in enumerate(
        (
            (config.family, ()),
            ("regression-10d-smooth", ("regression-10d-smooth",)),
            ("rosenbrock-2d", ("rosenbrock-2d",)),
        )
    ):
        batch = family(name).sample(8, stream(config.seed, "recorded", *path))
        alone = record(rule, batch, config.horizon)
        rows = slice(8 * place, 8 * place + 8)
        torch.testing.assert_close(found.excess[rows], alone.excess)
        torch.testing.assert_close(found.signals[rows], alone.signals)


def test_an_unknown_family_in_a_mixture_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'regression-2d'"):
        Trainer(tiny(mixed_with=["regresion-2d"]), tmp_path)
