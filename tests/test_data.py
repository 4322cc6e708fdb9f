"""Readers against files written byte by byte; every bad file is one sentence that names it."""

import gzip
import io
import lzma
import struct
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pooch
import pytest
import requests
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import cifar_bytes, idx_bytes, write_cifar, write_mnist

from haltwise import datasets as data
from haltwise._core.errors import InputError
from haltwise.datasets import files, store


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No data but those of the test, no network, and a cache of its own."""

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise requests.ConnectionError("no network in tests")

    monkeypatch.delenv("HALTWISE_DATA_DIR", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda name: str(tmp_path / "cache" / name))
    monkeypatch.setattr(requests.Session, "send", refuse)
    monkeypatch.setattr(requests, "get", refuse)


PIXELS = np.random.default_rng(1).integers(0, 256, (7, 28, 28), np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)


# --- Round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist_files_are_read_as_written(tmp_path: Path, suffix: str) -> None:
    write_mnist(tmp_path, (PIXELS, LABELS), (PIXELS[:2], LABELS[:2]), suffix)
    found = data.load("mnist", tmp_path)
    assert np.array_equal(found.train_images, PIXELS)
    assert np.array_equal(found.train_labels, LABELS)
    assert np.array_equal(found.test_images, PIXELS[:2])
    assert np.array_equal(found.test_labels, LABELS[:2])


@pytest.mark.parametrize("suffix", ["", ".xz"])
@pytest.mark.parametrize("folder", ["", "cifar10", "cifar10/cifar-10-batches-bin"])
def test_cifar_files_are_read_as_written(tmp_path: Path, suffix: str, folder: str) -> None:
    images = np.random.default_rng(2).integers(0, 256, (12, 3, 32, 32), np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    write_cifar(tmp_path / folder, images, labels, suffix)
    found = data.load("cifar10", tmp_path)
    assert np.array_equal(found.train_images, images[:10])
    assert np.array_equal(found.train_labels, labels[:10])
    assert np.array_equal(found.test_images, images[10:])
    assert np.array_equal(found.test_labels, labels[10:])


def test_the_order_of_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for place, value in (("cache/haltwise", 1), ("variable", 2), ("given", 3)):
        images = np.full((1, 28, 28), value, np.uint8)
        write_mnist(tmp_path / place / "mnist", (images, LABELS[:1]), (images, LABELS[:1]))
    assert data.load("mnist").train_images.max() == 1
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tmp_path / "variable"))
    assert data.load("mnist").train_images.max() == 2
    assert data.load("mnist", tmp_path / "given").train_images.max() == 3
    assert data.load("mnist", tmp_path / "given" / "mnist").train_images.max() == 3
    # Where the variable's directory holds other data alone, the cache has its turn.
    (tmp_path / "curves").mkdir()
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tmp_path / "curves"))
    assert data.load("mnist").train_images.max() == 1
    with pytest.raises(InputError, match="curves has neither train-images"):
        data.load("mnist", tmp_path / "curves")
    (tmp_path / "curves" / "t10k-labels-idx1-ubyte").touch()  # some of the files themselves
    with pytest.raises(InputError, match="curves has neither train-images"):
        data.load("mnist")
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tmp_path / "variable" / "mnist"))
    assert data.load("mnist").train_images.max() == 2


def test_digits_are_those_of_scikit_learn_split_for_good() -> None:
    found = data.load("digits")
    assert found.train_images.shape == (1437, 8, 8)
    assert found.test_images.shape == (360, 8, 8)
    assert found.white == found.train_images.max() == 16
    assert np.bincount(found.test_labels).min() >= 25  # all classes, about evenly
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    rows = np.concatenate((found.train_images, found.test_images)).reshape(1797, 64)
    both = np.column_stack((rows, np.concatenate((found.train_labels, found.test_labels))))
    expected = np.column_stack((images, labels)).astype(np.uint8)
    assert np.array_equal(np.unique(both, axis=0), np.unique(expected, axis=0))


# --- Bad files -----------------------------------------------------------------------------------

IDX_FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda content: b"", "has 0 bytes, which is less than the 16"),
    "no header": (lambda content: content[:10], "has 10 bytes, which is less than the 16"),
    "truncated": (lambda content: content[:-1], r"5487 bytes after its header, .* = 5488"),
    "too long": (
        lambda content: content + b"0",
        r"more than 5488 bytes after its header, .* = 5488",
    ),
    "no pixels": (lambda content: content[:8] + bytes(8), "holds images without pixels"),
    "wrong magic": (lambda content: b"\0\0\x09\x03" + content[4:], "found the magic number 2307"),
    "swapped": (lambda content: idx_bytes(np.arange(20, dtype=np.uint8)), "files swapped"),
    "huge": (lambda content: content[:4] + b"\xff" * 12 + content[16:], "5488 bytes after"),
}


@pytest.mark.parametrize("fault", IDX_FAULTS)
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_idx_files_are_named(tmp_path: Path, fault: str, suffix: str) -> None:
    change, message = IDX_FAULTS[fault]
    path = tmp_path / f"train-images-idx3-ubyte{suffix}"
    content = change(idx_bytes(PIXELS))
    path.write_bytes(gzip.compress(content) if suffix else content)
    with pytest.raises(InputError, match=message) as caught:
        files.read_idx(path, 3)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("cut", [0, 5, 100, -1])
def test_a_truncated_archive_is_named(tmp_path: Path, suffix: str, cut: int) -> None:
    path = tmp_path / f"file{suffix}"
    whole = (gzip if suffix == ".gz" else lzma).compress(PIXELS.tobytes())
    path.write_bytes(whole[:cut])
    if suffix == ".gz" and cut == 0:
        assert files.read_bytes(path) == b""  # an empty gzip file is one of no members
        return
    with pytest.raises(InputError, match="truncated or corrupt") as caught:
        files.read_bytes(path)
    assert str(path) in str(caught.value)


def test_labels_out_of_range_and_counts_that_differ_are_named(tmp_path: Path) -> None:
    wrong = LABELS.copy()
    wrong[3] = 10
    write_mnist(tmp_path / "a", (PIXELS, wrong), (PIXELS, LABELS))
    with pytest.raises(InputError, match=r"train-labels.* holds the label 10, expected 0 to 9"):
        data.load("mnist", tmp_path / "a")
    write_mnist(tmp_path / "b", (PIXELS, LABELS), (PIXELS, LABELS[:-1]))
    with pytest.raises(InputError, match=r"t10k-images.* holds 7 images and .* 6 labels"):
        data.load("mnist", tmp_path / "b")
    write_mnist(tmp_path / "c", (PIXELS[:0], LABELS[:0]), (PIXELS, LABELS))
    with pytest.raises(InputError, match=r"train-labels.* holds no example"):
        data.load("mnist", tmp_path / "c")


@pytest.mark.parametrize("size", [0, 1, 3072, 3074])
def test_a_wrong_record_size_is_named(tmp_path: Path, size: int) -> None:
    path = tmp_path / "test_batch.bin"
    path.write_bytes(bytes(size))
    with pytest.raises(InputError, match=f"test_batch.bin has {size} bytes, expected a multiple"):
        files.read_cifar(path)


def test_a_wrong_cifar_label_is_named(tmp_path: Path) -> None:
    path = tmp_path / "test_batch.bin"
    images, labels = np.zeros((2, 3, 32, 32), np.uint8), np.array([1, 10], np.uint8)
    path.write_bytes(cifar_bytes(images, labels))
    with pytest.raises(InputError, match=r"test_batch.bin holds the label 10, expected 0 to 9"):
        files.read_cifar(path)


@given(content=st.binary(max_size=64), num_dims=st.sampled_from([1, 3]))
@settings(max_examples=200, deadline=None)
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, num_dims: int
) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("plain", "file.gz", "file.xz"):
        (folder / name).write_bytes(content)
        for read in (lambda path: files.read_idx(path, num_dims), files.read_cifar):
            with pytest.raises(InputError, match=name):
                read(folder / name)
    head = struct.pack(">2I", 2049, len(content))
    (folder / "labels").write_bytes(head + content)
    assert files.read_idx(folder / "labels", 1).tobytes() == content


def zeros(path: Path, content: bytes, size: int) -> None:
    """Write content and `size` bytes of zeros, which nearly vanish where the name asks for it."""
    packed = content + bytes(size)
    if path.suffix == ".gz":
        packed = gzip.compress(packed, 1)
    elif path.suffix == ".xz":
        packed = lzma.compress(packed, preset=0)
    path.write_bytes(packed)


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
@pytest.mark.parametrize("num", [10, 42_000])
def test_what_would_fill_the_memory_is_refused(
    suffix: str, num: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the header announces it or not; plainly, such a file is read."""
    monkeypatch.setattr("haltwise._core.files._ROOM", 2**22)
    path = tmp_path / f"images{suffix}"
    zeros(path, struct.pack(">4I", 2051, num, 28, 28), 42_000 * 28 * 28)
    message = (
        "too many for so small a" if num == 42_000 else "more than 7840 bytes after its header"
    )
    reads: list[tuple[Callable[[], object], str]] = [
        (lambda: files.read_idx(path, 3), message),
        (lambda: files.read_cifar(path), "too many for so small a"),
    ]
    for read, sentence in reads:
        tracemalloc.start()
        with pytest.raises(InputError, match=sentence):
            read()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 2**23
    zeros(tmp_path / "plain", struct.pack(">4I", 2051, 42_000, 28, 28), 42_000 * 28 * 28)
    assert files.read_idx(tmp_path / "plain", 3).shape == (42_000, 28, 28)


def test_an_xz_file_may_not_ask_for_gigabytes_before_a_byte(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1.bin.xz"
    filters = [{"id": lzma.FILTER_LZMA2, "dict_size": 2**28}]
    path.write_bytes(lzma.compress(bytes(9), filters=filters))
    with pytest.raises(InputError, match="Memory usage limit exceeded"):
        files.read_cifar(path)


def member(kind: bytes = tarfile.REGTYPE, name: str = "a.bin", size: int = 2**28) -> bytes:
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (member(), "truncated or corrupt"),
        (member(tarfile.GNUTYPE_LONGNAME), "asks for more than"),
        (member(tarfile.XHDTYPE), "asks for more than"),
        (member(tarfile.GNUTYPE_SPARSE, size=0), "lacks a.bin"),
        (member(name="b", size=0) * 1000 + member(size=0), "lacks a.bin"),
        (gzip.compress(member(size=0), mtime=0), "truncated or corrupt"),
    ],
)
def test_archives_that_would_fill_the_memory_are_refused(
    content: bytes, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / "cifar.tar.gz"
    zeros(path, content, 2**20)
    with pytest.raises(InputError, match=sentence):
        files.read_cifar_tar(path, ["a.bin"])


# --- Missing files and downloads -----------------------------------------------------------------


def test_no_data_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        InputError, match=r"no mnist data; name a directory .*HALTWISE_DATA_DIR.*download\('mnist'"
    ):
        data.load("mnist")
    with pytest.raises(InputError, match=r"no data directory .*/missing; name a directory"):
        data.load("cifar10", tmp_path / "missing")
    with pytest.raises(InputError, match=r"neither data_batch_1.bin nor data_batch_1.bin.xz"):
        data.load("cifar10", tmp_path)
    with pytest.raises(InputError, match="unknown data set 'svhn'"):
        data.load("svhn")


@pytest.mark.filterwarnings("ignore::urllib3.exceptions.HTTPWarning")
def test_no_network_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot download train-images.*no network") as caught:
        data.download("mnist")
    assert "HALTWISE_DATA_DIR" in str(caught.value)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    with pytest.raises(InputError, match="no download of 'digits'"):
        data.download("digits")


def serve(monkeypatch: pytest.MonkeyPatch, contents: dict[str, bytes]) -> None:
    """Answer downloads from memory: pooch still writes, checks and renames."""

    class Server:
        def __init__(self, **kwargs: Any) -> None:
            pass

        def __call__(self, url: str, output_file: str, pooch: object, **kwargs: Any) -> None:
            name = url.rsplit("/", 1)[1]
            if name not in contents:
                raise requests.HTTPError(f"404 {url}")
            Path(output_file).write_bytes(contents[name])

    monkeypatch.setattr(pooch.core, "choose_downloader", lambda *args, **kwargs: Server())


def test_a_partial_or_wrong_download_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, {"train-images-idx3-ubyte.gz": b"half of it"})
    with pytest.raises(InputError, match="checksum md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"):
        data.download("mnist")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


@pytest.mark.parametrize("cut", [0, 50, 3000, -200])
def test_a_truncated_tar_is_named(tmp_path: Path, cut: int) -> None:
    content = tar_of_cifar(tmp_path)
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(content[:cut])
    with pytest.raises(InputError, match=r"binary.tar.gz is truncated or corrupt"):
        data.load("cifar10", tmp_path)


def test_a_tar_without_a_batch_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz"):
        pass
    with pytest.raises(InputError, match=r"binary.tar.gz lacks data_batch_1.bin, .*test_batch"):
        data.load("cifar10", tmp_path)


def tar_of_cifar(folder: Path) -> bytes:
    images = np.random.default_rng(1).integers(0, 256, (12, 3, 32, 32), np.uint8)
    write_cifar(folder / "served" / "cifar-10-batches-bin", images, np.zeros(12, np.uint8))
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        tar.add(folder / "served" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    return archive.getvalue()


def test_a_download_is_found_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = tar_of_cifar(tmp_path)
    path = tmp_path / "served.tar.gz"
    path.write_bytes(content)
    name, checksum = "cifar-10-binary.tar.gz", pooch.file_hash(str(path), "md5")
    whole = store._REMOTE["cifar10"]._replace(checksums={name: checksum})
    monkeypatch.setattr(store, "_REMOTE", {"cifar10": whole})
    serve(monkeypatch, {name: content})
    folder = data.download("cifar10")
    assert folder == tmp_path / "cache" / "haltwise" / "cifar10"
    assert len(data.load("cifar10").train_images) == 10
