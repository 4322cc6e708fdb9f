"""Fuzzed files of recorded runs."""

import gzip
import io
import json
import struct
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import strategies as st

from faults.mutations import mutated, warped
from haltwise.curves import Curves, read

_ROWS = [
    {"run": run, "step": step, "loss": 3.0 / (1 + step), "val_loss": 2.0}
    for run in ("a", "b")
    for step in range(4)
]


class RecordedCurves:
    """Files of every format: what is accepted is in order, and holds nothing but what was there."""

    name = "recorded curves"

    def __init__(self, root: Path) -> None:
        self.root = root / "curves"
        self.root.mkdir()
        self.makers: dict[str, Callable[[st.DataObject], bytes]] = {
            "t.csv": _table,
            "metrics.csv": _table,
            "t.jsonl": _lines,
            "trainer_state.json": _state,
            "t.npz": _archive,
            "events.out.tfevents.1": _events,
        }

    def read(self, data: st.DataObject) -> bool:
        name = data.draw(st.sampled_from(list(self.makers)))
        content = self.makers[name](data)
        if data.draw(st.booleans()):
            content = mutated(data, content)
        if not name.startswith("events") and data.draw(st.integers(0, 4)) == 0:
            name, content = f"{name}.gz", gzip.compress(content)
            if data.draw(st.booleans()):
                content = mutated(data, content)
        path = self.root / name
        path.write_bytes(content)
        named: dict[str, Any] = {} if data.draw(st.booleans()) else {"metric": "loss"}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _is_in_order(read(path, **named))
        finally:
            path.unlink()


def _is_in_order(curves: Curves) -> bool:
    return (
        curves.num_runs > 0
        and curves.values.dtype == np.float64
        and bool((curves.num_points > 0).all())
        and all(
            bool((np.diff(curve.cost) > 0).all() and np.isfinite(curve.cost).all())
            for curve in curves
        )
        and bool((curves.cost >= 0).all())
        and len(set(curves.name)) == curves.num_runs
    )


def _table(data: st.DataObject) -> bytes:
    cells = st.sampled_from(
        ("", "nan", "1", "-inf", "1e400", "x", '"', "1,2", "2\n3", "\0", "9" * 99)
    )
    lines = [",".join(_ROWS[0])]
    for row in _ROWS:
        entries = list(map(str, row.values()))
        if data.draw(st.integers(0, 5)) == 0:
            entries[data.draw(st.integers(0, 3))] = data.draw(cells)
        lines.append(",".join(entries))
    return "\n".join(lines).encode()


def _lines(data: st.DataObject) -> bytes:
    rows = [warped(data, dict(row)) if data.draw(st.integers(0, 5)) == 0 else row for row in _ROWS]
    return "\n".join(map(json.dumps, rows)).encode()


def _state(data: st.DataObject) -> bytes:
    state = {"max_steps": 9, "global_step": 4, "log_history": [dict(row) for row in _ROWS[:4]]}
    return json.dumps(warped(data, state)).encode()


def _archive(data: st.DataObject) -> bytes:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    arrays: dict[str, Any]
    if data.draw(st.booleans()):
        arrays = {"losses": rng.normal(size=(3, 4)), "target": rng.normal(size=3)}
        arrays["costs"] = np.cumsum(rng.normal(1, 1, size=4))
    else:
        curves = Curves.from_matrix(rng.normal(size=(2, 3)), target=0.0)
        names = ("cost", "values", "columns", "offset", "metric", "direction", "target", "budget",
                 "group", "task", "name", "cost_unit")  # fmt: skip
        arrays = {name: np.asarray(getattr(curves, name)) for name in names}
    name = data.draw(st.sampled_from(list(arrays)))
    changes = (
        lambda value: value,
        lambda value: value[:-1] if value.ndim else value,
        lambda value: value[None],
        lambda value: value.astype(str),
        lambda value: np.full_like(value, -1) if value.dtype.kind in "fi" else value,
        lambda value: np.full_like(value, np.nan) if value.dtype.kind == "f" else value,
        lambda value: value.astype(object),
        lambda value: np.zeros(0),
    )
    arrays[name] = data.draw(st.sampled_from(changes))(arrays[name])
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _events(data: st.DataObject) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    content = b""
    for _ in range(data.draw(st.integers(0, 6))):
        value = Summary.Value(tag=data.draw(st.sampled_from(("loss", "step", "", "a/b"))))
        if data.draw(st.booleans()):
            value.simple_value = data.draw(st.sampled_from((1.5, -2.0, np.nan, np.inf, 3e38)))
        else:
            value.tensor.dtype = data.draw(st.integers(0, 4))
            value.tensor.float_val.extend([1.0] * data.draw(st.integers(0, 2)))
            value.tensor.tensor_content = data.draw(st.binary(max_size=9))
        event = Event(
            wall_time=data.draw(st.floats()),
            step=data.draw(st.integers(-(2**63), 2**63 - 1) | st.integers(0, 9)),
            summary=Summary(value=[value]),
        )
        record = event.SerializeToString()
        head = struct.pack("<Q", len(record))
        content += head + struct.pack("<I", masked_crc32c(head))
        content += record + struct.pack("<I", masked_crc32c(record))
    return content
