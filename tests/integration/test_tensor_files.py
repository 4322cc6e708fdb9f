"""Files are read back as written, or refused by name; a crash leaves the old one."""

import errno
import json
import os
from pathlib import Path
from unittest import mock

import pytest
import safetensors.torch
import torch
from torch import Tensor

from haltwise import InputError, load
from haltwise._core.errors import CheckpointWarning
from haltwise._core.files import digest, load_tensors, read_json, save_tensors, write_atomically
from haltwise._core.plugins import load_object
from haltwise.training.run.directory import RunDirectory

METADATA = {"step": 3, "name": "é", "nested": {"loss": [1.5, None, True]}}


def tensors() -> dict[str, Tensor]:
    base = torch.arange(12, dtype=torch.float64).view(3, 4)
    return {
        "double": base,
        "half": base.half(),
        "brain": base.bfloat16(),
        "transposed": base.clone().T,
        "strided": base.clone()[:, ::2],
        "whole": torch.arange(5),
        "flags": base > 3,
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "learned": torch.nn.Parameter(base.float()),
    }


def names(directory: Path) -> list[str]:
    return [entry.name for entry in directory.iterdir()]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.safetensors"


def test_what_is_saved_is_loaded(path: Path) -> None:
    save_tensors(path, tensors(), METADATA)
    found, metadata = load_tensors(path)
    assert metadata == METADATA
    assert found.keys() == tensors().keys()
    for name, value in tensors().items():
        assert found[name].dtype == value.dtype
        assert torch.equal(found[name], value)
        assert not found[name].requires_grad
    assert names(path.parent) == [path.name]


def test_the_checksum_tells_types_shapes_names_and_documents_apart() -> None:
    """Of zeros, which are the same bytes in any type and shape."""
    alike = [
        ({"x": torch.zeros(4)}, "{}"),
        ({"x": torch.zeros(4, dtype=torch.int32)}, "{}"),
        ({"x": torch.zeros(2, 2)}, "{}"),
        ({"y": torch.zeros(4)}, "{}"),
        ({"x": torch.zeros(4)}, "[]"),
        ({"x": torch.zeros(2), "y": torch.zeros(2)}, "{}"),
    ]
    assert len({digest(*each) for each in alike}) == len(alike)


def test_a_file_without_its_checksum_is_refused(path: Path) -> None:
    content = safetensors.torch.save({"x": torch.ones(2)}, {"haltwise": json.dumps(METADATA)})
    path.write_bytes(content)
    with pytest.raises(InputError, match="checksum does not match"):
        load_tensors(path)


def test_tensors_that_share_memory_are_saved(path: Path) -> None:
    base = torch.arange(6.0)
    save_tensors(path, {"all": base, "same": base, "part": base[2:]}, {})
    found, _ = load_tensors(path)
    assert torch.equal(found["all"], found["same"])
    assert torch.equal(found["part"], base[2:])


def test_saving_again_replaces_the_file(path: Path) -> None:
    save_tensors(path, {"a": torch.zeros(100)}, {"step": 1})
    save_tensors(path, {"b": torch.ones(2)}, {"step": 2})
    found, metadata = load_tensors(path)
    assert found.keys() == {"b"}
    assert metadata == {"step": 2}
    assert names(path.parent) == [path.name]


# --- Reading -------------------------------------------------------------------------------------


def assert_refused(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        load_tensors(path)
    assert str(path) in str(caught.value)


def test_every_truncation_is_refused(path: Path) -> None:
    save_tensors(path, {"a": torch.arange(6.0)}, METADATA)
    content = path.read_bytes()
    for length in (*range(0, len(content), 7), len(content) - 1):
        path.write_bytes(content[:length])
        assert_refused(path)


def test_every_flipped_bit_is_refused_or_harmless(path: Path) -> None:
    written = {"a": torch.arange(6.0), "b": torch.tensor([[1, 2]])}
    save_tensors(path, written, METADATA)
    content = path.read_bytes()
    silent = []
    for position in range(len(content)):
        broken = bytearray(content)
        broken[position] ^= 1 << position % 8
        path.write_bytes(broken)
        try:
            found, metadata = load_tensors(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            continue
        same = found.keys() == written.keys() and metadata == METADATA
        if not (same and all(torch.equal(found[name], written[name]) for name in written)):
            silent.append(position)
    assert silent == []


def test_a_file_of_somebody_else_is_refused(path: Path) -> None:
    for metadata in (None, {"format": "pt"}):
        path.write_bytes(safetensors.torch.save({"a": torch.zeros(2)}, metadata))
        with pytest.raises(InputError, match="not one that haltwise wrote"):
            load_tensors(path)
        assert_refused(path)


def strange(dtype: str, size: int) -> bytes:
    """A file that safetensors knows how to read, and its PyTorch side does not."""
    entries = {"a": {"dtype": dtype, "shape": [4], "data_offsets": [0, size]}}
    header = json.dumps(entries | {"__metadata__": {"haltwise": "{}", "blake2b": "0"}}).encode()
    return len(header).to_bytes(8, "little") + header + bytes(size)


@pytest.mark.parametrize(
    ("dtype", "size"),
    [("F4", 2), ("F6_E2M3", 3), ("F6_E3M2", 3), ("F8_E8M0", 4), ("F8_E4M3", 4), ("C64", 32)],
)
def test_every_dtype_of_others_is_refused(dtype: str, size: int, path: Path) -> None:
    path.write_bytes(strange(dtype, size))
    assert_refused(path)
    checkpoints = RunDirectory(path.parent, 3)
    checkpoints.save(1, ({"a": torch.ones(1)}, {}))
    checkpoints.save(2, ({"a": torch.ones(1)}, {}))
    (_, newest), *_ = checkpoints.checkpoints()
    newest.write_bytes(strange(dtype, size))
    with pytest.warns(CheckpointWarning, match=newest.name):
        found = checkpoints.newest()
    assert found is not None
    assert found[0] == 1


@pytest.mark.parametrize("text", ["9" * 5000, "[" * 100_000, '{"a"', "3"])
def test_what_is_no_json_object_is_refused(text: str, path: Path) -> None:
    path.write_text(text)
    with pytest.raises(InputError, match="restore it from a copy"):
        read_json(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 a zip archive", b"\0" * 64])
def test_what_is_no_safetensors_file_is_refused(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    assert_refused(path)


def test_a_missing_file_is_refused(path: Path) -> None:
    for missing in (path, path.parent / "missing" / path.name):
        with pytest.raises(InputError, match=f"there is no file {missing}"):
            load_tensors(missing)


def test_a_directory_is_refused(path: Path) -> None:
    assert_refused(path.parent)


# --- Writing -------------------------------------------------------------------------------------


def assert_not_written(path: Path) -> None:
    with pytest.raises(InputError) as caught:
        save_tensors(path, tensors(), METADATA)
    assert str(path) in str(caught.value)


def test_a_missing_directory_is_refused(tmp_path: Path) -> None:
    assert_not_written(tmp_path / "missing" / "weights.safetensors")
    assert names(tmp_path) == []


def test_a_file_in_place_of_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"mine")
    assert_not_written(tmp_path / "file" / "weights.safetensors")
    assert (tmp_path / "file").read_bytes() == b"mine"


def test_a_directory_in_place_of_the_file_is_refused(path: Path) -> None:
    path.mkdir()
    assert_not_written(path)
    assert names(path.parent) == [path.name]


def test_a_name_that_is_too_long_is_refused(tmp_path: Path) -> None:
    assert_not_written(tmp_path / ("w" * 254))
    assert names(tmp_path) == []


def test_a_read_only_directory_is_refused(path: Path) -> None:
    path.parent.chmod(0o500)
    try:
        if os.access(path.parent, os.W_OK):
            pytest.skip("this user may write everywhere")
        assert_not_written(path)
    finally:
        path.parent.chmod(0o700)
    assert names(path.parent) == []


def test_a_read_only_mount_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There, to unlink is an error even where there is nothing to unlink."""
    error = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(Path, "open", mock.Mock(side_effect=error))
    monkeypatch.setattr(os, "unlink", mock.Mock(side_effect=error))
    assert_not_written(path)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()]
)
@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_crash_before_the_rename_leaves_the_old_file_alone(
    path: Path, where: str, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_tensors(path, {"a": torch.ones(2)}, METADATA)
    before = path.read_bytes()

    def crash(*_: object) -> None:
        raise error

    monkeypatch.setattr(os, where, crash)
    expected = InputError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        save_tensors(path, tensors(), METADATA)
    assert path.read_bytes() == before
    assert names(path.parent) == [path.name]


def test_content_is_on_disk_before_the_rename_and_the_rename_after_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = mock.Mock()
    calls.fsync.side_effect = os.fsync
    calls.replace.side_effect = os.replace
    monkeypatch.setattr(os, "fsync", calls.fsync)
    monkeypatch.setattr(os, "replace", calls.replace)
    write_atomically(path, b"content")
    assert [name for name, *_ in calls.mock_calls] == ["fsync", "replace", "fsync"]
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize("place", [".", "..", "", "folder", "folder/.."])
def test_a_directory_in_the_place_of_a_file_is_named(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is a directory; name a file in it"):
        write_atomically(Path(place), b"mine")
    assert names(tmp_path) == ["folder"]


def test_a_file_that_cannot_be_read_is_not_called_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions would not do, which the superuser needs none of."""

    def refuse(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    mine = tmp_path / "mine.py"
    mine.write_text("class Mine: ...")
    run = tmp_path / "run"
    run.mkdir()
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"^cannot read .*config\.json: Permission denied$"):
        read_json(tmp_path / "config.json")
    with pytest.raises(InputError, match=r"^cannot read .*mine\.py: Permission denied; correct"):
        load_object(f"{mine}:Mine", object, "class")
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(InputError, match=r"^cannot read .*run'?: Permission denied$"):
        load(run)
