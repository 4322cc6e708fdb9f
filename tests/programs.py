"""The programs in experiments, loaded or run."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["EXPERIMENTS", "program", "run", "use_distributed"]

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


sys.path.append(str(EXPERIMENTS))  # where their programs find each other


def program(name: str) -> ModuleType:
    """Load a program as a module."""
    spec = importlib.util.spec_from_file_location(name, EXPERIMENTS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(name: str, *arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return subprocess.run(
        [sys.executable, str(EXPERIMENTS / f"{name}.py"), *map(str, arguments)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


def use_distributed(code: str) -> str:
    """What is printed by a program that uses `spread`, a distributed tensor of three ones.

    It runs under `python -O`, in a process of its own that is the only one of its group.
    """
    whole = f"""
import torch, torch.distributed as dist
from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
spread = distribute_tensor(torch.ones(1, 3), init_device_mesh("cpu", (1,)), [Replicate()])
{code}
dist.destroy_process_group()
"""
    child = subprocess.run(
        [sys.executable, "-O", "-c", whole],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert child.returncode == 0, child.stderr
    return child.stdout
