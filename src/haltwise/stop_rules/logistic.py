"""The strongest simple baseline: a logistic rule on gradient norm, loss and step."""

from dataclasses import dataclass
from typing import Self, final

import torch
from torch import Tensor

from haltwise._core.extras import extra
from haltwise._core.tensors import constants
from haltwise.processes.observation import StepObservation
from haltwise.processes.trajectory import Trajectory
from haltwise.stop_rules.base import LevelRule, Memory, quantile_grid

__all__ = ["Logistic"]


def _inputs(step: Tensor, loss: Tensor, log_grad_norm: Tensor) -> Tensor:
    """Log gradient norm, loss on a symmetric log scale, t and log(1 + t), shape [..., 4]."""
    return torch.stack((log_grad_norm, loss.asinh(), step, step.log1p()), dim=-1)


@final
@dataclass(frozen=True)
class Logistic(LevelRule):
    """Stop at the first t with weights . (log |gradient|, asinh loss, t, log(1+t)) >= threshold.

    Fitted by logistic regression to "no later step is worth its price", seen in hindsight on the
    tuning problems; the threshold is then tuned on what the stops cost.
    """

    weights: tuple[float, float, float, float]
    threshold: float

    level_setting = "threshold"

    @property
    def reasons(self) -> tuple[str, ...]:
        return (f"the logistic score of gradient, loss and step is at least {self.threshold:.4g}",)

    def statistic(self, observation: StepObservation, memory: Memory) -> tuple[Tensor, Memory]:
        step = torch.zeros_like(observation.loss) + observation.step
        inputs = _inputs(step, observation.loss, observation.known("log_grad_norm"))
        return inputs @ constants(self.weights, inputs), memory

    @classmethod
    def candidates(cls, trajectory: Trajectory, costs: Tensor) -> list[Self]:
        with extra("learn"):
            from sklearn.linear_model import LogisticRegression

        costs = costs.nan_to_num(torch.inf)  # a run that diverged is worth stopping before
        best_later = costs.flip(1).cummin(1).values.flip(1)[:, 1:]  # min over s > t
        label = (costs[:, :-1] <= best_later).flatten()
        loss, norm = trajectory.loss[:, :-1], trajectory.known("log_grad_norm")[:, :-1]
        step = torch.arange(trajectory.num_steps).to(loss).expand_as(loss)
        inputs = _inputs(step, loss, norm).flatten(0, 1).cpu().double()
        # Bounded, so that a zero gradient (log of zero) does not ruin the fit.
        inputs = inputs.clamp(-100, 100)
        label = label.cpu()  # for scikit-learn
        known = inputs.isfinite().all(1)  # nothing is learned from a run that diverged
        inputs, label = inputs[known], label[known]
        if label.all() or not label.any():
            return [cls((0.0, 0.0, 0.0, 0.0), float(not label.any()))]
        center, scale = inputs.mean(0), inputs.std(0).clamp_min(1e-12)
        model = LogisticRegression(C=1e4, max_iter=500)
        model.fit(((inputs - center) / scale).numpy(), label.numpy())
        weights = torch.from_numpy(model.coef_[0]) / scale
        scores = inputs @ weights
        return [
            cls(tuple(weights.tolist()), level)
            for level in quantile_grid(scores, 200, never="above")
        ]


STOP_RULES = {"logistic": Logistic}
