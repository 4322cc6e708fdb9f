"""Train modules, losses and data far from what the default weights know.

    python experiments/strange_modules.py                         # all, 3 seeds
    python experiments/strange_modules.py --module SIREN --seeds 5

A character model on source code, sinusoidal units, ten layers, targets in the hundreds, summed
losses: beside Adam at 1e-3 and 1e-2, nothing tuned. Losses are over the first thousand examples.
"""

import argparse as a_long_text
import inspect
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import click
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn.functional import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    huber_loss,
    mse_loss,
)

from haltwise import FitWarning, LearnedOptimizer

BATCH = 64
STEPS = (100, 300, 1000)
LENGTH = 32


class Case(NamedTuple):
    """A module, its data and its loss."""

    make: Callable[[], nn.Module]
    data: tuple[Tensor, ...]
    loss: Callable[..., Tensor]
    """Of the module and a batch of the data."""


class CharacterLSTM(nn.Module):
    """Two layers of 64 units."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_characters, 32)
        self.body = nn.LSTM(32, 64, 2, batch_first=True)
        self.head = nn.Linear(64, num_characters)

    def forward(self, text: Tensor) -> Tensor:
        """Characters [B, L] to logits of the next ones [B, L, C]."""
        logits: Tensor = self.head(self.body(self.embed(text))[0])
        return logits


class CharacterTransformer(nn.Module):
    """Two causal layers of 48 numbers a token, normalised before."""

    def __init__(self, num_characters: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(num_characters, 48)
        self.place = nn.Parameter(0.02 * torch.randn(LENGTH, 48))
        layer = nn.TransformerEncoderLayer(48, 4, 128, 0.0, batch_first=True, norm_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.LayerNorm(48), nn.Linear(48, num_characters))

    def forward(self, text: Tensor) -> Tensor:
        """Characters [B, L] to logits of the next ones [B, L, C]."""
        length = text.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(length)
        hidden = self.body(self.embed(text) + self.place[:length], mask=mask, is_causal=True)
        logits: Tensor = self.head(hidden)
        return logits


class VariationalAutoencoder(nn.Module):
    """Eight hidden variables between layers of 64."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 16))
        self.decode = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64))

    def loss(self, images: Tensor) -> Tensor:
        """The negative evidence lower bound, in nats an image."""
        mean, log_variance = self.encode(images).chunk(2, 1)
        hidden = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        error = binary_cross_entropy_with_logits(self.decode(hidden), images, reduction="none")
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
        return error.sum(1).mean() + divergence.sum(1).mean()


class Sinusoidal(nn.Module):
    """SIREN (Sitzmann et al. 2020), two layers of 64 units at a frequency of 30."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(2, 64), nn.Linear(64, 64), nn.Linear(64, 1)
        bound = math.sqrt(6 / 64) / 30
        nn.init.uniform_(self.first.weight, -0.5, 0.5)
        nn.init.uniform_(self.second.weight, -bound, bound)
        nn.init.uniform_(self.head.weight, -bound, bound)

    def forward(self, places: Tensor) -> Tensor:
        """Places [B, 2] to values [B, 1]."""
        hidden = torch.sin(30 * self.second(torch.sin(30 * self.first(places))))
        value: Tensor = self.head(hidden)
        return value


class Factors(nn.Module):
    """The factors of a matrix of 200 rows and 300 columns."""

    def __init__(self) -> None:
        super().__init__()
        self.rows, self.columns = nn.Embedding(200, 8), nn.Embedding(300, 8)

    def forward(self, entries: Tensor) -> Tensor:
        """Rows and columns [B, 2] to entries [B]."""
        return (self.rows(entries[:, 0]) * self.columns(entries[:, 1])).sum(1)


def layers(
    number: int, unit: type[nn.Module], width: int = 64, num_in: int = 64, num_out: int = 10
) -> nn.Module:
    """A perceptron of so many hidden layers."""
    body: list[nn.Module] = []
    for _ in range(number):
        body += [nn.Linear(num_in, width), unit()]
        num_in = width
    return nn.Sequential(*body, nn.Linear(num_in, num_out))


def _normed() -> nn.Module:
    return nn.Sequential(
        *(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16)),
        *(nn.SiLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.GroupNorm(4, 32), nn.SiLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(32, 10)),
    )


def cases() -> dict[str, Case]:
    """All of them, by name."""
    digits, sugar, cancer = load_digits(), load_diabetes(), load_breast_cancer()
    images = torch.as_tensor(digits.data, dtype=torch.float32) / 16
    labels = torch.as_tensor(digits.target)
    body = torch.as_tensor(sugar.data / sugar.data.std(), dtype=torch.float32)
    progress = torch.as_tensor(sugar.target, dtype=torch.float32).unsqueeze(1)
    cells = torch.as_tensor((cancer.data - cancer.data.mean(0)) / cancer.data.std(0)).float()
    benign = torch.as_tensor(cancer.target, dtype=torch.float32).unsqueeze(1)
    generator = torch.Generator().manual_seed(1)
    places = 2 * torch.rand(4000, 2, generator=generator) - 1
    values = torch.sin(6 * places[:, :1]) * torch.cos(4 * places[:, 1:])
    left, right = (torch.randn(num, 3, generator=generator) for num in (200, 300))
    entries = torch.stack(
        [torch.randint(num, (8000,), generator=generator) for num in (200, 300)], 1
    )
    noise = 0.1 * torch.randn(8000, generator=generator)
    products = (left[entries[:, 0]] * right[entries[:, 1]]).sum(1) + noise
    text = inspect.getsource(a_long_text)
    known = sorted(set(text))
    codes = torch.tensor([known.index(character) for character in text])
    lines = codes[: len(codes) // LENGTH * LENGTH].view(-1, LENGTH)

    def next_character(module: nn.Module, part: Tensor) -> Tensor:
        return cross_entropy(module(part[:, :-1]).flatten(0, 1), part[:, 1:].flatten())

    def of(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        return lambda module, inputs, targets: loss(module(inputs), targets)

    def summed(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return BATCH * cross_entropy(module(inputs), targets)

    digit = (images, labels)
    return {
        "character LSTM": Case(lambda: CharacterLSTM(len(known)), (lines,), next_character),
        "character GPT": Case(lambda: CharacterTransformer(len(known)), (lines,), next_character),
        "VAE": Case(VariationalAutoencoder, (images,), lambda module, part: module.loss(part)),
        "SIREN": Case(Sinusoidal, (places, values), of(mse_loss)),
        "targets of 150": Case(
            lambda: layers(2, nn.ReLU, 32, 10, 1), (body, progress), of(mse_loss)
        ),
        "the same, linear": Case(lambda: nn.Linear(10, 1), (body, progress), of(mse_loss)),
        "Huber loss": Case(
            lambda: layers(2, nn.GELU, 32, 10, 1), (body, progress / 100), of(huber_loss)
        ),
        "logistic": Case(
            lambda: nn.Linear(30, 1), (cells, benign), of(binary_cross_entropy_with_logits)
        ),
        "factors": Case(Factors, (entries, products), of(mse_loss)),
        "8 layers, tanh": Case(lambda: layers(8, nn.Tanh), digit, of(cross_entropy)),
        "10 layers, ReLU": Case(lambda: layers(10, nn.ReLU), digit, of(cross_entropy)),
        "group norm, SiLU": Case(_normed, digit, of(cross_entropy)),
        "autoencoder": Case(
            lambda: nn.Sequential(
                *(nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, 4), nn.Linear(4, 32), nn.Tanh()),
                *(nn.Linear(32, 64), nn.Sigmoid()),
            ),
            (images, images),
            of(mse_loss),
        ),
        "summed loss": Case(lambda: layers(1, nn.ReLU), digit, summed),
        "pixels to 255": Case(
            lambda: layers(2, nn.ReLU), (255 * images, labels), of(cross_entropy)
        ),
    }


def train(case: Case, make: Callable[..., Any], seed: int) -> tuple[list[float], list[float]]:
    """Losses at the start and at `STEPS`, and the best by then, looked at every ten steps."""
    torch.manual_seed(seed)
    module = case.make()
    optimizer = make(module.parameters())
    generator = torch.Generator().manual_seed(seed)

    @torch.no_grad()
    def whole() -> float:
        module.eval()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            loss = case.loss(module, *[part[:1000] for part in case.data]).item()
        module.train()
        return loss if math.isfinite(loss) else math.inf

    found, best = [whole()], list[float]()
    lowest = found[0]
    for step in range(1, max(STEPS) + 1):
        index = torch.randint(len(case.data[0]), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = case.loss(module, *[part[index] for part in case.data])
        torch.autograd.backward(loss)
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.step(loss=loss)
        else:
            optimizer.step()
        if step % 10 == 0:
            now = whole()
            lowest = min(lowest, now)
            if step in STEPS:
                found.append(now)
                best.append(lowest)
    return found, best


@click.command()
@click.option("--seeds", default=3, show_default=True)
@click.option("--module", "names", multiple=True, help="One of them; all if not given.")
def main(seeds: int, names: tuple[str, ...]) -> None:
    """Print medians over seeds, and count endings above the start or the best."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FitWarning)
    ways: dict[str, Callable[..., Any]] = {
        "Haltwise": LearnedOptimizer,
        "Adam 1e-3": partial(torch.optim.Adam, lr=1e-3),
        "Adam 1e-2": partial(torch.optim.Adam, lr=1e-2),
    }
    known = cases()
    for name in names or known:
        for way, make in ways.items():
            runs = [train(known[name], make, seed) for seed in range(seeds)]
            ends = torch.tensor([found for found, _ in runs])
            ratio = ends[:, 1:] / torch.tensor([best for _, best in runs])
            cells = "".join(f"{value:10.4g}" for value in ends.median(0).values.tolist())
            above = "".join(f"{value:7.2f}" for value in ratio.max(0).values.tolist())
            print(f"{name:17}{way:10}{cells}   worst over its best{above}", flush=True)


if __name__ == "__main__":
    main()
