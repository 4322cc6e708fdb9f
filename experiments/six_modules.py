"""Train six modules that no optimizer was meta-trained on, on handwritten digits.

    python experiments/six_modules.py                  # 5 seeds, 100, 300 and 1,000 steps
    python experiments/six_modules.py --seeds 1 --steps 100

Each is trained with the shipped weights as they come, nothing tuned, beside Adam at its usual
1e-3, Adam at the best of a grid of rates for each module, chosen on other seeds, schedule-free
AdamW and Prodigy where they are installed. Losses are over all training images.
"""

import math
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from haltwise import FitWarning, LearnedOptimizer

BATCH = 128
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TUNING_SEED = 100


class Residual(nn.Module):
    """A residual network with batch normalisation, as in He et al. 2016, small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU())
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 16, 3, padding=1),
                nn.BatchNorm2d(16),
                nn.ReLU(),
                nn.Conv2d(16, 16, 3, padding=1),
                nn.BatchNorm2d(16),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] to logits [B, 10]."""
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = torch.relu(hidden + block(hidden))
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits


class Rows(nn.Module):
    """A model of the eight rows of an image, read one after the other."""

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.embed, self.body, self.head = nn.Linear(8, width), body, nn.Linear(width, 10)
        self.place = nn.Parameter(0.02 * torch.randn(8, width))

    def forward(self, images: Tensor) -> Tensor:
        """Images [B, 1, 8, 8] to logits [B, 10]."""
        hidden = self.body(self.embed(images.squeeze(1)) + self.place)
        hidden = hidden[0][:, -1] if isinstance(hidden, tuple) else hidden.mean(1)
        logits: Tensor = self.head(hidden)
        return logits


def _encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


MODULES: dict[str, Callable[[], nn.Module]] = {
    "ReLU CNN": lambda: nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    ),
    "ReLU MLP": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10)
    ),
    "sigmoid MLP": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.Sigmoid(), nn.Linear(20, 10)
    ),
    "residual": Residual,
    "transformer": lambda: Rows(_encoder(), 32),
    "GRU": lambda: Rows(nn.GRU(32, 32, batch_first=True), 32),
}


def digits() -> tuple[Tensor, Tensor]:
    """The 1,797 images of scikit-learn [N, 1, 8, 8], and their labels [N]."""
    data = load_digits()
    images = torch.as_tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16
    return images, torch.as_tensor(data.target)


def train(
    name: str,
    make: Callable[[list[nn.Parameter]], Any],
    seed: int,
    steps: list[int],
    data: tuple[Tensor, Tensor],
) -> dict[str, Any]:
    """Losses at the start, at `steps`, and the best of every tenth step."""
    torch.manual_seed(seed)
    module = MODULES[name]()
    optimizer = make(list(module.parameters()))
    images, labels = data
    generator = torch.Generator().manual_seed(seed)
    loss_of = nn.CrossEntropyLoss()

    @torch.no_grad()
    def whole() -> float:
        if hasattr(optimizer, "eval"):
            optimizer.eval()
        loss: float = loss_of(module(images), labels).item()
        if hasattr(optimizer, "train"):
            optimizer.train()
        return loss if math.isfinite(loss) else math.inf

    found: dict[str, Any] = {"start": whole(), "at": {}, "best_at": {}}
    best = found["start"]
    stopped = None
    if hasattr(optimizer, "train"):
        optimizer.train()
    for step in range(1, max(steps) + 1):
        index = torch.randint(len(images), (BATCH,), generator=generator)
        optimizer.zero_grad()
        loss = loss_of(module(images[index]), labels[index])
        loss.backward()
        if isinstance(optimizer, LearnedOptimizer):
            optimizer.step(loss=loss)
            if stopped is None and optimizer.should_stop:
                stopped = step
        else:
            optimizer.step()
        if step % 10 == 0 or step in steps:
            now = whole()
            best = min(best, now)
            if step in steps:
                found["at"][step], found["best_at"][step] = now, best
    found["stopped"] = stopped
    return found


def baselines() -> dict[str, Callable[[list[nn.Parameter]], Any]]:
    """Optimizers that need no tuning, as far as they are installed."""
    found: dict[str, Callable[[list[nn.Parameter]], Any]] = {
        "Adam 1e-3": partial(torch.optim.Adam, lr=1e-3)
    }
    try:
        import schedulefree

        found["schedule-free"] = partial(schedulefree.AdamWScheduleFree, lr=2.5e-3)
    except ImportError:
        pass
    try:
        import prodigyopt

        found["Prodigy"] = prodigyopt.Prodigy
    except ImportError:
        pass
    return found


def tuned_rate(name: str, steps: list[int], data: tuple[Tensor, Tensor]) -> dict[int, float]:
    """Adam's best rate for each number of steps, on a seed of its own."""
    results = {
        rate: train(name, partial(torch.optim.Adam, lr=rate), TUNING_SEED, steps, data)
        for rate in RATES
    }
    return {step: min(RATES, key=lambda rate: results[rate]["at"][step]) for step in steps}


@click.command()
@click.option("--weights", default="small-networks", show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--steps", multiple=True, type=int, default=(100, 300, 1000), show_default=True)
@click.option("--module", "modules", multiple=True, default=tuple(MODULES))
@click.option("--only", is_flag=True, help="Without baselines.")
@click.option("--bfloat16", is_flag=True, help="Beside it with its state in bfloat16.")
def main(
    weights: str,
    seeds: int,
    steps: tuple[int, ...],
    modules: tuple[str, ...],
    only: bool,
    bfloat16: bool,
) -> None:
    """Print medians over seeds, and count runs that end above their start or their best."""
    data, wanted = digits(), sorted(steps)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FitWarning)
    runs, above_start, above_best = Counter[int](), Counter[int](), Counter[int]()
    for name in modules:
        ways = {"Haltwise": partial(LearnedOptimizer, weights=weights)}
        if bfloat16:
            ways["bfloat16 state"] = partial(ways["Haltwise"], state_dtype=torch.bfloat16)
        if not only:
            ways |= baselines()
        for way, make in ways.items():
            results = [train(name, make, seed, wanted, data) for seed in range(seeds)]
            line = [f"{name:12} {way:14}"]
            for step in wanted:
                at = torch.tensor([result["at"][step] for result in results])
                line.append(f"{step}: {at.median():9.4g} (worst {at.max():9.4g})")
                if way == "Haltwise":
                    runs[step] += seeds
                    above_start[step] += sum(r["at"][step] > r["start"] for r in results)
                    above_best[step] += sum(
                        r["at"][step] > 1.05 * r["best_at"][step] for r in results
                    )
            if way == "Haltwise":
                line.append(f"stops {[result['stopped'] for result in results]}")
            print("  ".join(line), flush=True)
        if not only:
            rates = tuned_rate(name, wanted, data)
            line = [f"{name:12} {'tuned Adam':14}"]
            for step, rate in rates.items():
                make = partial(torch.optim.Adam, lr=rate)
                results = [train(name, make, seed, [step], data) for seed in range(seeds)]
                at = torch.tensor([result["at"][step] for result in results])
                line.append(f"{step}: {at.median():9.4g} (rate {rate:g})")
            print("  ".join(line), flush=True)
    for step in wanted:
        print(
            f"of {runs[step]} endings at {step} steps {above_start[step]} lie above the start, "
            f"{above_best[step]} above 1.05 x the best"
        )


if __name__ == "__main__":
    main()
