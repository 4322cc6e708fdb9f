"""Steps that Ctrl-C ends at any line: the loop goes on, and what it saves can be loaded."""

import itertools
import sys
import warnings
from types import FrameType
from typing import Any

import pytest
import torch
from networks import Model, advance, flat

import haltwise
from haltwise import LearnedOptimizer
from haltwise.interfaces import torch_optim

ROOM = torch_optim.__path__[0]
EVERY = 41  # lines, of some hundreds a step


class Interruption:
    """Raises where the so-manyth line of a step begins."""

    def __init__(self, line: int) -> None:
        self.left = line

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(ROOM) or frame.f_code.co_name == "<genexpr>":
            return None
        self.left -= event == "line"
        if self.left < 0 and event == "line" and frame.f_code.co_name != "counted_if_whole":
            sys.settrace(None)
            raise KeyboardInterrupt
        return self


@pytest.mark.parametrize(("weights", "before"), [("mnist-mlp", 0), ("mnist-mlp", 3), (None, 101)])
def test_a_step_may_be_interrupted_anywhere(weights: str | None, before: int) -> None:
    options: Any = {} if weights is None else {"weights": weights}
    start, grown = Model(), Model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", haltwise.FitWarning)
        first = LearnedOptimizer(grown.parameters(), **options)
        advance(grown, first, before)
        state = first.state_dict()
        for line in itertools.count(0, EVERY):
            model = start if before == 0 else Model()
            model.load_state_dict(grown.state_dict())
            optimizer = LearnedOptimizer(model.parameters(), **options)
            optimizer.load_state_dict(state)
            kept = sys.gettrace()
            sys.settrace(Interruption(line))
            try:
                advance(model, optimizer, 1, first=before)
                break  # it has no more lines
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(kept)
            assert optimizer.steps_taken in (before, before + 1)
            assert not optimizer.take_back() or optimizer.steps_taken > before
            twin = Model()
            twin.load_state_dict(model.state_dict())
            other = LearnedOptimizer(twin.parameters(), **options)
            other.load_state_dict(optimizer.state_dict())
            for each, own in ((model, optimizer), (twin, other)):
                advance(each, own, 2, first=before)
            assert torch.equal(flat(model), flat(twin))
            assert optimizer.should_stop == other.should_stop
    assert line > 10 * EVERY
