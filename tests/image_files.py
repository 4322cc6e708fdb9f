"""Tiny files in the real formats, written byte by byte."""

import gzip
import lzma
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


def idx_bytes(values: Bytes) -> bytes:
    shape = values.shape
    return struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape) + values.tobytes()


def cifar_bytes(images: Bytes, labels: Bytes) -> bytes:
    return b"".join(
        bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True)
    )


def write_mnist(
    folder: Path, train: tuple[Bytes, Bytes], test: tuple[Bytes, Bytes], suffix: str = ".gz"
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for prefix, (images, labels) in (("train", train), ("t10k", test)):
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx_bytes(values)
            path = folder / f"{prefix}-{kind}-ubyte{suffix}"
            path.write_bytes(gzip.compress(content) if suffix else content)


def write_cifar(folder: Path, images: Bytes, labels: Bytes, suffix: str = "") -> None:
    """Six files of equal size, the last of them the test batch."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]
    for name, part, label in zip(names, np.split(images, 6), np.split(labels, 6), strict=True):
        content = cifar_bytes(part, label)
        (folder / f"{name}{suffix}").write_bytes(lzma.compress(content) if suffix else content)
