"""Small networks of many kinds, to meta-train an optimizer that serves others."""

from dataclasses import dataclass
from typing import Literal, final

import torch
from torch import Tensor, nn

from haltwise import datasets
from haltwise._core.settings import require_at_least, require_types
from haltwise.datasets import ImageData
from haltwise.tasks.images import ImageClassification

__all__ = ["FAMILIES", "SmallNetwork"]

_SIDE = 8
_ACTIVATIONS = {"sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU}


class _Block(nn.Module):
    """A block of a transformer, normalised before what it adds, or else after (Xiong et al. 2020).

    Steps that the former bears throw the latter off.
    """

    def __init__(self, width: int, activation: nn.Module, *, first: bool) -> None:
        super().__init__()
        self.first = first
        self.attending, self.thinking = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query_key_value = nn.Linear(width, 3 * width)
        self.attended = nn.Linear(width, width)
        self.thought = nn.Sequential(
            nn.Linear(width, 2 * width), activation, nn.Linear(2 * width, width)
        )

    def forward(self, hidden: Tensor) -> Tensor:
        """Rows [B, R, W] to rows."""
        after: Tensor
        if self.first:
            hidden = hidden + self._attend(self.attending(hidden))
            after = hidden + self.thought(self.thinking(hidden))
        else:
            hidden = self.attending(hidden + self._attend(hidden))
            after = self.thinking(hidden + self.thought(hidden))
        return after

    def _attend(self, rows: Tensor) -> Tensor:
        query, key, value = self.query_key_value(rows).chunk(3, -1)
        weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
        attended: Tensor = self.attended(weights @ value)
        return attended


class _Attention(nn.Module):
    """Blocks of a transformer that reads an image row by row."""

    def __init__(self, width: int, num_blocks: int, activation: nn.Module, *, first: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(_SIDE, width)
        self.place = nn.Parameter(0.02 * torch.randn(_SIDE, width))
        self.blocks = nn.Sequential(
            *(_Block(width, activation, first=first) for _ in range(num_blocks))
        )
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 8, 8] to logits [B, 10]."""
        hidden = self.blocks(self.embed(images) + self.place)
        logits: Tensor = self.head(hidden.mean(1))
        return logits


@final
@dataclass(frozen=True)
class SmallNetwork(ImageClassification):
    """A network of one of three kinds on the 8 x 8 digits, its parameters in random units.

    Every tensor of parameters of every problem counts in a unit of its own, as in Lv et al. 2017,
    "Learning gradient descent: better generalization and longer horizons", section 4.2: networks
    that differ in nothing else teach an optimizer one size of steps. Parameters [D] are the
    network's in the order of `named_parameters()`.
    """

    kind: Literal["perceptron", "convolutional", "attention"] = "perceptron"
    """Fully connected; 3 x 3 convolutions with pooling; or blocks of a transformer over rows."""
    num_hidden: int = 20
    """Units, channels or width of a hidden layer."""
    num_layers: int = 1
    """Number of hidden layers, of convolutions or of blocks."""
    activation: Literal["sigmoid", "tanh", "relu"] = "relu"
    """Activation of the hidden layers."""
    normalised: bool = False
    """Whether batch normalisation follows each hidden layer; whether layer normalisation comes
    before what a block adds rather than after."""
    init: Literal["normal", "module"] = "module"
    """theta_0: PyTorch's own scheme, or N(0, init_std^2)."""
    unit_range: float = 2.0
    """Units are drawn log-uniformly from 1 / unit_range to unit_range."""
    batch_size: int = 64
    """Images of a minibatch."""
    num_score: int = 400
    """Training images that stopping is judged by."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(1, self, "num_hidden", "num_layers", "unit_range")
        require_types(type(self).__init__, vars(self))

    def make_module(self) -> nn.Module:
        activation, width, side = _ACTIVATIONS[self.activation], self.num_hidden, _SIDE
        if self.kind == "attention":
            return _Attention(width, self.num_layers, activation(), first=self.normalised)
        layers: list[nn.Module] = []
        if self.kind == "convolutional":
            layers.append(nn.Unflatten(1, (1, side)))
            num_inputs = 1
            for _ in range(self.num_layers):
                layers.append(nn.Conv2d(num_inputs, width, 3, padding=1))
                if self.normalised:
                    layers.append(nn.BatchNorm2d(width))
                layers += [activation(), nn.MaxPool2d(2)]
                num_inputs, side = width, side // 2
            num_inputs *= side**2
            layers.append(nn.Flatten())
        else:
            layers.append(nn.Flatten())
            num_inputs = side**2
            for _ in range(self.num_layers):
                layers.append(nn.Linear(num_inputs, width))
                if self.normalised:
                    layers.append(nn.BatchNorm1d(width))
                layers.append(activation())
                num_inputs = width
        return nn.Sequential(*layers, nn.Linear(num_inputs, 10))

    def _load(self) -> ImageData:
        return datasets.load("digits")


FAMILIES = {
    "digits-sigmoid": SmallNetwork(activation="sigmoid", num_hidden=12),
    "digits-sigmoid-2layer": SmallNetwork(
        activation="sigmoid", num_hidden=16, num_layers=2, init="normal"
    ),
    "digits-tanh": SmallNetwork(activation="tanh", num_hidden=24),
    "digits-tanh-2layer": SmallNetwork(activation="tanh", num_layers=2),
    "digits-relu": SmallNetwork(num_hidden=10),
    "digits-relu-small-start": SmallNetwork(init="normal"),
    "digits-relu-wide": SmallNetwork(num_hidden=50),
    "digits-relu-2layer": SmallNetwork(num_hidden=24, num_layers=2),
    "digits-relu-normalised": SmallNetwork(num_layers=2, normalised=True),
    "digits-convolutional": SmallNetwork(kind="convolutional", num_hidden=8, num_layers=2),
    "digits-convolutional-normalised": SmallNetwork(
        kind="convolutional", num_hidden=8, num_layers=2, normalised=True
    ),
    "digits-attention": SmallNetwork(kind="attention", num_hidden=16, normalised=True),
    "digits-attention-2layer": SmallNetwork(kind="attention", num_hidden=24, num_layers=2),
}
