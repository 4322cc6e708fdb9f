"""Changes of files: bytes, and entries of JSON documents."""

import json
import random
from typing import Any

from hypothesis import strategies as st


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
    | st.sampled_from(["../../etc/passwd", "lstm", "adam", "both", "1e9", 10**12, -1, 0, 1.5]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def warped(data: st.DataObject, document: Any) -> Any:
    """Draw a JSON document in which a few entries are replaced, dropped or added."""
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
