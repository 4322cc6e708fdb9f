"""What ships in the wheel, and how a name becomes a model."""

import lzma
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from made_once import made_once

import haltwise
from haltwise import InputError, OptimizerModel
from haltwise._core.files import save_tensors
from haltwise._core.random import stream
from haltwise.datasets import default_directory
from haltwise.halting import HalterSettings
from haltwise.models import Card, Choice, load_halting, loading, save_model
from haltwise.stop_rules import (
    RETURNABLE,
    CostUnit,
    DecisionTime,
    FixedBudget,
    HazardThreshold,
    PosteriorMode,
    StopRule,
)
from haltwise.tasks import family

SHIPPED = loading.names()
LEFT = {"mnist-mlp": 0.25, "digits-mlp": 0.25, "regression-10d-noisy": 0.25, "cifar10-cnn": 0.7}
"""What noise and 100 steps leave of the initial loss."""


def test_the_promised_models_ship() -> None:
    assert {"regression-2d", "regression-10d", "quadratic-10d"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_where_the_weights_come_from(name: str) -> None:
    card = loading.card_of(name)
    assert card.family is not None
    assert card.provenance["command"].startswith("haltwise train ")
    assert card.provenance["seconds"] > 0
    assert card.provenance["metrics"]["mean_loss"] > 0
    provenance = card.provenance
    assert "versions" in provenance
    assert "preset" in provenance or "preset" in provenance["settings"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_how_to_stop_at_the_cost_of_either_unit(name: str) -> None:
    card = loading.card_of(name)
    kinds: dict[str, type[StopRule]] = {
        "stick-breaking": HazardThreshold,
        "softmax": PosteriorMode,
        "none": FixedBudget,
    }
    assert set(card.policies) == set(CostUnit)
    for unit, (rule, returns) in card.policies.items():
        assert type(rule) is kinds[card.method.name]
        assert returns in RETURNABLE[unit]
        if not isinstance(rule, FixedBudget):
            # The natural time, or after a gradient, where calibration finds that as cheap.
            single = card.method.settings.get("before_gradient") is False
            natural = set() if single else {unit.decision_time}
            assert getattr(rule, "time", None) in {*natural, DecisionTime.AFTER_GRADIENT}
    assert Card.from_json(card.to_json()) == card


@pytest.fixture(scope="session")
def cifar(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """One file of CIFAR-10 in the place of all, which take seconds to unpack; None without it."""
    packed = Path(default_directory() or "") / "cifar10" / "data_batch_1.bin.xz"

    def unpack(folder: Path) -> None:
        first = folder / "data_batch_1.bin"
        first.write_bytes(lzma.decompress(packed.read_bytes()))
        for name in (*(f"data_batch_{number}" for number in range(2, 6)), "test_batch"):
            (folder / f"{name}.bin").symlink_to(first)

    return made_once(tmp_path_factory, "cifar", unpack) if packed.is_file() else None


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_solves_its_family(name: str, cifar: Path | None) -> None:
    model = haltwise.load(name)
    assert model.card.family is not None
    source = family(model.card.family.name, data_dir=cifar if name.startswith("cifar") else None)
    num = min(50, max(1, 2**15 // source.dim))
    try:
        problems = source.sample(num, stream(0, "shipped"))
    except InputError as error:
        pytest.skip(str(error))  # no images here
    solution = haltwise.solve(problems, model)
    assert (solution.outcome != haltwise.Outcome.NONFINITE).all()
    start, end = (problems.evaluate(p, 0).excess for p in (problems.start, solution.params))
    assert end.median() < LEFT.get(model.card.family.name, 0.1) * start.median()


def test_a_halting_model_is_loaded_with_or_without_the_rule_beside_it(tmp_path: Path) -> None:
    beside = load_halting("regression-10d-plain-adam")
    alone = replace(beside.card, rule=None)
    path = tmp_path / "halting.safetensors"
    save_model(path, beside.state_dict(), alone)
    again = load_halting(path)
    assert again.card == alone
    weights = again.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in beside.state_dict().items())
    with pytest.raises(InputError, match=r"not how to move parameters; use it by haltwise\.Halt"):
        haltwise.load(path)


# --- Refusals ------------------------------------------------------------------------------------


def test_an_unknown_name_suggests_the_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'regression-2d'"):
        haltwise.load("regresion-2d")


def test_a_run_without_weights_yet_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no weights yet"):
        haltwise.load(tmp_path)


def test_files_that_hold_no_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(2)}, {"step": 3})
    with pytest.raises(InputError, match="holds no model"):
        haltwise.load(path)
    save_tensors(path, {"a": torch.zeros(2)}, {"card": {"format": 3}})
    with pytest.raises(InputError, match="not the card of a halting model"):
        haltwise.load(path)


def test_weights_that_do_not_fit_their_card_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    card = Card(
        method=Choice("stick-breaking"),
        price=0.1,
        horizon=5,
        rule=Choice("lstm"),
        halter=HalterSettings(memory=3),
    )
    weights = OptimizerModel(card, stream(0)).state_dict()
    save_model(path, weights, card)
    assert asdict(haltwise.load(path).card) == asdict(card)
    memoryless = replace(card, halter=HalterSettings(memory=0))
    spoilt = {name: torch.full_like(value, torch.nan) for name, value in weights.items()}
    for wrong, described, message in (
        ({**weights, "surplus": torch.zeros(1)}, card, "a tensor surplus too many"),
        (weights, memoryless, "do not fit their card"),
        (spoilt, card, "holds NaN or infinity"),
        ({name: value.double() for name, value in weights.items()}, card, "float64"),
    ):
        save_model(path, wrong, described)
        with pytest.raises(InputError, match=message):
            haltwise.load(path)
