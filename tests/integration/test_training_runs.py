"""Whole trainings: reproducible, phase after phase, from other weights; and they learn."""

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_files import write_own
from tiny_runs import ALL, JOINT, by_adam, finish, optimizer, tiny

from haltwise import InputError, load
from haltwise import update_rules as rules
from haltwise._core.files import load_tensors
from haltwise._core.random import stream
from haltwise.halting import halting_methods
from haltwise.rollout import record
from haltwise.stop_rules import (
    CostUnit,
    FixedBudget,
    HazardThreshold,
    PonderThreshold,
    PosteriorMode,
    costs,
)
from haltwise.tasks import TaskBatch, family
from haltwise.tasks.least_squares import LeastSquaresBatch
from haltwise.training import PRESETS, Trainer, TrainingSettings, train, validation
from haltwise.training.run.log import read_log


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_and_its_weights_load(preset: str, tmp_path: Path) -> None:
    finish(Trainer(tiny(preset), tmp_path / "run", command="haltwise train"))
    card = load(tmp_path / "run").card
    assert card.provenance["settings"]["preset"] == preset
    assert card.provenance["command"] == "haltwise train"
    assert card.policies.keys() == set(CostUnit)
    last = ALL if preset == "act" else JOINT  # rule and halter, then the halter alone
    steps = [record["step"] for record in read_log(tmp_path / "run") if "event" not in record]
    assert steps == list(range(2, last + 1, 2))
    if preset != "act":  # nothing is left open: they stop as they are defined
        kind = FixedBudget if preset == "lstm" else PosteriorMode
        assert {type(policy.rule) for policy in card.policies.values()} == {kind}
        assert "calibration" not in card.provenance


def test_a_halter_is_trained_for_the_rule_of_another_run(tmp_path: Path) -> None:
    source = finish(Trainer(tiny("lstm"), tmp_path / "lstm"))
    trained = load_tensors(tmp_path / "lstm" / "best.safetensors")[0]
    alone = {"num_steps": 0}
    settings = tiny(rule_from=str(tmp_path / "lstm"), joint=alone)
    assert settings.rule == source.settings.rule
    finish(Trainer(settings, tmp_path / "act"))
    weights = load_tensors(tmp_path / "act" / "best.safetensors")[0]
    assert trained.keys() == {name for name in weights if name.startswith("rule.")}
    for name, value in trained.items():
        assert torch.equal(weights[name], value), name
    again = tiny(rule_from=str(tmp_path / "lstm"), halter_from=str(tmp_path / "act"), joint=alone)
    begun = Trainer(again, tmp_path / "halter").model.state_dict()
    assert all(torch.equal(begun[name], value) for name, value in weights.items())
    with pytest.raises(InputError, match=r"the halter of .*act has other settings"):
        Trainer(replace(again, halter=replace(again.halter, memory=3)), tmp_path / "odd")
    rule = replace(again.rule, settings={"hidden_size": 8})
    with pytest.raises(InputError, match=r"the rule of .*lstm has other settings"):
        Trainer(replace(again, halter_from=None, rule=rule), tmp_path / "other")
    (tmp_path / "lstm" / "best.safetensors").unlink()  # not needed any more
    assert Trainer.resume(tmp_path / "act").step == ALL - JOINT


def test_weights_to_begin_with_bring_their_own_settings() -> None:
    """Those of the card are taken, and none but those of the same rule may stand beside them."""
    slower = {"name": "lstm", "settings": {"output_scale": 0.01}}
    changed = tiny(rule_from="mnist-mlp-lstm", rule=slower).rule.settings
    shipped = load("mnist-mlp-lstm").card.rule
    assert shipped is not None
    assert changed == {**shipped.settings, "output_scale": 0.01}
    brought = tiny(rule_from="mnist-mlp-lstm", halter_from="regression-2d-mode")
    cards = load("mnist-mlp-lstm").card, load("regression-2d-mode").card
    assert brought.rule == cards[0].rule
    assert (brought.halter, brought.method) == (cards[1].halter, cards[1].method)
    for clash, sentence in (
        ({"rule": "adam"}, "rule_from brings its own settings; drop rule"),
        ({"rule": {"settings": {"num_layers": 1}}}, "rule_from brings its own"),
        ({"halter": {"width": 3}}, "halter_from brings its own settings; drop halter"),
        ({"method": "graves"}, "halter_from brings its own settings; drop method"),
    ):
        with pytest.raises(InputError, match=sentence):
            tiny(rule_from="mnist-mlp-lstm", halter_from="regression-2d-mode", **clash)
    with pytest.raises(InputError, match="did you mean 'regression-2d'"):
        tiny(rule_from="regresion-2d")


def test_a_rule_of_ones_own_is_executed_only_where_it_is_named(tmp_path: Path) -> None:
    path, executed = write_own(tmp_path)
    name = f"{path}:Halved"
    rule = {"name": name, "settings": {"rate": 0.1}}
    finish(Trainer(tiny(rule=rule), tmp_path / "run"))
    executed.unlink()
    with pytest.raises(InputError, match="executed only where you name it; add rule = "):
        tiny(rule_from=str(tmp_path / "run"))
    assert not executed.exists()
    settings = tiny(rule_from=str(tmp_path / "run"), rule=name)
    assert settings.rule.settings == {"rate": 0.1}
    finish(Trainer(settings, tmp_path / "again"))
    with pytest.raises(InputError, match="drop those of rule"):
        tiny(rule_from=str(tmp_path / "run"), rule={"name": name, "settings": {"rate": 0.3}})


def test_a_run_that_would_train_nothing_is_refused(tmp_path: Path) -> None:
    sgd = {"name": "sgd", "settings": {"learning_rate": 0.1}}
    with pytest.raises(InputError, match="nothing to train: rule sgd"):
        Trainer(tiny("lstm", rule=sgd), tmp_path / "run")
    with pytest.raises(InputError, match="moved by an update rule, and rule is none"):
        Trainer(tiny(rule="none"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["mnist-mlp", "digits-mlp", "cifar10-cnn"])
def test_a_new_rule_for_networks_is_normalized_gradient_descent(name: str) -> None:
    """Its updates have size .03 and oppose the gradient; random ones teach only to keep still."""
    chosen = TrainingSettings.from_preset("lstm", name).rule
    rule = rules.make(chosen.name, chosen.settings, torch.Generator().manual_seed(0))
    grad = torch.randn(3, 20_000, generator=torch.Generator().manual_seed(1))
    update = rule.update(grad, rule.init(grad)).update
    assert (torch.nn.functional.cosine_similarity(update, -grad) > 0.95).all()
    assert update.square().mean().sqrt().item() == pytest.approx(0.03, rel=0.2)


@pytest.mark.parametrize("name", [name for name in halting_methods() if name != "none"])
def test_every_method_trains_the_halter_and_stops_by_its_rule(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_OTHERS", {})  # after so few steps they would be better
    trainer = finish(
        Trainer(tiny("act", {"validation": {"num_problems": 64}}, method=name), tmp_path / "run")
    )
    assert trainer.num_nonfinite == 0
    halter = optimizer(trainer).halting.halter
    assert halter is not None
    assert bool(halter.weights[-1].any())  # zero in a new halter
    kinds = {"softmax": PosteriorMode, "graves": PonderThreshold, "stick-breaking": HazardThreshold}
    loaded = load(tmp_path / "run")
    for unit in CostUnit:
        assert type(loaded.policy(unit).rule) is kinds[name]


@pytest.mark.parametrize(
    "method",
    [
        *(name for name in halting_methods() if name != "none"),
        *(
            {"name": "stick-breaking", "settings": {"learn_by": learn_by}}
            for learn_by in ("distillation", "value")
        ),
    ],
)
def test_every_method_learns_from_runs_of_one_step(method: Any, tmp_path: Path) -> None:
    """Before the one gradient there is nothing to decide."""
    trainer = finish(Trainer(tiny("act", horizon=1, method=method), tmp_path / "run"))
    assert trainer.num_nonfinite == 0
    assert load(tmp_path / "run").card.policies.keys() == set(CostUnit)


def test_same_seed_same_weights_other_seed_other_weights(tmp_path: Path) -> None:
    runs = [
        finish(Trainer(tiny(seed=seed), tmp_path / name)).model.state_dict()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    ]
    assert all(torch.equal(value, runs[1][name]) for name, value in runs[0].items())
    assert not all(torch.equal(value, runs[2][name]) for name, value in runs[0].items())


def test_it_learns(tmp_path: Path) -> None:
    longer = {"joint": {"num_steps": 200, "batch_size": 32}, "validation": {"every": 200}}
    trainer = Trainer(tiny("lstm", longer), tmp_path)
    batch = trainer.source.sample(64, stream(9, "test"))
    assert batch is not None

    def mean_loss() -> float:
        return record(optimizer(trainer).rule, batch, 6).excess[:, 1:].mean().item()

    before = mean_loss()
    finish(trainer)
    assert mean_loss() < 0.7 * before


def test_the_rule_is_frozen_at_its_best_while_the_halter_goes_on(tmp_path: Path) -> None:
    # A learning rate so high that the last weights of the rule are not the best.
    settings = tiny("act", {"validation": {"every": 1}}, adam={"learning_rate": 0.1})
    trainer = Trainer(settings, tmp_path)
    states: list[dict[str, torch.Tensor]] = []
    best: list[dict[str, torch.Tensor]] = []
    for _ in trainer.run():
        states.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
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
            assert changed == ({"rule", "halting"} if step < JOINT else {"halting"})
    rule = [name for name in best[-1] if name.startswith("rule.")]
    assert not all(torch.equal(states[JOINT - 1][name], best[JOINT - 1][name]) for name in rule)
    for name in rule:
        assert torch.equal(states[-1][name], best[JOINT - 1][name])


def test_a_hand_designed_rule_trains_its_halter_only(tmp_path: Path) -> None:
    trainer = Trainer(by_adam(), tmp_path / "run")
    assert trainer.num_steps == trainer.settings.halting.num_steps == ALL - JOINT
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    assert all(name.startswith("halting.") for name in before)
    for _ in trainer.run():
        after = {name: value.clone() for name, value in trainer.model.state_dict().items()}
        assert any((value != after[name]).any() for name, value in before.items())
        before = after
    loaded = load(tmp_path / "run")
    assert loaded.rule == trainer.model.rule
    assert len(loaded.card.policies) == 2


@pytest.mark.parametrize("learn_by", ["free-energy", "distillation", "value"])
def test_a_halter_learns_when_to_stop_a_rule_that_learns_nothing(
    learn_by: str, tmp_path: Path
) -> None:
    """Uncalibrated, it captures nine tenths of what there is to gain over a fixed budget."""
    longer = {
        "halting": {"num_steps": 120, "num_recorded": 512, "batch_size": 128},
        "validation": {"every": 120, "num_problems": 128},
        "method": {"name": "stick-breaking", "settings": {"learn_by": learn_by}},
        "horizon": 30,
        "price": 2.0,
        "price_range": 1.0,
    }
    settings = by_adam(**longer)
    *_, last = Trainer(settings, tmp_path).run()
    batch = family("regression-2d").sample(128, stream(settings.seed, "validation"))
    adam = rules.make("adam", {"learning_rate": 0.3})
    table = costs(record(adam, batch, 30).excess.double(), 2.0)
    oracle, fixed = table.min(1).values.mean().item(), table.mean(0).min().item()
    assert oracle < last.price_adjusted_loss < oracle + 0.1 * (fixed - oracle)


def test_nonfinite_problems_are_left_out_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of every batch: 8 of the joint phase, of what is recorded and judged one each."""
    trainer = Trainer(tiny(), tmp_path)
    kind = type(family(trainer.settings.family.name))
    sample = kind.sample

    def with_one_broken(*arguments: Any, **settings: Any) -> TaskBatch:
        batch = sample(*arguments, **settings)
        assert isinstance(batch, LeastSquaresBatch)
        target = batch.target.clone()
        target[0] = math.nan
        return replace(batch, target=target)

    monkeypatch.setattr(kind, "sample", with_one_broken)
    *_, last = trainer.run()
    assert last.num_nonfinite == JOINT + 2  # of what is recorded, and of validation
    assert trainer.num_nonfinite == JOINT + 3  # of calibration
    recorded = trainer.source.take(trainer.model, 24, "recorded")
    assert recorded.num_items == 23
    assert recorded.finite.all()
    assert all(value.isfinite().all() for value in trainer.model.state_dict().values())


def test_settings_survive_json() -> None:
    for preset in PRESETS:
        settings = tiny(preset)
        assert TrainingSettings.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_a_halter_learns_from_several_families_in_equal_parts(tmp_path: Path) -> None:
    settings = tiny(mixed_with=["regression-10d-smooth", "rosenbrock-2d"])
    trainer = Trainer(settings, tmp_path)
    told: list[tuple[int, int]] = []
    trainer.source.report = lambda *done: told.append(done)
    found = trainer.source.take(trainer.model, 24, "recorded")
    assert told == [(8, 24), (16, 24), (24, 24)]
    assert found.num_items == 24
    assert found.final is not None
    assert found.final.shape == (24, 0)  # of several sizes
    for place, (name, path) in enumerate(
        (
            ("regression-2d", ()),
            ("regression-10d-smooth", ("regression-10d-smooth",)),
            ("rosenbrock-2d", ("rosenbrock-2d",)),
        )
    ):
        batch = family(name).sample(8, stream(settings.seed, "recorded", *path))
        alone = record(optimizer(trainer).rule, batch, settings.horizon)
        rows = slice(8 * place, 8 * place + 8)
        torch.testing.assert_close(found.excess[rows], alone.excess)
        torch.testing.assert_close(found.known("signals")[rows], alone.known("signals"))


def test_a_rule_learns_from_one_family_of_a_mixture_at_a_time(tmp_path: Path) -> None:
    names = ["regression-2d", "regression-10d-smooth", "rosenbrock-2d"]
    trainer = Trainer(tiny(mixed_with=names[1:]), tmp_path)
    drawn = [trainer.source.sample(2, stream(0, step)) for step in range(60)]
    kinds = [(type(batch).__name__, batch.dim) for batch in drawn if batch is not None]
    assert len(kinds) == 60
    assert all(10 <= kinds.count(kind) <= 30 for kind in set(kinds))
    assert len(set(kinds)) == 3
    each = trainer.source.sample_each(6, "validation")
    assert [batch.num_problems for batch in each] == [2, 2, 2]
    assert [batch.dim for batch in each] == [family(name).dim for name in names]
    before = [weight.clone() for weight in optimizer(trainer).rule_parameters()]
    finish(trainer)
    after = optimizer(trainer).rule_parameters()
    assert any(not torch.equal(old, new) for old, new in zip(before, after, strict=True))


def test_an_unknown_family_in_a_mixture_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'regression-2d'"):
        Trainer(tiny(mixed_with=["regresion-2d"]), tmp_path)


def test_a_call_takes_instances_of_rules_methods_and_sections(tmp_path: Path) -> None:
    from haltwise.halting import HalterSettings
    from haltwise.halting.methods import Softmax

    settings = {name: value for name, value in tiny().to_json().items() if name != "family"}
    settings |= {
        "rule": rules.SGD(0.2, momentum=0.5),
        "method": Softmax(temperature_per_price=2.0),
        "halter": HalterSettings(width=5),
    }
    run = train("regression-2d", tmp_path / "run", **settings)
    card = load(run).card
    assert card.rule is not None
    assert (card.rule.name, card.rule.settings["momentum"]) == ("sgd", 0.5)
    assert (card.method.name, card.method.settings["temperature_per_price"]) == ("softmax", 2.0)
    assert card.halter.width == 5
