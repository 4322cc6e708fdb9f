"""Attend, infer, repeat (Eslami et al. 2016) without REINFORCE: how many objects does a scene hold?

A scene has 0, 1 or 2 handwritten digits. A network paints it object by object and learns, by the
evidence alone, when it is done: nobody tells it the number of digits. What is painted up to object
n does not depend on whether there will be another, so the sum over n is exact,

    ELBO = sum_n q(n) [log p(x | x_n) - sum_{t <= n} KL_t + log p(n) - log q(n)],

the free energy of a stick-breaking posterior at a price of log(1 / PRIOR) nats an object: neither a
score function nor a baseline network is needed, which the original has.

    python examples/scenes.py --num-seeds 10
    python examples/scenes.py --size 50 --num-seeds 5    # multi-MNIST: needs MNIST

FIGURES
(docs/adaptive-examples.md).
"""

import math
import time
from pathlib import Path
from typing import NamedTuple

import click
import torch
from exits import Exits, draw, table
from torch import Tensor, nn
from torch.nn.functional import interpolate

from haltwise.datasets import load
from haltwise.halting.methods import StickBreaking
from haltwise.nn import AdaptiveComputation, ObjectGenerator

BATCH, LEARNING_RATE, WARM_UP = 64, 1e-3, 0.15


class Kind(NamedTuple):
    """Scenes of a size, what paints them, and for how many updates that learns.

    Attributes:
        data: Whose digits.
        shrunk: By which factor, mean and standard deviation.
        price: Of an object, in nats: minus the logarithm of the prior's ratio. The larger a digit,
            the more a second object can do for one that is painted badly.
    """

    data: str
    shrunk: tuple[float, float]
    price: float
    window: int
    reading: int
    hidden: int
    code: int
    num_steps: int


KINDS = {
    20: Kind(
        "digits",
        (1.0, 0.0),
        math.log(100),
        window=10,
        reading=20,
        hidden=128,
        code=20,
        num_steps=2200,
    ),
    50: Kind("mnist", (1.3, 0.1), 30.0, window=28, reading=25, hidden=128, code=50, num_steps=1000),
}


class Scenes(NamedTuple):
    """Images [n, C, C] and the number of digits in each, int64 [n]."""

    images: Tensor
    counts: Tensor


def digits(size: int, *, held_out: bool) -> Tensor:
    """The digits to learn from or to be judged by, [N, side, side]."""
    data = load(KINDS[size].data)
    images = torch.from_numpy(data.test_images if held_out else data.train_images)
    return images.float() / data.white


def sample(num: int, size: int, shapes: Tensor, generator: torch.Generator) -> Scenes:
    """Draw scenes of 0 to 2 digits; those in which they overlap too brightly are drawn again."""
    counts = torch.randint(0, 3, (num,), generator=generator)
    images = torch.zeros(num, size, size)
    open_rows = (counts > 0).nonzero().squeeze(1)
    while len(open_rows):
        drawn = torch.zeros(len(open_rows), size, size)
        for place in range(2):
            _put(drawn, (counts[open_rows] > place).nonzero().squeeze(1), shapes, generator)
        images[open_rows] = drawn
        open_rows = open_rows[drawn.flatten(1).amax(1) > 1]
    return Scenes(images, counts)


def _put(drawn: Tensor, rows: Tensor, shapes: Tensor, generator: torch.Generator) -> None:
    """Add a digit to each of some scenes, anywhere."""
    size, num = drawn.shape[-1], len(rows)
    mean, deviation = KINDS[size].shrunk
    shrunk = mean + deviation * torch.randn(num, generator=generator)
    sides = (shapes.shape[-1] / shrunk).round().long()
    chosen = shapes[torch.randint(len(shapes), (num,), generator=generator)]
    corners = (torch.rand(num, 2, generator=generator) * (size + 1 - sides).unsqueeze(1)).long()
    for side in sides.unique().tolist():
        own = sides == side
        digit = interpolate(
            chosen[own].unsqueeze(1), size=(side, side), mode="bilinear", antialias=True
        ).squeeze(1)
        lines = corners[own].unsqueeze(2) + torch.arange(side)
        index = (rows[own].view(-1, 1, 1), lines[:, 0].unsqueeze(2), lines[:, 1].unsqueeze(1))
        drawn.index_put_(index, digit, accumulate=True)


def painter(size: int, generator: torch.Generator) -> AdaptiveComputation:
    """What paints scenes of a size."""
    kind = KINDS[size]
    process = ObjectGenerator(
        size, kind.window, hidden=kind.hidden, code=kind.code, reading=kind.reading
    )
    nat = 1 / kind.price
    method = StickBreaking(temperature=nat, final_temperature=nat, distilled=0.0)
    return AdaptiveComputation(process, method, width=64, generator=generator)


def train(size: int, num_steps: int, seed: int) -> tuple[AdaptiveComputation, float]:
    """Train on scenes of the digits to learn from; returns the layer and its CPU seconds."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    began = time.process_time()
    scenes = sample(20_000, size, digits(size, held_out=False), generator)
    layer = painter(size, generator)
    adam = torch.optim.Adam(layer.parameters(), LEARNING_RATE)
    for step in range(num_steps):
        done = step / num_steps
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, 2 * (1 - done))
        images = scenes.images[torch.randint(len(scenes.images), (BATCH,), generator=generator)]
        pondered = layer(images, KINDS[size].price)
        costs = layer.process.losses(pondered.outputs, images)
        # A new painter would learn never to paint a second object: at first all must be good.
        loss = costs.mean() if done < WARM_UP else pondered.objective(costs).mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(layer.parameters(), 10.0)
        adam.step()
    return layer.eval(), time.process_time() - began


@torch.no_grad()
def measure(layer: AdaptiveComputation, seed: int, num: int) -> tuple[Exits, float]:
    """Exits on scenes of held-out digits, and the share in which `run` stops at the right count."""
    process, price = layer.process, KINDS[layer.process.size].price
    shapes = digits(process.size, held_out=True)
    scenes = sample(num, process.size, shapes, torch.Generator().manual_seed(seed + 1000))
    pondered = layer(scenes.images, price)
    painted = process.scene(pondered.outputs)
    change = painted.canvas.diff(dim=1).square().sum((-1, -2))
    change = change / (2 * process.noise**2)  # KL between pixels' normals
    left = process.losses(pondered.outputs, scenes.images) - painted.divergence
    exits = Exits(
        right=torch.arange(process.num_exits) == scenes.counts.unsqueeze(1),
        cost=process.exit_costs,
        learned=pondered.log_prob.argmax(1),
        hard=scenes.counts == 2,
        statistics={
            "error of the canvas left": left[:, :-1],
            "KL of the next object": change,
            "second difference": torch.cat((change[:, :1], change.diff(dim=1).abs()), 1),
        },
    )
    run = layer.run(scenes.images, price)
    return exits, (run.exits == scenes.counts).double().mean().item()


@click.command()
@click.option("--size", type=click.Choice([str(size) for size in KINDS]), default="20")
@click.option("--num-seeds", default=3, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--num-steps", type=int, help="Updates; as many as the size needs by default.")
@click.option("--num-test", default=2000, show_default=True)
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the last seed's exits here.")
def main(
    size: str, num_seeds: int, first_seed: int, num_steps: int | None, num_test: int,
    figure: Path | None,
) -> None:  # fmt: skip
    """Count digits that nobody has counted."""
    pixels = int(size)
    for seed in range(first_seed, first_seed + num_seeds):
        layer, seconds = train(pixels, num_steps or KINDS[pixels].num_steps, seed)
        exits, executed = measure(layer, seed, num_test)
        click.echo(
            f"seed {seed}: {seconds:.0f} CPU seconds, executed count accuracy {executed:.4f}"
        )
        click.echo(table(exits))
    if figure is not None:
        draw(exits, figure, "Objects painted a scene, and scenes counted rightly")


if __name__ == "__main__":
    main()
