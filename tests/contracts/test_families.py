"""Every family keeps the contract, and the check of it can fail."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from haltwise import FunctionBatch, InputError, tasks
from haltwise.tasks import DifferentiatedScore, Observation, Score, TaskBatch, TaskFamily
from haltwise.tasks.images import ImageClassification
from haltwise.testing import check_family

SCORED_UNSEEN = {"factorization-digits-noisy", "logistic-10d-noisy", "regression-10d-noisy"}
"""Families whose excess is not the observed loss less the reference."""


@pytest.fixture(params=sorted(tasks.families()))
def family(request: pytest.FixtureRequest, tiny_images: Path) -> TaskFamily:
    """Every named family; real formats, tiny files: no test needs real data."""
    found = tasks.family(request.param)
    if isinstance(found, ImageClassification):
        found = replace(found, batch_size=2, num_score=3).with_data_dir(tiny_images)
    return found


def test_every_family_keeps_the_contract(family: TaskFamily) -> None:
    check_family(family, num_problems=3)


def test_gradients_equal_autograd(family: TaskFamily) -> None:
    generator = torch.Generator().manual_seed(1)
    batch = family.sample(5, generator, dtype=torch.float64)
    params = batch.start + torch.randn(batch.start.shape, generator=generator, dtype=torch.float64)
    params.requires_grad_()
    seen = batch.evaluate(params, 3)
    for value, grad in ((seen.loss, seen.grad), (seen.excess, seen.excess_grad)):
        (expected,) = torch.autograd.grad(value.sum(), params, retain_graph=True)
        assert_close(grad, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("family", sorted(tasks.families()), indirect=True)
def test_excess_is_loss_minus_reference_unless_it_is_not_observed(
    family: TaskFamily, request: pytest.FixtureRequest
) -> None:
    batch = family.sample(5, torch.Generator().manual_seed(1), dtype=torch.float64)
    now, then = (batch.evaluate(batch.start + 1, step) for step in (0, 10**6))
    if request.node.callspec.params["family"] in SCORED_UNSEEN:
        assert torch.equal(now.excess, then.excess)
        assert torch.equal(now.excess_grad, then.excess_grad)
        assert (now.loss != then.loss).all()
    else:
        assert_close(now.excess, now.loss - batch.reference_loss, rtol=1e-11, atol=1e-9)


def test_single_precision_and_minimizers_are_accurate(family: TaskFamily) -> None:
    """More strictly than is asked of families in general."""
    batch = family.sample(5, torch.Generator().manual_seed(1), dtype=torch.float64)
    single = family.sample(5, torch.Generator().manual_seed(1))
    params = batch.start + torch.randn(
        batch.start.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )
    exact, found = batch.evaluate(params, 1), single.evaluate(params.float(), 1)
    size = exact.excess_grad.norm(dim=1, keepdim=True)
    least = torch.finfo(torch.float32).tiny  # below it single precision has few digits
    assert ((found.excess_grad - exact.excess_grad).abs() <= 1e-4 * size + least).all()
    assert_close(found.loss.double(), exact.loss, rtol=2e-5, atol=1e-5)
    assert_close(found.excess.double(), exact.excess, rtol=2e-5, atol=1e-5)
    if batch.minimizer is not None:
        best, start = batch.evaluate(batch.minimizer, 0), batch.evaluate(batch.start, 0)
        assert (best.excess.abs() <= 1e-14 * start.excess).all()
        assert (best.excess_grad.norm(dim=1) <= 1e-10 * start.grad.norm(dim=1)).all()


def test_listing_families_reads_no_data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tmp_path))
    assert all(family.dim >= 1 for family in tasks.families().values())
    with pytest.raises(InputError, match=r"expected for mnist; name a directory"):
        tasks.family("mnist-mlp").sample(1, torch.Generator().manual_seed(1))


def test_an_unknown_family_suggests_the_near_names() -> None:
    with pytest.raises(InputError, match="did you mean 'quadratic-10d'"):
        tasks.family("quadratic10d")


# --- The check can fail --------------------------------------------------------------------------


@dataclass(frozen=True)
class BowlBatch(TaskBatch):
    """f(theta) = ||theta - center||^2 + 1, with noise of the step if there is any."""

    center: Tensor
    noise: float = 0.0

    @property
    def reference_loss(self) -> Tensor:
        return torch.ones_like(self.center[:, 0])

    @property
    def minimizer(self) -> Tensor | None:
        return self.center

    @property
    def stochastic(self) -> bool:
        return self.noise > 0

    def _loss(self, params: Tensor) -> Tensor:
        return (params - self.center).square().sum(1) + 1

    def observe(self, params: Tensor, step: int) -> Observation:
        factor = 1 + self.noise * (step % 7)
        return Observation(factor * self._loss(params), factor * 2 * (params - self.center))

    def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
        grad = 2 * (params - self.center)
        return DifferentiatedScore(*self.observe(params, step), self._loss(params) - 1, grad)


class _Wrong:
    """Batches each of which breaks one promise."""

    @dataclass(frozen=True)
    class Gradient(BowlBatch):
        def observe(self, params: Tensor, step: int) -> Observation:
            loss, grad = super().observe(params, step)
            return Observation(loss, 1.00001 * grad)

    @dataclass(frozen=True)
    class ExcessGradient(BowlBatch):
        def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
            seen = super().evaluate(params, step)
            return seen._replace(excess_grad=seen.grad + 1e-4)

    @dataclass(frozen=True)
    class Mixing(BowlBatch):
        def observe(self, params: Tensor, step: int) -> Observation:
            loss, grad = super().observe(params, step)
            return Observation(loss + 0 * params.sum(), grad)

    @dataclass(frozen=True)
    class Counting(BowlBatch):
        def observe(self, params: Tensor, step: int) -> Observation:
            loss, grad = super().observe(params, step)
            return Observation(loss * len(params) / 4, grad * len(params) / 4)

    @dataclass(frozen=True)
    class Random(BowlBatch):
        def observe(self, params: Tensor, step: int) -> Observation:
            loss, grad = super().observe(params, step)
            return Observation(loss + 1e-9 * torch.rand(len(loss)), grad)

    @dataclass(frozen=True)
    class InPlace(BowlBatch):
        def observe(self, params: Tensor, step: int) -> Observation:
            seen = super().observe(params, step)
            params.mul_(1.0).add_(1e-12)
            return seen

    @dataclass(frozen=True)
    class SecretlyStochastic(BowlBatch):
        @property
        def stochastic(self) -> bool:
            return not super().stochastic

    @dataclass(frozen=True)
    class Minimizer(BowlBatch):
        @property
        def minimizer(self) -> Tensor:
            return self.center + 1e-3

    @dataclass(frozen=True)
    class Reference(BowlBatch):
        @property
        def reference_loss(self) -> Tensor:
            return 0.5 * super().reference_loss

    @dataclass(frozen=True)
    class Scalar(BowlBatch):
        def observe(self, params: Tensor, step: int) -> Observation:
            loss, grad = super().observe(params, step)
            return Observation(loss.sum(), grad)

    @dataclass(frozen=True)
    class Double(BowlBatch):
        def evaluate(self, params: Tensor, step: int) -> DifferentiatedScore:
            return DifferentiatedScore(*(v.double() for v in super().evaluate(params, step)))

    @dataclass(frozen=True)
    class Cancelling(BowlBatch):
        def _loss(self, params: Tensor) -> Tensor:
            return super()._loss(params) + 1e6 - 1e6

    @dataclass(frozen=True)
    class Observed(BowlBatch):
        def score(self, params: Tensor, step: int) -> Score:
            return super().score(params, step + 1)

    @dataclass(frozen=True)
    class NoisyScore(BowlBatch):
        def score(self, params: Tensor, step: int) -> Score:
            seen = super().score(params, step)
            return seen._replace(excess=seen.loss)

    @dataclass(frozen=True)
    class Infinite(BowlBatch):
        def _loss(self, params: Tensor) -> Tensor:
            return super()._loss(params).log().neg().sqrt()


@dataclass(frozen=True)
class Bowls(TaskFamily):
    """Two-dimensional bowls; what is drawn and returned may be replaced by the tests."""

    width: float = 1.0

    @property
    def dim(self) -> int:
        return 2

    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        center = torch.randn(num_problems, 2, generator=generator, dtype=torch.float64)
        return self.make(self.width * center)

    def make(self, center: Tensor) -> TaskBatch:
        return BowlBatch(torch.zeros_like(center), center)


def bowls_of(make: Callable[[Tensor], TaskBatch]) -> TaskFamily:
    family = Bowls()
    object.__setattr__(family, "make", make)
    return family


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_good_family_passes(noise: float) -> None:
    check_family(bowls_of(lambda center: BowlBatch(torch.zeros_like(center), center, noise)))
    check_family(
        bowls_of(lambda center: FunctionBatch(torch.zeros_like(center), bowl, {"center": center}))
    )


def bowl(params: Tensor, center: Tensor) -> Tensor:
    return (params - center).square().sum(1)


BROKEN = {
    "Gradient": "^grad is not the gradient of loss: along a random direction it gives",
    "ExcessGradient": "^excess_grad is not the gradient of excess",
    "Mixing": "^loss of a problem changes with the parameters of another",
    "Counting": "^loss of selected problems differs from theirs in the whole batch",
    "Random": "^loss differs when it is computed again",
    "InPlace": "^evaluate changes the parameters that it is given",
    "SecretlyStochastic": "^the observed loss does not depend on the step; make `stochastic` false",
    "Minimizer": "^the excess at the minimizer must be 0, got 2e-06",
    "Reference": "^the excess of `evaluate` is not the loss minus reference_loss",
    "Scalar": r"^loss must have shape \[4\], got \[\]",
    "Double": "^loss of a float32 batch must be of torch.float32, got torch.float64",
    "Cancelling": "^loss in float32 is far from that in float64",
    "Infinite": "^loss is not finite near the start",
}


@pytest.mark.parametrize("wrong", BROKEN)
def test_a_broken_batch_is_seen(wrong: str) -> None:
    kind: Any = getattr(_Wrong, wrong)
    with pytest.raises(AssertionError, match=BROKEN[wrong]) as caught:
        check_family(bowls_of(lambda center: kind(torch.zeros_like(center), center)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ("SecretlyStochastic", "^the observed loss depends on the step; make `stochastic` true"),
        ("Observed", "^loss of `score` differs from that of `observe`"),
        ("NoisyScore", "^the excess of `score` depends on the step"),
    ],
)
def test_a_broken_stochastic_batch_is_seen(wrong: str, sentence: str) -> None:
    kind: Any = getattr(_Wrong, wrong)
    with pytest.raises(AssertionError, match=sentence):
        check_family(bowls_of(lambda center: kind(torch.zeros_like(center), center, 0.1)))


def test_what_is_drawn_badly_is_seen() -> None:
    def closure(center: Tensor) -> TaskBatch:  # data that `select` does not know of
        return FunctionBatch(
            torch.zeros_like(center),
            lambda params: (params - center[: len(params)].to(params)).square().sum(1),
        )

    def single(center: Tensor) -> TaskBatch:
        return BowlBatch(torch.zeros_like(center), center.flatten())

    def random(center: Tensor) -> TaskBatch:
        return BowlBatch(torch.zeros_like(center), torch.rand_like(center))

    def equal(center: Tensor) -> TaskBatch:
        return BowlBatch(torch.zeros_like(center), torch.ones_like(center))

    def wide(center: Tensor) -> TaskBatch:
        return BowlBatch(torch.zeros(len(center), 3), center)

    def unknown(center: Tensor) -> TaskBatch:
        return BowlBatch(torch.zeros_like(center), center / 0)

    for make, sentence in (
        (closure, "per-problem data must be tensor fields"),
        (single, r"^center of the batch must be a tensor with the 4 items .*, got shape \[8\]"),
        (random, "^equal generators give problems that differ in center"),
        (equal, "^all problems of a batch are equal"),
        (wide, r"^start must have shape \[4, 2\], got \[4, 3\]"),
        (unknown, "^center holds NaN or infinity"),
    ):
        with pytest.raises(AssertionError, match=sentence):
            check_family(bowls_of(make))


@dataclass(frozen=True)
class OwnGenerator(Bowls):
    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        return super()._sample(num_problems, torch.Generator().manual_seed(3))


@dataclass(frozen=True)
class DrawnInItsDtype(Bowls):
    def sample(  # type: ignore[misc]
        self,
        num_problems: int,
        generator: torch.Generator,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> TaskBatch:
        return self.make(torch.rand(num_problems, 2, generator=generator, dtype=dtype))


@dataclass(frozen=True)
class WithTuple(Bowls):
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True)
class WithTensor(Bowls):
    scale: Tensor = field(default_factory=lambda: torch.ones(2))


@dataclass(frozen=True)
class TooMany(Bowls):
    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        return super()._sample(7, generator)


@dataclass(frozen=True)
class Single(Bowls):
    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        return super()._sample(num_problems, generator).to(torch.float32)


@dataclass(frozen=True)
class Nothing(Bowls):
    def _sample(self, num_problems: int, generator: torch.Generator) -> Any:
        return None


@dataclass(frozen=True)
class Drawing(Bowls):
    def _sample(self, num_problems: int, generator: torch.Generator) -> TaskBatch:
        torch.rand(1)
        return super()._sample(num_problems, generator)


@pytest.mark.parametrize(
    ("family", "sentence"),
    [
        (TooMany(), r"^start must have shape \[4, 2\], got \[7, 2\]"),
        (Single(), "^`_sample` must draw starts in torch.float64, got torch.float32"),
        (Nothing(), "^what `_sample` draws must be a TaskBatch, got None"),
        (Drawing(), "^the global generator of PyTorch"),
        (Bowls, "must be a TaskFamily, got the class Bowls; make one of it"),
        (OwnGenerator(), "^drawing problems must advance the generator"),
        (DrawnInItsDtype(), "^DrawnInItsDtype must not override `sample`; draw problems by"),
        (WithTuple(), "^WithTuple is another family when made again from its fields in JSON"),
        (WithTensor(), "^the fields of WithTensor must be JSON values"),
    ],
)
def test_a_broken_family_is_seen(family: Any, sentence: str) -> None:
    with pytest.raises(AssertionError, match=sentence):
        check_family(family)
