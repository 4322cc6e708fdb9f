"""Disks that are full, and files that may not grow."""

import ctypes
import errno
import itertools
import os
import random
import resource
import shutil
import signal
from pathlib import Path

from faults.processes import events, fork
from faults.runs import advance, compare, make_reference, scratch, state
from faults.tally import Tally
from haltwise import InputError

_CLONE_NEWNS, _MS_PRIVATE, _MS_REC, _MS_REMOUNT = 0x20000, 1 << 18, 1 << 14, 32


def _mount(target: Path, size: int, flags: int = 0) -> bool:
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"size={size}".encode()
    found: int = libc.mount(b"tmpfs", bytes(target), b"tmpfs", flags, options)
    return found == 0


def _own_mounts() -> bool:
    """Give this process mounts of its own; return whether that is permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    return (
        int(libc.unshare(_CLONE_NEWNS)) == 0
        and int(libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None)) == 0
    )


def full_disks(number: int, seed: int) -> Tally:
    """Fill the disk at some time, expect a refusal, make room and finish the run."""
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
            status, text, _ = fork(work)
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
