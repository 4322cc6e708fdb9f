"""Which kernels the environment asks for."""

import os

from haltwise._core.errors import require
from haltwise._core.settings import shown

__all__ = ["KERNEL_VARIABLE", "kernel_setting"]

KERNEL_VARIABLE = "HALTWISE_KERNEL"


def kernel_setting() -> str:
    """What `HALTWISE_KERNEL` says: "plain", "triton", or an empty text where it is not set.

    Raises:
        InputError: It has another value.

    Examples:
        >>> kernel_setting() in ("", "plain", "triton")
        True
    """
    given = os.environ.get(KERNEL_VARIABLE, "")
    setting = given.strip().lower()
    require(
        setting in ("", "plain", "triton"),
        f"{KERNEL_VARIABLE} is {shown(given)}; set it to 'plain', for PyTorch's operations alone, "
        "or to 'triton', for Triton's kernels on a CPU in its interpreter, or leave it unset",
    )
    return setting
