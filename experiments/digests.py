"""Digests of what the shipped weights do, to show that a refactoring keeps every number.

    python experiments/digests.py before.json          # before the change
    python experiments/digests.py after.json before.json   # after it; exits 1 where they differ

For six shipped names, 1,000 held-out problems and three prices: steps, gradients, outcomes and
returned points of `haltwise.solve`; the stops of a `HaltingMonitor` and of the torch optimizer on
a small network; all without the guard. Bits depend on the processor and on PyTorch: compare on
one machine.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor

import haltwise
from haltwise.tasks import family

NAMES = {
    "regression-2d": "regression-2d",
    "regression-10d-plain": "regression-10d-plain",
    "student-t-10d": "student-t-10d",
    "regression-10d-plain-adam": "regression-10d-plain",
    "regression-10d-noisy-adam": "regression-10d-noisy",
    "digits-mlp": "digits-mlp",
}
FACTORS = (0.2, 1.0, 5.0)  # of the price that the weights were trained for
NUM_PROBLEMS = 1000
MONITORS = ("regression-10d-plain-adam", "regression-10d-smooth-sgd")
OPTIMIZERS = ("mnist-mlp", "regression-10d", "regression-2d-mode")


def digest(*values: Tensor) -> str:
    """A checksum of the bytes of tensors."""
    checksum = hashlib.blake2b(digest_size=12)
    for value in values:
        checksum.update(repr((value.dtype, tuple(value.shape))).encode())
        checksum.update(value.detach().contiguous().view(torch.uint8).numpy().data)
    return checksum.hexdigest()


def solved(name: str, problems: str, factor: float) -> str:
    """The stops and points of `haltwise.solve`."""
    price = haltwise.load(name).card.price * factor
    batch = family(problems).sample(NUM_PROBLEMS, torch.Generator().manual_seed(2026))
    found = haltwise.solve(batch, name, price=price, guard=False)
    stops = found.steps.float().mean().item()
    print(f"  {name} at {price:g}: {stops:.2f} updates on average", flush=True)
    return digest(found.params, found.steps, found.num_gradients, found.outcome)


def _network() -> tuple[torch.nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(64, 10, generator=generator)
    y = (x[:, 0] > 0).long()
    model = torch.nn.Sequential(torch.nn.Linear(10, 12), torch.nn.Tanh(), torch.nn.Linear(12, 2))
    for param in model.parameters():
        param.data.normal_(std=0.3, generator=generator)
    return model, x, y


def _flat(model: torch.nn.Module) -> Tensor:
    return torch.cat([param.detach().flatten() for param in model.parameters()])


def monitored(name: str) -> str:
    """The round at which a monitor stops Adam, at several prices."""
    stops = []
    for price in (0.001, 0.003, 0.01, 0.03):
        model, x, y = _network()
        monitor = haltwise.HaltingMonitor(name, price=price)
        adam = torch.optim.Adam(model.parameters(), 0.05)
        monitor.start(model)
        for _ in range(100):
            adam.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            adam.step()
            monitor.update(loss, model)
            if monitor.should_stop:
                break
        stops.append(monitor.steps)
    print(f"  monitor {name}: {stops}", flush=True)
    return str(stops)


def optimized(name: str) -> str:
    """The parameters after 40 steps of the torch optimizer, and when it asked to stop."""
    model, x, y = _network()
    optimizer = haltwise.LearnedOptimizer(model.parameters(), weights=name, guard=False)
    first = -1
    for step in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(loss=loss)
        if optimizer.should_stop and first < 0:
            first = step
    print(f"  optimizer {name}: asked to stop at {first}", flush=True)
    return f"{digest(_flat(model))} {first}"


def main(out: Path, before: Path | None) -> int:
    """Write the digests, and compare them."""
    torch.set_num_threads(1)
    found = {
        f"solve {name} x{factor:g}": solved(name, problems, factor)
        for name, problems in NAMES.items()
        for factor in FACTORS
    }
    found |= {f"monitor {name}": monitored(name) for name in MONITORS}
    found |= {f"optimizer {name}": optimized(name) for name in OPTIMIZERS}
    found["all"] = hashlib.blake2b(json.dumps(found).encode(), digest_size=12).hexdigest()
    out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"all: {found['all']}")
    if before is None:
        return 0
    old = json.loads(before.read_text(encoding="utf-8"))
    changed = [name for name in old if old[name] != found.get(name)]
    print("identical" if not changed else f"changed: {', '.join(changed)}")
    return int(bool(changed))


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None))
