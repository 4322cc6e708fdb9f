"""The adaptive layer against loops written out by hand."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from haltwise import InputError, certify
from haltwise.certificates import ExcessLoss
from haltwise.evaluation import stopping_report
from haltwise.halting import (
    HaltingExamples,
    HaltingMethod,
    Posterior,
    Softmax,
    StickBreaking,
    StickBreakingPosterior,
)
from haltwise.halting.objectives import cumulative_logits, halting_bound
from haltwise.halting.priors import HorizonPrior
from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveProcess,
    AdaptiveRNN,
    Coupling,
    ItemStep,
    LayerStack,
    RecurrentCell,
    RepeatedBlock,
    TransformerBlock,
)
from haltwise.processes import StepObservation
from haltwise.stop_rules import (
    DecisionTime,
    FixedBudget,
    HazardThreshold,
    Patience,
    StopRule,
    calibrate,
    decisions,
)
from haltwise.testing.assertions import rounding_among_others


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=seeded(), dtype=DOUBLE)


def shaken(layer: Any, scale: float = 0.3) -> Any:
    """The layer in float64 with a head that is not new."""
    head = layer.layer.head if isinstance(layer, AdaptiveRNN) else layer.head
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=scale, generator=seeded(3))
    return layer.double()


class Given(AdaptiveProcess):
    """Rows [n, T+1] whose entry t is the output of exit t, and all that is seen there."""

    num_features = 1

    def __init__(self, num_exits: int, *, costs: Tensor | None = None, alike: bool = False) -> None:
        super().__init__(num_exits)
        self.steps_alike = alike  # type: ignore[misc]
        if costs is not None:
            self.exit_costs = costs

    def init(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"inputs": inputs}

    def step(
        self, step: int | Tensor, state: dict[str, Tensor], active: Tensor | None = None
    ) -> ItemStep:
        inputs = state["inputs"]
        rows = torch.arange(len(inputs))
        output = inputs[rows, torch.zeros_like(rows) + step]
        return ItemStep(output, output.unsqueeze(1), state)


def reads_features(num_exits: int, method: Any = "stick-breaking", **settings: Any) -> Any:
    """A layer whose halting logit is the output itself, less 0; so rows say where they end."""
    layer = AdaptiveComputation(
        Given(num_exits, **settings), method, width=0, price_input=False
    ).double()
    layer.head.readout.weight.data[:] = 1
    return layer


@pytest.mark.parametrize("kind", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_graves_computation_of_a_sequence_is_that_of_a_loop_over_items(kind: Any) -> None:
    """Adaptive computation time as its paper defines it, one item and step at a time."""
    torch.manual_seed(0)
    cell, epsilon, price = kind(3 + 1, 4), 0.01, 0.2
    rnn = shaken(AdaptiveRNN(cell, 6, "graves"), 0.8)
    inputs = randn(5, 3, 3)
    outputs, last, pondered = rnn(inputs, price=price)
    for item in range(3):
        state = torch.zeros(1, rnn._process.state_size, dtype=DOUBLE)
        for token in range(5):
            total, mean, number = 0.0, torch.zeros_like(state), 0
            remainder = 1.0
            while True:
                flagged = torch.cat((inputs[token, item], torch.tensor([float(number == 0)])))
                parts = state.split(4, 1)
                new = cell(flagged.unsqueeze(0), parts if len(parts) > 1 else parts[0])
                state = torch.cat(new, 1) if len(parts) > 1 else new
                number += 1
                seen = torch.cat((state[:, :4], torch.tensor([[math.log(price)]])), 1)
                logit = rnn.layer.head.readout(seen)[0, 0] - 2
                halting = torch.sigmoid(logit).item()
                if total + halting >= 1 - epsilon or number == 6:
                    remainder = 1 - total
                    mean = mean + remainder * state
                    break
                mean, total = mean + halting * state, total + halting
            state = mean
            torch.testing.assert_close(outputs[token, item], state[0, :4])
            ponder = pondered.ponder_cost[token, item].item()
            assert ponder == pytest.approx(number + remainder)
            assert pondered.exits[token, item] == number - 1
        final = torch.cat(last, -1) if isinstance(last, tuple) else last
        torch.testing.assert_close(final[0, item], state[0])
    ran, ran_last, executed = rnn.run(inputs, price=price)
    torch.testing.assert_close(ran, outputs)
    torch.testing.assert_close(ran_last, last)
    assert torch.equal(executed.cost, executed.exits + 1.0)
    assert 0 < executed.exits.float().mean() < 5  # neither end would show much


def test_a_network_that_halts_at_once_is_torch_s_own() -> None:
    torch.manual_seed(0)
    cell = nn.RNNCell(2 + 1, 4)
    rnn = AdaptiveRNN(cell, 3, batch_first=True)
    nn.init.constant_(rnn.layer.head.readout.bias, 50.0)
    plain = nn.RNN(3, 4, batch_first=True)
    plain.load_state_dict({f"{name}_l0": value for name, value in cell.state_dict().items()})
    inputs, hidden = torch.randn(3, 6, 2), torch.randn(1, 3, 4)
    outputs, last, _ = rnn(inputs, hidden, price=0.1)
    flagged = torch.cat((inputs, torch.ones(3, 6, 1)), 2)
    due, due_last = plain(flagged, hidden)
    torch.testing.assert_close(outputs, due)
    torch.testing.assert_close(last, due_last)


def test_objectives_count_what_exits_cost() -> None:
    """The free energy sum_t q (f + c C_t + tau log q), summed one exit at a time."""
    costs = torch.tensor([0.5, 2.0, 7.0], dtype=DOUBLE)
    layer = reads_features(3, StickBreaking(final_temperature=0.4), costs=costs)
    rows, losses, price = randn(4, 3), randn(4, 3).square(), 0.3
    pondered = layer(rows, price)
    found = pondered.objective(losses)
    unit = (7.0 - 0.5) / 2
    for item in range(4):
        rho = torch.sigmoid(rows[item] - 2).tolist()
        q = [rho[0], (1 - rho[0]) * rho[1], (1 - rho[0]) * (1 - rho[1])]
        tau = 0.4 * price * unit  # temperatures are in prices of a step
        due = sum(
            q[t] * (losses[item, t].item() + price * costs[t].item() + tau * math.log(q[t]))
            for t in range(3)
        )
        assert found[item].item() == pytest.approx(due)
        expected = sum(q[t] * costs[t].item() for t in range(3))
        assert pondered.expected_cost[item].item() == pytest.approx(expected)
    state = layer
    state.coupling = Coupling.EXPECTED_STATE
    again = state(rows, price)
    torch.testing.assert_close(
        again.objective(losses[:, 0]), losses[:, 0] + price * again.expected_cost
    )


def test_graves_objective_has_n_plus_r() -> None:
    layer = reads_features(4, "graves")
    rows = torch.tensor([[2.5, 1.0, 0.0, 9.9]], dtype=DOUBLE)  # h = .62, .27, .12: N = 2
    pondered = layer(rows, 0.1)
    h = torch.sigmoid(rows[0] - 2).tolist()
    remainder = 1 - h[0] - h[1]
    losses = torch.tensor([[1.0, 2.0, 3.0, math.nan]], dtype=DOUBLE)
    due = h[0] * 1 + h[1] * 2 + remainder * 3 + 0.1 * (3 + remainder)
    assert pondered.objective(losses).item() == pytest.approx(due)
    assert pondered.exits.item() == 2


@pytest.mark.parametrize("method", ["stick-breaking", "graves", "softmax"])
@pytest.mark.parametrize("coupling", ["expected-loss", "expected-state"])
def test_gradients_of_inputs_are_those_of_differences(method: str, coupling: str) -> None:
    torch.manual_seed(0)
    process = RepeatedBlock(TransformerBlock(4, 2), 4, 3)
    layer = shaken(AdaptiveComputation(process, method, coupling, width=5))

    def objective(inputs: Tensor) -> Tensor:
        pondered = layer(inputs, 0.1)
        every = coupling == "expected-loss"
        outputs = pondered.outputs if every else pondered.output
        found: Tensor = pondered.objective(outputs.square().mean((-1, -2)))
        return found

    assert torch.autograd.gradcheck(objective, randn(2, 3, 4).requires_grad_())


@pytest.mark.parametrize("per", ["row", "token"])
def test_hooks_of_blocks_see_what_they_return(per: Any) -> None:
    """As those do that gather the parameters of a block that is sharded."""
    blocks = [TransformerBlock(4, 2) for _ in range(3)]
    layer = shaken(AdaptiveComputation(LayerStack(blocks, 4, per=per)))
    seen: list[Tensor] = []
    for block in blocks:
        block.register_forward_hook(lambda *given: seen.append(given[-1][0]))
    pondered = layer(randn(2, 3, 4), 0.1)
    assert torch.equal(torch.stack(seen, pondered.price.ndim), pondered.outputs)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_may_be_computed_again_backwards(*, reentrant: bool) -> None:
    """The kind that is reentrant made the costs of exits a part of its graph, for ever."""
    torch.manual_seed(0)
    layer = shaken(AdaptiveComputation(RepeatedBlock(TransformerBlock(4, 2), 4, 3)))
    inputs, gradients = randn(2, 3, 4).requires_grad_(), []
    for again in (False, True, True):
        layer.zero_grad()
        found = checkpoint(layer, inputs, 0.1, use_reentrant=reentrant) if again else None
        outputs = (found or layer(inputs, 0.1))[0]
        assert not layer.process.exit_costs.requires_grad
        torch.autograd.backward(outputs.square().sum())
        gradients.append([p.grad for p in layer.process.block.parameters()])
    for found in gradients[1:]:
        torch.testing.assert_close(found, gradients[0])


@pytest.mark.parametrize("alike", [False, True])
def test_rows_leave_and_others_take_their_places(alike: bool) -> None:
    """Rows say at which exit they end; few places, many rows."""
    ends = torch.randint(0, 10, (100,), generator=seeded())
    rows = torch.full((100, 10), -50.0, dtype=DOUBLE)
    rows[torch.arange(100), ends] = 50
    layer = reads_features(10, alike=alike)
    executed = layer.run(rows, 0.1, sizes=[8, 16])
    assert torch.equal(executed.exits, ends)
    assert torch.equal(executed.output, rows[torch.arange(100), ends])
    assert torch.equal(executed.cost, ends + 1.0)
    taken = int((ends + 1).sum())
    assert executed.sizes == (8, 16)
    if alike:  # places are filled again: nearly nothing but the tail is computed in vain
        assert taken <= executed.num_row_steps <= taken + 10 * 16
    else:
        batches = ends.chunk(7)
        due = sum(
            8 if (batch >= step).sum() <= 8 else 16
            for batch in batches
            for step in range(int(batch.max()) + 1)
        )
        assert executed.num_row_steps == due


def test_every_row_has_its_own_price() -> None:
    torch.manual_seed(0)
    layer = shaken(AdaptiveComputation(RecurrentCell(nn.GRUCell(3, 5), 6), width=0))
    nn.init.ones_(layer.head.readout.weight[:, -1])
    nn.init.constant_(layer.head.readout.bias, 5.0)
    inputs = randn(20, 2)
    prices = torch.logspace(-3, 0, 20, dtype=DOUBLE)
    found = layer.run(inputs, prices)
    assert len(set(found.exits.tolist())) > 1
    for row in range(20):
        alone = layer.run(inputs[row : row + 1], prices[row].item())
        assert alone.exits[0] == found.exits[row]
        exact = rounding_among_others()
        torch.testing.assert_close(alone.output[0], found.output[row], rtol=exact, atol=exact)


def test_tokens_that_have_ended_stay_as_they_are() -> None:
    """Universal transformer: outputs of later exits repeat those of the token's own."""
    torch.manual_seed(0)
    process = RepeatedBlock(TransformerBlock(8, 2), 8, 5, per="token")
    layer = AdaptiveComputation(process, "graves", "expected-state", width=0, price_input=False)
    shaken(layer)
    pondered = layer(randn(3, 6, 8), 0.1)
    assert pondered.price.shape == (3, 6)
    exits = pondered.exits
    assert len(set(exits.flatten().tolist())) > 1
    for sequence in range(3):
        for token in range(6):
            own = int(exits[sequence, token])
            outputs = pondered.outputs[sequence, token]
            assert (outputs[own:] == outputs[own]).all()
            assert own == 0 or (outputs[own] != outputs[own - 1]).any()


@pytest.mark.parametrize("num", [0, 1, 7, 40, 99, 120])
@pytest.mark.parametrize("known", [False, True])
def test_a_block_computes_for_those_that_run_what_it_computes_for_all(
    num: int, known: bool
) -> None:
    """In few sizes, and in vain for less than a sixteenth of all beside them."""
    torch.manual_seed(0)
    block = TransformerBlock(8, 2).double()
    order = torch.randperm(120, generator=seeded()).view(20, 6)
    active, stale = order < num, order < min(120, num + 5)
    tokens, kept, keys = randn(20, 6, 8), 2 * randn(20, 6, 8), 3 * randn(20, 6, 16)
    given = (keys, stale) if known else (None, None)
    due = block.advance(tokens, active, kept, *given)
    sizes = []
    block.widen.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    with torch.no_grad():
        found = block.advance(tokens, active, kept, *given)
    torch.testing.assert_close(found, due)
    assert torch.equal(found[0][~active], kept[~active])
    assert set(sizes) <= {8, 16, 32, 64}
    assert num <= sum(sizes) < num + 8


def test_rules_certificates_and_reports_take_the_trajectory() -> None:
    torch.manual_seed(0)
    layer = AdaptiveComputation(RecurrentCell(nn.GRUCell(3, 5), 6), width=0, price_input=False)
    nn.init.constant_(shaken(layer, 1.0).head.readout.bias, 1.0)
    pondered = layer(randn(400, 2), 0.05)
    losses = (pondered.outputs.mean(-1) - 0.1).abs()
    recorded = pondered.trajectory(losses)
    assert torch.equal(decisions(HazardThreshold(), recorded), pondered.exits)
    chosen = calibrate(HazardThreshold, recorded, price=0.05).policy.rule
    executed = layer.run(randn(400, 2), 0.05, rule=chosen)
    assert torch.equal(executed.exits, pondered.exits_by(chosen))
    report = stopping_report(losses.detach(), executed.exits, price=0.05)
    assert report.rules["oracle"].j.value <= report.rules["given"].j.value
    found = certify(
        HazardThreshold, recorded, risk=ExcessLoss(), level=0.9, confidence=0.9, bound=1.0
    )
    assert found.require().mean_risk < 0.9


def test_rules_that_read_a_loss_are_given_what_is_observed() -> None:
    layer = reads_features(5)
    rows = torch.tensor([[5.0, 4.0, 4.0, 4.0, 1.0]], dtype=DOUBLE)
    rule = Patience(2, 0.0)
    found = layer.run(rows, 0.1, rule=rule, observe=lambda output: output)
    assert found.exits.tolist() == [3]
    with pytest.raises(InputError, match="Patience reads a loss, but none is observed"):
        layer.run(rows, 0.1, rule=rule)
    with pytest.raises(InputError, match="AnyOf reads a loss"):
        layer.run(rows, 0.1, rule=FixedBudget(1) | rule)
    assert layer.run(rows, 0.1, rule=FixedBudget(1) | FixedBudget(3)).exits.tolist() == [1]


def test_rows_that_begin_at_different_times_have_a_budget_each() -> None:
    layer = reads_features(5, alike=True)
    rule = FixedBudget(2) | (FixedBudget(3) & FixedBudget(1))
    assert layer.run(randn(50, 5), 0.1, rule=rule, sizes=[8]).exits.tolist() == [2] * 50


@dataclass(frozen=True)
class AtThird(StopRule):
    """A rule of the caller's, to which a step is one number."""

    def step(
        self, observation: StepObservation, memory: dict[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        done = True if observation.step >= 2 else False  # noqa: SIM210
        return torch.full_like(observation.loss, done, dtype=torch.bool), memory


def test_rules_of_the_caller_s_see_one_step_at_a_time() -> None:
    layer = reads_features(5, alike=True)
    executed = layer.run(randn(50, 5), 0.1, rule=AtThird(), observe=lambda x: x, sizes=[8])
    assert executed.exits.tolist() == [2] * 50
    assert executed.num_row_steps == 7 * 8 * 3


@dataclass(frozen=True)
class WithoutExits(HaltingMethod):
    """A method of the caller's that knows loops alone."""

    output_sizes: ClassVar[Mapping[str, int]] = MappingProxyType({"hazard_logits": 2})

    def outputs(self, raw: Tensor, price: Tensor) -> dict[str, Tensor]:
        return {"hazard_logits": raw}

    def posterior(self, outputs: Mapping[str, Tensor], time: DecisionTime) -> Posterior:
        return StickBreakingPosterior(outputs["hazard_logits"][..., time])

    def objective(self, examples: HaltingExamples) -> Tensor:
        return examples.excess[:, 0]

    def rule(self, time: DecisionTime) -> StopRule:
        return HazardThreshold(0.0, time)


def test_a_method_without_an_objective_for_exits_says_so() -> None:
    pondered = reads_features(3, WithoutExits())(randn(4, 3), 0.1)
    with pytest.raises(InputError, match="WithoutExits has no objective for exits inside"):
        pondered.objective(randn(4, 3))


def test_what_does_not_fit_is_refused() -> None:
    cell, rows = RecurrentCell(nn.GRUCell(3, 5), 4), torch.zeros(3, 2)
    with pytest.raises(InputError, match="unknown halting method 'gravs'; did you mean 'graves'"):
        AdaptiveComputation(cell, "gravs")
    with pytest.raises(InputError, match="NoHalting learns nothing about halting"):
        AdaptiveComputation(cell, "none")
    with pytest.raises(InputError, match="coupling must be one of expected-loss"):
        AdaptiveComputation(cell, coupling="mean")
    with pytest.raises(InputError, match="max_steps must be at least 2, got 1"):
        RecurrentCell(nn.GRUCell(3, 5), 1)
    tokens = RepeatedBlock(TransformerBlock(4, 2), 4, 3, per="token")
    with pytest.raises(InputError, match="the items of RepeatedBlock see each other"):
        AdaptiveComputation(tokens, coupling="sampled")
    layer = AdaptiveComputation(cell)
    for price in (0.0, -1.0, math.inf, math.nan, torch.ones(2)):
        with pytest.raises(InputError, match="price"):
            layer(rows, price)
    with pytest.raises(InputError, match=r"losses must be a tensor of shape \[3, 4\]"):
        layer(rows, 0.1).objective(torch.zeros(3))
    with pytest.raises(InputError, match=r"inputs must have shape \[B, 2\]"):
        layer(torch.zeros(3, 3), 0.1)
    with pytest.raises(InputError, match="sizes must be at least one whole number, and rise"):
        layer.run(rows, 0.1, sizes=[16, 8])
    with pytest.raises(InputError, match="there is nothing to run"):
        layer.run(rows[:0], 0.1)
    drawn = AdaptiveComputation(cell, "softmax", "sampled")
    with pytest.raises(InputError, match="Softmax knows its law only when all steps are taken"):
        drawn.run(rows, 0.1)


def test_softmax_objective_is_minus_the_thesis_bound() -> None:
    rows, losses = randn(4, 3), randn(4, 3).square()
    found = reads_features(3, "softmax")(rows, 0.2).objective(losses)
    increments = rows[:, :2] - 1  # log r of a temperature of one price
    bound = halting_bound(
        losses + 0.2, cumulative_logits(increments), price=0.2, temperature=0.2
    )  # the first exit costs a step
    torch.testing.assert_close(found, -bound)


def test_a_loss_of_an_exit_drawn_is_that_loss_and_its_cost() -> None:
    costs = torch.tensor([1.0, 3.0, 4.0], dtype=DOUBLE)
    layer = reads_features(3, costs=costs)
    layer.coupling = Coupling.SAMPLED
    rows = randn(2000, 3)
    pondered = layer(rows, 0.5, generator=seeded(7))
    assert pondered.drawn is not None
    assert torch.equal(pondered.output, rows.gather(1, pondered.drawn.unsqueeze(1)).squeeze(1))
    losses = pondered.output.square()
    due = losses + 0.5 * costs[pondered.drawn]
    torch.testing.assert_close(pondered.objective(losses), due)
    shares = torch.bincount(pondered.drawn, minlength=3) / 2000
    torch.testing.assert_close(shares, pondered.log_prob.exp().mean(0).float(), atol=0.03, rtol=0)
    assert torch.equal(layer.run(rows, 0.5, generator=seeded(7)).exits, pondered.drawn)


LAYERS: dict[str, tuple[Callable[[], AdaptiveComputation], tuple[int, ...]]] = {
    "cell": (lambda: AdaptiveComputation(RecurrentCell(nn.GRUCell(4, 8), 5)), (20, 3)),
    "tokens": (
        lambda: AdaptiveComputation(
            RepeatedBlock(TransformerBlock(8, 2), 8, 4, per="token"), "graves", "expected-state"
        ),
        (9, 5, 8),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
def test_what_the_caller_has_set_disturbs_nothing(name: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, inputs = make(), torch.randn(shape, generator=seeded())
    nn.init.normal_(layer.head.readout.weight, generator=seeded(1))
    due, trained = layer.run(inputs, 0.1), layer(inputs, 0.1)
    with torch.inference_mode():
        assert torch.equal(layer.run(inputs, 0.1).output, due.output)
    with torch.device("meta"):
        assert torch.equal(layer.run(inputs, 0.1).output, due.output)
    torch.set_default_dtype(DOUBLE)
    try:
        assert torch.equal(layer.run(inputs, 0.1).output, due.output)
        assert torch.equal(layer(inputs, 0.1).log_prob, trained.log_prob)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halved, pondered = layer.run(inputs, 0.1), layer(inputs, 0.1)
    assert pondered.log_prob.dtype == torch.float32
    same = halved.exits == due.exits
    assert same.float().mean() > 0.7
    torch.testing.assert_close(halved.output[same].float(), due.output[same], atol=0.1, rtol=0.1)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("coupling", ["expected-loss", "expected-state", "sampled"])
def test_a_row_that_is_no_number_disturbs_no_other(name: str, coupling: str) -> None:
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, inputs = make(), torch.randn(shape, generator=seeded())
    if coupling == "sampled" and layer.process.items_interact:
        return
    layer.coupling = Coupling(coupling)
    due = layer.run(inputs, 0.1, generator=seeded())
    inputs[3] = math.nan
    found = layer.run(inputs, 0.1, generator=seeded())
    others = torch.arange(len(inputs)) != 3
    assert torch.equal(found.output[others], due.output[others])
    assert (found.exits[3] == layer.process.num_exits - 1).all()
    assert found.output[3].isnan().all()
    with pytest.raises(InputError, match="step 0; leave out problems that diverged"):
        _ = layer(inputs, 0.1).log_prob


def test_what_is_random_in_the_objective_is_drawn_from_the_generator_that_is_given() -> None:
    """The thesis draws a horizon for each item: the bound at that one alone."""
    method = Softmax(horizons="sampled", continuation=0.7)
    cell = RecurrentCell(nn.GRUCell(3, 4), max_steps=6)
    layer, price = shaken(AdaptiveComputation(cell, method)), 0.2
    inputs, losses = randn(40, 2), randn(40, 6).exp()
    before = torch.random.get_rng_state()
    found = layer(inputs, price, generator=seeded(5)).objective(losses)
    assert torch.equal(torch.random.get_rng_state(), before)
    again = layer(inputs, price, generator=seeded(5))
    torch.testing.assert_close(again.objective(losses), found, rtol=0, atol=0)
    assert not torch.equal(again.objective(losses), found)  # the generator has gone on
    prior = HorizonPrior(torch.full((40,), 0.7, dtype=DOUBLE))
    drawn = prior.sample(seeded(5)).clamp_max(5).long()
    logits, weights = again.log_prob.detach(), nn.functional.one_hot(drawn, 6).double()
    bound = halting_bound(
        losses + price, logits, price=price, temperature=price, horizon_weights=weights
    )  # the first exit costs a step
    torch.testing.assert_close(found.detach(), -bound)
