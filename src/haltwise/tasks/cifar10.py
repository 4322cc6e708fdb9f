"""The convolutional network of L2L on CIFAR-10, thesis experiment 3."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import final

from torch import nn

from haltwise import datasets
from haltwise._core.errors import require
from haltwise._core.nested_settings import merge
from haltwise.datasets import ImageData
from haltwise.tasks.images import CAREFUL_LSTM, NETWORK_DEFAULTS, ImageClassification

__all__ = ["FAMILIES", "TRAINING_DEFAULTS", "CifarConvolutional"]


@final
@dataclass(frozen=True)
class CifarConvolutional(ImageClassification):
    """Three times 5 x 5 convolution, normalisation, ReLU and pooling, then two dense layers.

    Source: L2L's code (`problems.cifar10` with 16, 16, 16 channels and 32 units, as in its
    "cifar-multi"): 2 x 2 maximum pooling, batch normalisation with an offset but no scale and
    epsilon .001 (the defaults of its library), weights and biases from N(0, 0.01^2), offsets from
    0, minibatches of 128, pixels / 255, inputs [3, 32, 32]. Parameters [D = 22,682]: the
    convolutions' weights first, then everything else, the two groups to which L2L gives an
    optimizer each.
    """

    num_score: int = 500
    """Training images that stopping is judged by: fewer than for a perceptron, as they are
    evaluated at every step and cost more than the minibatch."""
    labels: str = "0123456789"
    """The classes kept, each a digit; the network has one output for each."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            set(self.labels) <= set("0123456789")
            and len(set(self.labels)) == len(self.labels) >= 2,
            f"labels must be at least 2 distinct digits, got {self.labels!r}",
        )

    @property
    def classes(self) -> tuple[int, ...]:
        return tuple(map(int, self.labels))

    def group(self, name: str) -> int:
        return 0 if name.startswith("convolution") and name.endswith(".weight") else 1

    def make_module(self) -> nn.Module:
        layers: dict[str, nn.Module] = {}
        num_inputs = 3
        for number in range(3):
            layers[f"convolution{number}"] = nn.Conv2d(num_inputs, 16, 5, padding=2)
            layers[f"normalisation{number}"] = nn.BatchNorm2d(16, eps=1e-3)
            layers[f"rectifier{number}"] = nn.ReLU()
            layers[f"pooling{number}"] = nn.MaxPool2d(2)
            num_inputs = 16
        layers |= {
            "flatten": nn.Flatten(),
            "hidden": nn.Linear(256, 32),
            "normalisation3": nn.BatchNorm1d(32, eps=1e-3),
            "rectifier3": nn.ReLU(),
            "output": nn.Linear(32, len(self.classes)),
        }
        for layer in layers.values():
            if isinstance(layer, nn.BatchNorm1d | nn.BatchNorm2d):
                layer.weight.requires_grad_(False)
        return nn.Sequential(OrderedDict(layers))

    def _load(self) -> ImageData:
        return datasets.load("cifar10", self.data_dir)


FAMILIES = {
    "cifar10-cnn": CifarConvolutional(),
    "cifar-2": CifarConvolutional(labels="01"),
    "cifar-5": CifarConvolutional(labels="01234"),
}

# Convolution weights and everything else have an optimizer each, as in L2L.
TRAINING_DEFAULTS = {
    "cifar10-cnn": merge(
        NETWORK_DEFAULTS,
        {
            "rule": {
                "name": "partitioned",
                "settings": {
                    "sizes": [14000, None],
                    "rules": [["lstm", CAREFUL_LSTM], ["lstm", CAREFUL_LSTM]],
                },
            },
            "joint": {"batch_size": 4},
        },
    )
}
