"""Cluttered digits: one of MNIST's anywhere in an image, and pieces of others over it.

What `examples/ponder_maps.py` looks at. The more pieces, the harder.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from haltwise.datasets import load

__all__ = ["CANVAS", "MOST", "Digits", "Images", "digits", "sample"]

CANVAS, PIECE, MOST = 28, 7, 8  # pixels of an image and of a piece; pieces at most
DIGIT = 20


class Images(NamedTuple):
    """Cluttered digits.

    Attributes:
        pixels: Shape [n, 1, CANVAS, CANVAS].
        labels: Which digit it is, int64 [n].
        masks: Where it is, at half the resolution, bool [n, CANVAS / 2, CANVAS / 2].
        num_pieces: int64 [n].
    """

    pixels: Tensor
    labels: Tensor
    masks: Tensor
    num_pieces: Tensor


Digits = tuple[Tensor, Tensor]


def digits(*, held_out: bool) -> Digits:
    """The digits of MNIST without their margins, 20 x 20, and what they are."""
    data = load("mnist")
    images = data.test_images if held_out else data.train_images
    labels = data.test_labels if held_out else data.train_labels
    margin = (images.shape[-1] - DIGIT) // 2
    inner = slice(margin, margin + DIGIT)
    return torch.from_numpy(images[:, inner, inner]), torch.from_numpy(labels).long()


def sample(num: int, source: Digits, generator: torch.Generator) -> Images:
    """Draw images: a digit anywhere, and 0 to MOST pieces of others."""
    shapes, labels = source
    chosen = torch.randint(len(shapes), (num,), generator=generator)
    canvas = torch.zeros(num, CANVAS, CANVAS)
    _put(canvas, torch.arange(num), shapes[chosen], generator)
    masks = max_pool2d(canvas.unsqueeze(1), 2).squeeze(1) > 0.5
    num_pieces = torch.randint(MOST + 1, (num,), generator=generator)
    for piece in range(MOST):
        rows = (num_pieces > piece).nonzero().squeeze(1)
        others = shapes[torch.randint(len(shapes), (len(rows),), generator=generator)]
        window = _windows(torch.arange(len(rows)), DIGIT, PIECE, generator)
        _put(canvas, rows, others[window], generator)
    return Images(canvas.unsqueeze(1), labels[chosen], masks, num_pieces)


def _windows(
    rows: Tensor, size: int, side: int, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Index of a window anywhere in each of some images of a size."""
    corner = torch.randint(size - side + 1, (len(rows), 2, 1), generator=generator)
    lines = corner + torch.arange(side)
    return rows.view(-1, 1, 1), lines[:, 0].unsqueeze(2), lines[:, 1].unsqueeze(1)


def _put(canvas: Tensor, rows: Tensor, shapes: Tensor, generator: torch.Generator) -> None:
    where = _windows(rows, CANVAS, shapes.shape[-1], generator)
    canvas[where] = torch.maximum(canvas[where], shapes / 255)
