"""Changes of files: bytes, and entries of JSON documents."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from hypothesis import strategies as st
from safetensors.torch import save
from torch import Tensor

from haltwise._core.files import digest, load_tensors


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


def mutated(data: st.DataObject, content: bytes) -> bytes:
    """Draw a mutation of `content`, or other bytes altogether."""
    if data.draw(st.integers(0, 9)) == 0:
        return data.draw(st.binary(max_size=300))
    return mutate(random.Random(data.draw(st.integers(0, 2**64))), content)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**20), 10**20)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["../../etc/passwd", "lstm", "adam", "both", "1e9", 10**12, -1, 0, 1.5])
    | st.sampled_from(
        [10**400, -(2**64), "\x1b]0;mine\x07\x1b[2J", "\ud800", "[/red]", [0.5, "a"]]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def warped(data: st.DataObject, document: Any) -> Any:
    """Draw a JSON document in which a few entries are replaced, dropped or added."""
    document = json.loads(json.dumps(document))
    for _ in range(data.draw(st.integers(1, 3))):
        node = document
        while isinstance(node, (dict, list)) and node:
            keys = sorted(node) if isinstance(node, dict) else range(len(node))
            key = data.draw(st.sampled_from(keys))
            inner = node[key]
            if isinstance(inner, (dict, list)) and inner and data.draw(st.integers(0, 3)):
                node = inner
                continue
            action = data.draw(st.integers(0, 5))
            if action == 0:
                del node[key]
            elif action == 1 and isinstance(node, dict):
                node[data.draw(st.text(max_size=6))] = data.draw(JSON)
            else:
                node[key] = data.draw(JSON)
            break
    return document


def resealed(data: st.DataObject, path: Path) -> None:
    """Replace a file of tensors by hostile content, most often under a right checksum."""
    tensors, document = load_tensors(path)
    kind = data.draw(st.integers(0, 3))
    if kind == 0:
        path.write_bytes(mutated(data, path.read_bytes()))
        return
    if kind == 1:
        document = warped(data, document)
    elif kind == 2 and tensors:
        name = data.draw(st.sampled_from(sorted(tensors)))
        value = tensors.pop(name)
        changes: tuple[Callable[[], Tensor], ...] = (
            value.double,
            value.half,
            lambda: value.to(torch.complex64),
            value.bool,
            lambda: value.to(torch.float8_e4m3fn),
            lambda: value.unsqueeze(0),
            lambda: value.flatten()[:1],
            lambda: value[..., :-1] if value.dim() else value,
            lambda: torch.full_like(value, float("nan") if value.is_floating_point() else -1),
            lambda: value.new_empty(0),
        )
        change = data.draw(st.integers(-2, len(changes) - 1))
        if change == -1:
            tensors |= {name: value, data.draw(st.text(min_size=1, max_size=9)): value.clone()}
        elif change >= 0:
            tensors[name] = changes[change]().clone().contiguous()
    sealed = json.dumps(document)
    content = save(tensors, {"haltwise": sealed, "blake2b": digest(tensors, sealed)})
    if kind == 3:  # what no writer of safetensors would write
        size = int.from_bytes(content[:8], "little")
        header = warped(data, json.loads(content[8 : 8 + size]))
        for entry in header.values() if data.draw(st.booleans()) else ():
            if isinstance(entry, dict) and "dtype" in entry:
                entry["dtype"] = data.draw(st.sampled_from(("F4", "F8_E8M0", "C64", "U64", "F32")))
                break
        text = json.dumps(header).encode()
        content = len(text).to_bytes(8, "little") + text + content[8 + size :]
    path.write_bytes(content)
