"""The common form of image data sets."""

from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

__all__ = ["ImageData"]


@final
@dataclass(frozen=True, eq=False)
class ImageData:
    """Labelled images of a training and a test split, as bytes."""

    train_images: NDArray[np.uint8]
    """Shape [N, height, width] or [N, channels, height, width]."""
    train_labels: NDArray[np.uint8]
    """Shape [N]."""
    test_images: NDArray[np.uint8]
    """As `train_images`."""
    test_labels: NDArray[np.uint8]
    """As `train_labels`."""
    white: int = 255
    """The largest value a pixel can have."""
