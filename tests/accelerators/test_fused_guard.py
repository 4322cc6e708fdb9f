"""The guard on the device against the guard of the host, on any course of the loss."""

import math

import pytest
import torch
from fused import fused_device
from hypothesis import given, settings
from hypothesis import strategies as st

from haltwise._kernels import fused as room
from haltwise.interfaces.torch_optim.guard import FRESH, Guard

__all__ = ["fused_device"]

Seen = tuple[int, int, bool, bool, bool, dict[str, float]]
"""Steps, steps skipped, whether to remember, to go back, what moved, what the guard remembers."""
HORIZON, PRICE, NUM = 12, 0.05, 7
STEPS = st.lists(
    st.tuples(
        st.one_of(st.floats(-3, 3), st.just(math.nan), st.none()),  # the loss
        st.sampled_from([1.0, 1.0, 1.0, math.inf]),  # the gradient's square
        st.sampled_from([0.5, 2.0, math.nan]),  # the update's
    ),
    min_size=4,
    max_size=16,
)


def host(steps: list[tuple[float | None, float, float]]) -> list[Seen]:
    """What the optimizer does with its guard at each step, and what that remembers."""
    state: dict[str, float] = {}
    step = skipped = 0
    found = []
    for loss, square, update in steps:
        guard = Guard(state, step, HORIZON, PRICE)
        action, applied = None, False
        if not math.isfinite(square) or (loss is not None and not math.isfinite(loss)):
            action, skipped = guard.fail(), skipped + 1
            remember, back = False, action.go_back
        else:
            action = guard.observe(loss)
            remember, back = action.remember, action.go_back
            if guard.has_taken_over:
                if not back:
                    guard.note_adam_step(has_loss=loss is not None)
                step += 1
            elif math.isfinite(update):
                guard.note_learned_step(update / NUM)
                step, applied = step + 1, True
            else:
                back, skipped = guard.fail().go_back, skipped + 1
        found.append((step, skipped, remember, back, applied, dict(state)))
    return found


def device(steps: list[tuple[float | None, float, float]], place: torch.device) -> list[Seen]:
    from haltwise.interfaces.torch_optim.fused import control

    def wide(*values: float) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=place)

    record = torch.zeros(control.CONTROL, dtype=torch.float64, device=place)
    record[control.GUARD : control.GUARD + len(FRESH)] = wide(*map(float, FRESH.values()))
    given = wide(NUM, HORIZON, PRICE, 1.0, 0.0, 1.0, 0.0, 0.0)
    table = torch.zeros(1, control.COLUMNS.value, dtype=torch.int64, device=place)
    log, nothing = torch.zeros(64, 36, dtype=torch.float64, device=place), wide(0.0)
    found = []
    for loss, square, update in steps:
        has_loss = loss is not None
        pooled = wide(0.0, square, *[0.0] * 6)
        with room.launching(place):
            control.begin_step[(1,)](
                *(table, 0, given, record, pooled, 0, 1, 1, nothing, nothing),
                wide(0.0 if loss is None else loss),
                HAS_LOSS=has_loss,
                GUARDED=True,
            )
            remember = bool(record[control.REMEMBER.value])
            control.end_step[(1,)](
                *(given, record, pooled, torch.zeros_like(log), wide(update), 0, 1, 1, log, 64),
                HAS_LOSS=has_loss,
                GUARDED=True,
                JUDGED=has_loss,
                UNITS=20,
                WIDTH=32,
            )
        row = record.tolist()
        kept = dict(zip(FRESH, row[control.GUARD :], strict=False))
        found.append(
            (
                int(row[control.STEP.value]),
                int(row[control.SKIPPED.value]),
                remember,
                bool(row[control.GO_BACK.value]),
                bool(row[control.MOVED.value]),
                kept,
            )
        )
    return found


@settings(max_examples=12)
@given(steps=STEPS)
def test_both_guards_do_and_remember_the_same(
    steps: list[tuple[float | None, float, float]],
) -> None:
    pytest.importorskip("triton")
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    for one, other in zip(device(steps, place), host(steps), strict=True):
        assert one[:-1] == other[:-1]
        assert one[-1] == pytest.approx(other[-1], rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("fall", [0.0, 0.8])
def test_they_tell_noise_and_rises_alike(fall: float) -> None:
    """Longer courses, of which the noise is known: with an outlier, and a rise that stays."""
    pytest.importorskip("triton")
    place = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    noise = torch.randn(36, generator=torch.Generator().manual_seed(1)).tolist()
    steps: list[tuple[float | None, float, float]] = []
    for step, deviation in enumerate(noise):
        level = 1 - fall * (1 - math.exp(-step / 4)) + 5 * (step == 25) + 3 * (step > 29)
        steps.append((level + 0.05 * deviation, 1.0, 0.5))
    expected = host(steps)
    assert any(back for _, _, _, back, _, _ in expected[30:])
    assert not expected[25][3]
    for one, other in zip(device(steps, place), expected, strict=True):
        assert one[:-1] == other[:-1]
        assert one[-1] == pytest.approx(other[-1], rel=1e-9, abs=1e-12)
