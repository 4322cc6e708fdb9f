"""Presets and other defaults: nested settings that lie under those of a command or a call."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from haltwise._core import discovery, plugins
from haltwise._core.nested_settings import merge
from haltwise.engines.named import own_kinds
from haltwise.processes import ProcessFamily, process_families
from haltwise.tasks import training_defaults

__all__ = ["ENGINE_DEFAULTS", "MONITOR_DEFAULTS", "PRESETS", "default_settings", "process_family"]


def process_family(name: str) -> Any | None:
    """The family of processes, a class or an instance, called `name`; None for any other family.

    Where that is PATH.py:NAME, the file is run.

    Raises:
        InputError: The file does not run, or it defines no such name.
    """
    if not plugins.is_file(name):
        return process_families().get(name)
    found = plugins.load_object(name, object, "family")
    kind = found if isinstance(found, type) else type(found)
    return found if issubclass(kind, ProcessFamily) else None


def default_settings(preset: str, family: str | None, rule: str | None = None) -> dict[str, Any]:
    """The settings that lie under those of a command or a call, as nested objects.

    Args:
        preset: A name in `PRESETS`.
        family: A name, or PATH.py:NAME, whose file is executed; None where there is none yet.
        rule: The name of the update rule or the engine; None where it is the default.

    Raises:
        InputError: The preset is unknown, or a file does not run.
    """
    chosen = discovery.lookup(PRESETS, preset, "preset")
    if family is None:
        return merge(chosen)
    if process_family(family) is not None:
        return merge(chosen, PROCESS_DEFAULTS)
    engine = ENGINE_DEFAULTS if rule in own_kinds() else {}
    return merge(training_defaults().get(family, {}), engine, chosen)


PRESETS: Mapping[str, dict[str, Any]] = MappingProxyType(
    {
        # What works best.
        "act": {},
        # The LSTM optimizer of L2L: no halting is trained.
        "lstm": {"method": {"name": "none"}, "halting": {"num_steps": 0}},
        # The thesis to the letter: g = w^T h; a linear read-out of the pooled hidden state;
        # tau = 1; one price, and one horizon a problem from the p(T) that it implies; one bound;
        # decisions with the gradient in hand.
        "thesis": {
            "rule": {
                "name": "lstm",
                "settings": {
                    "shared_gradient": False,
                    "direct_gradient": False,
                    "linear_readout": True,
                },
            },
            "halter": {"width": 0, "memory": 0, "features": "none"},
            "method": {
                "name": "softmax",
                "settings": {
                    "temperature": 1.0,
                    "continuation": None,
                    "horizons": "sampled",
                    "calibrated": False,
                    "before_gradient": False,
                },
            },
            "halting": {"num_steps": 0},
            "price_range": 1.0,
            "joint": {"warmup": 0.0, "sum_weight": 0.0},
        },
    }
)
"""Settings by preset, laid over the family's defaults."""

PROCESS_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"rule": {"name": "none"}, "price_range": 3.0}
)
"""Settings that differ where processes are stopped: they move by themselves."""

ENGINE_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {"halter": {"width": 32, "memory": 0, "features": "descent"}}
)
"""Settings that differ where engines are stopped: a small halter, for their steps are cheap, which
reads no units, for their problems have all."""

# Some hundreds of runs are all there is: a smaller halter, fewer steps.
MONITOR_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        **PROCESS_DEFAULTS,
        "halter": {"width": 32, "memory": 16},
        "halting": {"num_steps": 1000, "batch_size": 128},
    }
)
"""Settings that differ where a monitor is trained."""
