"""The file of a user: a family of problems and an update rule, which marks that it was executed."""

from pathlib import Path

__all__ = ["BOWLS", "HEAD", "write_own"]

HEAD = """\
from dataclasses import dataclass
import torch, haltwise
from haltwise.tasks import TaskFamily, TaskBatch

"""
BOWLS = (
    HEAD
    + """
def bowl(params, center):
    return (params - center).square().sum(1)

@dataclass(frozen=True)
class Bowls(TaskFamily):
    size: int = 3

    @property
    def dim(self):
        return self.size

    def _sample(self, num_problems, generator):
        center = torch.randn(num_problems, self.size, generator=generator, dtype=torch.float64)
        return haltwise.FunctionBatch(torch.zeros_like(center), bowl, {"center": center})
"""
)
HALVED = """
import pathlib
from haltwise.update_rules import SGD, UpdateRule

@dataclass(frozen=True)
class Halved(UpdateRule):
    rate: float = 0.2

    @property
    def readout_size(self):
        return 0

    def init(self, params):
        return {}

    def update(self, grad, state):
        return SGD(self.rate / 2).update(grad, state)

pathlib.Path(__file__ + ".executed").write_text("x")
"""


def write_own(folder: Path) -> tuple[Path, Path]:
    """Write `Bowls` and `Halved` to a file; that file, and the one there once it was executed."""
    path = folder / "mine.py"
    path.write_text(BOWLS + HALVED)
    return path, Path(f"{path}.executed")
