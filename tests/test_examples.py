"""The examples run, on settings so small that they learn nothing."""

import importlib.util
import itertools
import math
import sys
import warnings
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree

import pytest
import torch
from click.testing import CliRunner
from torch.testing import assert_close

import haltwise
from haltwise import tasks
from haltwise._core.errors import CalibrationWarning
from haltwise._core.random import stream

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_example(name: str) -> ModuleType:
    path = EXAMPLES / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    return load_example("parity")


def test_parity_inputs_are_what_they_say(parity: ModuleType, generator: torch.Generator) -> None:
    inputs, target, count = parity.sample(500, 9, 2, 5, generator)
    assert sorted(set(count.tolist())) == [2, 3, 4, 5]
    for row, parity_bit, num_nonzero in zip(
        inputs.tolist(), target.tolist(), count.tolist(), strict=True
    ):
        assert set(row) <= {-1.0, 0.0, 1.0}
        assert sum(value != 0 for value in row) == num_nonzero
        assert parity_bit == row.count(1.0) % 2


def test_parity_prints_a_line_for_every_posterior_and_task(
    parity: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "NUM_TEST", 200)
    arguments = ["--updates", "4", "--num-seeds", "2"]
    result = CliRunner().invoke(parity.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = [line.split() for line in result.output.splitlines()[2:]]
    rows, summaries = lines[:12], lines[12:]
    for task, posterior, *_, mean, _, half in summaries:
        both = [float(row[5]) - float(row[8]) for row in rows if row[:2] == [task, posterior]]
        assert float(mean) == pytest.approx(sum(both) / 2, abs=2e-3)
        assert float(half) == pytest.approx(12.706 * abs(both[0] - both[1]) / 2, abs=2e-2)
    assert len(summaries) == 6
    assert {(task, posterior) for task, posterior, *_ in rows} == {
        (task, posterior)
        for task in ("interpolation", "extrapolation")
        for posterior in parity.POSTERIORS
    }
    for row in rows:
        steps, *shares = map(float, (row[2], *row[5:]))
        assert 1 <= steps <= 4
        assert len(shares) == 9
        assert all(0 <= share <= 1 for share in shares)


def test_the_frontier_is_a_figure_of_what_was_executed(tmp_path: Path) -> None:
    frontier = load_example("frontier")
    found = frontier.measure("regression-2d", 64, 7)
    problems = tasks.family("regression-2d").sample(64, stream(7, "test"))
    price = frontier.PRICES[frontier.MIDDLE]
    solution = haltwise.solve(problems, "regression-2d", price=price, max_steps=40, guard=False)
    cost, excess = found.learned[frontier.MIDDLE]
    assert cost == pytest.approx(solution.num_gradients.double().mean().item())
    reached = solution.loss - problems.reference_loss
    assert excess == pytest.approx(reached.double().mean().item(), rel=1e-3)
    result = CliRunner().invoke(frontier.main, [str(tmp_path / "f.svg"), "--num-problems", "64"])
    assert result.exit_code == 0, result.output
    drawing = ElementTree.parse(tmp_path / "f.svg").getroot()
    assert drawing.tag.endswith("svg")
    assert "gradients a problem" in (drawing[0].text or "")


def test_a_family_from_a_file_is_trained_on_and_solved(tmp_path: Path) -> None:
    arguments = ["--out", str(tmp_path / "run"), "--joint-steps", "2"]
    arguments += ["--halting-steps", "2", "--num-recorded", "64"]
    example = load_example("my_family")
    result = CliRunner().invoke(example.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert "gradients of at most 40" in result.output
    assert haltwise.load(tmp_path / "run").card.family is not None


def test_a_loop_is_recorded_and_stopped() -> None:
    example = load_example("stop_your_own_loop")
    arguments = ["--runs", "40", "--test-runs", "12", "--rounds", "5", "--halting-steps", "3"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CalibrationWarning)  # so few runs
        result = CliRunner().invoke(example.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    lines = result.output.splitlines()
    table = {line[:14].strip(): line[14:].split() for line in lines[2:]}
    assert {"oracle", "learned", "patience", "fixed"} < set(table)
    # Runs that were stopped cost what the recordings forecast.
    assert float(lines[0].split()[-1]) == pytest.approx(float(table["learned"][0]), abs=2e-4)


# --- Examples that compare exits ------------------------------------------------------------------


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """What the examples below import from beside them."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return load_example("exits")


def test_statistics_of_answers_are_their_definitions(exits: ModuleType) -> None:
    prob = torch.tensor([[[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.1, 0.9]]], dtype=torch.float64)
    found = exits.statistics_of_answers(prob.log())
    rows = prob[0].tolist()
    entropy = [-sum(p * math.log(p) for p in row) for row in rows]
    assert found["entropy"].tolist() == [pytest.approx(entropy[:3])]
    assert found["patience"].tolist() == [[0, -1, 0]]  # the answer changes at the third exit
    pairs = itertools.pairwise(rows)
    kl = [sum(b * math.log(b / a) for a, b in zip(*pair, strict=True)) for pair in pairs]
    assert found["KL between steps"].tolist() == [[math.inf, *map(pytest.approx, kl[:2])]]
    second = sum(abs(c - 2 * b + a) for a, b, c in zip(*rows[:3], strict=True))
    assert found["second difference"].tolist() == [[math.inf, math.inf, pytest.approx(second)]]


def test_exits_are_judged_on_the_half_that_chose_nothing(exits: ModuleType) -> None:
    right = torch.tensor([[0, 1, 1], [0, 0, 1], [0, 1, 1], [1, 1, 1]], dtype=torch.bool)
    statistic = torch.tensor([[2.0, 1.0], [2.0, 2.0], [2.0, 1.0], [0.0, 1.0]])
    hard = torch.tensor([False, True, True, False])
    learned = torch.tensor([1, 2, 1, 0])
    made = exits.Exits(right, torch.tensor([1.0, 2.0, 3.0]), learned, hard, {"given": statistic})
    assert exits.first_below(statistic, 1.0).tolist() == [1, 2, 1, 0]
    # The first and the third choose: at levels up to 1 both are right at the second exit.
    assert exits.as_accurate(made, statistic).tolist() == [1, 2, 1, 0]
    text = exits.table(made)
    assert "learned                    2.00 ( 1.00,  3.00)   1.0000 (1.0000, 1.0000)" in text
    assert "all steps                  3.00 ( 3.00,  3.00)   1.0000 (1.0000, 1.0000)" in text
    assert "given                      2.00 ( 1.00,  3.00)   1.0000 (1.0000, 1.0000)" in text
    assert "fixed depth                                       0.7500" in text
    worse = exits.table(exits.Exits(~right, made.cost, learned, hard, {"given": statistic}))
    assert sum(line.startswith("  given") for line in worse.splitlines()) == 1
    by_price = {0.1: torch.tensor([2, 2, 2, 2]), 0.2: learned, 0.3: torch.zeros(4).long()}
    assert exits.highest_price(right, by_price) == 0.2


def test_the_hull_mixes_two_points(exits: ModuleType) -> None:
    points = [exits.Point("", [c, c, c], [a, a, a]) for c, a in ((1, 0.5), (2, 0.5), (3, 0.9))]
    assert exits.accuracy_at(points, 2) == pytest.approx(0.7)
    assert exits.accuracy_at(points, 5) == pytest.approx(0.9)
    assert math.isnan(exits.accuracy_at(points, 0.5))


def run_example(example: ModuleType, *arguments: str) -> str:
    result = CliRunner().invoke(example.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


@pytest.mark.usefixtures("exits")
def test_scenes_hold_what_was_counted(generator: torch.Generator, tmp_path: Path) -> None:
    scenes = load_example("scenes")
    images, counts = scenes.sample(200, torch.full((3, 8, 8), 0.5), generator)
    assert sorted(counts.unique().tolist()) == [0, 1, 2]
    assert torch.equal(images.sum((1, 2)), counts * 32.0)  # all pixels, those that overlap too
    figure = tmp_path / "scenes.html"
    arguments = ("--num-steps", "3", "--num-seeds", "1", "--num-test", "60")
    output = run_example(scenes, *arguments, "--figure", str(figure))
    assert "executed count accuracy" in output
    assert "KL of the next object" in output
    assert "plotly" in figure.read_text()


@pytest.mark.usefixtures("exits")
def test_the_sum_over_objects_is_the_evidence_bound() -> None:
    """Against the bound written out: q(n) [log p(x | x_n) - KL + log p(n) - log q(n)]."""
    scenes = load_example("scenes")
    torch.manual_seed(0)
    layer = scenes.AdaptiveComputation(scenes.Painter(), scenes.METHOD)
    images = torch.rand(5, scenes.CANVAS, scenes.CANVAS)
    with torch.no_grad():
        for weight in layer.head.parameters():
            weight.normal_()
        pondered = layer(images, scenes.PRICE)
        costs = scenes.losses(pondered.outputs, images)
        bound = torch.zeros(5)
        for n in range(scenes.MOST + 1):
            log_prob = pondered.log_prob[:, n]
            bound += log_prob.exp() * (-costs[:, n] - n * math.log(100) - log_prob)
        assert_close(pondered.objective(costs), -bound)


@pytest.mark.usefixtures("exits")
def test_clutter_is_laid_over_a_digit(generator: torch.Generator) -> None:
    clutter = load_example("clutter")
    white = torch.full((2, 20, 20), 255, dtype=torch.uint8), torch.tensor([3, 7])
    images = clutter.sample(100, white, generator)
    assert sorted(images.num_pieces.unique().tolist()) == list(range(clutter.MOST + 1))
    alone = images.num_pieces == 0
    assert (images.pixels[alone].sum((1, 2, 3)) == 400).all()
    at_half = torch.nn.functional.max_pool2d(images.pixels.squeeze(1), 2) > 0
    assert torch.equal(images.masks[alone], at_half[alone])
    assert (at_half | ~images.masks).all()
    assert (images.pixels[~alone].sum((1, 2, 3)) <= 400 + 49 * images.num_pieces[~alone]).all()
    assert images.pixels[~alone].sum() > 400 * (~alone).sum()


@pytest.mark.usefixtures("exits")
def test_operations_are_those_of_the_convolutions() -> None:
    load_example("ponder_networks")
    maps = load_example("ponder_maps")
    network = maps.Network(maps.UNITS).eval()
    counted = []
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d):
            each = layer.in_channels * math.prod(layer.kernel_size)
            layer.register_forward_hook(
                lambda _, __, found, each=each: counted.append(found.numel() * each)
            )
    pixels = torch.rand(1, 1, 28, 28)
    answers = network(pixels)
    assert sum(counted) == maps.STEM + maps.UNITS * maps.UNIT
    for statistic in maps.LEVELS:  # no position stops at an impossible level
        found, taken = maps.stopped(network, pixels, statistic, -1.0)
        assert_close(found, answers)
        assert taken.tolist() == [maps.UNITS]
    ended = torch.zeros(1, maps.SIDE, maps.SIDE, dtype=torch.int64)
    once = maps.STEM + maps.UNIT + maps.HEAD["position"] + maps.READ
    assert maps.share_of(ended, "position").tolist() == [pytest.approx(once / maps.ALL)]


@pytest.mark.usefixtures("exits")
def test_maps_are_pondered(
    tiny_images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tiny_images))
    maps = load_example("ponder_maps")
    monkeypatch.setattr(maps, "DEPTHS", (2, maps.UNITS))
    figure = tmp_path / "maps.svg"
    arguments = ("--num-steps", "3", "--num-test", "40", "--figure", str(figure))
    output = run_example(maps, *arguments)
    assert "ROC area of the ponder maps" in output
    assert "patience" in output
    pictures = ElementTree.fromstring(figure.read_text()).findall(".//{*}image")
    assert len(pictures) == 12
    assert all(each.get("href", "").startswith("data:image/png;base64,") for each in pictures)


@pytest.mark.usefixtures("exits")
def test_gates_follow_each_other(generator: torch.Generator) -> None:
    logic = load_example("logic")
    tables = {tuple(gate.flatten().tolist()) for gate in logic.GATES}
    assert len(tables) == 10
    for gate in logic.GATES:  # each depends on both bits
        assert (gate[0] != gate[1]).any()
        assert (gate[:, 0] != gate[:, 1]).any()
    inputs, answers, counts = logic.sample(300, 5, generator)
    held_out = logic.sample(300, 5, generator, held_out=True).inputs
    assert set(counts.tolist()) == {1, 2, 3, 4, 5}
    for row, answer, count in zip(inputs, answers, counts, strict=True):
        before, last = ((row[:2] + 1) / 2).long().tolist()
        gates = row[2:].view(5, 10)
        assert gates.sum().item() == count
        for gate in gates[: int(count)]:
            new = logic.GATES[gate.argmax(), last, before].item()
            before, last = last, new
        assert last == answer
    assert not {tuple(row) for row in inputs.tolist()} & {tuple(row) for row in held_out.tolist()}
    output = run_example(logic, "--updates", "3", "--num-test", "80")
    assert "trained for 8" in output


@pytest.mark.usefixtures("exits")
def test_puzzles_have_one_solution_and_their_difficulty(generator: torch.Generator) -> None:
    puzzles = load_example("puzzles")
    solved = puzzles.grids()
    assert len(solved.unique(dim=0)) == 288
    sudokus = puzzles.sudoku(60, generator, held_out=True)
    taught = puzzles.sudoku(200, generator, held_out=False).inputs.flatten(1).tolist()
    assert not {tuple(row) for row in taught} & {
        tuple(row) for row in sudokus.inputs.flatten(1).tolist()
    }
    for row, target in zip(sudokus.inputs.argmax(-1) - 1, sudokus.targets, strict=True):
        fits = solved[(solved[:, row >= 0] == row[row >= 0]).all(1)]
        assert fits.tolist() == [target.tolist()]
    assert puzzles.backtracks(solved[0].tolist()) == 0
    # The first cell may be 0 or 3; with 0 there is nothing left for the last of its row.
    clues = [-1, 1, 2, -1, 2, -1, 3, 1, 1, 3, 0, 2, -1, 2, 1, 3]
    assert puzzles.backtracks(clues) == 1
    mazes = puzzles.maze(20, generator, held_out=True)
    for inputs, target, length in zip(*mazes, strict=True):
        way = set(target.nonzero().squeeze(1).tolist())
        assert len(way) == length + 1
        cell, goal = int(inputs[:, 4].argmax()), int(inputs[:, 5].argmax())
        seen = {cell}
        while cell != goal:  # walls open along it, one way on
            moves = ((0, 1), (1, puzzles.SIDE), (2, -1), (3, -puzzles.SIDE))
            (cell,) = {cell + move for side, move in moves if inputs[cell, side]} & way - seen
            seen.add(cell)
        assert seen == way


@pytest.mark.usefixtures("exits")
@pytest.mark.parametrize("task", ["sudoku", "maze"])
def test_puzzles_are_looped_over(task: str) -> None:
    looped = load_example("looped_transformer")
    arguments = ("--num-steps", "3", "--num-puzzles", "80", "--num-test", "80", "--batch", "16")
    output = run_example(looped, task, *arguments)
    assert "of the loops; 16 puzzles in" in output
    assert "second difference" in output
