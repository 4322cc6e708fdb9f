"""Train relatives of L2L's perceptron on MNIST with shipped weights, as a training loop would.

    python experiments/mnist_variants.py --data-dir DATA

The same networks, starts and minibatches of 128 for each; guarded, nothing tuned. DATA holds
`mnist/`. `haltwise evaluate NAME --family mnist-mlp-relu` is the rule without its guard.
"""

import warnings
from pathlib import Path
from typing import NamedTuple

import click
import torch
from torch import nn

from haltwise import FitWarning, LearnedOptimizer, datasets
from haltwise.tasks import family
from haltwise.tasks.perceptron import Perceptron

VARIANTS = ("mnist-mlp", "mnist-mlp-40", "mnist-mlp-relu", "mnist-mlp-2layer")
LAST = 5  # steps whose losses are averaged
BATCH, NUM_SCORE, EVERY = 128, 2000, 10


class Ending(NamedTuple):
    """Where a training stands.

    Attributes:
        loss: Mean of the last minibatches.
        rise: Loss of the fixed images over the lowest so far.
    """

    loss: float
    rise: float


def train(
    name: str, weights: str, seed: int, steps: list[int], data: datasets.ImageData
) -> list[Ending]:
    """Train a network, and look at it after each of `steps`."""
    variant = family(name)
    assert isinstance(variant, Perceptron)
    generator = torch.Generator().manual_seed(seed)
    module = variant.make_module()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.normal_(0, variant.init_std, generator=generator)
    optimizer = LearnedOptimizer(module.parameters(), weights=weights)

    def loss_of(index: torch.Tensor) -> torch.Tensor:
        images = torch.from_numpy(data.train_images[index.numpy()]) / data.white
        labels = torch.from_numpy(data.train_labels[index.numpy()]).long()
        return nn.functional.cross_entropy(module(images), labels)

    fixed = torch.randperm(len(data.train_images), generator=generator)[:NUM_SCORE]
    losses, scores, endings = [], [], []
    for step in range(1, max(steps) + 1):
        optimizer.zero_grad()
        loss = loss_of(torch.randint(len(data.train_images), (BATCH,), generator=generator))
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step(loss=loss)
        losses.append(loss.item())
        if step % EVERY == 0 or step in steps:
            with torch.no_grad():
                scores.append(loss_of(fixed).item())
        if step in steps:
            endings.append(Ending(sum(losses[-LAST:]) / LAST, scores[-1] / min(scores)))
    return endings


@click.command()
@click.option("--weights", "names", multiple=True, default=("small-networks", "mnist-mlp"))
@click.option("--networks", default=6, show_default=True)
@click.option("--steps", multiple=True, type=int, default=(100, 500), show_default=True)
@click.option("--data-dir", type=Path, required=True)
def main(names: tuple[str, ...], networks: int, steps: tuple[int, ...], data_dir: Path) -> None:
    """Print means over networks, the worst of them, and the largest rise above the lowest."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FitWarning)
    data, wanted = datasets.load("mnist", data_dir), sorted(steps)
    for variant in VARIANTS:
        for weights in names:
            found = [train(variant, weights, seed, wanted, data) for seed in range(networks)]
            line = [f"{variant:18} {weights:16}"]
            for step, endings in zip(wanted, zip(*found, strict=True), strict=True):
                losses, rises = zip(*endings, strict=True)
                line.append(
                    f"{step}: {sum(losses) / networks:.3f} (worst {max(losses):.3f}, at most "
                    f"{max(rises):.3f} x the lowest)"
                )
            print("  ".join(line), flush=True)


if __name__ == "__main__":
    main()
