"""Fuzzed images and recorded losses."""

import gzip
import io
import lzma
import struct
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner
from hypothesis import strategies as st

from faults.mutations import mutated
from haltwise.cli.stopping_report import command as stopping_report
from haltwise.datasets.files import CIFAR_RECORD, read_cifar, read_cifar_tar, read_idx


class Idx:
    """Images and labels, plain, gzipped and xz: accepted only if header and size agree."""

    name = "IDX files"

    def __init__(self, root: Path) -> None:
        self.root = root

    def read(self, data: st.DataObject) -> bool:
        num_dims = data.draw(st.sampled_from((1, 3)))
        shape = data.draw(st.lists(st.integers(0, 5), min_size=num_dims, max_size=num_dims))
        content = struct.pack(f">{1 + num_dims}I", 0x0800 + num_dims, *shape)
        content += data.draw(st.binary(min_size=(size := int(np.prod(shape))), max_size=size))
        content = mutated(data, content)
        suffix = data.draw(st.sampled_from(("", ".gz", ".xz")))
        packed = content
        if suffix:
            packed = gzip.compress(content) if suffix == ".gz" else lzma.compress(content)
        if suffix and data.draw(st.booleans()):
            packed = mutated(data, packed)
        path = self.root / f"idx{suffix}"
        path.write_bytes(packed)
        found = read_idx(path, num_dims)
        plain = packed
        if suffix:
            plain = gzip.decompress(packed) if suffix == ".gz" else lzma.decompress(packed)
        magic, *sizes = struct.unpack_from(f">{1 + num_dims}I", plain)
        body = plain[4 + 4 * num_dims :]
        return (
            magic == 0x0800 + num_dims and found.shape == tuple(sizes) and found.tobytes() == body
        )


class Cifar:
    """CIFAR-10 records: accepted only if whole and with labels below ten."""

    name = "CIFAR-10 files"

    def __init__(self, root: Path) -> None:
        self.path = root / "batch.bin"

    def read(self, data: st.DataObject) -> bool:
        records = bytearray(CIFAR_RECORD * data.draw(st.integers(0, 3)))
        for at in range(0, len(records), CIFAR_RECORD):
            records[at] = data.draw(st.integers(0, 11))
        content = bytes(records)
        if data.draw(st.booleans()):
            content = mutated(data, content)
        self.path.write_bytes(content)
        found = read_cifar(self.path)
        labels = content[::CIFAR_RECORD]
        return found.tobytes() == content and len(labels) > 0 and max(labels) < 10


class Archives:
    """The tar of CIFAR-10: accepted only with every file whole."""

    name = "tar archives"

    def __init__(self, root: Path) -> None:
        self.path = root / "cifar.tar.gz"
        self.names = ("a.bin", "b.bin")
        self.record = bytes([3]) + bytes(CIFAR_RECORD - 1)

    def read(self, data: st.DataObject) -> bool:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for name in self.names[: data.draw(st.integers(1, 2))]:
                info = tarfile.TarInfo(data.draw(st.sampled_from(("", "x/", "../../"))) + name)
                info.size = len(self.record)
                kind = data.draw(
                    st.sampled_from((tarfile.REGTYPE, tarfile.REGTYPE, tarfile.SYMTYPE))
                )
                info.type, info.linkname = kind, "/etc/passwd"
                archive.addfile(info, io.BytesIO(self.record))
        content = buffer.getvalue()
        if data.draw(st.booleans()):
            content = mutated(data, content)
        packed = gzip.compress(content)
        if data.draw(st.booleans()):
            packed = mutated(data, packed)
        self.path.write_bytes(packed)
        found = read_cifar_tar(self.path, self.names)
        return len(found) == 2 and all(
            part.shape[1] == CIFAR_RECORD and part[:, 0].max() < 10 for part in found
        )


class Traces:
    """Losses and stops of other programs, judged by the command."""

    name = "NPZ files"

    def __init__(self, root: Path) -> None:
        self.path = root / "t.npz"
        self.runner = CliRunner()

    @np.errstate(all="ignore")  # a cast may overflow
    def read(self, data: st.DataObject) -> bool:
        num, steps = data.draw(st.integers(10, 70)), data.draw(st.integers(0, 4))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        losses = rng.exponential(size=(num, steps + 1))
        if losses.size:
            losses.flat[rng.integers(losses.size)] = data.draw(st.floats())
        arrays: dict[str, Any] = {"losses": losses, "stops": rng.integers(0, steps + 1, num)}
        arrays = {
            name: value.astype(data.draw(st.sampled_from((value.dtype, "f4", "i8", "U3", "O"))))
            if data.draw(st.integers(0, 6)) == 0
            else value
            for name, value in arrays.items()
        }
        buffer = io.BytesIO()
        data.draw(st.sampled_from((np.savez, np.savez_compressed)))(buffer, **arrays)
        content = buffer.getvalue()
        if data.draw(st.booleans()):
            content = mutated(data, content)
        self.path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = self.runner.invoke(stopping_report, [str(self.path), "--price", "0.05"])
        if result.exception is not None:
            raise result.exception
        return "captured" in result.output or "gain" in result.output
