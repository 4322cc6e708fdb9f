"""The optional compiled kernel, and the page of a package index; pyproject.toml has all else.

A package index shows README.md, whose links lead to files beside it. A release is built with
HALTWISE_URL=https://... set to where these files are published, and links and figures lead there.
"""

import os
import re
import sys
from pathlib import Path

from setuptools import Extension, setup

FLAGS = [
    *("-std=c11", "-g0", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
    "-O2",  # as fast as -O3 on these loops, which are written out, and a quarter smaller
    "-fno-asynchronous-unwind-tables",
]

URL = os.environ.get("HALTWISE_URL", "").rstrip("/")
LINK = re.compile(
    r"(!?)(\[[^\]]*\]\()(?=docs/|[A-Z]+\.(?:md|cff)\))"
)  # in Markdown, to a file here


def page() -> str:
    """README.md, with links that lead somewhere from anywhere if a URL is set."""
    text = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
    kinds = {"": "blob", "!": "raw"}
    if not URL:
        return text
    return LINK.sub(lambda link: f"{link[1]}{link[2]}{URL}/{kinds[link[1]]}/main/", text)


setup(
    long_description=page(),
    long_description_content_type="text/markdown",
    project_urls={
        name: f"{URL}{path}"
        for name, path in (
            ("Source", ""),
            ("Documentation", "/blob/main/docs/index.md"),
            ("Changelog", "/blob/main/CHANGELOG.md"),
            ("Issues", "/issues"),
        )
        if URL
    },
    ext_modules=[
        Extension(
            "haltwise._kernels._lstm",
            ["src/haltwise/_kernels/lstm.c"],
            depends=[
                f"src/haltwise/_kernels/{name}.h"
                for name in (
                    *("shapes", "instance", "vectors"),
                    *("lstm_impl", "head", "signals", "features", "mlp"),
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
