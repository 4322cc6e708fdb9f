"""The networks of learned optimizers and halters, with compiled kernels and their references."""

from haltwise._kernels.coordinatewise import Coordinatewise, preprocess_gradient
from haltwise._kernels.head import Head
from haltwise._kernels.lstm import lstm_sequence, lstm_step, reference_lstm_sequence
from haltwise._kernels.native import available, implementation, one_thread

__all__ = [
    "Coordinatewise",
    "Head",
    "available",
    "implementation",
    "lstm_sequence",
    "lstm_step",
    "one_thread",
    "preprocess_gradient",
    "reference_lstm_sequence",
]
