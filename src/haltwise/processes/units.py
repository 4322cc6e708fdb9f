"""Units: the same problem with parameters and losses measured otherwise is the same problem."""

from typing import NamedTuple

from torch import Tensor

__all__ = ["Units"]


class Units(NamedTuple):
    """The units in which a learned rule and a halting model see B problems.

    A rule that was meta-trained on problems of one scale is applied to u with theta = theta_0 +
    params * u and to the loss times `loss`: it sees the gradient times `loss * params`, and its
    update counts `params` times.

    Attributes:
        params: The size of one unit of u in parameters, shape [B, 1], or [B, D] where coordinates
            differ.
        loss: Units of the model in one unit of the loss, shape [B].
    """

    params: Tensor
    loss: Tensor

    def select(self, index: Tensor) -> "Units":
        """Those of the problems at `index`, int64 [M]."""
        return Units(self.params[index], self.loss[index])
