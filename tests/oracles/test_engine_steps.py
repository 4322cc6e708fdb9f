"""Single steps of engines against their formulas: directions, forecasts and line searches."""

import pytest
import torch
from draws import DOUBLE, seeded
from torch import Tensor

from haltwise import FunctionBatch
from haltwise.engines import EngineObservation, Memory, Point, Proposal, engines
from haltwise.engines.base import within
from haltwise.engines.curvature import eigh, newton_direction


def begun(name: str, batch: FunctionBatch) -> tuple[Point, Memory]:
    engine = engines()[name]
    seen = engine.observe_first(batch)
    point = Point(batch.start, seen.loss, seen.grad)
    return point, engine.init(point, seen)


def tried(
    name: str, batch: FunctionBatch, point: Point, memory: Memory
) -> tuple[Proposal, EngineObservation, Tensor, Memory]:
    """A step, what was found behind it, whether it is taken, and the memory after it."""
    engine = engines()[name]
    proposal = engine.propose(point, memory)
    seen = engine.observe(batch, point.params + proposal.move)
    return proposal, seen, *engine.learn(point, proposal, seen, memory)


def parabola(curvature: float, start: float) -> FunctionBatch:
    at = torch.tensor([[start]], dtype=DOUBLE)
    return FunctionBatch(at, lambda params: curvature * params.square().sum(1) / 2)


@pytest.mark.parametrize("name", ["bfgs", "lbfgs"])
@pytest.mark.parametrize("too_long", [2.5, 4.0, 40.0])
def test_a_step_that_failed_is_cut_to_the_lowest_point_of_the_parabola_through_it(
    name: str, too_long: float
) -> None:
    """It is the minimum, where the loss is a parabola; but no less than a tenth of the step."""
    batch = parabola(10.0, 0.3)
    point, memory = begun(name, batch)
    if name == "bfgs":
        memory = {**memory, "inverse": torch.full((1, 1, 1), too_long / 10, dtype=DOUBLE)}
    else:
        memory = {**memory, "scale": torch.full((1,), too_long / 10, dtype=DOUBLE)}
    first, _, taken, memory = tried(name, batch, point, memory)
    torch.testing.assert_close(first.move, -too_long * point.params)
    assert not taken.any()
    second, seen, taken, _ = tried(name, batch, point, memory)
    torch.testing.assert_close(second.move, max(1 / too_long, 0.1) * first.move)
    torch.testing.assert_close(second.slope, first.slope)  # per unit of length
    # Half of what the slope promises is what is left of it at the lowest point of a parabola.
    torch.testing.assert_close(second.gain, -(second.move * point.grad).sum(1) / 2)
    if too_long < 10:
        assert taken.all()
        torch.testing.assert_close(point.loss - seen.loss, second.gain)
        assert seen.loss.abs() < 1e-15


def test_a_newton_step_that_failed_is_cut_likewise_and_the_next_is_whole() -> None:
    at = torch.tensor([[3.0]], dtype=DOUBLE)
    batch = FunctionBatch(at, lambda params: (1 + params.square()).sqrt().sum(1))
    point, memory = begun("newton", batch)
    first, seen, taken, memory = tried("newton", batch, point, memory)
    torch.testing.assert_close(first.move, -3 * (1 + at.square()))  # -f' / f''
    torch.testing.assert_close(first.gain, -first.slope / 2)
    assert first.is_known.all()
    assert not taken.any()
    length = 1.0
    while not taken.any():  # the lowest point of the parabola through loss, slope and loss there
        rise = (seen.loss - point.loss).item()
        slope = first.slope.item() * length
        length *= min(max(-slope / (2 * (rise - slope)), 0.1), 0.5)
        step, seen, taken, memory = tried("newton", batch, point, memory)
        torch.testing.assert_close(step.move, length * first.move)
    there = Point(point.params + step.move, seen.loss, seen.grad)
    step = engines()["newton"].propose(there, memory)
    torch.testing.assert_close(step.move, -there.params * (1 + there.params.square()))


def test_newton_steps_double_where_the_loss_is_concave() -> None:
    """The curvature tells no best length there, but away from the maximum is down."""
    at = torch.tensor([[0.1]], dtype=DOUBLE)
    batch = FunctionBatch(at, lambda params: params.cos().sum(1))
    point, memory = begun("newton", batch)
    for length in (1, 2, 4):
        step, seen, taken, memory = tried("newton", batch, point, memory)
        torch.testing.assert_close(step.move, length * point.params.tan())  # |f' / f''|
        assert taken.all()
        assert not step.is_known.any()
        point = Point(point.params + step.move, seen.loss, seen.grad)
    step = engines()["newton"].propose(point, memory)  # past the point of inflection
    torch.testing.assert_close(step.move, -point.params.tan())
    assert step.is_known.all()


@pytest.mark.parametrize("name", ["newton", "bfgs", "lbfgs"])
def test_a_step_to_where_nothing_is_finite_is_cut_to_a_tenth(name: str) -> None:
    at = torch.tensor([[3.0]], dtype=DOUBLE)
    batch = FunctionBatch(at, lambda params: (params - 2 * params.log()).sum(1))
    point, memory = begun(name, batch)
    for key in memory.keys() & {"inverse", "scale", "direction"}:
        if name == "newton" or (key, name) != ("inverse", "lbfgs"):
            memory = {**memory, key: torch.full_like(memory[key], -90 if name == "newton" else 90)}
    first, seen, taken, memory = tried(name, batch, point, memory)
    assert seen.loss.isnan().all()
    assert not taken.any()
    second = engines()[name].propose(point, memory)
    torch.testing.assert_close(second.move, 0.1 * first.move)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_the_first_step_of_lbfgs_has_the_length_of_scipy_s(size: float) -> None:
    """It is 1 whatever the gradient, but more where parameters are so large that 1 is nothing."""
    for start, length in ((0.1, 1.0), (1e12, 1e12 * torch.finfo(DOUBLE).eps ** 0.5)):
        at = torch.full((1, 4), start, dtype=DOUBLE)
        batch = FunctionBatch(at, lambda params: size * params.sum(1))
        point, memory = begun("lbfgs", batch)
        move = engines()["lbfgs"].propose(point, memory).move
        torch.testing.assert_close(move, torch.full((1, 4), -length / 2, dtype=DOUBLE))


def test_gauss_newton_is_damped_as_nielsen_has_it() -> None:
    """By J^T J times 1 + lambda: a factor that doubles with each failure, and a tenth of success.

    Nielsen 1999, "Damping parameter in Marquardt's method", section 3.
    """
    at = torch.tensor([[2.0]], dtype=DOUBLE)
    batch = FunctionBatch(at, residuals=lambda x: 3 * x)
    engine = engines()["gauss-newton"]
    point, memory = begun("gauss-newton", batch)

    def damping(memory: Memory) -> float:
        move = engine.propose(point, memory).move
        return (-point.grad / (9 * move) - 1).item()

    found = [damping(memory)]
    higher = EngineObservation(point.loss + 1.0, point.grad, torch.full((1, 1, 1), 9.0).double())
    for _ in range(4):
        taken, memory = engine.learn(point, engine.propose(point, memory), higher, memory)
        assert not taken.any()
        found.append(damping(memory))
    assert found == pytest.approx([0, 1e-3, 4e-3, 32e-3, 512e-3], abs=1e-9)
    for expected in (512e-4, 512e-5):  # steps that gain what is forecast
        proposal = engine.propose(point, memory)
        there = EngineObservation(point.loss - proposal.gain, 0.5 * point.grad, higher.curvature)
        taken, memory = engine.learn(point, proposal, there, memory)
        assert taken.all()
        assert damping(memory) == pytest.approx(expected)
    _, memory = engine.learn(point, engine.propose(point, memory), higher, memory)
    assert damping(memory) == pytest.approx(2 * 512e-5)  # the factor begins at 2 again


def bowl(dim: int) -> tuple[FunctionBatch, Tensor]:
    """One quadratic, and the inverse of its Hessian."""
    root = torch.randn(dim, dim, generator=seeded(3), dtype=DOUBLE)
    hessian = root @ root.mT + 0.3 * torch.eye(dim, dtype=DOUBLE)
    start = torch.full((1, dim), 0.1, dtype=DOUBLE)
    batch = FunctionBatch(start, lambda x: torch.einsum("bi,ij,bj->b", x, hessian, x) / 2)
    return batch, torch.linalg.inv(hessian).unsqueeze(0)


@pytest.mark.parametrize("sure", [False, True])
def test_bfgs_knows_what_is_left_unless_it_has_guessed_a_curvature(sure: bool) -> None:
    batch, inverse = bowl(5)
    point, memory = begun("bfgs", batch)
    memory = {**memory, "inverse": 0.9 * inverse, "sure": torch.tensor([sure])}
    for _ in range(3):
        proposal, seen, taken, memory = tried("bfgs", batch, point, memory)
        point = Point(point.params + proposal.move, seen.loss, seen.grad)
        assert taken.all()
        assert engines()["bfgs"].propose(point, memory).is_known.tolist() == [sure]


def test_bfgs_trusts_the_hessian_where_a_short_step_has_confirmed_it() -> None:
    """From there on its steps are Newton's; where the gradient changes otherwise they are not."""
    batch, inverse = bowl(6)
    far = FunctionBatch(1e4 * batch.start, batch.loss)
    point, memory = begun("bfgs", far)
    for confirms in (True, False):
        proposal, seen, _, _ = tried("bfgs", far, point, memory)
        assert proposal.move.norm() < 3  # 1 along each eigenvector
        assert proposal.is_short is not None
        assert proposal.is_short.all()
        if not confirms:
            seen = seen._replace(grad=point.grad + 2 * (seen.grad - point.grad))
        taken, after = engines()["bfgs"].learn(point, proposal, seen, memory)
        assert taken.all()
        exact = (after["inverse"] - inverse).norm() < 1e-6 * inverse.norm()
        assert (exact.item(), after["sure"].item()) == (confirms, confirms)
        assert not after["untold"].any()
        if not confirms:  # what made the step short is learned from, as later on
            told = {**memory, "untold": torch.tensor([False])}
            _, later = engines()["bfgs"].learn(point, proposal, seen, told)
            assert torch.equal(after["inverse"], later["inverse"])


def test_bfgs_is_not_sure_of_a_hessian_with_a_negative_eigenvalue() -> None:
    batch = FunctionBatch(
        torch.full((1, 2), 0.01, dtype=DOUBLE),
        lambda params: params[:, 0].square() - params[:, 1].square() + params[:, 1] ** 4,
    )
    _, memory = begun("bfgs", batch)
    assert not memory["sure"].any()


@pytest.mark.parametrize(
    ("share", "known"), [(0.5, False), (0.65, True), (1.2, True), (1.4, False), (1.8, False)]
)
def test_bfgs_knows_what_is_left_where_a_whole_step_gained_about_its_forecast(
    share: float, known: bool
) -> None:
    """A step of a times Newton's is forecast to gain a / 2 of g H^-1 g and gains a - a^2 / 2."""
    batch, inverse = bowl(3)
    point, memory = begun("bfgs", batch)
    proposal, seen, taken, memory = tried(
        "bfgs", batch, point, {**memory, "inverse": share * inverse}
    )
    torch.testing.assert_close(
        (point.loss - seen.loss) / proposal.gain, torch.tensor([2 - share]).double()
    )
    assert taken.all()
    point = Point(point.params + proposal.move, seen.loss, seen.grad)
    assert engines()["bfgs"].propose(point, memory).is_known.tolist() == [known]


def test_bfgs_knows_nothing_behind_a_step_that_was_cut() -> None:
    batch, inverse = bowl(3)
    point, memory = begun("bfgs", batch)
    memory = {**memory, "inverse": 2.5 * inverse}
    _, _, taken, memory = tried("bfgs", batch, point, memory)
    assert not taken.any()
    proposal, seen, taken, memory = tried("bfgs", batch, point, memory)
    assert taken.all()  # at the minimum along it, where the forecast was right
    point = Point(point.params + proposal.move, seen.loss, seen.grad)
    assert not engines()["bfgs"].propose(point, memory).is_known.any()


@pytest.mark.parametrize("name", ["bfgs", "lbfgs"])
def test_after_four_steps_that_failed_what_was_learned_is_dropped(name: str) -> None:
    """The next is a step of the curvature along the last one that was taken, and whole."""
    batch, _ = bowl(4)
    point, memory = begun(name, batch)
    assert name == "lbfgs" or memory["sure"].all()
    key = {"bfgs": "inverse", "lbfgs": "scale"}[name]
    memory = {**memory, key: 0.1 * memory[key]}  # short of the minimum
    proposal, seen, taken, memory = tried(name, batch, point, memory)
    assert taken.all()
    change = seen.grad - point.grad
    scale = (proposal.move * change).sum() / change.square().sum()
    point = Point(point.params + proposal.move, seen.loss, seen.grad)
    first = engines()[name].propose(point, memory)
    higher = EngineObservation(point.loss + 1e3, point.grad)
    for failed in range(1, 5):
        proposal = engines()[name].propose(point, memory)
        torch.testing.assert_close(proposal.move, first.move * 0.1 ** (failed - 1))
        taken, memory = engines()[name].learn(point, proposal, higher, memory)
        assert not taken.any()
    torch.testing.assert_close(engines()[name].propose(point, memory).move, -scale * point.grad)
    assert name == "lbfgs" or not memory["sure"].any()


def test_a_first_step_that_failed_four_times_confirms_nothing() -> None:
    """Where the inverse begins anew, the next step is not that which the Hessian is told by."""
    batch, _ = bowl(6)
    point, memory = begun("bfgs", FunctionBatch(1e4 * batch.start, batch.loss))
    higher = EngineObservation(point.loss + 1e9, point.grad)
    for _ in range(4):
        assert memory["untold"].all()
        proposal = engines()["bfgs"].propose(point, memory)
        _, memory = engines()["bfgs"].learn(point, proposal, higher, memory)
    assert not memory["untold"].any()


def test_a_step_that_bounds_cut_does_not_tell_what_is_left() -> None:
    batch, _ = bowl(2)
    point, memory = begun("newton", batch)
    proposal = engines()["newton"].propose(point, memory)
    for share in (2.0, 0.5):
        found = within(share * proposal.move.abs(), point, proposal)
        assert found.is_short is not None
        assert (found.is_short.item(), found.is_known.item()) == (share < 1, share > 1)
        torch.testing.assert_close(found.move, min(share, 1.0) * proposal.move)


def test_bfgs_learns_the_inverse_of_a_quadratic() -> None:
    """It begins with Newton's step, and its updates are those of the textbook."""
    draw = seeded(5)
    root = torch.randn(3, 4, 4, generator=draw, dtype=DOUBLE)
    hessian = root @ root.mT + 0.1 * torch.eye(4, dtype=DOUBLE)

    def quadratic(params: Tensor, hessian: Tensor) -> Tensor:
        return 0.5 * torch.einsum("bi,bij,bj->b", params, hessian, params)

    batch = FunctionBatch(torch.full((3, 4), 0.1, dtype=DOUBLE), quadratic, {"hessian": hessian})
    engine = engines()["bfgs"]
    seen = engine.observe_first(batch)
    point = Point(batch.start, seen.loss, seen.grad)
    memory = engine.init(point, seen)
    torch.testing.assert_close(memory["inverse"], torch.linalg.inv(hessian))
    assert memory["sure"].all()
    far = engine.init(point, seen._replace(grad=100 * seen.grad))  # Newton's step is too long
    assert far["untold"].all()
    steps = far["inverse"] @ (100 * seen.grad).unsqueeze(2)
    assert (torch.linalg.eigh(hessian).eigenvectors.mT @ steps).abs().max() < 1 + 1e-9
    memory = {**memory, "inverse": 0.1 * torch.eye(4, dtype=DOUBLE).expand(3, 4, 4)}
    proposal = engine.propose(point, memory)
    moved = engine.observe(batch, point.params + proposal.move)
    taken, after = engine.learn(point, proposal, moved, memory)
    s, y = proposal.move.unsqueeze(2), (moved.grad - seen.grad).unsqueeze(2)
    left = torch.eye(4, dtype=DOUBLE) - s @ y.mT / (s.mT @ y)
    expected = left @ memory["inverse"] @ left.mT + s @ s.mT / (s.mT @ y)
    torch.testing.assert_close(after["inverse"][taken], expected[taken])
    assert taken.any()


@pytest.mark.parametrize(("dtype", "size"), [(torch.float32, 2.0**100), (DOUBLE, 2.0**900)])
def test_eigenvalues_of_large_matrices_are_those_of_small_ones_in_their_size(
    dtype: torch.dtype, size: float
) -> None:
    matrix = torch.randn(3, 4, 4, generator=seeded(1), dtype=DOUBLE).to(dtype)
    matrix = matrix + matrix.mT
    values, vectors = torch.linalg.eigh(matrix)
    for unit in (1.0, size):
        found, along = eigh(unit * matrix)
        torch.testing.assert_close(found / unit, values)
        torch.testing.assert_close(along, vectors)


@pytest.mark.parametrize("definite", [True, False])
def test_a_direction_is_newton_s_or_descends(*, definite: bool) -> None:
    root = torch.randn(50, 4, 4, generator=seeded(1), dtype=DOUBLE)
    matrix = root @ root.mT + 0.1 * torch.eye(4) if definite else root + root.mT
    grad = torch.randn(50, 4, generator=seeded(2), dtype=DOUBLE)
    direction, known = newton_direction(matrix, grad, torch.ones(50, 4, dtype=DOUBLE))
    values, vectors = torch.linalg.eigh(matrix)
    assert torch.equal(known, (values > 0).all(1))
    expected = -(vectors @ ((vectors.mT @ grad.unsqueeze(-1)) / values.abs().unsqueeze(-1)))
    torch.testing.assert_close(direction, expected.squeeze(-1))
    assert ((direction * grad).sum(1) < 0).all()


@pytest.mark.parametrize(
    ("sizes", "known"),
    [
        ((1e7, 1e18), True),
        ((0.0, 1e18), True),  # what is 0 tells no size, and counts as felt as the other
        ((1e7, 0.0), True),
        ((0.0, 0.0), True),
        ((1.0, 1.0), False),  # of these the second is flat, so far as one can tell
        ((1e-9, 1e18), False),
    ],
)
def test_a_direction_is_newton_s_where_parameters_of_such_sizes_are_felt_alike(
    sizes: tuple[float, float], known: bool
) -> None:
    curvature = torch.tensor([[[1e5, 3e-7], [3e-7, 1e-16]]], dtype=DOUBLE)
    grad, params = torch.tensor([[1e4, 1.0]], dtype=DOUBLE), torch.tensor([sizes], dtype=DOUBLE)
    direction, found = newton_direction(curvature, grad, params)
    assert found.tolist() == [known]
    exact = -torch.linalg.solve(curvature, grad)
    assert torch.allclose(direction, exact, rtol=1e-6, atol=0) is known
