"""Multilayer perceptrons on MNIST and on scikit-learn's digits."""

from dataclasses import dataclass
from typing import Literal, final

from torch import nn

from haltwise import datasets
from haltwise._core.errors import require
from haltwise._core.nested_settings import merge
from haltwise._core.settings import require_at_least, require_types
from haltwise.datasets import ImageData
from haltwise.tasks.images import NETWORK_DEFAULTS, ImageClassification

__all__ = ["FAMILIES", "TRAINING_DEFAULTS", "Perceptron"]

_SIDE = {"mnist": 28, "digits": 8}


@final
@dataclass(frozen=True)
class Perceptron(ImageClassification):
    """A small fully connected network on small grey images, thesis experiment 2.

    Parameters [D] are W_1 [units, pixels], b_1 [units], W_2, b_2, ... in this order. Source: L2L,
    section 3.2 and `problems.py` (20 sigmoid units, theta_0 ~ N(0, 0.01^2), minibatches of 128
    drawn with replacement, pixels / 255). The digits are UCI's test images as scikit-learn ships
    them, 1,437 of 1,797 for training by a fixed shuffle.
    """

    data: Literal["mnist", "digits"] = "mnist"
    """Images to classify."""
    num_hidden: int = 20
    """Units of a hidden layer."""
    num_layers: int = 1
    """Number of hidden layers."""
    activation: Literal["sigmoid", "relu"] = "sigmoid"
    """Activation of the hidden layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "num_hidden", "num_layers")
        require_types(type(self).__init__, vars(self))

    def make_module(self) -> nn.Module:
        layers: list[nn.Module] = [nn.Flatten()]
        num_inputs = _SIDE[self.data] ** 2
        for _ in range(self.num_layers):
            layers.append(nn.Linear(num_inputs, self.num_hidden))
            layers.append(nn.Sigmoid() if self.activation == "sigmoid" else nn.ReLU())
            num_inputs = self.num_hidden
        return nn.Sequential(*layers, nn.Linear(num_inputs, len(self.classes)))

    def _load(self) -> ImageData:
        loaded, side = datasets.load(self.data, self.data_dir), _SIDE[self.data]
        for images in (loaded.train_images, loaded.test_images):
            require(
                images.shape[1:] == (side, side),
                f"{self.data} holds images of {' x '.join(map(str, images.shape[1:]))} pixels, "
                f"expected {side} x {side}",
            )
        return loaded


FAMILIES = {
    "mnist-mlp": Perceptron(),
    "mnist-mlp-relu": Perceptron(activation="relu"),
    "mnist-mlp-40": Perceptron(num_hidden=40),
    "mnist-mlp-2layer": Perceptron(num_layers=2),
    "digits-mlp": Perceptron(data="digits"),
}

TRAINING_DEFAULTS = {
    "mnist-mlp": NETWORK_DEFAULTS,
    "digits-mlp": merge(NETWORK_DEFAULTS, {"joint": {"batch_size": 16}}),
}
