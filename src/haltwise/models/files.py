"""Models on disk: weights and a card in one safetensors file, never unpickled."""

import copy
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from haltwise._core.errors import InputError, require
from haltwise._core.files import digest, load_tensors, save_tensors
from haltwise._core.tensors import require_like, undisturbed
from haltwise.certificates.certificate import Certificate
from haltwise.models.card import Card
from haltwise.models.halting_model import HaltingModel
from haltwise.models.optimizer_model import OptimizerModel

__all__ = [
    "OF_CURVES",
    "Model",
    "build_model",
    "certified",
    "fingerprint",
    "halting_of",
    "placed",
    "read_card",
    "read_model",
    "save_model",
    "with_certificate",
]

OF_CURVES = (
    "a model of recorded runs that haltwise learn wrote; load it by "
    "haltwise.curves.load_curve_rule, or name it to haltwise.RunMonitor, haltwise watch or judge"
)
"""What a file or a directory holds that is no model of this room, and the way out."""

Model = OptimizerModel | HaltingModel
AnyModel = TypeVar("AnyModel", OptimizerModel, HaltingModel)


def build_model(
    card: Card, generator: torch.Generator | None = None, own: Iterable[type] = ()
) -> Model:
    """A new model: an optimizer model if the card names an update rule, else a halting model.

    Its weights are float32, whatever PyTorch's default.
    """
    if card.rule is None:
        return HaltingModel(card, card.readout_size, generator, own).float()
    return OptimizerModel(card, generator, own).float()


def halting_of(model: Model) -> HaltingModel:
    """The halting model, alone or beside an update rule."""
    return model.halting if isinstance(model, OptimizerModel) else model


def placed(model: AnyModel, like: Tensor) -> AnyModel:
    """The model in the dtype and on the device of `like`; a copy, unless it is there already.

    Raises:
        InputError: Its weights hold no numbers.
    """
    weight = next(model.parameters(), like)
    if (weight.dtype, weight.device) == (like.dtype, like.device):
        return model
    require(
        weight.device.type != "meta",
        "the weights are on the device meta, which holds no numbers; load the model again",
    )
    return copy.deepcopy(model).to(like)


def save_model(path: Path, weights: Mapping[str, Tensor], card: Card) -> None:
    """Write weights, a model's `state_dict()`, and their card, atomically.

    Raises:
        InputError: The file cannot be written.
    """
    save_tensors(path, weights, {"card": card.to_json()})


def read_card(path: Path, own: Iterable[type] = ()) -> Card:
    """The card of a file that `save_model` wrote; see `read_model`."""
    return Card.from_json(_read(path)[1], own)


@undisturbed(on_cpu=True)
def read_model(path: Path, own: Iterable[type] = ()) -> Model:
    """The model of a file that `save_model` wrote, ready for use, its weights frozen.

    Raises:
        InputError: There is no such file, or it is corrupt, foreign or does not fit its card.
    """
    tensors, document = _read(path)
    try:
        card = Card.from_json(document, own)
        with torch.device("meta"):  # whatever sizes it names, nothing is allocated
            model = build_model(card, own=own)
        require_like(tensors, model.state_dict())
        for name, value in tensors.items():
            require(bool(value.isfinite().all()), f"{name} holds NaN or infinity")
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise InputError(f"the weights of {path} do not fit their card: {error}") from None
    model.load_state_dict(tensors, assign=True)
    return model.eval().requires_grad_(False)


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors, metadata = load_tensors(path)
    is_of_curves = metadata.get("kind") in ("curve model", "stop model")
    require(not is_of_curves, f"{path} holds {OF_CURVES}")
    if not isinstance(metadata.get("card"), dict):
        raise InputError(f"{path} holds no model; best.safetensors of a run does")
    return tensors, metadata["card"]


def fingerprint(model: Model, *, with_policies: bool = True) -> str:
    """A checksum of all that moving and stopping depend on.

    Args:
        model: The model.
        with_policies: Whether the policies on its card are part of it.
    """
    document = model.card.to_json()
    for name in ("provenance", "certificates", *(() if with_policies else ("policies",))):
        del document[name]
    return digest(model.state_dict(), json.dumps(document, sort_keys=True))


def with_certificate(model: AnyModel, certificate: Certificate) -> AnyModel:
    """A copy of the model that stops as is certified, for use; its file stays as it is.

    Args:
        model: The model.
        certificate: Of `haltwise.certify`, for this model.

    Raises:
        InputError: It is of another model, or of a table.
    """
    twin = copy.deepcopy(model)
    halting = halting_of(twin)
    halting.card = model.card.with_certificate(certificate)
    certified(twin, certificate.price)
    return twin


def certified(model: Model, price: float | None = None) -> tuple[Certificate, ...]:
    """The certificates on a model's card, all of which are of this model, its stops and this price.

    Args:
        model: The model.
        price: c; that of the card if None.

    Raises:
        InputError: One of them is of something else.
    """
    price = model.card.price if price is None else price
    found = fingerprint(model, with_policies=False)
    for certificate in model.card.certificates:
        assert certificate.unit is not None
        certificate.require_for(found, halting_of(model).policy(certificate.unit), price)
    return model.card.certificates
