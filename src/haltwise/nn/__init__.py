"""Adaptive computation inside networks: one layer, whose items end when a step is not worth it."""

from haltwise.nn.base import AdaptiveProcess, ItemStep
from haltwise.nn.coupling import Coupling
from haltwise.nn.layer import AdaptiveComputation
from haltwise.nn.layers import LayerStack
from haltwise.nn.objects import ObjectGenerator, Scene
from haltwise.nn.pondered import Pondered
from haltwise.nn.recurrent import AdaptiveRNN, RecurrentCell
from haltwise.nn.repeated import RepeatedBlock
from haltwise.nn.residual import ResidualStage
from haltwise.nn.runner import Executed
from haltwise.nn.transformer import TransformerBlock
from haltwise.nn.variable_width import (
    LogisticPosterior,
    VariableComputationCell,
    VariableStep,
)

__all__ = [
    "AdaptiveComputation",
    "AdaptiveProcess",
    "AdaptiveRNN",
    "Coupling",
    "Executed",
    "ItemStep",
    "LayerStack",
    "LogisticPosterior",
    "ObjectGenerator",
    "Pondered",
    "RecurrentCell",
    "RepeatedBlock",
    "ResidualStage",
    "Scene",
    "TransformerBlock",
    "VariableComputationCell",
    "VariableStep",
]
