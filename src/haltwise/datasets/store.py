"""Where data sets are stored, and how to get them."""

import functools
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray

from haltwise._core.errors import InputError, require
from haltwise._core.extras import extra
from haltwise.datasets.files import read_cifar, read_cifar_tar, read_idx, require_labels

__all__ = ["DIRECTORY_VARIABLE", "ImageData", "default_directory", "download", "load"]

DIRECTORY_VARIABLE = "HALTWISE_DATA_DIR"
"""The environment variable that names the default directory."""


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


class _Remote(NamedTuple):
    """Files to be downloaded: mirrors in the order in which they are tried, and MD5 checksums."""

    mirrors: tuple[str, ...]
    checksums: dict[str, str]


_CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"

_REMOTE = {
    "mnist": _Remote(
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "https://storage.googleapis.com/cvdf-datasets/mnist/",
        ),
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "cifar10": _Remote(
        ("https://www.cs.toronto.edu/~kriz/",),
        {_CIFAR_ARCHIVE: "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
}
_CIFAR_FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")


_PATTERNS = {
    "mnist": ("*-idx[13]-ubyte*",),
    "cifar10": ("*_batch*.bin*", "cifar-10-b*"),
}


def load(name: str, directory: Path | str | None = None) -> ImageData:
    """Read the data set `name` from scikit-learn, a directory or an earlier download.

    Args:
        name: "digits", "mnist" or "cifar10".
        directory: Holds a folder `name`, or the files themselves, plain or compressed; other images
            in files named as those of MNIST will do. By default `default_directory()`, then the
            cache that `download` writes to.

    Returns:
        The data, read once per process.

    Raises:
        InputError: There is no such data set, or a file is missing or bad.
    """
    if name == "digits":
        return _load_digits()
    folder = _find(name, directory)
    return _load_cifar(folder) if name == "cifar10" else _load_mnist(folder)


def default_directory() -> Path | None:
    """Look up the directory that holds `mnist/` and `cifar10/` in `HALTWISE_DATA_DIR`."""
    directory = os.environ.get(DIRECTORY_VARIABLE)
    return Path(directory) if directory else None


def download(name: str) -> Path:
    """Fetch "mnist" or "cifar10" into the user's cache directory, which is returned.

    A file is kept only if it is whole and its checksum is right.

    Raises:
        InputError: No mirror could be reached, or a checksum is wrong, or pooch is not installed.
    """
    require(name in _REMOTE, f"there is no download of {name!r}, expected one of {list(_REMOTE)}")
    cache = _cache_directory()
    if cache is None:
        raise InputError("downloading needs pooch: install haltwise[data]")
    import pooch

    mirrors, checksums = _REMOTE[name]
    for file, checksum in checksums.items():
        faults = []
        for mirror in mirrors:
            try:  # pooch writes under a temporary name and renames what has the right checksum
                pooch.retrieve(mirror + file, f"md5:{checksum}", file, cache / name)
                break
            except (OSError, ValueError) as error:  # no network; another checksum
                faults.append(f"{mirror}{file}: {error}")
        else:
            raise InputError(
                f"cannot download {file} with checksum md5:{checksum} ({'; '.join(faults)}); get "
                f"it by other means and set {DIRECTORY_VARIABLE} to the directory that holds "
                f"{name}/"
            )
    return cache / name


def _cache_directory() -> Path | None:
    """Return the user's cache directory; None without pooch, which knows the platform's."""
    try:
        import pooch
    except ModuleNotFoundError:
        return None
    return Path(pooch.os_cache("haltwise"))


def _find(name: str, directory: Path | str | None) -> Path:
    require(name in _REMOTE, f"unknown data set {name!r}, expected digits, mnist or cifar10")
    cache = _cache_directory()
    cached = cache / name if cache is not None and (cache / name).is_dir() else None
    named = directory or default_directory()
    if named:
        folder = Path(named).absolute()
        require(folder.is_dir(), f"there is no data directory {folder}; {_ways_out(name)}")
        folder = folder / name if (folder / name).is_dir() else folder
        # That of the variable may hold other data, such as recorded runs alone.
        if directory or cached is None or _holds(folder, name):
            return folder
    if cached is not None:
        return cached
    raise InputError(f"there is no {name} data; {_ways_out(name)}")


def _holds(folder: Path, name: str) -> bool:
    """Whether a folder has a file of a data set, plain, compressed or in an archive."""
    return any(True for pattern in _PATTERNS[name] for _ in folder.glob(pattern))


def _ways_out(name: str) -> str:
    return (
        f"name a directory that holds {name}/ by --data-dir, data_dir or {DIRECTORY_VARIABLE}, or "
        f"fetch the data once with haltwise.datasets.download({name!r}) (needs haltwise[data] and "
        "a network)"
    )


def _file(folder: Path, name: str, suffix: str, data_set: str) -> Path:
    """Find `name` in `folder`, with or without the suffix."""
    for path in (folder / name, folder / f"{name}{suffix}"):
        if path.is_file():
            return path
    raise InputError(
        f"{folder} has neither {name} nor {name}{suffix}, expected for {data_set}; "
        f"{_ways_out(data_set)}"
    )


@functools.lru_cache(maxsize=4)
def _load_mnist(folder: Path) -> ImageData:
    splits: list[NDArray[np.uint8]] = []
    for prefix in ("train", "t10k"):
        image_path, label_path = (
            _file(folder, f"{prefix}-{kind}-ubyte", ".gz", "mnist")
            for kind in ("images-idx3", "labels-idx1")
        )
        images, labels = read_idx(image_path, 3), read_idx(label_path, 1)
        require(
            len(images) == len(labels),
            f"{image_path} holds {len(images)} images and {label_path} {len(labels)} labels, "
            "expected equal numbers",
        )
        require_labels(label_path, labels)
        splits += [images, labels]
    train_images, train_labels, test_images, test_labels = splits
    return ImageData(train_images, train_labels, test_images, test_labels)


@functools.lru_cache(maxsize=2)
def _load_cifar(folder: Path) -> ImageData:
    if not any((folder / f"{_CIFAR_FILES[0]}{suffix}").is_file() for suffix in ("", ".xz")):
        unpacked = folder / "cifar-10-batches-bin"  # as in the original archive
        folder = unpacked if unpacked.is_dir() else folder
    archive = folder / _CIFAR_ARCHIVE
    if archive.is_file():
        *train, test = read_cifar_tar(archive, _CIFAR_FILES)
    else:
        paths = [_file(folder, name, ".xz", "cifar10") for name in _CIFAR_FILES]
        with ThreadPoolExecutor() as pool:  # decompression takes seconds
            *train, test = pool.map(read_cifar, paths)
    records = np.concatenate(train)
    images = [part[:, 1:].reshape(-1, 3, 32, 32) for part in (records, test)]
    return ImageData(images[0], records[:, 0], images[1], test[:, 0])


@functools.lru_cache(maxsize=1)
def _load_digits() -> ImageData:
    with extra("learn"):
        from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = images.reshape(-1, 8, 8).astype(np.uint8), labels.astype(np.uint8)
    # The order follows the writers and the classes, so a split needs a fixed shuffle.
    order = np.random.RandomState(0).permutation(len(images))
    train, test = order[:1437], order[1437:]
    return ImageData(images[train], labels[train], images[test], labels[test], white=16)
