"""One meta-step against plain formulas: prices, weights, gradients and learning rates."""

import copy
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import by_adam, tiny
from torch import Tensor, nn

from haltwise._core.random import stream
from haltwise._core.workers import Workers
from haltwise.halting.methods import HaltingExamples
from haltwise.models import OptimizerModel
from haltwise.rollout import record
from haltwise.rollout.unroll import unroll
from haltwise.tasks import family
from haltwise.training import Trainer, TrainingSettings
from haltwise.training.gradients import Estimate
from haltwise.training.learner import Learner
from haltwise.training.optimization import MetaAdam
from haltwise.training.phases import Phase
from haltwise.training.settings import AdamSettings
from haltwise.training.sharding import differentiate_shards
from haltwise.training.sources import source_of


def learner_of(settings: TrainingSettings) -> Learner:
    return Learner(settings, source_of(settings, "cpu"), [], "cpu", Workers())


def watch(phase: Any) -> tuple[list[Tensor], list[float | None]]:
    """Prices and progress of every call of the phase's objective."""
    prices: list[Tensor] = []
    progresses: list[float | None] = []
    joint, halting = phase.objective.joint, phase.objective.halting

    def seen_joint(excess: Tensor, outputs: Any, price: Tensor, generator: Any) -> Tensor:
        prices.append(price)
        progresses.append(None)
        found: Tensor = joint(excess, outputs, price, generator)
        return found

    def seen_halting(
        excess: Tensor, outputs: Any, price: Tensor, progress: float | None, generator: Any
    ) -> Tensor:
        if progress is not None:
            prices.append(price)
            progresses.append(progress)
        found: Tensor = halting(excess, outputs, price, progress, generator)
        return found

    phase.objective.joint, phase.objective.halting = seen_joint, seen_halting
    return prices, progresses


@pytest.mark.parametrize("phase", ["joint", "halting"])
def test_prices_are_log_uniform_around_the_default(phase: str) -> None:
    """From price / price_range to price * price_range: Kolmogorov-Smirnov at 1 in 1,000."""
    changes: dict[str, Any] = {
        "price": 0.5,
        "price_range": 4.0,
        "joint": {"warmup": 0.0, "batch_size": 256},
        "halting": {"batch_size": 256, "num_recorded": 256},
    }
    learner = learner_of(tiny("act", changes))
    own = next(one for one in learner.phases if one.name == phase)
    prices, _ = watch(own)
    for step in range(8):
        own.differentiate(0, step)
    found = torch.cat(prices).double()
    assert len(found) == 8 * 256
    uniform = ((found / 0.5).log() / math.log(4.0) + 1) / 2
    assert uniform.min() >= 0
    assert uniform.max() <= 1
    ranks = torch.arange(1, len(found) + 1) / len(found)
    assert (uniform.sort().values - ranks).abs().max() < 1.95 / len(found) ** 0.5


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0, -1.0])
def test_the_halter_s_errors_are_weighed_by_a_power_of_the_price(exponent: float) -> None:
    """Mean of (c / price)^e times the objective, at the progress of the phase."""
    method = {"name": "stick-breaking", "settings": {"distilled": 0.0}}
    settings = by_adam(price=0.2, method=method, halting={"price_exponent": exponent})
    learner = learner_of(settings)
    phase, halting = learner.phases[-1], learner.halting
    for weight in learner.parameters.values():
        nn.init.normal_(weight.data, std=0.3, generator=stream(1, "any"))
    step, size = 3, settings.halting.batch_size
    found = phase.differentiate(0, step)
    gradient = {name: weight.grad for name, weight in learner.parameters.items()}

    batch = family("regression-2d").sample(24, stream(0, "recorded"))
    assert isinstance(learner.model, OptimizerModel)
    recorded = record(learner.model.rule, batch, settings.horizon)
    generator = stream(0, "head", step)
    index = torch.randint(24, (size,), generator=generator)
    price = 0.2 * 10 ** (2 * torch.rand(size, generator=generator) - 1)
    learner.model.zero_grad()
    expected = torch.zeros(())
    for i, c in zip(index.tolist(), price, strict=True):
        one, cost = recorded.select(torch.tensor([i])), c.reshape(1)
        outputs = halting(one.known("signals"), one.shown_readouts(), cost)
        examples = HaltingExamples(
            one.excess, outputs, {}, cost, step / settings.halting.num_steps, generator
        )
        expected = expected + (cost / 0.2) ** exponent * halting.method.objective(examples) / size
    expected.sum().backward()
    assert found.losses.shape == (size,)
    torch.testing.assert_close(found.losses.mean(), expected.detach().sum())
    for name, weight in learner.parameters.items():
        torch.testing.assert_close(gradient[name], weight.grad, rtol=1e-4, atol=1e-4)


def test_progress_is_the_share_of_the_phase_that_is_done(tmp_path: Path) -> None:
    trainer = Trainer(tiny(), tmp_path)
    _, seen = watch(trainer._learner.phases[0])  # both have the same objective
    for _ in trainer.run():
        pass
    assert seen[:6] == [None] * 6  # of 8, after a quarter of warmup
    assert seen[6:] == pytest.approx([step / 6 for step in range(6)])


@pytest.mark.parametrize("warm", [False, True])
def test_the_rule_learns_by_its_losses_and_then_beside_the_halter(warm: bool) -> None:
    settings = tiny()
    learner = learner_of(settings)
    phase, model = learner.phases[0], learner.model
    assert isinstance(model, OptimizerModel)
    step = 2 if warm else 1  # of 8, a quarter of which is warmup
    found = phase.differentiate(0, step)
    generator = stream(0, "train", step)
    batch = family("regression-2d").sample(8, generator)
    price = 0.0527 * 10 ** (2 * torch.rand(8, generator=generator) - 1)
    trajectory = unroll(model, batch, settings.horizon, price, segment=4).trajectory
    expected = trajectory.excess[:, 1:].mean(1) / settings.price
    if warm:
        examples = HaltingExamples(
            trajectory.excess, trajectory.outputs, {}, price, None, generator
        )
        expected = settings.joint.sum_weight * expected + learner.halting.method.objective(examples)
    torch.testing.assert_close(found.losses.mean(), expected.mean())
    halter = learner.halting.halter
    assert halter is not None
    learns = any(weight.grad is not None and weight.grad.any() for weight in halter.parameters())
    assert learns == warm


# --- Gradients of shards -------------------------------------------------------------------------


class Scripted(Phase):
    """A phase whose shards have given gradients of one parameter, and given numbers."""

    name, left_out_name, counts_anew = "joint", "train", True

    def __init__(
        self, weight: nn.Parameter, results: Mapping[int, tuple[Tensor, int, int]]
    ) -> None:
        self.num_steps, self.batch_size = 10, 8
        self._weight, self._results = weight, results

    def differentiate(self, shard: int, step: int) -> Estimate:
        gradient, used, left_out = self._results[shard]
        if used:
            self._weight.grad = gradient.clone()
        losses = gradient.sum() * self.batch_size / max(used, 1)  # their sum / 8 is that
        return Estimate(losses.repeat(used), left_out)


def test_the_gradient_is_the_mean_over_all_finite_problems() -> None:
    """Of shards with 4 and 2 finite problems of 8, what is left out is made up for."""
    weight, unused = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))
    gradients = torch.randn(2, 3, generator=stream(1, "any"))
    phase = Scripted(weight, {0: (gradients[0], 4, 0), 1: (gradients[1], 2, 2)})
    loss, num_left_out, interrupted = differentiate_shards(phase, 0, [weight, unused], Workers(), 2)
    torch.testing.assert_close(weight.grad, gradients.sum(0) * 8 / 6)
    assert unused.grad is None
    assert loss == pytest.approx(gradients.sum().item() * 8 / 6)
    assert (num_left_out, interrupted) == (2, False)


def test_without_one_finite_problem_there_is_no_loss() -> None:
    weight = nn.Parameter(torch.zeros(3))
    phase = Scripted(weight, {0: (torch.zeros(3), 0, 8)})
    loss, _, interrupted = differentiate_shards(phase, 0, [weight], Workers(), 1, interrupt=True)
    assert math.isnan(loss)
    assert interrupted
    assert weight.grad is None


# --- The meta-optimizer --------------------------------------------------------------------------


@pytest.mark.parametrize(("step", "factor"), [(0, 1.0), (5, 0.505), (10, 0.01)])
def test_the_learning_rate_falls_to_one_percent_by_a_cosine(step: int, factor: float) -> None:
    """Adam's first update is the learning rate, whatever the gradient."""
    weight = nn.Parameter(torch.zeros(4))
    adam = MetaAdam(AdamSettings(clip_norm=1e6), [[weight]])
    weight.grad = torch.tensor([3.0, -1.0, 0.2, 20.0])
    assert adam.step(1.0, step, 10, 0.02)
    torch.testing.assert_close(weight.data, -0.02 * factor * weight.grad.sign())


def test_steps_and_moments_are_those_of_torch_s_adam_without_its_compiler(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator
) -> None:
    own = [nn.Parameter(torch.randn(size, generator=generator)) for size in (3, 5, 2)]
    twins = copy.deepcopy(own)
    meta_adam = MetaAdam(AdamSettings(clip_norm=1e9), [own])
    twin = torch.optim.Adam(twins)
    for step in range(100):
        for parameter, other in zip(own[:2], twins, strict=False):  # the last has no gradient
            parameter.grad = torch.randn(parameter.shape, generator=generator)
            other.grad = parameter.grad.clone()
        twin.param_groups[0]["lr"] = 0.1 * (
            0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / 100))
        )
        twin.step()
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, "torch._dynamo", None)  # whoever imports it fails
            assert meta_adam.step(0.0, step, 100, 0.1)
    assert len(meta_adam.state) == len(twin.state) == 2
    for parameter, other in zip(own, twins, strict=True):
        assert torch.equal(parameter, other)
        for name, value in twin.state[other].items():
            assert torch.equal(meta_adam.state[parameter][name], value)


def test_rule_and_halter_are_clipped_apart_and_nothing_infinite_is_taken() -> None:
    one, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    adam = MetaAdam(AdamSettings(clip_norm=1.0), [[one], [other]])
    one.grad, other.grad = torch.tensor([30.0, 40.0]), torch.tensor([0.3, 0.4])
    assert adam.step(1.0, 0, 10, 0.1)
    torch.testing.assert_close(one.grad, torch.tensor([0.6, 0.8]))
    torch.testing.assert_close(other.grad, torch.tensor([0.3, 0.4]))
    before = one.data.clone()
    for loss, value in ((math.nan, 1.0), (1.0, math.inf)):
        one.grad = torch.tensor([value, 1.0])
        assert not adam.step(loss, 0, 10, 0.1)
        assert torch.equal(one.data, before)


def test_every_rollback_lowers_the_learning_rate_to_three_tenths() -> None:
    """The step after two rollbacks is that of a run with .09 of the learning rate."""
    learner = learner_of(tiny("lstm", adam={"learning_rate": 0.02}))
    slower = learner_of(tiny("lstm", adam={"learning_rate": 0.02 * 0.09}))
    state = learner.snapshot(diverged=False, metrics={})
    for _ in range(2):
        learner.meta_step(interrupt=False)
        learner.roll_back(state)
    start = copy.deepcopy(learner.model.state_dict())
    for one in (learner, slower):
        one.meta_step(interrupt=False)
    for name, value in learner.model.state_dict().items():
        assert not torch.equal(value, start[name])
        torch.testing.assert_close(value, slower.model.state_dict()[name])
    assert learner.learning_rate == pytest.approx(0.02 * 0.09)
    learner.begin_phase(learner.phases[0])
    assert learner.learning_rate == 0.02


def test_the_halter_learns_whatever_the_last_gradient_of_the_rule_was() -> None:
    """Parameters that are frozen keep their gradients, which count for nothing any more."""
    learner = learner_of(tiny())
    learner.meta_step(interrupt=False)
    assert isinstance(learner.model, OptimizerModel)
    for weight in learner.model.rule_parameters():
        weight.grad = torch.full_like(weight, torch.inf)
    learner.step = learner.phases[0].num_steps
    learner.begin_phase(learner.phases[1])
    loss, _ = learner.meta_step(interrupt=False)
    assert math.isfinite(loss)
    assert learner.counters.num_skipped == 0


def test_a_large_gradient_of_the_rule_leaves_that_of_the_halter_as_it_is() -> None:
    learner = learner_of(tiny(adam={"clip_norm": 1.0}))
    assert isinstance(learner.model, OptimizerModel)
    assert learner.halting.halter is not None
    parts = [learner.model.rule_parameters(), list(learner.halting.halter.parameters())]

    def differentiate(shard: int, step: int) -> Estimate:
        for part, norm in zip(parts, (100.0, 0.5), strict=True):
            size = sum(weight.numel() for weight in part)
            for weight in part:
                weight.grad = torch.full_like(weight, norm / size**0.5)
        return Estimate(torch.ones(learner.phase.batch_size), 0)

    learner.phase.differentiate = differentiate  # type: ignore[method-assign]
    learner.meta_step(interrupt=False)
    norms = [
        torch.cat([weight.grad.flatten() for weight in part if weight.grad is not None]).norm()
        for part in parts
    ]
    torch.testing.assert_close(torch.stack(norms), torch.tensor([1.0, 0.5]), rtol=1e-4, atol=0)
