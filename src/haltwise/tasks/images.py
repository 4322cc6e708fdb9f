"""The base class of families of image classifiers."""

import functools
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from haltwise._core.settings import require_at_least
from haltwise.datasets import ImageData
from haltwise.tasks.base import TaskFamily
from haltwise.tasks.module import Examples, ModuleBatch, ModuleTask

__all__ = ["CAREFUL_LSTM", "NETWORK_DEFAULTS", "ImageClassification"]


@dataclass(frozen=True)
class ImageClassification(TaskFamily):
    """Networks that classify images; the data are read when problems are drawn, not before.

    Parameters [D]: the network's, flattened. The loss is the mean cross-entropy in nats, of a
    minibatch where it is observed and of `num_score` fixed training images where stopping is
    judged.
    """

    batch_size: int = 128
    """Images of a minibatch."""
    num_score: int = 2000
    """Training images that stopping is judged by."""
    init_std: float = 0.01
    """theta_0 ~ N(0, init_std^2)."""

    def __post_init__(self) -> None:
        require_at_least(1, self, "batch_size", "num_score")
        require_at_least(0, self, "init_std")

    @abstractmethod
    def make_module(self) -> nn.Module:
        """Make the network, from pixels in [0, 1] to logits."""

    @property
    def init(self) -> Literal["normal", "module"]:
        """Scheme of theta_0 (see `ModuleTask`)."""
        return "normal"

    @property
    def unit_range(self) -> float:
        """Range of the units that parameters count in (see `ModuleTask`)."""
        return 1.0

    @abstractmethod
    def _load(self) -> ImageData:
        """Read the data, in the shape that the network expects."""

    def group(self, name: str) -> int:
        """Number of the group of the parameter called `name` (see `ModuleTask`)."""
        return 0

    @property
    def classes(self) -> tuple[int, ...]:
        """The labels kept, in the order of the network's outputs."""
        return tuple(range(10))

    @property
    def dim(self) -> int:
        return _num_parameters(self)

    def _sample(self, num_problems: int, generator: torch.Generator) -> ModuleBatch:
        return _task(self, self._load())._sample(num_problems, generator)


@functools.lru_cache(maxsize=64)
def _num_parameters(family: ImageClassification) -> int:
    with torch.device("meta"):
        parameters = family.make_module().parameters()
    return sum(value.numel() for value in parameters if value.requires_grad)


@functools.lru_cache(maxsize=64)
def _task(family: ImageClassification, data: ImageData) -> ModuleTask:
    """Cached, so that the data are copied to a device once and not with every batch."""
    number = np.full(256, -1)
    number[list(family.classes)] = range(len(family.classes))

    def examples(images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Examples:
        targets = number[labels]
        kept = targets >= 0
        return Examples(
            torch.from_numpy(images[kept]), torch.from_numpy(targets[kept]), scale=1 / data.white
        )

    return ModuleTask(
        family.make_module,
        nn.functional.cross_entropy,
        examples(data.train_images, data.train_labels),
        examples(data.test_images, data.test_labels),
        batch_size=family.batch_size,
        num_score=family.num_score,
        init=family.init,
        unit_range=family.unit_range,
        init_std=family.init_std,
        group=family.group,
    )


CAREFUL_LSTM = {"initial_descent": True, "output_scale": 0.03}
"""Settings of an LSTM rule that begins as normalized gradient descent with small steps."""

# A problem costs a thousand times more than a regression, so there are fewer of them. The rule
# learns by the losses of the minibatches alone; what a step is worth is judged on many examples,
# and learned by the halter afterwards.
NETWORK_DEFAULTS: dict[str, Any] = {
    "rule": {"name": "lstm", "settings": CAREFUL_LSTM},
    "horizon": 100,
    "price": 0.003,
    "joint": {
        "num_steps": 1500,
        "batch_size": 8,
        "warmup": 1.0,
        "estimator": {"name": "pathwise", "settings": {"segment": 20}},
    },
    "halting": {"num_recorded": 640},
    "validation": {"every": 50, "num_problems": 32, "num_calibration": 192},
}
"""Training settings that families of networks share."""
