"""A recurrent cell of variable width: each token decides how many units are computed."""

import math
from dataclasses import dataclass
from typing import NamedTuple, cast, final

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, pad
from torch.nn.utils.parametrize import type_before_parametrizations

from haltwise._core.errors import require
from haltwise.halting.posteriors import Posterior
from haltwise.nn.prices import price_of_rows

__all__ = ["LogisticPosterior", "VariableComputationCell", "VariableStep"]


@final
@dataclass(frozen=True)
class LogisticPosterior(Posterior):
    """P(d >= i) = sigmoid(sharpness (location - i)), i = 1..H, the law of a width d = 0..H.

    Raises:
        InputError: A shape is impossible, or the sharpness is not above 0.

    Examples:
        >>> law = LogisticPosterior(torch.tensor([1.5]), 2.0, 3)
        >>> law.survival()
        tensor([[1.0000, 0.7311, 0.2689, 0.0474]])
    """

    location: Tensor
    """Where survival is one half, shape [B]."""
    sharpness: float
    """How steeply it falls there, per unit."""
    num_units: int
    """H."""

    def __post_init__(self) -> None:
        require(
            self.location.ndim == 1,
            f"location must have the shape [batch], got {tuple(self.location.shape)}",
        )
        require(self.sharpness > 0, f"sharpness must be above 0, got {self.sharpness}")

    def survival(self) -> Tensor:
        """P(d >= i) for i = 0..H, shape [B, H+1]."""
        return pad(self._logits().sigmoid(), (1, 0), value=1.0)

    def ponder_steps(self) -> Tensor:
        return self.survival()[:, 1:].sum(1)

    def log_prob(self) -> Tensor:
        # With a = s (location - i): sigmoid(a) - sigmoid(a - s) is the product of both that d >= i
        # and that d < i + 1, times 1 - e^-s; at the ends one of them is certain.
        logits = self._logits()
        both = pad(logsigmoid(logits), (1, 0)) + pad(logsigmoid(-logits), (0, 1))
        inner = torch.full_like(both, math.log(-math.expm1(-self.sharpness)))
        inner[:, 0] = inner[:, -1] = 0
        return both + inner

    def _logits(self) -> Tensor:
        units = torch.arange(1, self.num_units + 1, device=self.location.device)
        return self.sharpness * (self.location.unsqueeze(1) - units)


@final
class VariableStep(NamedTuple):
    """A step of n sequences.

    Attributes:
        hidden: The state after it, shape [n, H].
        width: Units that are computed, of which an objective takes the price, shape [n]: their
            expected number, or how many were.
        posterior: The law of that number; None where it was not taken the mean over.
    """

    hidden: Tensor
    width: Tensor
    posterior: LogisticPosterior | None


@final
class VariableComputationCell(nn.Module):
    """A recurrent cell whose first d units are computed at a token (Jernite et al. 2017).

    The units that are not keep their values and are not seen by the others. What halts is the
    width: unit i is computed with the probability P(d >= i) of a logistic law around m H, where the
    share m is read from the token, the state and the price. In training the state is the mean over
    widths; `run` computes the units that are more probable than not, d = m H rounded down but at
    least 1, and no other rows.

    Args:
        cell: A tanh or gated cell of H units.
        sharpness: lambda, of the law, per unit; raise it in training from .1 or so, until the mean
            state is nearly what `run` makes.
        share: m of a new cell.
        price_input: Whether m depends on the price.

    Examples:
        >>> cell = VariableComputationCell(nn.GRUCell(4, 32))
        >>> step = cell(torch.randn(5, 4), price=0.01)
        >>> step.hidden.shape, step.width.shape
        (torch.Size([5, 32]), torch.Size([5]))
        >>> loss = step.hidden.square().mean() + 0.01 * step.width.mean()
    """

    def __init__(
        self,
        cell: nn.RNNCell | nn.GRUCell,
        *,
        sharpness: float = 0.1,
        share: float = 0.75,
        price_input: bool = True,
    ) -> None:
        super().__init__()
        require(
            isinstance(cell, nn.RNNCell | nn.GRUCell),
            f"cell must be an nn.RNNCell or nn.GRUCell, got {type(cell).__name__}",
        )
        require(0 < share < 1, f"share must lie in (0, 1), got {share}")
        self.cell, self.sharpness, self.price_input = cell, sharpness, price_input
        self.share = nn.Linear(cell.input_size + cell.hidden_size + price_input, 1)
        nn.init.zeros_(self.share.weight)
        nn.init.constant_(self.share.bias, torch.tensor(share).logit().item())

    def forward(
        self, inputs: Tensor, hidden: Tensor | None = None, *, price: float | Tensor
    ) -> VariableStep:
        """Take a step, differentiably.

        Args:
            inputs: Shape [n, D].
            hidden: Shape [n, H]; 0 if None.
            price: c, of a unit, in units of the loss; one for all or [n].
        """
        hidden = self._begin(inputs, hidden)
        law = LogisticPosterior(
            self._width(inputs, hidden, price), self.sharpness, self.cell.hidden_size
        )
        mask = law.survival()[:, 1:]
        new = self.cell(inputs, mask * hidden)
        return VariableStep(mask * new + (1 - mask) * hidden, mask.sum(1), law)

    @torch.no_grad()
    def run(
        self, inputs: Tensor, hidden: Tensor | None = None, *, price: float | Tensor
    ) -> VariableStep:
        """Take a step that computes no more rows of the weights than the widest token needs.

        A token that is no number is as wide as the cell, and disturbs no other.
        """
        hidden = self._begin(inputs, hidden)
        width = self._width(inputs, hidden, price).nan_to_num(self.cell.hidden_size)
        width = width.floor().clamp_min(1)
        most = int(width.max()) if len(width) else 1
        mask = torch.arange(1, most + 1, device=width.device) <= width.unsqueeze(1)
        before = hidden[:, :most]
        new = self._narrow(most)(inputs, before * mask)
        after = torch.where(mask, new, before)
        return VariableStep(torch.cat((after, hidden[:, most:]), 1), width, None)

    def _begin(self, inputs: Tensor, hidden: Tensor | None) -> Tensor:
        return (
            inputs.new_zeros(inputs.shape[0], self.cell.hidden_size) if hidden is None else hidden
        )

    def _width(self, inputs: Tensor, hidden: Tensor, price: float | Tensor) -> Tensor:
        """M H, shape [n]."""
        seen = [inputs, hidden]
        if self.price_input:
            seen.append(price_of_rows(price, inputs.shape[0]).log().to(inputs).unsqueeze(1))
        share: Tensor = self.share(torch.cat(seen, 1)).sigmoid().squeeze(1)
        return share * self.cell.hidden_size

    def _narrow(self, width: int) -> nn.Module:
        """The cell of the first units alone."""
        cell, num_units = self.cell, self.cell.hidden_size
        kind = cast("type[nn.RNNCell]", type_before_parametrizations(cell))
        settings = {"nonlinearity": cell.nonlinearity} if isinstance(cell, nn.RNNCell) else {}
        narrow = kind(cell.input_size, width, bias=cell.bias, device="meta", **settings)
        for name in dict(narrow.named_parameters()):  # the cell's may be computed from others
            of_gates = getattr(cell, name).unflatten(0, (-1, num_units))
            rows = of_gates[:, :width]
            if name == "weight_hh":
                rows = rows[..., :width]
            setattr(narrow, name, nn.Parameter(rows.flatten(0, 1), requires_grad=False))
        return narrow
