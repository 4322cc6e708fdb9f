"""Steps that are ended midway, as by Ctrl-C in a notebook or for want of memory."""

import contextlib
from collections.abc import Iterator

from haltwise.interfaces.torch_optim.groups import Record
from haltwise.interfaces.torch_optim.problem import States

__all__ = ["counted_if_whole"]


@contextlib.contextmanager
def counted_if_whole(states: States) -> Iterator[None]:
    """Forget a step that raises, so that the next one can be taken and the state be saved.

    What it has moved by then stays moved, as with any optimizer: to undo it would take a copy of
    all. A warning that is made an error comes where what it tells of is done, and is left at that.

    Args:
        states: What is remembered of each tensor, and of groups beside that of their first.
    """
    known = set(states)
    records = [state["group"][0] for state in states.values() if "group" in state]
    before = [(record, _copied(record)) for record in records]
    try:
        yield
    except Warning:
        raise
    except BaseException:
        for param in states.keys() - known:
            del states[param]
        for record, saved in before:
            record.clear()
            record.update(saved)
        raise


def _copied(record: Record) -> Record:
    """A copy whose guard is one, too; its tensors are never changed in place."""
    guard = {"guard": {**record["guard"]}} if "guard" in record else {}
    return {**record, **guard}
