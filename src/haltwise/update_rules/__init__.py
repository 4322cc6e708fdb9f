"""Update rules: how parameters move. A new rule is one new file here that defines `RULES`."""

from haltwise.update_rules.adam import Adam
from haltwise.update_rules.base import PooledGradient, State, UpdateRule, UpdateStep
from haltwise.update_rules.capabilities import (
    SupportsBackpropagation,
    SupportsChunks,
    SupportsInPlace,
    SupportsPreparation,
    backpropagate,
    prepare,
    update_,
    update_chunk,
)
from haltwise.update_rules.lstm import LSTMRule
from haltwise.update_rules.mlp import MLPRule
from haltwise.update_rules.partitioned import PartitionedRule
from haltwise.update_rules.rmsprop import RMSprop
from haltwise.update_rules.sgd import SGD
from haltwise.update_rules.table import make, rules

__all__ = [
    "SGD",
    "Adam",
    "LSTMRule",
    "MLPRule",
    "PartitionedRule",
    "PooledGradient",
    "RMSprop",
    "State",
    "SupportsBackpropagation",
    "SupportsChunks",
    "SupportsInPlace",
    "SupportsPreparation",
    "UpdateRule",
    "UpdateStep",
    "backpropagate",
    "make",
    "prepare",
    "rules",
    "update_",
    "update_chunk",
]
