"""The adaptive layer: a process, a halting head, and how the loss is coupled to the exit."""

from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from haltwise._core.discovery import lookup
from haltwise._core.errors import InputError, require
from haltwise._core.settings import got, require_flags, shown, whole_number
from haltwise.halting.methods import HaltingMethod, halting_methods
from haltwise.halting.session import Halts, SupportsPolicy
from haltwise.nn.base import (
    AdaptiveProcess,
    begin,
    mean_step_cost,
    require_kept,
    take_step,
    version_of,
)
from haltwise.nn.coupling import Coupling
from haltwise.nn.head import HaltingHead
from haltwise.nn.inputs import Inputs, count_rows, device_of
from haltwise.nn.online import OnlineHalting
from haltwise.nn.pondered import Pondered
from haltwise.nn.prices import price_of_items, price_of_rows
from haltwise.nn.runner import Executed, run_process
from haltwise.stop_rules import CostUnit, DecisionTime, StopRule

__all__ = ["AdaptiveComputation"]


@final
class AdaptiveComputation(nn.Module):
    """A part of a network in which each item takes as many steps as are worth their price.

    `forward` takes every step and is differentiable; `run` takes those that are needed. One set of
    weights serves every price, if prices are drawn in training: the halting head reads them.

    Args:
        process: What advances items, and where they may end.
        method: Halting method, a name in `haltwise.halting.halting_methods()` or one with settings.
        coupling: What the loss is taken of.
        width: Units of the halting head's hidden layer; 0 for a linear read-out.
        price_input: Whether the head reads the price.
        generator: Draws the head's initial weights; PyTorch's own if None.

    Raises:
        InputError: There is no such method or coupling, or it does not fit the process.

    Examples:
        A tanh cell that reads its input again until it need not:

        >>> from haltwise.nn import RecurrentCell
        >>> process = RecurrentCell(torch.nn.RNNCell(2 + 1, 8), max_steps=5)
        >>> layer, answer = AdaptiveComputation(process), torch.nn.Linear(8, 1)
        >>> inputs, targets = torch.randn(32, 2), torch.randn(32)
        >>> pondered = layer(inputs, price=0.01)
        >>> errors = answer(pondered.outputs).squeeze(-1) - targets.unsqueeze(-1)
        >>> errors.shape  # of every item at every exit
        torch.Size([32, 5])
        >>> pondered.objective(errors.square()).mean().backward()
        >>> layer.run(inputs, price=0.01).output.shape
        torch.Size([32, 8])
    """

    def __init__(
        self,
        process: AdaptiveProcess,
        method: str | HaltingMethod = "stick-breaking",
        coupling: str | Coupling = Coupling.EXPECTED_LOSS,
        *,
        width: int = 32,
        price_input: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        require(
            isinstance(process, AdaptiveProcess),
            f"{type(process).__name__} does not say what one step is; wrap what loops in one of "
            "haltwise.nn, such as RecurrentCell(torch.nn.GRUCell(...)), or a class of yours",
        )
        own: HaltingMethod = (
            lookup(halting_methods(), method, "halting method")()
            if isinstance(method, str)
            else method
        )
        require(
            isinstance(own, HaltingMethod),
            f"method must be the name of a halting method or one with settings, {got(own)}",
        )
        require(
            own.num_outputs > 0,
            f"{type(own).__name__} learns nothing about halting; choose another method",
        )
        require_flags(price_input=price_input)
        self.process, self.method = process, own
        self.coupling = coupling
        self.head = HaltingHead(
            own,
            process.num_features,
            whole_number("width", width, least=0),
            price_input=price_input,
            generator=generator,
        )

    @property
    def coupling(self) -> Coupling:
        """What the loss is taken of; it may be set anew, by its name, too."""
        return self._coupling

    @coupling.setter
    def coupling(self, coupling: str | Coupling) -> None:
        found, process = _coupling(coupling), self.process
        require(
            not (process.items_interact and found is Coupling.SAMPLED),
            f"the items of {type(process).__name__} see each other, so that where one ends changes "
            "the loss of others; choose the coupling 'expected-loss' or 'expected-state'",
        )
        self._coupling = found

    def forward(
        self, inputs: Inputs, price: float | Tensor, *, generator: torch.Generator | None = None
    ) -> Pondered:
        """Take every step, differentiably.

        Where items of a row see each other and are coupled by the expected state, those without
        probability left stay what they are, as in `run`.

        Args:
            inputs: Of the process, n rows along dimension 0; a tensor, or several by name.
            price: c, of a unit of cost, in units of the loss; one for all or [n].
            generator: Draws exits; PyTorch's own if None.

        Raises:
            InputError: A price is not above 0, or inputs or what the process makes of them has an
                impossible shape.
        """
        process, num_rows = self.process, count_rows(inputs)
        rows, state = price_of_rows(price, num_rows), begin(process, inputs)
        present, device = process.present(state), device_of(inputs)
        masked = process.items_interact and self.coupling is Coupling.EXPECTED_STATE
        outputs: list[Tensor] = []
        versions: list[int] = []
        halting: dict[str, list[Tensor]] = {}
        active, prices = (present if process.items_interact else None), torch.empty(0)
        for step in range(process.num_exits):
            found = take_step(
                process,
                torch.full((num_rows,), step, device=device) if process.steps_alike else step,
                state,
                active,
                num_rows,
                outputs[0] if outputs else None,
            )
            state = found.state
            for output, version in zip(outputs, versions, strict=True):
                require_kept(output, version, f"step {step} changes what an exit before it returns")
            outputs.append(found.output)
            versions.append(version_of(found.output))
            if step == 0:
                prices = price_of_items(rows, found.features)
            if step == process.num_exits - 1:
                break
            asked = self.head(found.features.flatten(0, -2), prices.flatten())
            for name, value in asked.items():
                halting.setdefault(name, []).append(value)
            if masked:
                so_far = {name: torch.stack(values, 1) for name, values in halting.items()}
                law = self.method.posterior(so_far, DecisionTime.AFTER_GRADIENT)
                active = (law.log_prob()[:, -1] > -torch.inf).view(prices.shape)
                if present is not None:
                    active = active & present
        items = prices.shape
        pondered = Pondered(
            torch.stack(outputs, len(items)),
            {name: torch.stack(values, 1).unflatten(0, items) for name, values in halting.items()},
            prices,
            process.exit_costs.detach(),  # the layer's own must not become a part of a graph
            self.method,
            self.coupling,
            generator=generator,
            present=present,
        )
        return pondered.draw() if self.coupling is Coupling.SAMPLED else pondered

    @torch.no_grad()
    def run(
        self,
        inputs: Inputs,
        price: float | Tensor,
        *,
        rule: StopRule | None = None,
        model: Halts | None = None,
        observe: Callable[[Tensor], Tensor] | None = None,
        sizes: Sequence[int] | None = None,
        generator: torch.Generator | None = None,
    ) -> Executed:
        """Take the steps that are needed: rows that have ended leave the batch.

        Batches have few sizes, for each of which a compiled step exists once; empty places repeat a
        row. In float64 the result of a row is the same to the bit in any company, as far as the
        process' own operations are for all these sizes (on CPUs matrix products are with AVX-512,
        from 4 rows on, but not with AVX2); there fewer than 8 rows take the places of 8. An item
        that is no number any more takes all steps, and disturbs no other row.

        Args:
            inputs: Of the process, n rows.
            price: As in `forward`.
            rule: When an item ends. If None, the calibrated one of the model; without a model the
                method's own, not calibrated; where exits are sampled, a draw from the posterior.
            model: What is asked in place of the layer's own head: a `haltwise.HaltingModel`. It
                reads the loss observed and, as a read-out, the features, and is asked at the price
                of a mean step, since what it learned from knows no costs of exits.
            observe: The loss that is observed of outputs [k, items..., ...], such as the entropy of
                an answer, [k, items...]; needed by a model and by rules that read the loss.
            sizes: Sizes of batches, rising. If there are more rows than the last, they take turns:
                where steps are alike, and the rule is of this package, a free place goes to the
                next row at once; else they come in batches. By default five sizes up to that of the
                whole batch.
            generator: Draws exits; PyTorch's own if None.

        Raises:
            InputError: A price is not above 0, sizes do not rise, the rule reads a loss that is not
                observed, a model was never calibrated, exits are to be drawn from a law that is
                known only at the end, or batch normalization mixes the rows.

        Warns:
            FitWarning: A model that stops by its own policy was not trained at such prices.
        """
        _require_rows_apart(self.process)
        prices = price_of_rows(price, count_rows(inputs))
        if model is not None:  # what it learned from has steps that cost one
            prices = prices * mean_step_cost(self.process.exit_costs).to(prices.device)
        calibrated: object = model if rule is None and self.coupling != Coupling.SAMPLED else None
        if isinstance(calibrated, SupportsPolicy):
            rule = calibrated.policy(CostUnit.UPDATES).rule
            calibrated.warn_of_prices(prices)
        halting = OnlineHalting(
            self.head if model is None else model,
            self.coupling,
            self.process.num_exits,
            rule,
            observe,
            generator,
        )
        return run_process(self.process, inputs, prices, halting, sizes)


def _require_rows_apart(process: AdaptiveProcess) -> None:
    """Refuse batch normalization by the rows of a batch: places that are empty would count."""
    for name, module in process.named_modules():
        if isinstance(module, _BatchNorm):
            mixes = module.training or module.running_mean is None
            require(
                not mixes,
                f"{name} of {type(process).__name__} is a {type(module).__name__} that normalizes "
                "rows by each other; call eval() before run, and let it track running statistics",
            )


def _coupling(name: str) -> Coupling:
    try:
        return Coupling(name)
    except ValueError:
        known = ", ".join(Coupling)
        raise InputError(f"coupling must be one of {known}, got {shown(name)}") from None
