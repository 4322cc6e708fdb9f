"""The optional compiled kernel; all else is declared in pyproject.toml."""

import sys

from setuptools import Extension, setup

FLAGS = [
    *("-std=c11", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    "-O2",  # as fast as -O3 on these loops, which are written out, and a quarter smaller
    "-fno-asynchronous-unwind-tables",
]

setup(
    ext_modules=[
        Extension(
            "haltwise._kernels._lstm",
            ["src/haltwise/_kernels/lstm.c"],
            depends=[
                f"src/haltwise/_kernels/{name}.h"
                for name in (
                    *("shapes", "instance", "vectors"),
                    *("lstm_impl", "head", "signals", "features"),
                )
            ],
            extra_compile_args=[] if sys.platform == "win32" else [*FLAGS, "-fvisibility=hidden"],
            extra_link_args=["-Wl,-s"] if sys.platform == "linux" else [],  # without symbols
            libraries=[] if sys.platform == "win32" else ["m"],
            optional=True,  # without a compiler the package runs on its reference in PyTorch
            py_limited_api=True,  # it is loaded by ctypes and knows nothing of Python
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},  # one wheel for all versions
)
