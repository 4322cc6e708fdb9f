"""Programs beside the package, loaded or run, and code that runs without assertions."""

import importlib
import importlib.util
import runpy
import sys
import tempfile
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType

import forked
from in_process import Result, haltwise

__all__ = [
    "EXPERIMENTS",
    "be_program",
    "be_program_and_its_commands",
    "program",
    "run",
    "run_optimized",
    "use_distributed",
]

EXPERIMENTS = Path(__file__).parents[1] / "experiments"


sys.path.append(str(EXPERIMENTS))  # where their programs find each other


def program(name: str, folder: Path = EXPERIMENTS) -> ModuleType:
    """Load a program as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def be_program(arguments: list[str]) -> None:
    """Be the program whose file is the first argument."""
    sys.argv = arguments
    sys.path.insert(0, str(Path(arguments[0]).parent))
    runpy.run_path(arguments[0], run_name="__main__")


def be_program_and_its_commands(arguments: list[str]) -> None:
    """Be a program, and each command of `haltwise` that it would start a process for."""

    def be_command(_: object, arguments: Sequence[str], cwd: Path) -> tuple[int, str]:
        done = haltwise(*arguments, cwd=cwd)
        return done.returncode, done.stderr

    importlib.import_module("children").Children.run = be_command
    be_program(arguments)


def run(
    name: str, *arguments: object, cwd: Path, work: Callable[[list[str]], None] = be_program
) -> Result:
    """Run a program in a process of its own."""
    file = EXPERIMENTS / f"{name}.py"
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        return forked.run(file, *arguments, cwd=cwd, folder=place, work=work)


def run_optimized(code: str, *modules: str) -> str:
    """What is printed by code that uses the library as `python -O` compiles it.

    That is in a process of its own, whose crash would show.

    Args:
        code: Uses the library.
        modules: Others to compile in this way.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        done = forked.run(code, *modules, cwd=place, folder=place, work=_be_optimized)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _be_optimized(arguments: list[str]) -> None:
    code, *modules = arguments
    rooms, get_code = {"haltwise", *modules}, SourceFileLoader.get_code

    def optimized(self: SourceFileLoader, name: str) -> CodeType | None:
        if name.partition(".")[0] not in rooms:
            return get_code(self, name)
        return compile(self.get_data(self.path), self.path, "exec", dont_inherit=True, optimize=1)

    SourceFileLoader.get_code = optimized  # type: ignore[method-assign, assignment]
    for name in [name for name in sys.modules if name.partition(".")[0] in rooms]:
        del sys.modules[name]
    exec(compile(code, "code", "exec", dont_inherit=True, optimize=1), {"__name__": "__main__"})


def use_distributed(code: str) -> str:
    """What is printed by a program that uses `spread`, a distributed tensor of three ones.

    It runs without assertions, in a process of its own that is the only one of its group.
    """
    return run_optimized(f"""
import torch, torch.distributed as dist
from torch.distributed.tensor import Replicate, distribute_tensor, init_device_mesh
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
spread = distribute_tensor(torch.ones(1, 3), init_device_mesh("cpu", (1,)), [Replicate()])
{code}
dist.destroy_process_group()
""")
