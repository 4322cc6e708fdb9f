"""`haltwise info`: what runs here, for a look and for bug reports."""

import platform

import click
import torch

from haltwise import _kernels
from haltwise._core.version import __version__
from haltwise._kernels import fused
from haltwise.datasets import DIRECTORY_VARIABLE, default_directory

__all__ = ["command"]


@click.command("info")
def command() -> None:
    """Say which versions, kernel, threads and devices are in use."""
    on_gpus = (
        fused.implementation(torch.device("cuda", 0))
        if torch.cuda.is_available()
        else "no GPU is available to PyTorch"
    )
    rows = {
        "haltwise": __version__,
        "python": f"{platform.python_version()} on {platform.system()} {platform.machine()}",
        "torch": torch.__version__,
        "LSTM, MLP on CPUs": _kernels.implementation(),
        "LSTM, MLP on GPUs": on_gpus,
        "CPU threads": str(torch.get_num_threads()),
        "CUDA": ", ".join(
            torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())
        )
        or "none",
        "data": str(default_directory() or f"not set ({DIRECTORY_VARIABLE})"),
    }
    width = max(map(len, rows))
    for name, value in rows.items():
        click.echo(f"{name:<{width}}  {value}")
