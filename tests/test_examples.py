"""The examples run, on settings so small that they learn nothing."""

import functools
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
from programs import program
from torch.testing import assert_close

import haltwise
from haltwise import tasks
from haltwise._core.errors import CalibrationWarning
from haltwise._core.random import stream

EXAMPLES = Path(__file__).parents[1] / "examples"

load_example = functools.partial(program, folder=EXAMPLES)


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
    never = torch.full_like(statistic, torch.inf)
    statistics = {"given": statistic, "never": never}
    made = exits.Exits(right, torch.tensor([1.0, 2.0, 3.0]), learned, hard, statistics)
    assert exits.first_below(statistic, 1.0).tolist() == [1, 2, 1, 0]
    # The first and the third choose: at levels up to 1 both are right at the second exit.
    assert exits.as_accurate(made, statistic).tolist() == [1, 2, 1, 0]
    text = exits.table(made)
    assert "learned                    2.00 ( 1.00,  3.00)   1.0000 (1.0000, 1.0000)" in text
    assert "all steps                  3.00 ( 3.00,  3.00)   1.0000 (1.0000, 1.0000)" in text
    assert "given                      2.00 ( 1.00,  3.00)   1.0000 (1.0000, 1.0000)" in text
    assert "never                      3.00 ( 3.00,  3.00)   1.0000 (1.0000, 1.0000)" in text
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


@pytest.fixture
def scenes(exits: ModuleType) -> ModuleType:
    """Scenes, and what paints them."""
    del exits
    load_example("painters")
    return load_example("scenes")


def test_scenes_hold_what_was_counted(
    scenes: ModuleType, generator: torch.Generator, tmp_path: Path
) -> None:
    images, counts = scenes.sample(200, torch.full((3, 8, 8), 0.5), 20, generator)
    assert sorted(counts.unique().tolist()) == [0, 1, 2]
    assert torch.equal(images.sum((1, 2)), counts * 32.0)  # all pixels, those that overlap too
    figure = tmp_path / "scenes.html"
    arguments = ("--num-steps", "3", "--num-seeds", "1", "--num-test", "60")
    output = run_example(scenes, *arguments, "--figure", str(figure))
    assert "executed count accuracy" in output
    assert "KL of the next object" in output
    assert "plotly" in figure.read_text()


def test_larger_scenes_are_searched(
    scenes: ModuleType, tiny_images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HALTWISE_DATA_DIR", str(tiny_images))
    # Random pixels that overlap are too bright; these do not shine.
    own = scenes.digits
    monkeypatch.setattr(scenes, "digits", lambda kind, held_out: own(kind, held_out=held_out) / 2)
    assert scenes.digits("mnist", held_out=True).shape == (20, 28, 28)
    output = run_example(
        scenes, "--canvas", "mnist", "--num-steps", "2", "--num-seeds", "1", "--num-test", "60"
    )
    assert "executed count accuracy" in output
    assert "KL of the next object" in output


@pytest.mark.parametrize("kind", ["digits", "mnist"])
def test_the_sum_over_objects_is_the_evidence_bound(
    scenes: ModuleType, generator: torch.Generator, kind: str
) -> None:
    """Against the bound written out: q(n) [log p(x | x_n) - KL + log p(n) - log q(n)]."""
    torch.manual_seed(0)
    own = scenes.KINDS[kind]
    layer = own.layer(generator)
    images = torch.rand(5, own.painter.canvas, own.painter.canvas)
    with torch.no_grad():
        for weight in layer.head.parameters():
            weight.normal_()
        layer.head.hidden.weight *= 0.1
        pondered = layer(images, own.price)
        costs = scenes.losses(pondered.outputs, images)
        canvas, divergence = pondered.outputs[..., :-1], pondered.outputs[..., -1]
        squares = (images.flatten(1).unsqueeze(1) - canvas).square().sum(2)
        assert_close(costs, squares / (2 * 0.3**2) + divergence)
        bound = torch.zeros(5)
        for n in range(scenes.MOST + 1):
            log_prob = pondered.log_prob[:, n]
            bound += log_prob.exp() * (-costs[:, n] - n * own.price - log_prob)
        assert_close(pondered.objective(costs), -bound)


def test_objects_are_painted_where_most_is_left(scenes: ModuleType) -> None:
    torch.manual_seed(0)
    painter = scenes.Searcher().eval()
    images = torch.zeros(2, 50, 50)
    images[0, 13:21, 27:35] = images[1, 29:37, 21:29] = 1
    centre, _ = painter._brightest(images)
    assert_close(centre, torch.tensor([[0.24, -0.32], [0.0, 0.32]]))
    painted = painter._paint(images, centre, painter._seen(images, centre), noise=False)
    canvas = painted.on_canvas(50)
    for drawn, (row, column) in zip(canvas, ((17, 31), (33, 25)), strict=True):
        lines = (drawn > 0).nonzero().float().mean(0)  # the middle of the window
        assert lines.tolist() == [pytest.approx(row, abs=2), pytest.approx(column, abs=2)]
    # It gains what the canvas comes closer to the image, less what it costs.
    closer = (images.square() - (images - canvas).square()).sum((1, 2)) / (2 * scenes.SPREAD**2)
    assert_close(painted.gain, closer - painted.cost, rtol=0.05, atol=0)


def test_looking_ahead_takes_the_first_of_the_best_pair(
    scenes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two blots touch with their brighter halves; an object is what is in 14 columns."""
    painters = sys.modules["painters"]
    painter = scenes.Searcher().eval()
    image = torch.zeros(1, 50, 50)
    image[0, 15:35, 11:39] = 0.8
    image[0, 15:35, 18:32] = 1

    def paint(
        rest: torch.Tensor, centre: torch.Tensor, seen: torch.Tensor, *, noise: bool
    ) -> object:
        del seen, noise
        scale = torch.full((len(rest), 1), 50 / 28)
        glimpse = painters._window(rest, 1 / scale, centre, 28)
        glimpse[:, :, :7] = glimpse[:, :, 21:] = 0
        gain = glimpse.square().sum((1, 2)) / (2 * painters.SPREAD**2)
        return painters.Painted(glimpse, scale, centre, torch.zeros(len(rest)), gain)

    monkeypatch.setattr(painter, "_paint", paint)
    alone, most, _ = painter._search(image, ahead=False)
    assert_close(alone[:, :1], torch.zeros(1, 1), atol=0.05, rtol=0)
    first, gain, _ = painter._search(image, ahead=True)
    assert_close(first[:, :1].abs(), torch.full((1, 1), 0.28), atol=0.05, rtol=0)
    assert gain < most


@pytest.mark.usefixtures("exits")
def test_parity_inputs_are_what_they_say(generator: torch.Generator) -> None:
    parity = load_example("parity")
    for scatter in (False, True):
        inputs, targets, counts = parity.sample(500, 5, generator, size=9, scatter=scatter)
        assert set(counts.tolist()) == {1, 2, 3, 4, 5}
        for row, target, count in zip(inputs.tolist(), targets, counts.tolist(), strict=True):
            assert set(row) <= {-1.0, 0.0, 1.0}
            assert sum(value != 0 for value in row) == count
            assert target == row.count(1.0) % 2
            assert scatter or 0 not in row[:count]
        assert scatter == (inputs[:, 0] == 0).any()


@pytest.mark.usefixtures("exits")
@pytest.mark.parametrize("method", ["softmax", "stick-breaking", "graves"])
def test_parity_is_pondered_under_each_law(method: str) -> None:
    parity = load_example("parity")
    arguments = ("--size", "8", "--method", method, "--updates", "4", "--num-test", "80")
    lines = [line.split() for line in run_example(parity, *arguments).splitlines()]
    (learned,) = (line for line in lines if line[:1] == ["learned"])
    assert 1 <= float(learned[1]) <= parity.STEPS
    assert [line[2] for line in lines if line[:2] == ["trained", "for"]] == ["1", "2", "3"]
    assert lines[-1][0] == "at"


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
def test_characters_are_read_at_variable_width(tmp_path: Path) -> None:
    example = load_example("variable_width")
    path = tmp_path / "text.txt"
    path.write_text("To be, or not to be: that is the question. " * 300)
    text = example.read(path.read_text())
    assert len(text.taught) + len(text.held_out) == len(path.read_text())
    assert "".join(text.characters[n] for n in text.taught[:13]) == "To be, or not"
    arguments = (str(path), "--updates", "2", "--units", "6", "--width", "4", "--width", "6")
    lines = [line.split() for line in run_example(example, *arguments).splitlines()]
    ((_, bits, operations, width), _) = (line for line in lines if line[0] == "fixed")
    # A cell of 4 units reads 24 numbers; its 4 units are read for each character.
    assert float(operations) == 3 * 4 * (24 + 4) + 4 * len(text.characters)
    assert 0 < float(bits) < 8
    assert width == "4"
    model = example.Variable(len(text.characters), 6)
    torch.nn.init.normal_(model.cell.share.weight)
    tokens, price = text.held_out[:60].view(3, 20), torch.full((3,), 1e-3)
    with torch.no_grad():
        logits, hidden, widths = model(tokens, None, price)
        assert len(widths.unique()) > 1
        assert_close(logits[:, -1], model.read(hidden))
    priced = [line for line in lines if line[0] == "price"]
    assert len(priced) == 7
    assert all(1 <= float(line[4]) <= 6 for line in priced)


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
    larger = puzzles.sudoku6(40, generator, held_out=True)
    digits, places = larger.inputs.split((7, 18), 2)
    assert (places[0].sum(0) == 6).all()  # cells of a row, a column and a box
    shown = digits.argmax(-1) - 1
    assert ((shown >= 0).sum(1) <= 24).all()
    for row, target in zip(shown.tolist(), larger.targets.tolist(), strict=True):
        grid = torch.tensor(target).view(6, 6)
        boxes = grid.view(3, 2, 2, 3).transpose(1, 2).reshape(6, 6)
        for units in (grid, grid.T, boxes):
            assert (units.sort(1).values == torch.arange(6)).all()
        assert puzzles.solutions(row, 2, [*range(6)]) == [target]
    assert larger.difficulty.max() > 0
    assert len(puzzles.solutions([-1] * 36, 3, [*range(6)])) == 3
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
@pytest.mark.parametrize("task", ["sudoku", "sudoku6", "maze"])
def test_puzzles_are_looped_over(task: str) -> None:
    looped = load_example("looped_transformer")
    arguments = ("--num-steps", "3", "--num-puzzles", "80", "--num-test", "80", "--batch", "16")
    output = run_example(looped, task, *arguments)
    assert "of the loops; 16 puzzles in" in output
    assert "second difference" in output
