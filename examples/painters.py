"""What `examples/scenes.py` paints scenes with: exit n returns the canvas of n objects.

Beside the canvas it returns what the objects' places and codes cost, their KL divergence from the
prior in nats.
"""

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample, relu, softplus

from haltwise.nn import AdaptiveProcess, ItemStep

__all__ = ["MOST", "SPREAD", "Painter", "Searcher"]

MOST = 3  # objects
SPREAD = 0.3  # of a pixel around the canvas

State = dict[str, Tensor]


class Painter(AdaptiveProcess):
    """An LSTM cell reads the image and the object before, and says where the next one is."""

    steps_alike: ClassVar[bool] = False
    canvas, window, code, hidden = 20, 10, 20, 128
    mean, deviation = (2.2, 0.0, 0.0), (0.2, 1.0, 1.0)  # of scale and place, a priori

    def __init__(self) -> None:
        super().__init__(MOST + 1)
        self.exit_costs.copy_(torch.arange(MOST + 1))  # objects painted
        self.num_features = self.hidden
        pixels, window = self.canvas**2, self.window**2
        self.memory = nn.LSTMCell(pixels + 3 + self.code, self.hidden)
        self.place = _perceptron(self.hidden, 64, 6)
        self.encoder = _perceptron(window, 100, 2 * self.code)
        self.decoder = _perceptron(self.code, 100, window)
        with torch.no_grad():
            list(self.place.parameters())[-1][:3] = torch.tensor(self.mean)
            list(self.decoder.parameters())[-1].sub_(2)  # objects begin dark

    def init(self, inputs: Tensor) -> State:
        blank = inputs.new_zeros
        num = len(inputs)
        return {
            "image": inputs,
            "canvas": torch.zeros_like(inputs),
            "cost": blank(num),
            "hidden": blank(num, self.hidden),
            "cell": blank(num, self.hidden),
            "last": blank(num, 3 + self.code),
        }

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        new = dict(state)
        if step != 0:
            new |= self._paint(state)
        seen = torch.cat((state["image"].flatten(1), new["last"]), 1)
        new["hidden"], new["cell"] = self.memory(seen, (state["hidden"], state["cell"]))
        return ItemStep(_output(new), new["hidden"], new)

    def _paint(self, state: State) -> State:
        raw = self.place(state["hidden"])
        mean, deviation = raw[:, :3], softplus(raw[:, 3:] - 1)
        where = mean + deviation * torch.randn_like(deviation)
        scale, shift = where[:, :1].clamp(1.2, 6), where[:, 1:]
        glimpse = _window(state["image"], 1 / scale, -shift / scale, self.window)
        code_mean, code_raw = self.encoder(glimpse.flatten(1)).chunk(2, 1)
        code_deviation = softplus(code_raw) + 1e-4
        code = code_mean + code_deviation * torch.randn_like(code_deviation)
        painted = self.decoder(code).sigmoid().view_as(glimpse)
        prior = torch.tensor(self.mean), torch.tensor(self.deviation)
        cost = _divergence(mean, deviation, *prior) + _divergence(code_mean, code_deviation)
        return {
            "canvas": state["canvas"] + _window(painted, scale, shift, self.canvas),
            "cost": state["cost"] + cost,
            "last": torch.cat((scale, shift, code), 1),
        }


class Painted(NamedTuple):
    """An object in its window, where that is, what it costs and the nats that it gains."""

    window: Tensor
    scale: Tensor
    centre: Tensor
    cost: Tensor
    gain: Tensor

    def on_canvas(self, size: int) -> Tensor:
        """The object where it belongs, shape [n, size, size]."""
        return _window(self.window, self.scale, -self.scale * self.centre, size)


class Searcher(AdaptiveProcess):
    """Looks where most of the image is left, and paints the object that explains most of it.

    Between two digits that touch, one window sees half of each, and what it paints there explains
    more than either digit alone. So objects are tried at the brightest spot of what is left,
    blurred, and at four around it. In evaluation mode the first is the one that gains most along
    with a second; in training mode it must be good alone, else digits would be painted in halves.

    It knows the digits' scale up to some percent. Places and codes are drawn in training mode, and
    are their means in evaluation mode.
    """

    steps_alike: ClassVar[bool] = False
    canvas, window, code, hidden = 50, 28, 50, 100
    mean, deviation = (50 / 28, 0.0, 0.0), (0.1, 0.5, 0.5)  # of scale and centre, a priori
    price = 50.0  # nats that a second object must gain, looking ahead

    def __init__(self) -> None:
        super().__init__(MOST + 1)
        self.exit_costs.copy_(torch.arange(MOST + 1))  # objects painted
        self.num_features = self.hidden + 3
        window = self.window**2
        self.look = nn.Sequential(nn.Linear(window, self.hidden), nn.ReLU())
        self.place = nn.Linear(self.hidden, 6)
        self.encoder = _perceptron(window, 200, 2 * self.code)
        self.decoder = _perceptron(self.code, 200, window)
        pixels, spots = torch.arange(self.canvas) + 0.5, torch.arange(1, self.canvas, 2)
        blur = torch.exp(-((spots.unsqueeze(1) - pixels) ** 2) / (2 * 5**2))  # of 5 pixels
        self.blur: Tensor
        self.spots: Tensor
        self.around: Tensor
        self.register_buffer("blur", blur / blur.sum(1).max())
        self.register_buffer("spots", 2 * spots / self.canvas - 1)
        around = [[0, 0], [0.28, 0], [-0.28, 0], [0, 0.36], [0, -0.36]]  # 7 and 9 pixels
        self.register_buffer("around", torch.tensor(around))
        with torch.no_grad():
            self.place.weight *= 0.1
            self.place.bias.zero_()
            list(self.decoder.parameters())[-1].sub_(2)  # objects begin dark

    def init(self, inputs: Tensor) -> State:
        num = len(inputs)
        return {
            "image": inputs,
            "canvas": torch.zeros_like(inputs),
            "cost": inputs.new_zeros(num),
            "centre": inputs.new_zeros(num, 2),
            "features": inputs.new_zeros(num, self.num_features),
        }

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        new = dict(state)
        if step != 0:
            rest, seen = state["image"] - state["canvas"], state["features"][:, : self.hidden]
            painted = self._paint(rest, state["centre"], seen, noise=self.training)
            new["canvas"] = state["canvas"] + painted.on_canvas(self.canvas)
            new["cost"] = state["cost"] + painted.cost
        if step != MOST:
            rest = new["image"] - new["canvas"]
            ahead = bool(step == 0) and not self.training
            new["centre"], gain, bright = self._search(rest.detach(), ahead=ahead)
            energy = rest.square().sum((1, 2))
            numbers = torch.stack((gain / 50, 10 * bright, energy / 20), 1)
            new["features"] = torch.cat((self._seen(rest, new["centre"]), numbers), 1)
        return ItemStep(_output(new), new["features"], new)

    @torch.no_grad()
    def _search(self, rest: Tensor, *, ahead: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Where an object gains most, [n, 2], what it gains and how bright it is there, [n]."""
        spot, bright = self._brightest(rest)
        num, tries = len(rest), len(self.around)
        centres = (spot.unsqueeze(1) + self.around).flatten(0, 1)
        images = rest.repeat_interleave(tries, 0)
        tried = self._paint(images, centres, self._seen(images, centres), noise=False)
        total = tried.gain
        if ahead:
            left = images - tried.on_canvas(self.canvas)
            at = self._brightest(left)[0]
            second = self._paint(left, at, self._seen(left, at), noise=False)
            squares = (images.square() - left.square()).sum((1, 2))
            total = squares / (2 * SPREAD**2) - tried.cost + relu(second.gain - self.price)
        best = total.view(num, tries).argmax(1) + tries * torch.arange(num)
        return centres[best], tried.gain[best], bright

    def _brightest(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """The spot at which what is left, blurred, is brightest, and how bright it is."""
        blurred = (rest @ self.blur.T).mT @ self.blur.T  # across, down
        bright, at = blurred.flatten(1).max(1)
        num = len(self.spots)
        return torch.stack((self.spots[at // num], self.spots[at % num]), 1), bright

    def _seen(self, rest: Tensor, centre: Tensor) -> Tensor:
        scale = rest.new_full((len(rest), 1), self.mean[0])
        seen: Tensor = self.look(_window(rest, 1 / scale, centre, self.window).flatten(1))
        return seen

    def _paint(self, rest: Tensor, centre: Tensor, seen: Tensor, *, noise: bool) -> Painted:
        """The object that is found in what is left [n, C, C] near a centre [n, 2]."""
        raw = self.place(seen)
        moved = 0.3 * raw[:, :3].tanh()
        prior = torch.tensor(self.mean), torch.tensor(self.deviation)
        mean = torch.cat((prior[0][:1] + moved[:, :1] / 2, centre + moved[:, 1:]), 1)
        deviation = 0.05 * softplus(raw[:, 3:] + 0.54)
        where = mean + noise * deviation * torch.randn_like(deviation)
        scale, at = where[:, :1].clamp(1.2, 3), where[:, 1:]
        glimpse = _window(rest, 1 / scale, at, self.window)
        code_mean, code_raw = self.encoder(glimpse.flatten(1)).chunk(2, 1)
        code_deviation = softplus(code_raw) + 1e-4
        code = code_mean + noise * code_deviation * torch.randn_like(code_deviation)
        painted = self.decoder(code).sigmoid().view_as(glimpse)
        cost = _divergence(mean, deviation, *prior) + _divergence(code_mean, code_deviation)
        squares = (glimpse.square() - (glimpse - painted).square()).sum((1, 2))
        return Painted(painted, scale, at, cost, squares / (2 * SPREAD**2) - cost)


def _output(state: State) -> Tensor:
    return torch.cat((state["canvas"].flatten(1), state["cost"].unsqueeze(1)), 1)


def _perceptron(num_inputs: int, num_hidden: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(num_inputs, num_hidden), nn.ReLU(), nn.Linear(num_hidden, num_outputs)
    )


def _window(image: Tensor, scale: Tensor, shift: Tensor, size: int) -> Tensor:
    """A spatial transformer: images [n, a, a] at scale [n, 1], moved by shift [n, 2]."""
    lines = (2 * torch.arange(size) + 1) / size - 1
    across, down = (scale * lines + shift[:, side : side + 1] for side in (0, 1))
    each = len(image), size, size
    grid = torch.stack((across.unsqueeze(1).expand(each), down.unsqueeze(2).expand(each)), 3)
    return grid_sample(image.unsqueeze(1), grid, align_corners=False).squeeze(1)


def _divergence(
    mean: Tensor, deviation: Tensor, to_mean: Tensor | float = 0.0, to_deviation: Tensor | float = 1
) -> Tensor:
    """KL between normal distributions, summed, shape [n]."""
    to_mean, to_deviation = torch.as_tensor(to_mean), torch.as_tensor(to_deviation)
    squares = (deviation**2 + (mean - to_mean) ** 2) / (2 * to_deviation**2)
    return ((to_deviation / deviation).log() + squares - 0.5).sum(1)
