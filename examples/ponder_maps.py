"""Ponder maps: where in an image is another layer worth its operations (Figurnov et al. 2017)?

A digit hides among pieces of other digits. A residual network learns to tell which it is; then each
image, or each position in it, learns when to stop. A position that has stopped stays as it is, and
is what its neighbours see of it; the steps of all positions, drawn as a picture, are a ponder map.
Nobody tells the network where the digit is.

    python examples/ponder_maps.py --num-seeds 3 --figure ponder-maps.svg

Baselines are shallower networks that were trained alone and as long, and exits without learning
from the network with all units: for images those of `examples/exits.py`, for positions the size of
the last change, how much that changed, and how bright the image is there (figures:
docs/adaptive-examples.md).
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import click
import torch
from clutter import MOST, Images, digits, sample
from exits import (
    Exits,
    Point,
    accuracy_at,
    curves,
    halves,
    highest_price,
    row,
    statistics_of_answers,
    table,
)
from ponder_figure import Maps, draw
from ponder_networks import (
    CHANNELS,
    SIDE,
    UNITS,
    Halting,
    Network,
    alone,
    prices,
    stopped,
    taught,
)
from torch import Tensor
from torch.nn.functional import max_pool2d

DEPTHS = (2, 4, UNITS)  # of networks that are trained alone
KEPT = 0.002  # what accuracy may fall by
LEVELS = {
    "change": [2.0**power for power in range(-4, 2)],
    "second difference": [2.0**power for power in range(-6, 0)],
    "darkness": [0.0, 0.01, 0.05, 0.1, 0.2],
}

# Multiply-adds of an image; batch normalisation is part of the convolution behind which it is.
STEM, READ = SIDE**2 * 25 * CHANNELS, (SIDE**2 + 10) * 2 * CHANNELS
UNIT = SIDE**2 * 10 * CHANNELS**2
HEAD = {
    "image": READ + 32 * (11 + 1 + 2),
    "position": SIDE**2 * (9 * CHANNELS + CHANNELS + 2 * (3 * CHANNELS + 1)),
}
ALL = STEM + UNITS * UNIT + READ


class Judge(NamedTuple):
    """Held-out images: settings are chosen on one half, and judged on the other."""

    images: Images

    def point(self, name: str, right: Tensor, share: Tensor | float, *, tuned: bool) -> Point:
        """Accuracy and share of the operations of all units, of easy and hard images, too."""
        rows = halves(len(right))[0 if tuned else 1]
        hard = self.images.num_pieces > MOST // 2
        parts = [rows, rows & ~hard, rows & hard]
        shares = torch.as_tensor(share).double().expand(len(right))
        means = [
            [value.double()[part].mean().item() for part in parts] for value in (shares, right)
        ]
        return Point(name, *means)

    def right(self, answers: Callable[[Tensor], Tensor]) -> Tensor:
        """Which images are told rightly by log-odds of pixels, bool [n]."""
        parts = [answers(part) for part in self.images.pixels.split(250)]
        return torch.cat(parts).argmax(1) == self.images.labels

    def chosen(self, found: list[tuple[Tensor, Tensor]], least: float) -> int:
        """The cheapest of settings (right, share) with so much accuracy, else the most accurate."""
        points = [self.point("", *each, tuned=True) for each in found]
        enough = [place for place, each in enumerate(points) if each.accuracy[0] >= least]
        if enough:
            return min(enough, key=lambda place: points[place].cost[0])
        return max(range(len(points)), key=lambda place: points[place].accuracy[0])


def share_of(exits: Tensor, per: str) -> Tensor:
    """The share of the operations of all units at exits [n, ...], shape [n]."""
    taken = (exits + 1).double()
    asked = taken.clamp_max(UNITS - 1)
    each = (taken * UNIT + asked * HEAD[per]).view(len(exits), -1).mean(1)
    return (STEM + each + READ) / ALL


def seconds(network: Network, halting: Halting, pixels: Tensor, price: float) -> str:
    """Least wall-clock time of all units and of those that are worth their price, in 5 runs."""
    some, own, every = pixels[:256], [], []
    for _ in range(5):
        began = time.perf_counter()
        network(some)
        every.append(time.perf_counter() - began)
        began = time.perf_counter()
        halting.layer.run(halting.begin(some), price)
        own.append(time.perf_counter() - began)
    return f"  {len(some)} images in {1e3 * min(own):.0f} ms, all units {1e3 * min(every):.0f} ms"


@torch.no_grad()
def compare_positions(
    halting: Halting, whole: Network, hull: list[Point], judge: Judge
) -> tuple[dict[str, list[Point]], Point, Tensor]:
    """Print how positions halt beside the baselines.

    Returns:
        All curves, the learned exits, and the units that positions took, int64 [n, SIDE, SIDE].
    """
    images, found, steps = judge.images, [], []
    tried = prices("position", 4)
    for price in tried:
        parts = [
            halting.layer.run(halting.begin(pixels), price) for pixels in images.pixels.split(250)
        ]
        exits = torch.cat([part.exits for part in parts])
        answers = torch.cat([halting.answers(part.output) for part in parts])
        found.append((answers.argmax(1) == images.labels, share_of(exits, "position")))
        steps.append(exits + 1)
    full = judge.right(whole)
    least = judge.point("", full, 1.0, tuned=True).accuracy[0] - KEPT
    best = judge.chosen(found, least)
    learned = judge.point("learned", *found[best], tuned=False)
    lines = [row(learned), row(judge.point("all units", full, 1.0, tuned=False))]
    drawn = {}
    for name in ("change", "second difference", "darkness"):
        values = []
        for level in LEVELS[name]:
            answers, taken = stopped(whole, images.pixels, name, level)
            values.append((answers.argmax(1) == images.labels, (STEM + taken * UNIT + READ) / ALL))
        lines.append(row(judge.point(name, *values[judge.chosen(values, least)], tuned=False)))
        drawn[name] = [judge.point(name, *each, tuned=False) for each in values]
    click.echo("\n".join(lines))
    cost = learned.cost[0]
    for name, points in {"trained alone": hull, **drawn}.items():
        click.echo(f"  at {cost:.3f} of the operations, {name:24} {accuracy_at(points, cost):.4f}")
    drawn["each position"] = [judge.point("", *each, tuned=False) for each in found]
    click.echo(seconds(whole, halting, images.pixels, tried[best]))
    taken = steps[best]
    bright = max_pool2d(images.pixels, 2).squeeze(1)
    ink = bright > 0.5
    from sklearn.metrics import roc_auc_score

    areas = [
        roc_auc_score(images.masks[part].flatten(), values[part].flatten())
        for values, part in ((taken, ...), (bright, ...), (taken, ink))
    ]
    click.echo(
        f"  ROC area of the ponder maps for the digit {areas[0]:.3f} (brightness {areas[1]:.3f}; "
        f"maps where it is bright {areas[2]:.3f})"
    )
    return drawn, learned, taken


@torch.no_grad()
def compare_images(
    halting: Halting, whole: Network, hull: list[Point], judge: Judge
) -> dict[str, list[Point]]:
    """Print how images halt beside the baselines, and return their curves."""
    images, by_price = judge.images, {}
    for price in prices("image", 13):
        parts = [halting.layer(halting.begin(part), price) for part in images.pixels.split(250)]
        by_price[price] = torch.cat([part.exits for part in parts])
    answers = torch.cat([part.outputs for part in parts])
    right = answers.argmax(-1) == images.labels.unsqueeze(1)
    chosen = highest_price(right, by_price)
    learned = by_price[chosen]
    statistics = statistics_of_answers(answers.log_softmax(-1))
    hard = images.num_pieces > MOST // 2
    exits = Exits(right, share_of(torch.arange(UNITS), "image"), learned, hard, statistics)
    click.echo(table(exits))
    found = [
        judge.point(
            "", right.gather(1, each.unsqueeze(1)).squeeze(1), exits.cost[each], tuned=False
        )
        for each in by_price.values()
    ]
    cost = judge.point("", right[:, 0], exits.cost[learned], tuned=False).cost[0]
    click.echo(f"  {'trained alone':24}  {'':24}{accuracy_at(hull, cost):.4f}")
    click.echo(seconds(whole, halting, images.pixels, chosen))
    return {"each image": found, "entropy, each image": curves(exits)["entropy"]}


@click.command()
@click.option("--num-seeds", default=1, show_default=True)
@click.option("--first-seed", default=0, show_default=True)
@click.option("--num-steps", default=1200, show_default=True, help="Updates before halting.")
@click.option("--num-test", default=2000, show_default=True)
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the last seed as SVG.")
def main(
    num_seeds: int, first_seed: int, num_steps: int, num_test: int, figure: Path | None
) -> None:
    """Tell digits with as many units as each image, or each position, needs."""
    for seed in range(first_seed, first_seed + num_seeds):
        began = time.process_time()
        generator = torch.Generator().manual_seed(seed + 1000)
        judge = Judge(sample(num_test, digits(held_out=True), generator))
        hull = []
        for num_units in DEPTHS:
            before, whole = alone(num_units, num_steps, seed)
            share = (STEM + num_units * UNIT + READ) / ALL
            with torch.no_grad():
                hull.append(judge.point("", judge.right(whole), share, tuned=False))
        found = ", ".join(
            f"{num_units}: {each.accuracy[0]:.4f}"
            for num_units, each in zip(DEPTHS, hull, strict=True)
        )
        click.echo(f"seed {seed}, accuracy of networks trained alone by their units: {found}")
        drawn: dict[str, list[Point]] = {}
        for per in ("position", "image"):
            halting = taught(before, per, num_steps, seed)
            click.echo(f"each {per} halts by itself: share of multiply-adds, accuracy")
            if per == "position":
                drawn, learned, taken = compare_positions(halting, whole, hull, judge)
            else:
                drawn |= compare_images(halting, whole, hull, judge)
        click.echo(f"  {time.process_time() - began:.0f} CPU seconds")
    if figure is not None:
        title = (
            f"Positions that halt need {learned.cost[0]:.0%} of the operations: "
            f"accuracy {learned.accuracy[0]:.3f}, all units {hull[-1].accuracy[0]:.3f}"
        )
        names = ["each position", "each image", "trained alone", *drawn]
        drawn["trained alone"] = hull
        shown = {name: [(at.cost[0], at.accuracy[0]) for at in drawn[name]] for name in names}
        draw(figure, title, shown, Maps(judge.images.pixels[:, 0], taken, UNITS))


if __name__ == "__main__":
    main()
