"""A stop rule of one's own: stop where the loss is below a level."""

from dataclasses import dataclass

from torch import Tensor

from haltwise.processes import StepObservation, Trajectory
from haltwise.stop_rules import StopRule


@dataclass(frozen=True)
class LossBelow(StopRule):
    """Stop at the first t with f(theta_t) <= level."""

    level: float = 5.0

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the loss is at most {self.level:g}",)

    def step(
        self, observation: StepObservation, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return observation.loss <= self.level, memory

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list["LossBelow"]:
        return [cls(level) for level in (0.1, 1.0, 5.0)]
