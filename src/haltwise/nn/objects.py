"""A scene as a sum of objects, as many as are worth it: attend, infer, repeat without REINFORCE."""

from typing import ClassVar, NamedTuple, final

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, one_hot, softplus

from haltwise._core.errors import require
from haltwise.nn.base import AdaptiveProcess, ItemStep, State
from haltwise.nn.inputs import Inputs, require_tensor

__all__ = ["ObjectGenerator", "Scene"]

_LARGEST = 6.0
"""Image in windows: a window that covers less than a sixth shows no more."""


@final
class Scene(NamedTuple):
    """What a generator makes of images: the parts of its outputs.

    Attributes:
        canvas: The sum of the objects so far, shape [..., size, size].
        divergence: KL divergence of their places and codes from the prior, in nats, [...].
        places: Scale, x and y of each object, 0 of those that are not there, [..., S, 3]. An image
            is `scale` windows wide, and x and y run from -1 to 1 in windows' halves.
    """

    canvas: Tensor
    divergence: Tensor
    places: Tensor


@final
class ObjectGenerator(AdaptiveProcess):
    """Images [n, size, size] explained by 0..S windows (Eslami et al. 2016).

    Exit t is a scene of t objects and costs t. One path of places and codes serves all of them, for
    what comes before an exit does not depend on whether more objects come after; so the mean over
    their number is a sum, and needs no score function. With the price c = -log(ratio of a geometric
    prior) and `StickBreaking(final_temperature=1 / c)`, the objective of `losses` is the negative
    evidence bound up to constants. Places and codes are drawn by PyTorch's generator in training
    mode, and are their means in evaluation mode.

    Args:
        size: Pixels of an image's side.
        window: Pixels of an object's side.
        max_objects: S.
        hidden: Units of the recurrent network that reads the image and the object before.
        code: Numbers by which an object is described.
        noise: Standard deviation of a pixel.
    """

    steps_alike: ClassVar[bool] = True

    def __init__(
        self,
        size: int,
        window: int,
        *,
        max_objects: int = 3,
        hidden: int = 128,
        code: int = 20,
        noise: float = 0.3,
    ) -> None:
        super().__init__(max_objects + 1, range(max_objects + 1))
        require(0 < window < size, f"window must be smaller than size={size}, got {window}")
        self.size, self.window, self.code, self.noise = size, window, code, noise
        self.num_features = hidden
        self.reader = nn.LSTMCell(size * size + 3 + code, hidden)
        self.place = nn.Sequential(nn.Linear(hidden, 64), nn.ReLU(), nn.Linear(64, 6))
        self.encode = nn.Sequential(
            nn.Linear(window * window, 100), nn.ReLU(), nn.Linear(100, 2 * code)
        )
        self.decode = nn.Sequential(
            nn.Linear(code, 100), nn.ReLU(), nn.Linear(100, window * window)
        )
        prior = torch.tensor([[1.1 * size / window, 0.0, 0.0], [0.2, 1.0, 1.0]])
        self.prior: Tensor
        self.register_buffer("prior", prior)  # mean and standard deviation of a place
        with torch.no_grad():
            list(self.decode.parameters())[-1].sub_(2)  # else every object begins as a grey square
            list(self.place.parameters())[-1][:3] = prior[0]

    def init(self, inputs: Inputs) -> State:
        inputs = require_tensor(inputs, "ObjectGenerator")
        num = inputs.shape[0]
        zeros = inputs.new_zeros(num, self.num_features)
        return {
            "image": inputs,
            "hidden": zeros,
            "cell": zeros,
            "canvas": torch.zeros_like(inputs),
            "divergence": inputs.new_zeros(num),
            "places": inputs.new_zeros(num, self.num_exits - 1, 3),
        }

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        image, cell = state["image"], state["cell"]
        number = torch.zeros(image.shape[0], dtype=torch.int64, device=image.device) + step
        is_there = (number > 0).to(image)  # the first step looks, and draws nothing
        place, code, divergence, drawn = self._object(image, state["hidden"])
        place, code = place * is_there.unsqueeze(1), code * is_there.unsqueeze(1)
        hidden, cell = self.reader(
            torch.cat((image.flatten(1), place, code), 1), (state["hidden"], cell)
        )
        which = one_hot((number - 1).clamp_min(0), self.num_exits - 1).to(image)
        canvas = state["canvas"] + drawn * is_there.view(-1, 1, 1)
        divergence = state["divergence"] + divergence * is_there
        places = state["places"] + which.unsqueeze(2) * place.unsqueeze(1)
        output = torch.cat((canvas.flatten(1), divergence.unsqueeze(1), places.flatten(1)), 1)
        after = {"canvas": canvas, "divergence": divergence, "places": places}
        return ItemStep(output, hidden, {"image": image, "hidden": hidden, "cell": cell, **after})

    def scene(self, outputs: Tensor) -> Scene:
        """The parts of outputs [..., O] of this process."""
        area = self.size**2
        return Scene(
            outputs[..., :area].unflatten(-1, (self.size, self.size)),
            outputs[..., area],
            outputs[..., area + 1 :].unflatten(-1, (-1, 3)),
        )

    def losses(self, outputs: Tensor, images: Tensor) -> Tensor:
        """Minus log p(image, objects) / q(objects), without constants, of every exit, [n, S+1].

        Args:
            outputs: Of every exit, shape [n, S+1, O].
            images: Shape [n, size, size].
        """
        scene = self.scene(outputs)
        square = (images.unsqueeze(1) - scene.canvas).square().sum((-1, -2))
        return square / (2 * self.noise**2) + scene.divergence

    def _object(self, image: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Place, code, divergence and image of the next object."""
        mean, spread = self.place(hidden).split(3, 1)
        spread = softplus(spread - 1)
        place = self._draw(mean, spread)
        scale = place[:, :1].clamp(1.2, _LARGEST)
        place = torch.cat((scale, place[:, 1:]), 1)
        glimpse = _sample(image, torch.cat((1 / scale, -place[:, 1:] / scale), 1), self.window)
        code_mean, code_spread = self.encode(glimpse.flatten(1)).split(self.code, 1)
        code_spread = softplus(code_spread) + 1e-4
        code = self._draw(code_mean, code_spread)
        divergence = _divergence(mean, spread, self.prior[0], self.prior[1])
        ones = torch.ones_like(code_mean)
        divergence = divergence + _divergence(code_mean, code_spread, 0 * ones, ones)
        window = self.decode(code).sigmoid().unflatten(1, (self.window, self.window))
        return place, code, divergence, _sample(window, place, self.size)

    def _draw(self, mean: Tensor, spread: Tensor) -> Tensor:
        return mean + spread * torch.randn_like(spread) if self.training else mean


def _sample(image: Tensor, place: Tensor, size: int) -> Tensor:
    """What windows of scale, x and y [n, 3] show of images [n, a, a], shape [n, size, size]."""
    scale, x, y = place.unbind(1)
    none = torch.zeros_like(scale)
    rows = torch.stack((scale, none, x), 1), torch.stack((none, scale, y), 1)
    grid = affine_grid(torch.stack(rows, 1), [image.shape[0], 1, size, size], align_corners=False)
    return grid_sample(image.unsqueeze(1), grid, align_corners=False).squeeze(1)


def _divergence(mean: Tensor, spread: Tensor, prior_mean: Tensor, prior_spread: Tensor) -> Tensor:
    """KL divergence of normal laws [n, O] with independent entries, [n]."""
    ratio = ((spread.square() + (mean - prior_mean).square()) / prior_spread.square()) / 2
    return ((prior_spread / spread).log() + ratio - 0.5).sum(1)
