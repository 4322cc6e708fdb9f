"""What ships in the wheel, and how a name becomes an optimizer."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

import haltwise
from haltwise import InputError
from haltwise._core.files import save_tensors
from haltwise._core.random import stream
from haltwise.models import loading
from haltwise.models.optimizer_model import ModelConfig, OptimizerModel
from haltwise.rollout.early_exit import Outcome, execute
from haltwise.tasks import family

SHIPPED = loading.names()
LEFT = {"mnist-mlp": 0.25, "digits-mlp": 0.25, "regression-10d-noisy": 0.25, "cifar10-cnn": 0.7}
"""What noise and 100 steps leave of the initial loss."""


def test_the_promised_optimizers_ship() -> None:
    assert {"regression-2d", "regression-10d", "quadratic-10d"} <= set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_card_says_where_the_weights_come_from(name: str) -> None:
    card = loading.read_card(name)
    config = card["config"]
    assert {"family", "horizon", "price", "seed", "preset"} <= set(config)
    assert card["command"].startswith(f"haltwise train {config['family']} ")
    assert card["seconds"] > 0
    assert card["metrics"]["mean_loss"] > 0
    assert ("thresholds" in card) == (config["posterior"] in ("both", "stick-breaking"))


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_optimizer_solves_its_family(name: str) -> None:
    optimizer = haltwise.load(name)
    config = optimizer.card["config"]
    source = family(config["family"])
    num = min(50, max(2, 2**15 // source.dim))
    try:
        problems = source.sample(num, stream(0, "shipped"))
    except InputError as error:
        pytest.skip(str(error))  # no images here
    price = torch.full((num,), config["price"])
    result = execute(optimizer, problems, optimizer.policy(), price, config["horizon"])
    assert (result.outcome != Outcome.NONFINITE).all()
    start, end = (problems.evaluate(p, 0).excess for p in (problems.start, result.params))
    assert end.median() < LEFT.get(config["family"], 0.1) * start.median()


def test_an_unknown_name_suggests_the_near_ones() -> None:
    with pytest.raises(InputError, match="did you mean 'regression-2d'"):
        haltwise.load("regresion-2d")


def test_a_run_without_weights_yet_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no weights yet"):
        haltwise.load(tmp_path)


def test_files_that_hold_no_optimizer_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.zeros(2)}, {"step": 3})
    with pytest.raises(InputError, match="holds no optimizer"):
        haltwise.load(path)
    config = ModelConfig(head_memory=3)
    tensors = OptimizerModel(config, stream(0)).state_dict()
    card = {"config": {"optimizer": asdict(config)}}
    save_tensors(path, tensors, card)
    assert haltwise.load(path).config == config
    memoryless = {"config": {"optimizer": asdict(replace(config, head_memory=0))}}
    for weights, said in (({**tensors, "surplus": torch.zeros(1)}, card), (tensors, memoryless)):
        save_tensors(path, weights, said)
        with pytest.raises(InputError, match="do not fit their configuration"):
            haltwise.load(path)
