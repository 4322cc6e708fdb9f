"""What early exit saves inside a network: loops of a transformer that are executed, and seconds.

A looped transformer runs to its last loop, and until its items end, on the same inputs. Where items
end is drawn beforehand from a geometric law, since what is measured is the running: the halting
head reads it, and is asked at every loop as any other. The third row has four times as many
problems: free places go to those that wait. Tokens end evenly up to the end of their sequence, or
apart from each other: then hardly a sequence ends early as a whole, and all is saved inside.

    python benchmarks/adaptive.py --threads 2
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple, final

import click
import torch
from torch import Tensor, nn

from haltwise.nn import (
    AdaptiveComputation,
    AdaptiveProcess,
    Executed,
    ItemStep,
    RepeatedBlock,
    TransformerBlock,
)

MEAN_LEFT = 0.47
"""Mean share of the loops that an item takes, before the last loop cuts it off."""
WAYS = ("sequence", "token", "token apart")
"""What ends: a sequence, a token up to the end of its sequence, or a token whatever others do."""


@final
class Countdown(AdaptiveProcess):
    """A repeated block whose items end when they are told: inputs have the loop beside them."""

    num_features = 1
    steps_alike = True

    def __init__(self, inner: RepeatedBlock) -> None:
        super().__init__(inner.num_exits)
        self.inner, self.items_interact = inner, inner.items_interact

    def init(self, inputs: Tensor) -> dict[str, Tensor]:
        ends = inputs[..., -1] if self.items_interact else inputs[:, 0, -1]
        return {**self.inner.init(inputs[..., :-1].contiguous()), "ends": ends}

    def step(
        self, step: int | Tensor, state: dict[str, Tensor], active: Tensor | None = None
    ) -> ItemStep:
        output, _, after = self.inner.step(step, state, active)
        at = torch.zeros(len(output), dtype=torch.int64, device=output.device) + step
        left = state["ends"] - at.view(-1, *[1] * (state["ends"].ndim - 1))
        return ItemStep(output, left.unsqueeze(-1), {**after, "ends": state["ends"]})


class Row(NamedTuple):
    """What one way of running came to."""

    way: str
    executed: float
    """Loops that items took, as a share of all."""
    computed: float
    """Loops of rows that were computed, empty places included, as a share of all."""
    seconds: "Seconds"
    """Of as many problems as are in a batch: the median of the repetitions."""
    saves: "Seconds"
    """How many times less that is than all loops take in the same repetition: the median."""
    shapes: int
    """Shapes for which the block's perceptron would have to be compiled."""


class Seconds(NamedTuple):
    """Seconds of a repetition, or what of them."""

    wall: float
    cpu: float
    """Of all threads; another program beside takes nothing of it."""

    @classmethod
    def median(cls, repetitions: "list[Seconds]") -> "Seconds":
        """The medians of both."""
        return cls(*map(statistics.median, zip(*repetitions, strict=True)))

    def over(self, other: "Seconds") -> "Seconds":
        """How many times the other these are."""
        return Seconds(self.wall / other.wall, self.cpu / other.cpu)


class Settings(NamedTuple):
    """A looped transformer and what it runs on."""

    batch: int = 256
    length: int = 16
    dim: int = 128
    loops: int = 16
    repeats: int = 5
    device: str = "cpu"


def make_layer(
    way: str, settings: Settings, dtype: torch.dtype = torch.float32
) -> AdaptiveComputation:
    """A layer whose items end when their countdown has reached 0."""
    block = TransformerBlock(settings.dim)
    per: Literal["sequence", "token"] = "sequence" if way == "sequence" else "token"
    inner = RepeatedBlock(block, settings.dim, settings.loops, per=per)
    layer = AdaptiveComputation(Countdown(inner), width=0, price_input=False)
    nn.init.constant_(layer.head.readout.weight, -100.0)
    nn.init.constant_(layer.head.readout.bias, 52.0)  # log-odds 50 at 0, -50 at 1
    return layer.to(settings.device, dtype)


def sample(way: str, num: int, settings: Settings, generator: torch.Generator) -> Tensor:
    """Draw sequences, beside each token the loop at which it ends."""
    tokens = torch.randn(num, settings.length, settings.dim, generator=generator)
    uniform = torch.rand(num, settings.length, 1, generator=generator)
    mean = MEAN_LEFT * settings.loops
    ends = (uniform.log() / torch.tensor(1 - 1 / mean).log()).floor()
    ends = ends.clamp_max(settings.loops - 1)
    if way != "token apart":  # the first token is the last to end
        share = torch.arange(settings.length, 0, -1).view(-1, 1) / settings.length
        ends = (ends[:, :1] * share).round()
    return torch.cat((tokens, ends), -1).to(settings.device)


def measure(way: str, settings: Settings) -> list[Row]:
    """Rows of all loops, of early exit, and of four times as many problems in as many places."""
    layer = make_layer(way, settings)
    many = sample(way, 4 * settings.batch, settings, torch.Generator().manual_seed(0))
    inputs, rows = many[: settings.batch], []

    @torch.no_grad()
    def all_loops() -> Tensor:
        process, state = layer.process, layer.process.init(inputs)
        for loop in range(settings.loops):
            steps = torch.full((len(inputs),), loop, device=inputs.device)
            output, _, state = process.step(steps, state)
        return output

    # Of tokens there are batches in few sizes already: the sizes of both would multiply.
    sizes = None if way == "sequence" else [settings.batch]
    placed = layer.run(inputs, 1.0, sizes=sizes).sizes
    ways: dict[str, Callable[[], Executed]] = {
        "until they end": lambda: layer.run(inputs, 1.0, sizes=sizes),
        "the same, 4 x as many": lambda: layer.run(many, 1.0, sizes=placed),
    }
    full, *times = in_turns([all_loops, *ways.values()], settings)
    rows.append(Row(f"{way}: all loops", 1.0, 1.0, Seconds.median(full), Seconds(1.0, 1.0), 1))
    for (how, run), taken in zip(ways.items(), times, strict=True):
        shapes: set[torch.Size] = set()
        with watched(layer, shapes):
            executed = run()
        share = len(executed.output) * settings.loops
        per_batch = settings.batch / len(executed.output)
        mine = [Seconds(*(value * per_batch for value in each)) for each in taken]
        rows.append(
            Row(
                f"{way}: {how}",
                (executed.exits + 1).double().mean().item() / settings.loops,
                executed.num_row_steps / share,
                Seconds.median(mine),
                Seconds.median([a.over(b) for a, b in zip(full, mine, strict=True)]),
                len(shapes),
            )
        )
    return rows


@contextlib.contextmanager
def watched(layer: AdaptiveComputation, shapes: set[torch.Size]) -> Iterator[None]:
    """Add the shapes that the perceptrons of blocks are given."""
    hooks = [
        module.widen.register_forward_pre_hook(lambda _, given: shapes.add(given[0].shape))
        for module in layer.modules()
        if isinstance(module, TransformerBlock)
    ]
    yield
    for hook in hooks:
        hook.remove()


def in_turns(runs: list[Callable[[], object]], settings: Settings) -> list[list[Seconds]]:
    """Seconds of every repetition of each, after one call that warms up.

    They take turns: what else the machine does then slows all of them, and ratios keep their sense.
    """
    for run in runs:
        run()
    taken: list[list[Seconds]] = [[] for _ in runs]
    for _ in range(settings.repeats):
        for run, mine in zip(runs, taken, strict=True):
            wait(settings)
            begin = time.perf_counter(), time.process_time()
            run()
            wait(settings)
            mine.append(Seconds(time.perf_counter() - begin[0], time.process_time() - begin[1]))
    return taken


def wait(settings: Settings) -> None:
    """Let a device finish what it was given."""
    if settings.device != "cpu":
        torch.cuda.synchronize()


def same_alone(way: str, settings: Settings) -> bool:
    """Whether every row has the same bits in a batch of one as among all, in float64."""
    layer = make_layer(way, settings, torch.float64)
    inputs = sample(way, settings.batch, settings, torch.Generator().manual_seed(1)).double()
    together = layer.run(inputs, 1.0)
    return all(
        torch.equal(layer.run(inputs[row : row + 1], 1.0).output[0], together.output[row])
        for row in range(0, settings.batch, max(1, settings.batch // 16))
    )


@click.command()
@click.option("--batch", default=256, show_default=True, help="Problems side by side.")
@click.option("--length", default=16, show_default=True, help="Tokens of a problem.")
@click.option("--dim", default=128, show_default=True, help="Numbers of a token.")
@click.option("--loops", default=16, show_default=True, help="Loops at most.")
@click.option("--repeats", default=5, show_default=True, help="Repetitions of each timing.")
@click.option("--threads", default=1, show_default=True, help="CPU threads.")
@click.option("--device", default="cpu", show_default=True, help="Where to compute.")
def main(
    batch: int, length: int, dim: int, loops: int, repeats: int, threads: int, device: str
) -> None:
    """Print shares of loops, seconds, and whether results depend on company."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    settings = Settings(batch, length, dim, loops, repeats, device)
    heads = f"{'executed':>9}{'computed':>9}{'seconds':>9}{'saves':>7}{'CPU s':>7}{'saves':>7}"
    click.echo(f"{'':32}{heads}{'shapes':>7}")
    for way in WAYS:
        for row in measure(way, settings):
            cells = f"{row.executed:9.1%}{row.computed:9.1%}"
            cells += f"{row.seconds.wall:9.3f}{row.saves.wall:6.2f}x"
            cells += f"{row.seconds.cpu:7.3f}{row.saves.cpu:6.2f}x"
            click.echo(f"{row.way:32}{cells}{row.shapes:7}")
        same = same_alone(way, settings)
        click.echo(f"{way}: the same bits in a batch of one, in float64: {same}")


if __name__ == "__main__":
    main()
