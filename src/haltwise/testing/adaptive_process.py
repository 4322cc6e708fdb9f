"""The contract of an adaptive process as a check."""

import copy
import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from haltwise._core.errors import InputError
from haltwise._core.settings import got
from haltwise.halting.methods import halting_methods
from haltwise.nn.base import AdaptiveProcess, ItemStep, State
from haltwise.nn.coupling import Coupling
from haltwise.nn.inputs import Inputs, count_rows, select_rows
from haltwise.nn.layer import AdaptiveComputation
from haltwise.nn.pondered import Pondered
from haltwise.nn.runner import Executed
from haltwise.stop_rules import FixedBudget
from haltwise.testing.assertions import (
    close,
    expect,
    expect_alike,
    expect_instance,
    expect_items,
    expect_kinds,
    global_randomness_untouched,
    normal,
    rounding_among_others,
    seeded,
    tensors,
    unchanged,
)

__all__ = ["check_adaptive_process"]

_PRICE = 0.1
_NUM_DRAWS, _NUM_MEANS = 100, 20
_ERRORS = 5  # of a mean of 20; by Student's t a right process is refused once in 13,000 times


@global_randomness_untouched()
def check_adaptive_process(
    process: AdaptiveProcess, inputs: Inputs, *, tolerance: float | None = None
) -> None:
    """Check what `haltwise.nn.AdaptiveComputation` takes for granted of a process.

    With every halting method and coupling that fits, and a halting head of random weights:

    - State, outputs and features have the rows along dimension 0, and exits rise in cost.
    - A step that is repeated gives the same bits, and neither inputs nor states are changed in
      place. (What a step really costs, nobody can see: give `exit_costs` that are true.)
    - Rows do not see each other: a row runs alone as among others, and `run` gives what `forward`
      gives.
    - Probabilities of exits sum to one; a fixed budget of all steps returns the last output.
    - Exits drawn from the posterior cost what is expected, and the gradient of their loss is that
      of the expected loss, both within 5 standard errors.
    - Objectives have the gradients that differences have.

    Args:
        process: In float64, and deterministic: in evaluation mode if it has dropout.
        inputs: Of 3 rows or more; a tensor, or several by name.
        tolerance: Relative and absolute, between a row among others and by itself. If None the same
            bits are asked for where this machine's matrix products have them, from the 8 rows on
            that `run` computes at least, and 1e-12 elsewhere.

    Raises:
        AssertionError: The process breaks the contract; the message says how.

    Examples:
        >>> from haltwise.nn import RecurrentCell
        >>> process = RecurrentCell(torch.nn.GRUCell(2 + 1, 4), max_steps=3).double()
        >>> check_adaptive_process(process, torch.randn(5, 2, dtype=torch.float64))
    """
    expect_instance(process, AdaptiveProcess, "an adaptive process")
    expect(count_rows(inputs) >= 3, f"give inputs of at least 3 rows, got {count_rows(inputs)}")
    features = _check_steps(process, inputs)
    tolerance = rounding_among_others() if tolerance is None else tolerance
    for layer in _layers(process, features):
        pondered = layer(inputs, _PRICE, generator=seeded(1))
        total = pondered.log_prob.exp().sum(-1)
        expect(
            close(total, torch.ones_like(total), 1e-12, 1.0),
            f"{_name(layer)}: the probabilities of exits do not sum to one",
        )
        _check_runs(layer, inputs, pondered, tolerance)
        if layer.coupling is Coupling.SAMPLED:
            _check_draws(layer, inputs)
        else:
            _check_differences(layer, inputs)


def _layers(process: AdaptiveProcess, features: Tensor) -> Iterator[AdaptiveComputation]:
    """The process under every method and coupling that fits, with random heads.

    They see features [M, F] standardised, so that items end at all exits.
    """
    spread = features.std(0) + 1e-12
    for kind, coupling in itertools.product(halting_methods().values(), Coupling):
        method = kind()
        if method.num_outputs == 0 or (process.items_interact and coupling is Coupling.SAMPLED):
            continue
        with torch.random.fork_rng(devices=[]):  # what a head begins with is replaced
            layer = AdaptiveComputation(
                copy.deepcopy(process), method, coupling, width=0, price_input=False
            ).double()
        readout = layer.head.readout
        readout.weight.data = 2 * normal(0, *readout.weight.shape) / spread / len(spread) ** 0.5
        readout.bias.data = 1.5 - readout.weight.data @ features.mean(0)
        yield layer


def _name(layer: AdaptiveComputation) -> str:
    return f"{type(layer.method).__name__} coupled by {layer.coupling.value!r}"


@torch.no_grad()
def _check_steps(process: AdaptiveProcess, inputs: Inputs) -> Tensor:
    """The features of all items at all steps, shape [M, F]."""
    num, costs = count_rows(inputs), process.exit_costs
    rising = bool((costs.diff() > 0).all() and costs.isfinite().all())
    expect(
        list(costs.shape) == [process.num_exits] and rising,
        f"exit_costs must rise over the {process.num_exits} exits and be finite, got "
        f"{costs.tolist()}",
    )
    with unchanged("init must not change its inputs", {"inputs": inputs}):
        state = process.init(inputs)
    _expect_state(state, num)
    present = process.present(state)
    active = present if process.items_interact else None
    seen = []
    for step in range(process.num_exits):
        found = _step_twice(process, step, state, active, num)
        _expect_state(found.state, num)
        if process.steps_alike:
            expect_kinds(found.state, state, "the state of steps that are alike")
        state = found.state
        items = found.features.shape[:-1]
        expect(
            len(items) > 0 and items[0] == num and found.features.shape[-1] == process.num_features,
            f"the features at step {step} must have shape [{num}, ..., {process.num_features}], "
            f"got {list(found.features.shape)}",
        )
        expect(
            found.output.shape[: len(items)] == items,
            f"the output at step {step} must begin with the items' shape {list(items)}, got "
            f"{list(found.output.shape)}",
        )
        expect(
            present is None or (present.dtype == torch.bool and present.shape == items),
            f"present must say of items {list(items)} whether they are, {got(present)}",
        )
        features = found.features.detach()
        seen.append(features.flatten(0, -2) if present is None else features[present])
    return torch.cat(seen)


def _expect_state(state: object, num: int) -> None:
    expect(isinstance(state, dict), f"the state must be a dictionary of tensors, {got(state)}")
    assert isinstance(state, dict)
    expect_items(state, num, "the state")


def _step_twice(
    process: AdaptiveProcess, step: int, state: State, active: Tensor | None, num: int
) -> ItemStep:
    """Step t of all rows; it must not change what it is given, and repeat to the bit."""
    at = torch.full((num,), step) if process.steps_alike else step
    found = []
    for _ in range(2):
        with unchanged(f"step {step} must not change {{}}, which it is given", state):
            one = process.step(at, state, active)
        expect(
            isinstance(one, ItemStep),
            f"step {step} must return an ItemStep(output, features, state), {got(one)}",
        )
        found.append(one)
    first, second = (tensors(one) for one in found)
    expect_alike(
        second,
        first,
        f"{{}} of step {step} is another when the step is repeated: it draws at random (call "
        "eval() if that is dropout), or something is kept between calls",
    )
    return found[0]


def _check_runs(
    layer: AdaptiveComputation, inputs: Inputs, pondered: Pondered, tolerance: float
) -> None:
    """Runs among others, alone, in turns and to the last exit."""
    if layer.coupling is not Coupling.SAMPLED:
        _check_companions(layer, inputs, pondered, tolerance)
    budget = FixedBudget(layer.process.num_exits - 1)
    last = layer.run(inputs, _PRICE, rule=budget)
    if layer.coupling is not Coupling.EXPECTED_STATE:
        due = pondered.at(torch.full_like(last.exits, layer.process.num_exits - 1))
        expect(
            close(last.output, due.detach(), max(tolerance, 1e-12), 1.0),
            f"{_name(layer)}: running all steps does not return forward's last output",
        )


def _check_companions(
    layer: AdaptiveComputation, inputs: Inputs, pondered: Pondered, tolerance: float
) -> None:
    """Rows in other company, and among all as `forward` has them."""
    found = layer.run(inputs, _PRICE)
    for sizes in (None, [8], [9, 11]):
        for chosen in ([0], list(range(count_rows(inputs)))[::-1], [1, 1, 2] * 5):
            index = torch.tensor(chosen)
            part = layer.run(select_rows(inputs, index), _PRICE, sizes=sizes)
            same = torch.equal(part.exits, found.exits[index])
            expect(
                same and close(part.output, found.output[index], tolerance, 1.0),
                f"{_name(layer)}: a row of {chosen} in batches of {sizes or 'any size'} is not "
                "what it is among all others",
            )
    if layer.coupling is Coupling.EXPECTED_STATE:
        alike = _leaves_nothing(pondered, found)
    else:  # where items see each other, forward lets all of them run on
        alike = not layer.process.items_interact
    if alike:
        expect(
            torch.equal(found.exits, pondered.exits)
            and close(found.output, pondered.output.detach(), max(tolerance, 1e-12), 1.0),
            f"{_name(layer)}: run ends elsewhere than forward says",
        )


def _leaves_nothing(pondered: Pondered, found: Executed) -> bool:
    """Whether nothing is probable after the exits at which items ended."""
    steps = torch.arange(len(pondered.exit_costs))
    after = steps > found.exits.unsqueeze(-1)
    after &= (found.exits >= 0).unsqueeze(-1)
    return bool((pondered.log_prob[after] == -torch.inf).all())


def _check_draws(layer: AdaptiveComputation, inputs: Inputs) -> None:
    """Costs and gradients of exits that are drawn, against their expectation."""
    many = select_rows(inputs, torch.arange(count_rows(inputs)).repeat(_NUM_DRAWS))
    expected = layer(inputs, _PRICE, generator=seeded(2))
    try:
        cost = layer.run(many, _PRICE, generator=seeded(3)).cost
    except InputError:  # the law is known only at the end
        pondered = layer(many, _PRICE, generator=seeded(3))
        assert pondered.drawn is not None
        cost = layer.process.exit_costs[pondered.drawn.clamp_min(0)]
        cost = cost.masked_fill(pondered.drawn < 0, 0)
    difference = cost - expected.expected_cost.detach().repeat(_NUM_DRAWS, *[1] * (cost.ndim - 1))
    _expect_zero_mean(difference, f"{_name(layer)}: what exits cost that were drawn")

    weight = normal(4, *expected.outputs.shape[expected.price.ndim + 1 :])
    losses = _losses(expected.outputs, weight, expected.price.ndim + 1)
    prob = expected.log_prob.exp()
    exact = (prob * (losses + _PRICE * expected.exit_costs)).sum(-1).mean()
    parameters = [value for value in layer.parameters() if value.requires_grad]
    due = _along(torch.autograd.grad(exact, parameters, retain_graph=True, allow_unused=True))
    differences = []
    for _ in range(_NUM_MEANS):
        means = []
        for _ in range(_NUM_DRAWS // _NUM_MEANS):
            drawn = expected.draw()
            loss = _losses(drawn.output, weight, drawn.price.ndim)
            means.append(drawn.objective(loss).mean())
        mean = torch.stack(means).mean()
        grads = torch.autograd.grad(mean, parameters, retain_graph=True, allow_unused=True)
        differences.append(_along(grads) - due)
    _expect_zero_mean(torch.stack(differences), f"{_name(layer)}: the gradient by exits drawn")


def _losses(outputs: Tensor, weight: Tensor, num_items: int) -> Tensor:
    """A smooth loss of every output [items..., ...]."""
    weighted: Tensor = outputs * weight
    total = weighted if weight.ndim == 0 else weighted.flatten(num_items).sum(-1)
    loss: Tensor = total.sin()
    return loss


def _along(grads: Sequence[Tensor | None]) -> Tensor:
    """The share of gradients along a fixed direction."""
    parts = [
        (grad * normal(place, *grad.shape)).sum()
        for place, grad in enumerate(grads)
        if grad is not None
    ]
    return torch.stack(parts).sum()


def _expect_zero_mean(values: Tensor, what: str) -> None:
    values = values.flatten().detach()
    error = values.std() / len(values) ** 0.5
    expect(
        values.mean().abs() <= _ERRORS * error + 1e-12,
        f"{what} is off by {values.mean().item():.3g}, more than {_ERRORS} standard errors of "
        f"{error.item():.3g}",
    )


def _check_differences(layer: AdaptiveComputation, inputs: Inputs) -> None:
    """Gradients along a direction of the parameters, against central differences."""
    pondered = layer(inputs, _PRICE)
    every = layer.coupling is Coupling.EXPECTED_LOSS
    ndim = pondered.price.ndim
    weight = normal(5, *pondered.outputs.shape[ndim + 1 :])

    def objective() -> Tensor:
        found: Pondered = layer(inputs, _PRICE)
        losses = _losses(found.outputs if every else found.output, weight, ndim + every)
        mean: Tensor = found.objective(losses).mean()
        return mean

    parameters: list[nn.Parameter] = [p for p in layer.parameters() if p.requires_grad]
    grads = torch.autograd.grad(objective(), parameters, allow_unused=True)
    slope = _along(grads).item()
    quotients = []
    for step in (1e-6, 1e-7, 1e-8):  # the longer are more exact, the shorter miss kinks
        values = []
        for sign in (1, -2, 1):
            for place, parameter in enumerate(parameters):
                if grads[place] is not None:
                    parameter.data += sign * step * normal(place, *parameter.shape)
            values.append(objective().item())
        quotients.append((values[0] - values[1]) / (2 * step))
    found = min(quotients, key=lambda quotient: abs(quotient - slope))
    expect(
        abs(found - slope) <= 1e-5 * (abs(slope) + 1),
        f"{_name(layer)}: the gradient along a direction is {slope:.8g}, differences say "
        f"{found:.8g}",
    )
