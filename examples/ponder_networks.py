"""The networks of `examples/ponder_maps.py`: residual, trained alone, and then taught to halt."""

import copy
from collections.abc import Callable, Iterator

import torch
from clutter import CANVAS, Images, digits, sample
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, cross_entropy

from haltwise.nn import AdaptiveComputation, LayerStack, ResidualStage

__all__ = [
    "CHANNELS",
    "SIDE",
    "UNITS",
    "Halting",
    "Network",
    "alone",
    "prices",
    "stopped",
    "taught",
]

SIDE, CHANNELS, UNITS = CANVAS // 2, 16, 6
BATCH, RATE, TUNED = 32, 1e-2, 0.4  # the last is updates for halting, of the others'
HEAD_RATE = {"image": 1e-2, "position": 5e-2}  # of that of positions an image's may never end
PRICES = {"image": (1e-2, 0.5), "position": (3e-3, 0.2)}  # of a unit everywhere, in nats


class Network(nn.Module):
    """A residual network of so many units; the answer is read of means and maxima."""

    def __init__(self, num_units: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, CHANNELS, 5, stride=2, padding=2), nn.ReLU())
        self.units = nn.ModuleList(_unit() for _ in range(num_units))
        self.read = nn.Linear(2 * CHANNELS, 10)

    def begin(self, pixels: Tensor) -> Tensor:
        """What the units begin with."""
        return self.stem(pixels).contiguous(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> Tensor:
        """Log-odds [n, 10] behind all units."""
        image = self.begin(pixels)
        for unit in self.units:
            image = image + unit(image)
        answer: Tensor = self.read(pooled(image, (2, 3)))
        return answer


def _unit() -> nn.Module:
    unit = nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
        nn.Conv2d(CHANNELS, CHANNELS, 1),
    )
    return unit.to(memory_format=torch.channels_last)


def pooled(image: Tensor, places: tuple[int, int]) -> Tensor:
    """Means and maxima over the positions, which are along two dimensions."""
    return torch.cat((image.mean(places), image.amax(places)), -1)


class Halting(nn.Module):
    """A network that was trained alone, whose images or positions learn where to halt."""

    def __init__(self, network: Network, per: str) -> None:
        super().__init__()
        whole = copy.deepcopy(network)
        self.per, self.begin, self.stem, self.read = per, whole.begin, whole.stem, whole.read
        if per == "position":  # SACT: one answer, of the mean of what positions return
            stage = ResidualStage(list(whole.units), CHANNELS, per="position")
            self.layer = AdaptiveComputation(stage, "graves", "expected-state", width=0)
        else:
            layers = [Residual(unit) for unit in whole.units]
            heads = [Answer(copy.deepcopy(whole.read)) for _ in layers]
            stack = LayerStack(layers, 11, heads=heads, features=sureness)
            self.layer = AdaptiveComputation(stack)

    def answers(self, output: Tensor) -> Tensor:
        """Log-odds of what is returned."""
        if self.per == "image":
            return output
        answers: Tensor = self.read(pooled(output, (1, 2)))
        return answers

    def losses(self, images: Images, done: float) -> Tensor:
        """Cross-entropy and what halting costs, at prices drawn anew for each image."""
        low, high = PRICES[self.per]
        price = low * (high / low) ** torch.rand(len(images.labels))
        pondered = self.layer(self.begin(images.pixels), price)
        if self.per == "position":
            found = cross_entropy(self.answers(pondered.output), images.labels, reduction="none")
            return pondered.objective(found.view(-1, 1, 1).expand_as(pondered.price))
        labels = images.labels.unsqueeze(1).expand(-1, UNITS)
        found = cross_entropy(pondered.outputs.movedim(-1, 1), labels, reduction="none")
        # Counted in prices, so that all prices count alike.
        own = pondered.objective(found, progress=done) / price.sqrt()
        return found.mean(1) + 0.1 * own


class Residual(nn.Module):
    """A layer x + f(x)."""

    def __init__(self, unit: nn.Module) -> None:
        super().__init__()
        self.unit = unit

    def forward(self, image: Tensor) -> Tensor:
        change: Tensor = self.unit(image)
        return image + change


class Answer(nn.Module):
    """What an image returns if it ends behind a unit."""

    def __init__(self, read: nn.Module) -> None:
        super().__init__()
        self.read = read

    def forward(self, image: Tensor) -> Tensor:
        answer: Tensor = self.read(pooled(image, (2, 3)))
        return answer


def sureness(answers: Tensor) -> Tensor:
    """What the head reads of an image: log-probabilities, sorted, and their entropy."""
    log_prob = answers.log_softmax(-1)
    entropy = -(log_prob.exp() * log_prob).sum(-1, keepdim=True)
    return torch.cat((log_prob.sort(-1).values, (entropy + 1e-4).log()), -1)


def train(
    network: nn.Module, losses: Callable[[Images, float], Tensor], num_steps: int, rate: float,
    seed: int, head_rate: float = 0.0,
) -> None:  # fmt: skip
    """Minimise losses of images that are drawn anew for every update."""
    generator, source = torch.Generator().manual_seed(seed), digits(held_out=False)
    heads = [value for name, value in network.named_parameters() if ".head." in name]
    others = [value for name, value in network.named_parameters() if ".head." not in name]
    groups = [{"params": others, "rate": rate}, {"params": heads, "rate": head_rate}]
    adam = torch.optim.AdamW(groups, rate, weight_decay=0.01)
    network.train()
    for step in range(num_steps):
        done = step / num_steps
        for group in adam.param_groups:
            group["lr"] = group["rate"] * min(1, (step + 1) / 50, 1.5 * (1 - done) + 0.01)
        loss = losses(sample(BATCH, source, generator), done).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        adam.step()
    network.eval()


def alone(num_units: int, num_steps: int, seed: int) -> Iterator[Network]:
    """A network after its training, and again after as many updates as halting is learned by."""
    torch.manual_seed(seed)
    network = Network(num_units)

    def losses(images: Images, done: float) -> Tensor:
        del done
        return cross_entropy(network(images.pixels), images.labels, reduction="none")

    for share, rate in ((1, RATE), (TUNED, RATE / 2)):
        train(network, losses, int(share * num_steps), rate, seed)
        yield copy.deepcopy(network)


def taught(network: Network, per: str, num_steps: int, seed: int) -> Halting:
    """The same with images or positions that have learned to halt."""
    torch.manual_seed(seed)
    halting = Halting(network, per)
    train(halting, halting.losses, int(TUNED * num_steps), RATE / 2, seed, HEAD_RATE[per])
    return halting


def prices(per: str, num: int) -> list[float]:
    """Prices to choose one from."""
    low, high = PRICES[per]
    return [low * (high / low) ** (place / (num - 1)) for place in range(num)]


def stopped(
    network: Network, pixels: Tensor, statistic: str, level: float
) -> tuple[Tensor, Tensor]:
    """Stop positions without learning, at a level of a statistic.

    Returns:
        Log-odds [n, 10], and the units that positions took in the mean, [n].
    """
    answers, means = [], []
    for part in pixels.split(250):
        image, last = network.begin(part), torch.full((), torch.inf)
        bright = avg_pool2d(part, 6, stride=2, padding=2)
        active = torch.ones_like(bright, dtype=torch.bool)
        taken = torch.zeros_like(bright)
        for unit in network.units:
            change = unit(image) * active
            taken = taken + active
            size = change.norm(dim=1, keepdim=True)
            values = {"change": size, "second difference": (size - last).abs(), "darkness": bright}
            image, last = image + change, size
            active = active & (values[statistic] > level)
        answers.append(network.read(pooled(image, (2, 3))))
        means.append(taken.flatten(1).mean(1))
    return torch.cat(answers), torch.cat(means)
