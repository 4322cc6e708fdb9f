"""Update rules: how parameters move. A new rule is one new file here that defines `RULES`."""

from haltwise.update_rules.adam import Adam
from haltwise.update_rules.base import (
    PooledGradient,
    State,
    UpdateRule,
    UpdateStep,
    select_state,
)
from haltwise.update_rules.capabilities import (
    SupportsBackpropagation,
    SupportsChunks,
    SupportsInPlace,
    SupportsPreparation,
    SupportsReplay,
    backpropagate,
    prepare,
    replay,
    update_,
    update_chunk,
)
from haltwise.update_rules.lstm import LSTMRule
from haltwise.update_rules.partitioned import PartitionedRule
from haltwise.update_rules.rmsprop import RMSprop
from haltwise.update_rules.sgd import SGD
from haltwise.update_rules.table import make, rules

__all__ = [
    "SGD",
    "Adam",
    "LSTMRule",
    "PartitionedRule",
    "PooledGradient",
    "RMSprop",
    "State",
    "SupportsBackpropagation",
    "SupportsChunks",
    "SupportsInPlace",
    "SupportsPreparation",
    "SupportsReplay",
    "UpdateRule",
    "UpdateStep",
    "backpropagate",
    "make",
    "prepare",
    "replay",
    "rules",
    "select_state",
    "update_",
    "update_chunk",
]
