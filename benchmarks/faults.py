"""Kill, starve, damage and fuzz Haltwise, and count what is lost: nothing may be.

`make faults` runs it in full; `tests/test_faults.py` runs a little of each part. One warmed-up
process is forked for every case, so a case costs a fraction of a second. A case counts as

- lost, if a run cannot go on, goes on from before its last whole checkpoint, or shows a traceback;
- differing, if its weights, card, Adam moments or log differ from those of an undisturbed run.
"""

import contextlib
import ctypes
import errno
import gzip
import importlib.util
import io
import itertools
import json
import lzma
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, final

import click
import hypothesis
import numpy as np
import safetensors.torch
import torch
from click.testing import CliRunner
from hypothesis import strategies as st

from haltwise.models import loading
from haltwise import InputError
from haltwise._core.errors import CheckpointWarning
from haltwise._core.files import digest, load_tensors
from haltwise.cli.stopping_report import stopping_report
from haltwise.datasets.files import CIFAR_RECORD, read_cifar, read_cifar_tar, read_idx
from haltwise.training.run.log import read_log
from haltwise.training import Trainer, TrainingConfig
from haltwise.training.run.directory import RunDirectory

EXPECTED = (InputError, MemoryError, OSError)  # what the command line shows as one sentence
CONFIG = TrainingConfig.from_preset(
    "act",
    "regression-2d",
    num_meta_steps=8,
    batch_size=8,
    horizon=6,
    segment=4,
    num_validation=16,
    validate_every=2,
    warmup=0.25,
    head_steps=6,
    num_recorded=24,
    head_batch_size=8,
    num_calibration=32,
)


@final
@dataclass
class Tally:
    """What a part of the harness did."""

    name: str
    cases: int = 0
    counts: dict[str, int] = field(default_factory=dict)
    lost: list[str] = field(default_factory=list)
    differing: list[str] = field(default_factory=list)

    def count(self, kind: str, number: int = 1) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + number

    def __str__(self) -> str:
        parts = [f"{number:,} {kind}" for kind, number in self.counts.items()]
        parts += [f"{len(self.lost)} lost", f"{len(self.differing)} differing"]
        return f"{self.name}: {self.cases:,} cases: {', '.join(parts)}"

    @property
    def failures(self) -> list[str]:
        return [f"{self.name}: {text}" for text in (*self.lost, *self.differing)]


# ----------------------------------------------------------------------------------- processes


def fork(work: Callable[[], None], seconds: float | None = None) -> tuple[int, str]:
    """Run `work` in a child, killed after some seconds; the wait status and what it printed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.dup2(writing, 2)
            warnings.simplefilter("ignore")
            work()
            code = 0
        except EXPECTED as error:
            os.write(2, f"haltwise: {error}".encode())
            code = 2
        except BaseException:
            os.write(2, traceback.format_exc().encode()[-3000:])
        finally:
            os._exit(code)
    os.close(writing)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)  # a zombie by then, perhaps, but ours
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read().decode(errors="replace")
    return os.waitpid(child, 0)[1], text


def is_killed(status: int) -> bool:
    """Whether a process ended by SIGKILL."""
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL


def advance(directory: Path) -> None:
    """Begin the run or go on with it, to its end."""
    begun = (directory / "config.json").exists()
    trainer = Trainer.resume(directory, config=CONFIG) if begun else Trainer(CONFIG, directory)
    for _ in trainer.run():
        pass


def events(act: Callable[[str], None]) -> None:
    """Have `act` called at every instant at which a file is half, or just, written."""
    sync, move, remove = os.fsync, os.replace, os.unlink

    def fsync(descriptor: int) -> None:
        act("torn")
        sync(descriptor)
        act("written")

    def replace(*paths: Any, **kwargs: Any) -> None:
        act("unnamed")
        move(*paths, **kwargs)
        act("renamed")

    def unlink(*paths: Any, **kwargs: Any) -> None:
        act("removing")
        remove(*paths, **kwargs)

    os.fsync, os.replace, os.unlink = fsync, replace, unlink  # type: ignore[assignment]


def tear() -> None:
    """Cut every file under way in half, as a power cut does."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            if str(entry.readlink()).endswith(".tmp"):
                os.ftruncate(int(entry.name), os.fstat(int(entry.name)).st_size // 2)


def kill_at(number: int, what: Callable[[], None]) -> Callable[[], None]:
    """`what`, by a process that kills itself at the so manyth event."""

    def work() -> None:
        left = itertools.count(number, -1)

        def act(event: str) -> None:
            if next(left) == 0:
                if event == "torn":
                    tear()
                os.kill(os.getpid(), signal.SIGKILL)

        events(act)
        what()

    return work


def state(directory: Path) -> dict[str, Any]:
    """All that a run leaves behind, but the seconds."""
    (_, path), *_ = RunDirectory(directory, 3).checkpoints()
    found: dict[str, Any] = {"log": read_log(directory)}
    for name, file in (("checkpoint", path), ("best", directory / "best.safetensors")):
        tensors, metadata = load_tensors(file)
        metadata.pop("seconds", None)
        metadata.get("best", {}).pop("seconds", None)
        found[name] = metadata
        found[f"{name} tensors"] = {
            key: (str(value.dtype), value.shape, value.flatten().view(torch.uint8).tolist())
            for key, value in tensors.items()
        }
    return found


def compare(tally: Tally, directory: Path, reference: dict[str, Any], case: str) -> None:
    """Finish the run undisturbed and compare it with the reference."""
    status, text = fork(lambda: advance(directory))
    if status != 0:
        tally.lost.append(f"{case}: {text}")
        return
    found = state(directory)
    wrong = [key for key in reference if found[key] != reference[key]]
    if wrong:
        tally.differing.append(f"{case}: {', '.join(wrong)}")


@contextlib.contextmanager
def scratch() -> Iterator[Path]:
    """A directory that every user may enter."""
    with tempfile.TemporaryDirectory(prefix="haltwise-faults-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def warm_up() -> None:
    """Import in the parent what every child would import anew; no backward pass before a fork."""
    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.zeros(1))
    weight.grad = torch.zeros(1)
    torch.optim.Adam([weight]).step()


def make_reference(root: Path) -> tuple[dict[str, Any], float, int]:
    """The undisturbed run, its seconds and its number of events."""
    warm_up()
    begin = time.perf_counter()
    status, text = fork(lambda: advance(root / "reference"))
    seconds = time.perf_counter() - begin
    assert status == 0, text
    counted = root / "events"

    def count() -> None:
        with counted.open("wb", buffering=0) as file:
            events(lambda _: None if file.closed else (file.write(b"."), None)[1])
            advance(root / "counted")

    status, text = fork(count)
    assert status == 0, text
    return state(root / "reference"), seconds, counted.stat().st_size


# --------------------------------------------------------------------------------------- kills


def kills(number: int, seed: int) -> Tally:
    """Runs killed at random instants, and in the midst of writing, some of them repeatedly."""
    tally, rng = Tally("killed runs"), random.Random(seed)
    with scratch() as root:
        reference, seconds, num_events = make_reference(root)
        done, directory = 0, root / "run"
        while done < number:
            case = f"case {tally.cases}"
            tally.cases += 1
            for _ in range(rng.choice((1, 1, 2, 3))):
                before = [step for step, _ in RunDirectory(directory, 3).checkpoints()]
                if rng.random() < 0.5:
                    at = rng.uniform(0, seconds)
                    status, text = fork(lambda: advance(directory), at)
                    kind = "at a random time"
                else:
                    event = rng.randrange(num_events)
                    status, text = fork(kill_at(event, lambda: advance(directory)))
                    kind = "while writing"
                    case += f", event {event}"
                if is_killed(status):
                    done += 1
                    tally.count(f"kills {kind}")
                elif status != 0:
                    tally.lost.append(f"{case}: {text}")
                after = [step for step, _ in RunDirectory(directory, 3).checkpoints()]
                if max(after, default=-1) < max(before, default=-1):
                    tally.lost.append(f"{case}: the last checkpoint is gone")
            compare(tally, directory, reference, case)
            shutil.rmtree(directory, ignore_errors=True)
    return tally


# ---------------------------------------------------------------------------------- full disks

_CLONE_NEWNS, _MS_PRIVATE, _MS_REC, _MS_REMOUNT = 0x20000, 1 << 18, 1 << 14, 32


def _mount(target: Path, size: int, flags: int = 0) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    found: int = libc.mount(b"tmpfs", bytes(target), b"tmpfs", flags, options)
    return found == 0


def _own_mounts() -> bool:
    """Whether this process now has mounts that nobody else sees."""
    libc = ctypes.CDLL(None, use_errno=True)
    return (
        int(libc.unshare(_CLONE_NEWNS)) == 0
        and int(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)) == 0
    )


def full_disks(number: int, seed: int) -> Tally:
    """Disks that are full at some time and get room later, and files that may not grow."""
    tally, rng = Tally("full disks"), random.Random(seed)
    with scratch() as root:
        reference, _, num_events = make_reference(root)

        def on_tmpfs() -> None:
            place = root / "disk"
            place.mkdir(exist_ok=True)
            if not (_own_mounts() and _mount(place, size)):
                os._exit(77)
            expect_refusal(place / "run")
            assert _mount(place, 2**26, _MS_REMOUNT)
            advance(place / "run")
            if state(place / "run") != reference:
                os._exit(78)

        def expect_refusal(directory: Path) -> None:
            try:
                advance(directory)
            except InputError as error:
                if "write" not in str(error) and "create" not in str(error):
                    raise AssertionError(f"unclear: {error}") from None
            else:
                os._exit(79)

        def limited() -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
            expect_refusal(root / "run")

        def patched() -> None:
            left = itertools.count(event, -1)

            def act(kind: str) -> None:
                if next(left) <= 0 and kind in ("torn", "unnamed"):
                    raise OSError(errno.ENOSPC, "No space left on device")

            events(act)
            expect_refusal(root / "run")

        for _ in range(number):
            tally.cases += 1
            size, event = rng.randrange(4096, 2**18), rng.randrange(num_events)
            kind, work = rng.choice([("tmpfs", on_tmpfs), ("limit", limited), ("patched", patched)])
            status, text = fork(work)
            code = os.waitstatus_to_exitcode(status)
            case = f"{kind} of {size} bytes, event {event}"
            if code == 78:
                tally.differing.append(case)
            elif code in (77, 79):
                tally.count("tmpfs not permitted" if code == 77 else f"{kind}: had room enough")
            elif code != 0:
                tally.lost.append(f"{case}: {text}")
            else:
                tally.count(f"{kind}: refused in a sentence, then went on")
            if kind != "tmpfs":
                compare(tally, root / "run", reference, case)
                shutil.rmtree(root / "run", ignore_errors=True)
    return tally


# --------------------------------------------------------------------------- damage and locks


def mutate(rng: random.Random, content: bytes) -> bytes:
    """Flip bits, cut, repeat, zero, insert or append."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(data) + 1)
        span = rng.randrange(1, 64)
        kind = rng.randrange(7)
        if kind <= 1 and data:
            data[at % len(data)] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del data[at:]
        elif kind == 3:
            del data[at : at + span]
        elif kind == 4:
            data[at : at + span] = bytes(len(data[at : at + span]))
        elif kind == 5:
            data[at:at] = data[at : at + span] or b"\0"
        else:
            data += rng.randbytes(span)
    return bytes(data)


def damage(number: int, seed: int) -> Tally:
    """Checkpoints, weights and configurations with flipped, missing and surplus bytes."""
    tally, rng = Tally("damaged files"), random.Random(seed)
    with scratch() as root:
        reference, _, num_events = make_reference(root)
        template, directory = root / "template", root / "run"
        fork(kill_at(2 * num_events // 3, lambda: advance(template)))
        names = [
            *(path.relative_to(template) for _, path in RunDirectory(template, 3).checkpoints()),
            Path("best.safetensors"),
            Path("config.json"),
        ]
        for _ in range(number):
            tally.cases += 1
            shutil.copytree(template, directory)
            chosen = rng.sample(names, rng.choice((1, 1, 2)))
            for name in chosen:
                content = (directory / name).read_bytes()
                (directory / name).write_bytes(mutate(rng, content))
            status, text = fork(lambda: advance(directory))
            case = f"{', '.join(map(str, chosen))}"
            code = os.waitstatus_to_exitcode(status)
            if code == 0:
                tally.count("gone on with exactly")
                found = state(directory)
                if found != reference:
                    wrong = [key for key in reference if found[key] != reference[key]]
                    tally.differing.append(f"{case}: {wrong}")
            elif code == 2:
                tally.count("refused in a sentence")
                if chosen == [names[0]] or chosen == [Path("best.safetensors")]:
                    tally.lost.append(f"{case}: {text}")
            else:
                tally.lost.append(f"{case}: {text}")
            shutil.rmtree(directory)
    return tally


def locks(number: int, seed: int) -> Tally:
    """Files and directories without permission; afterwards the run goes on as ever."""
    tally, rng = Tally("missing permissions"), random.Random(seed)
    with scratch() as root:
        reference, _, num_events = make_reference(root)
        template, directory = root / "template", root / "run"
        fork(kill_at(num_events // 2, lambda: advance(template)))

        def as_nobody() -> None:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            advance(directory)

        for _ in range(number):
            tally.cases += 1
            shutil.copytree(template, directory)
            places = [directory, *directory.rglob("*")]
            for place in places:
                if os.geteuid() == 0:
                    os.chown(place, 65534, 65534)
            place = rng.choice(places)
            mode = place.stat().st_mode
            place.chmod(rng.choice((0, 0o200, 0o400)) | (0o100 if place.is_dir() else 0))
            status, text = fork(as_nobody)
            with contextlib.suppress(FileNotFoundError):  # an old checkpoint, removed meanwhile
                place.chmod(mode)
            code = os.waitstatus_to_exitcode(status)
            tally.count({0: "gone on with", 2: "refused in a sentence"}.get(code, "tracebacks"))
            if code not in (0, 2):
                tally.lost.append(f"{place.name}: {text}")
            compare(tally, directory, reference, f"{place.name} locked")
            shutil.rmtree(directory)
    return tally


# ----------------------------------------------------------------------------------- fuzzing


def fuzz(number: int, seed: int) -> Tally:
    """Weights, configurations, IDX, CIFAR-10, NPZ and CSV files that hypothesis makes up."""
    tally = Tally("fuzzed files")
    with scratch() as root:
        judges: list[Judge] = [
            Weights(root),
            Resealed(root),
            Configurations(root),
            Idx(root),
            Cifar(root),
            Archives(root),
            Traces(root),
            Csv(root),
        ]

        def check(data: st.DataObject) -> None:
            try:
                accepted = judge.read(data)
            except EXPECTED as error:
                tally.count("refused in a sentence")
                if not str(error) or "Traceback" in str(error):
                    tally.lost.append(f"{judge.name}: {error!r}")
            except Exception:
                tally.lost.append(f"{judge.name}: {traceback.format_exc()[-1500:]}")
            else:
                tally.count("accepted")
                if not accepted:
                    tally.differing.append(f"{judge.name}: accepted wrongly")
            tally.cases += 1

        for place, judge in enumerate(judges):
            share = number // len(judges) + (place < number % len(judges))

            settings = hypothesis.settings(
                max_examples=share,
                database=None,
                deadline=None,
                phases=[hypothesis.Phase.generate],
                suppress_health_check=list(hypothesis.HealthCheck),
            )
            begun = tally.cases
            hypothesis.seed(seed + place)(settings(hypothesis.given(st.data())(check)))()
            tally.count(judge.name, tally.cases - begun)
    return tally


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """What `mutate` makes of it, or bytes out of the blue."""
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(st.binary(max_size=300))
    return mutate(random.Random(data.draw(st.integers(0, 2**64))), content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../etc/passwd", "lstm", "adam", "both", "1e9", 10**12, -1, 0, 1.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def warped(data: st.DataObject, document: Any) -> Any:
    """The JSON document with a few entries replaced, dropped or added."""
    document = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(1, 3))):
        node = document
        while isinstance(node, dict) and node:
            key = data.draw(st.sampled_from(sorted(node)))
            inner = node[key]
            if isinstance(inner, dict) and inner and data.draw(st.booleans()):
                node = inner
                continue
            action = data.draw(st.integers(0, 5))
            if action == 0:
                del node[key]
            elif action == 1:
                node[data.draw(st.text(max_size=6))] = data.draw(JSON)
            else:
                node[key] = data.draw(JSON)
            break
    return document


class Judge(Protocol):
    """Makes up files of one kind."""

    name: str

    def read(self, data: st.DataObject) -> bool:
        """Make one and read it; whether what was accepted deserved it."""


class Weights:
    """A weights file with a few bytes changed: accepted only if the content is the same."""

    name = "weights"

    def __init__(self, root: Path) -> None:
        self.path = root / "weights.safetensors"
        self.content = (loading._WEIGHTS / "regression-2d-thesis.safetensors").read_bytes()
        self.path.write_bytes(self.content)
        self.tensors, self.card = load_tensors(self.path)

    def read(self, data: st.DataObject) -> bool:
        self.path.write_bytes(mutated(data, self.content))
        optimizer = loading.load(self.path)
        weights = optimizer.state_dict()
        return optimizer.card == self.card and all(
            torch.equal(value, weights[name]) for name, value in self.tensors.items()
        )


class Resealed(Weights):
    """Hostile content under a right checksum: what is accepted must do its work."""

    name = "weights with a right checksum"

    def read(self, data: st.DataObject) -> bool:
        card, tensors = self.card, dict(self.tensors)
        if data.draw(st.booleans()):
            card = warped(data, card)
        else:
            name = data.draw(st.sampled_from(sorted(tensors)))
            change = data.draw(st.integers(0, 6))
            value = tensors[name]
            if change == 0:
                del tensors[name]
            elif change == 1:
                tensors[data.draw(st.text(min_size=1, max_size=9))] = value.clone()
            else:
                tensors[name] = (
                    value.double(),
                    value.half(),
                    value.unsqueeze(0).contiguous(),
                    value.flatten()[:1].clone(),
                    torch.full_like(value, float("nan")),
                )[change - 2]
        document = json.dumps(card)
        header = {"haltwise": document, "blake2b": digest(tensors, document)}
        self.path.write_bytes(safetensors.torch.save(tensors, header))
        optimizer = loading.load(self.path)
        params = torch.ones(3, 2)
        step = optimizer.step(
            0, torch.ones(3), params, torch.full((3,), 0.05), optimizer.init(params)
        )
        with contextlib.suppress(KeyError):  # a card may say nothing of halting
            optimizer.policy()
        return bool(step.update.isfinite().all())


class Configurations:
    """A run's configuration with entries replaced: what is accepted is of the right types."""

    name = "configurations"

    def __init__(self, root: Path) -> None:
        self.path = root / "run" / "config.json"
        self.path.parent.mkdir()
        self.document = {"config": CONFIG.to_json(), "command": ""}

    def read(self, data: st.DataObject) -> bool:
        if data.draw(st.booleans()):
            content = mutated(data, json.dumps(self.document).encode())
        else:
            content = json.dumps(warped(data, self.document)).encode()
        self.path.write_bytes(content)
        document = RunDirectory.read(self.path.parent)
        config = TrainingConfig.from_json(document.get("config", {}))
        return (
            all(
                type(value) is type(getattr(CONFIG, name))
                or (isinstance(value, int) and isinstance(getattr(CONFIG, name), float))
                or name in ("rule_from", "head_from", "continuation")
                for name, value in vars(config).items()
            )
            and TrainingConfig.from_json(json.loads(json.dumps(asdict(config)))) == config
        )


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
    """Anybody's losses and stops, judged by the command."""

    name = "NPZ files"

    def __init__(self, root: Path) -> None:
        self.path = root / "t.npz"
        self.runner = CliRunner()

    @np.errstate(all="ignore")  # a cast may overflow
    def read(self, data: st.DataObject) -> bool:
        num, steps = data.draw(st.integers(0, 70)), data.draw(st.integers(0, 4))
        rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
        losses = rng.exponential(size=(num, steps + 1))
        if losses.size:
            losses.flat[rng.integers(losses.size)] = data.draw(st.floats())
        arrays: dict[str, Any] = {"losses": losses, "stops": rng.integers(0, steps + 2, num)}
        arrays = {
            name: value.astype(data.draw(st.sampled_from((value.dtype, "f4", "i8", "U3", "O"))))
            if data.draw(st.integers(0, 6)) == 0
            else value
            for name, value in arrays.items()
        }
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
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


class Csv:
    """The table of the example: accepted only if every entry is a number."""

    name = "CSV files"

    def __init__(self, root: Path) -> None:
        self.path = root / "table.csv"
        path = Path(__file__).parents[1] / "examples" / "regression_per_group.py"
        spec = importlib.util.spec_from_file_location("regression_per_group", path)
        assert spec is not None
        assert spec.loader is not None
        self.example = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(self.example)

    def read(self, data: st.DataObject) -> bool:
        rng = random.Random(data.draw(st.integers(0, 2**64)))
        lines = ["group,x,z,y"]
        for _ in range(data.draw(st.integers(0, 6))):
            numbers = ",".join(f"{rng.gauss(0, 1):.4g}" for _ in range(3))
            lines.append(f"g{rng.randrange(3)},{numbers}")
        if data.draw(st.booleans()):
            entry = data.draw(st.sampled_from(("nan", "inf", "1e400", "", "a", '"', "\0", "1,2")))
            place = rng.randrange(len(lines))
            lines[place] = lines[place].replace(rng.choice("0123456789.-,"), entry, 1)
        content = "\n".join(lines).encode()
        if data.draw(st.booleans()):
            content = mutated(data, content)
        self.path.write_bytes(content)
        table = self.example.read_table(self.path, 1.0)
        return bool(table.observed.isfinite().all()) and len(table.groups) > 0


# -------------------------------------------------------------------------------- the command


@click.command()
@click.option("--kills", "num_kills", default=240, show_default=True)
@click.option("--full-disks", "num_disks", default=60, show_default=True)
@click.option("--damaged", default=200, show_default=True)
@click.option("--locked", default=30, show_default=True)
@click.option("--fuzzed", default=2400, show_default=True)
@click.option("--seed", default=0, show_default=True)
def main(num_kills: int, num_disks: int, damaged: int, locked: int, fuzzed: int, seed: int) -> None:
    """Run every fault and count; exit code 1 if anything was lost, differs or was let in."""
    warnings.simplefilter("ignore", CheckpointWarning)
    failures = []
    for part, number in (
        (kills, num_kills),
        (full_disks, num_disks),
        (damage, damaged),
        (locks, locked),
        (fuzz, fuzzed),
    ):
        if number > 0:
            begin = time.perf_counter()
            tally = part(number, seed)
            click.echo(f"{tally} ({time.perf_counter() - begin:.0f} s)")
            failures += tally.failures
    for failure in {text.strip().splitlines()[-1]: text for text in failures}.values():
        click.echo(failure)
    sys.exit(1 if failures else 0)


if __name__ == "__main__":
    main()
