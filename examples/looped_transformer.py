"""A looped transformer that ends a puzzle when it is solved: hard ones take more loops than easy.

One block is applied again and again to the tokens of a puzzle. Training draws the price of a loop
anew for each puzzle, so one set of weights serves all prices; here the price is chosen at which, on
puzzles set aside, the share solved is that of all loops. The puzzles are generated
(`examples/puzzles.py`): Sudokus graded by a solver's backtracks, mazes by the length of the way.

    python examples/looped_transformer.py sudoku --figure sudoku.html
    python examples/looped_transformer.py sudoku6 --num-steps 3500

A sixth to three eighths of the loops solve what all do, to .8 points, 1.6 to 3 times as fast
(docs/adaptive-examples.md).
"""

import time
from pathlib import Path
from typing import ClassVar

import click
import torch
from exits import Exits, draw, halves, highest_price, point, statistics_of_answers, table
from puzzles import TASKS, Puzzles
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from haltwise.nn import AdaptiveComputation, AdaptiveProcess, ItemStep, TransformerBlock

DIM, LOOPS, BATCH, LEARNING_RATE, WARM_UP = 64, 12, 64, 2e-3, 0.6
LOW, HIGH = 1e-4, 3e-2  # prices of a loop, in nats of the mean cell


class Loop(AdaptiveProcess):
    """One block applied again and again; each exit returns log-odds of the cells [n, L, C].

    The head reads the tokens, how far they still move and how sure the least sure cell is.
    """

    steps_alike: ClassVar[bool] = True

    def __init__(self, num_answers: int) -> None:
        super().__init__(LOOPS)
        self.num_features = 2 * DIM + 3
        self.block = TransformerBlock(DIM, num_heads=4, hidden=2 * DIM)
        self.read = nn.Sequential(nn.LayerNorm(DIM), nn.Linear(DIM, num_answers))

    def init(self, inputs: Tensor) -> dict[str, Tensor]:
        return {"inputs": inputs, "tokens": torch.zeros_like(inputs)}

    def step(
        self, step: int | Tensor, state: dict[str, Tensor], active: Tensor | None = None
    ) -> ItemStep:
        before = state["tokens"]
        tokens = self.block(before + state["inputs"])
        logits = self.read(tokens)
        log_prob = logits.log_softmax(-1)
        entropy = -(log_prob.exp() * log_prob).sum(-1)
        moved = (tokens - before).square().mean(-1)
        sizes = torch.stack((moved.amax(1), entropy.amax(1), entropy.mean(1)), 1)
        features = torch.cat((tokens.mean(1), tokens.amax(1), (sizes + 1e-6).log()), 1)
        return ItemStep(logits, features, {**state, "tokens": tokens})


class Solver(nn.Module):
    """A looped transformer and what it begins with."""

    def __init__(self, sample: Puzzles, generator: torch.Generator) -> None:
        super().__init__()
        num_tokens, num_inputs = sample.inputs.shape[1:]
        self.embed = nn.Linear(num_inputs, DIM)
        self.place = nn.Parameter(0.3 * torch.randn(num_tokens, DIM, generator=generator))
        loop = Loop(int(sample.targets.max()) + 1)
        self.layer = AdaptiveComputation(loop, width=32, generator=generator)

    def tokens(self, inputs: Tensor) -> Tensor:
        """What the loop begins with, [n, L, D]."""
        tokens: Tensor = self.embed(inputs) + self.place
        return tokens


def losses_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of the cells at each exit, shape [n, T+1], of logits [n, T+1, L, C]."""
    answers = targets.unsqueeze(1).expand(logits.shape[:-1])
    return cross_entropy(logits.movedim(-1, 1), answers, reduction="none").mean(-1)


def train(task: str, num_steps: int, seed: int, num_puzzles: int) -> Solver:
    """Every loop must answer at first; then the head learns beside the loops, at all prices."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    puzzles = TASKS[task](num_puzzles, generator, held_out=False)
    solver = Solver(puzzles, generator)
    adam = torch.optim.AdamW(solver.parameters(), LEARNING_RATE, weight_decay=0.01)
    for step in range(num_steps):
        done = step / num_steps
        adam.param_groups[0]["lr"] = LEARNING_RATE * min(1, step / 100, 2.5 * (1 - done) + 0.01)
        rows = torch.randint(len(puzzles.inputs), (BATCH,), generator=generator)
        exponent = torch.rand(BATCH, generator=generator)
        pondered = solver.layer(solver.tokens(puzzles.inputs[rows]), LOW * (HIGH / LOW) ** exponent)
        losses = losses_of(pondered.outputs, puzzles.targets[rows])
        loss = losses.mean()
        if done > WARM_UP:
            progress = (done - WARM_UP) / (1 - WARM_UP)
            # Counted in prices, so that all prices count alike.
            objective = pondered.objective(losses, progress=progress) / pondered.price.sqrt()
            loss = loss + 0.1 * objective.mean()
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(solver.parameters(), 1.0)
        adam.step()
    return solver.eval()


@torch.no_grad()
def measure(solver: Solver, puzzles: Puzzles) -> tuple[Exits, float]:
    """Exits at the price that keeps the share solved on half of the puzzles, and that price."""
    tokens, by_price = solver.tokens(puzzles.inputs), {}
    for exponent in range(13):
        price = LOW * (HIGH / LOW) ** (exponent / 12)
        pondered = solver.layer(tokens, price)
        by_price[price] = pondered.exits
    logits = pondered.outputs
    right = (logits.argmax(-1) == puzzles.targets.unsqueeze(1)).all(-1)
    chosen = highest_price(right, by_price)
    log_prob = logits.log_softmax(-1)
    cells = [statistics_of_answers(log_prob[:, :, cell]) for cell in range(log_prob.shape[2])]
    statistics = {  # of the worst cell
        name: torch.stack([each[name] for each in cells]).amax(0) for name in cells[0]
    }
    hard = puzzles.difficulty > puzzles.difficulty.median()
    costs = solver.layer.process.exit_costs
    return Exits(right, costs, by_price[chosen], hard, statistics), chosen


@torch.no_grad()
def seconds(solver: Solver, inputs: Tensor, price: float, repeats: int = 7) -> tuple[float, float]:
    """Least wall-clock seconds of all loops without a head, and of those worth their price."""
    loop = solver.layer.process
    tokens, block, read = solver.tokens(inputs), loop.block, loop.read
    fixed, own = [], []
    for _ in range(repeats):
        began = time.perf_counter()
        state = torch.zeros_like(tokens)
        for _ in range(LOOPS):
            state = block(state + tokens)
        read(state)
        fixed.append(time.perf_counter() - began)
        began = time.perf_counter()
        solver.layer.run(tokens, price)
        own.append(time.perf_counter() - began)
    return min(fixed), min(own)


@click.command()
@click.argument("task", type=click.Choice(list(TASKS)))
@click.option("--first-seed", default=0, show_default=True)
@click.option("--num-seeds", default=1, show_default=True)
@click.option("--num-steps", default=2500, show_default=True, help="Updates.")
@click.option("--num-puzzles", default=50_000, show_default=True, help="To learn from.")
@click.option("--num-test", default=4000, show_default=True)
@click.option("--batch", default=256, show_default=True, help="Puzzles timed together.")
@click.option("--figure", type=click.Path(path_type=Path), help="Draw the last seed's exits here.")
def main(
    task: str, first_seed: int, num_seeds: int, num_steps: int, num_puzzles: int, num_test: int,
    batch: int, figure: Path | None,
) -> None:  # fmt: skip
    """Solve puzzles of a TASK with as many loops as each needs."""
    for seed in range(first_seed, first_seed + num_seeds):
        solver = train(task, num_steps, seed, num_puzzles)
        test = TASKS[task](num_test, torch.Generator().manual_seed(seed + 1000), held_out=True)
        exits, price = measure(solver, test)
        _, judged = halves(num_test)
        fixed, own = seconds(solver, test.inputs[judged][:batch], price)
        cost = point("learned", exits, exits.learned, judged).cost[0]
        click.echo(
            f"{task}, seed {seed}: at a price of {price:.2g}, {cost / LOOPS:.0%} of the loops; "
            f"{batch} puzzles in {1000 * own:.0f} ms, all loops {1000 * fixed:.0f} ms, "
            f"{fixed / own:.2f}x"
        )
        click.echo(table(exits))
    if figure is not None:
        draw(exits, figure, f"Loops a {task}, and puzzles solved")


if __name__ == "__main__":
    main()
