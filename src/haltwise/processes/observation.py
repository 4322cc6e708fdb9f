"""The observation of one step of a process."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

from torch import Tensor

from haltwise._core.errors import InputError

__all__ = ["NO_OUTPUTS", "Observed", "StepObservation", "known"]

Observed = Literal["loss", "updates", "gradients"]
"""What is observed of a loop: the loss alone, parameters too, or their gradients as well."""

NO_OUTPUTS: Mapping[str, Tensor] = MappingProxyType({})
"""Where no halting model has been asked."""


class StepObservation(NamedTuple):
    """The knowledge of B items at step t on which the decision to go on is based.

    A process fills in what it shows; a halting session adds what the halting model puts out. All
    but the step and the loss are optional: a stop rule that needs more says so by `known`.

    Attributes:
        step: t, the number of steps taken so far. Where steps are recorded to be run at once
            (`haltwise.rollout.step_graphs`), and the package's own rules alone are asked, it is a
            tensor [] that behaves like the number.
        loss: Observed loss at step t, shape [B].
        log_grad_norm: Natural logarithm of the root mean square gradient, shape [B].
        signals: What halting features are made of, see `haltwise.processes.signals`, shape [B, S].
        readout: What the process shows a halting model of its inner state, shape [B, R].
        outputs: What the halting model puts out by name, shapes [B, ...].
        loss_scale: Units of the signals in one unit of the loss, shape [B]; 1 if None.
        params: Where the loss was evaluated, if parameters are what moves, shape [B, D].
        grad: The gradient there, shape [B, D].
    """

    step: int
    loss: Tensor
    log_grad_norm: Tensor | None = None
    signals: Tensor | None = None
    readout: Tensor | None = None
    outputs: Mapping[str, Tensor] = NO_OUTPUTS
    loss_scale: Tensor | None = None
    params: Tensor | None = None
    grad: Tensor | None = None

    def known(self, name: str) -> Tensor:
        """The field or output `name`; raises `InputError` where it is not known."""
        return known(self, name)


def known(record: Any, name: str) -> Tensor:
    """The field or output `name` of an observation or a trajectory."""
    value = record.outputs.get(name, getattr(record, name, None))
    if not isinstance(value, Tensor):
        raise InputError(
            f"{name} is needed here, but these problems come without it; record it with the "
            "losses, or choose a rule that needs the loss alone, such as Patience"
        )
    return value
