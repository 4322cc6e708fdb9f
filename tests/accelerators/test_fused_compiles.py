"""Kernels that move parameters are compiled for a GPU, for which none is needed.

The interpreter takes much that the compiler does not, and one thread after the other: there, what
is read after another thread has written it is no race.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import importlib
import re
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

DOUBLES = {"settings", "control", "partials", "update_squares", "sums"}
INTEGERS = {"first_chunk", "num_chunks", "first_tensor", "num_rows", "num_sums", "group"}
INTEGERS |= {"dim", "none"}
MOVING = "haltwise.interfaces.torch_optim.fused"
PROBLEMS = "haltwise._kernels.fused.problems"
TYPES = (
    {name: "*fp64" for name in DOUBLES}
    | {name: "i32" for name in INTEGERS}
    | {"table": "*i64", "owner": "*i32", "scale": "fp32", "gain": "fp32", "anchor": "*bf16"}
    | dict.fromkeys(("items", "counts", "best_at"), "*i64")
    | {f"{MOVING}.lstm.packed": "*fp16", "haltwise._kernels.fused.step.packed": "*fp16"}
)
COMMON = dict(GRAD_DTYPE=tl.bfloat16, PARAM_DTYPE=tl.float32, DECAYS=True, JUDGED=True)
LSTM = dict(LAST=2, LAYERS=2, H=20, UA=16, UB=4, INPUTS=4, OUTPUTS=4, RESIDENT=True, BLOCK=64)
KERNELS = {
    f"{MOVING}.mlp.align": dict(GRAD_DTYPE=tl.bfloat16, DTYPE=tl.bfloat16),
    f"{MOVING}.mlp.take_in": {},
    f"{MOVING}.mlp.advance_mlp": COMMON | dict(DTYPE=tl.bfloat16, UNITS=32, BLOCK=128),
    f"{MOVING}.lstm.advance_lstm": COMMON | LSTM | dict(WORD=8, FIRST=1),
    "haltwise._kernels.fused.step.step_rows": LSTM | dict(FIRST=0),
    f"{PROBLEMS}.direction_kernel": dict(PAIRS=6, COLUMNS=8, ROWS=16, COORDINATES=16),
    f"{PROBLEMS}.note_kernel": dict(BEST=True, PLACES=7, ROWS=16, COORDINATES=16),
}
for name, constants in KERNELS.items():
    room, own = name.rsplit(".", 1)
    kernel = getattr(importlib.import_module(room), own)
    signature = {
        each: "constexpr"
        if each in constants
        else TYPES.get(f"{room}.{each}", TYPES.get(each, "*fp32"))
        for each in kernel.arg_names
    }
    source = ASTSource(kernel, signature, constants)
    found = triton.compile(source, GPUTarget("cuda", 80, 32), {"num_warps": 4, "num_stages": 1})
    assert found.metadata.shared <= 100 * 1024, name
    print(name, len(found.asm["cubin"]))
    if own == "note_kernel":
        done = re.findall(r"ld[.]global|st[.]global|bar[.]sync", found.asm["ptx"])
        first = done.index("st.global")
        assert "ld.global" not in done[first:], done
        assert done[first - 1] == "bar.sync", done
"""


def test_kernels_that_move_parameters_compile(tmp_path: Path) -> None:
    triton = pytest.importorskip("triton")
    if "nvidia" not in triton.backends.backends:
        pytest.skip("this Triton has no compiler for NVIDIA GPUs")
    environment = os.environ | {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, env=environment, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == 7
