"""Epochs of stochastic gradient descent: small networks on handwritten digits."""

from dataclasses import dataclass
from typing import ClassVar, final

import numpy as np

from haltwise._core.extras import extra
from haltwise.bench.domain import Domain, Question, Sample
from haltwise.curves.curves import Curves, Floats, Integers

__all__ = ["DigitsDomain"]

_EPOCHS = 40
_PROBLEMS = 16
_ROWS, _BATCH = 400, 40


@final
@dataclass(frozen=True)
class DigitsDomain(Domain):
    """SGD with momentum on scikit-learn's digits, rates and widths drawn at random.

    A group is a choice of digits with a share of wrong labels. To give up, the target is the median
    final loss of the runs of a group: will it be one of the better half?
    """

    title: ClassVar[str] = "epochs of SGD on digits"
    is_made: ClassVar[bool] = True
    questions: ClassVar[tuple[Question, ...]] = (Question.STOP, Question.GIVE_UP)
    scored: ClassVar[str | None] = "test_loss"

    def curves(self, sample: Sample) -> Curves:
        with extra("learn"):
            from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        groups = [f"digits {i % _PROBLEMS}" for i in range(sample.num_runs)]
        root = np.random.SeedSequence([sample.seed, 5])
        laws = [_draw_law(np.random.default_rng(seed)) for seed in root.spawn(_PROBLEMS)]
        runs = [
            _train(images / 16, labels, *laws[i % _PROBLEMS], np.random.default_rng(seed))
            for i, seed in enumerate(root.spawn(sample.num_runs))
        ]
        return Curves.from_runs(
            runs, metric="valid_loss", group=groups, task=groups, budget=_EPOCHS,
            cost_unit="epochs",
        ).targets_among_peers()  # fmt: skip


def _draw_law(generator: np.random.Generator) -> tuple[Integers, float]:
    """The digits to tell apart, and the share of wrong labels."""
    digits = generator.choice(10, int(generator.integers(3, 10)), replace=False)
    return digits, float(generator.uniform(0, 0.3))


def _train(
    images: Floats, labels: Integers, digits: Integers, wrong: float, generator: np.random.Generator
) -> dict[str, Floats]:
    """Log losses after each epoch of a network with one hidden layer."""
    rows = generator.permutation(np.flatnonzero(np.isin(labels, digits)))
    order = np.argsort(digits)
    answers = order[np.searchsorted(digits, labels[rows], sorter=order)]
    num = min(_ROWS, len(rows) // 2)
    noisy = generator.random(num + (len(rows) - num) // 2) < wrong
    answers[: len(noisy)][noisy] = generator.integers(len(digits), size=int(noisy.sum()))
    parts = np.split(np.arange(len(rows)), (num, len(noisy)))
    x = np.hstack((images[rows], np.ones((len(rows), 1))))
    width = int(2 ** generator.uniform(3, 7))
    rate = float(10 ** generator.uniform(-2.5, 0.8))
    momentum = float(generator.choice([0.0, 0.9]))
    first = generator.normal(size=(x.shape[1], width)) * np.sqrt(2 / x.shape[1])
    second = generator.normal(size=(width, len(digits))) * np.sqrt(1 / width)
    speeds = [np.zeros_like(first), np.zeros_like(second)]
    losses = []
    with np.errstate(over="ignore", invalid="ignore"):
        for epoch in range(_EPOCHS + 1):
            hidden = np.maximum(x @ first, 0)
            each = _log_loss(hidden @ second, answers)
            losses.append([each[part].mean() for part in parts])
            if epoch == _EPOCHS or not np.isfinite(losses[-1]).all():
                break
            for batch in np.split(generator.permutation(num), range(_BATCH, num, _BATCH)):
                hidden = np.maximum(x[batch] @ first, 0)
                pull = _chances(hidden @ second)
                pull[np.arange(len(batch)), answers[batch]] -= 1
                pull /= len(batch)
                back = (pull @ second.T) * (hidden > 0)
                speeds[0] = momentum * speeds[0] - rate * (x[batch].T @ back)
                speeds[1] = momentum * speeds[1] - rate * (hidden.T @ pull)
                first, second = first + speeds[0], second + speeds[1]
    # What diverged is not trained further, but its epochs would have been paid for.
    table = np.full((_EPOCHS + 1, 3), np.inf)
    table[: len(losses)] = np.nan_to_num(losses, nan=np.inf)
    train, valid, test = table.T
    cost = np.arange(_EPOCHS + 1.0)
    return {"cost": cost, "train_loss": train, "valid_loss": valid, "test_loss": test}


def _chances(logits: Floats) -> Floats:
    odds = np.exp(logits - logits.max(1, keepdims=True))
    chances: Floats = odds / odds.sum(1, keepdims=True)
    return chances


def _log_loss(logits: Floats, answers: Integers) -> Floats:
    top = logits.max(1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(1))
    loss: Floats = total - logits[np.arange(len(answers)), answers]
    return loss


DOMAINS = {"digits": DigitsDomain()}
