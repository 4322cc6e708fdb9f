"""The programs in experiments, loaded or run."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["EXPERIMENTS", "program", "run"]

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
