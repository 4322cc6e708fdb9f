"""The progress of a run, as its caller sees it."""

from dataclasses import dataclass
from typing import final

__all__ = ["Progress"]


@final
@dataclass(frozen=True)
class Progress:
    """The progress of a run after a meta-step.

    Attributes:
        step: Meta-steps done.
        loss: The objective on the last batch, per problem.
        price_adjusted_loss: J = excess loss at the stop + price * steps on the validation
            problems at the default price, of the last validation; NaN where no halting is learned.
        mean_halting_step: Mean charged steps of the same stops.
        mean_loss: Mean excess loss over steps 1..T on the validation problems.
        num_nonfinite: Problems left out so far because their loss or gradient was not finite.
        num_skipped: Meta-steps without an update, for the meta-gradient was not finite.
        num_rollbacks: Returns to the last good state in this phase, since training had diverged.
    """

    step: int
    loss: float
    price_adjusted_loss: float
    mean_halting_step: float
    mean_loss: float
    num_nonfinite: int
    num_skipped: int
    num_rollbacks: int
