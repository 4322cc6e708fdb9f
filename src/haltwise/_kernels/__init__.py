"""The LSTM of learned optimizers and halters, with a compiled kernel and its reference."""

from haltwise._kernels.coordinatewise import Coordinatewise, FusedStep, preprocess_gradient
from haltwise._kernels.lstm import lstm_sequence, lstm_step
from haltwise._kernels.native import available, implementation, one_thread
from haltwise._kernels.reference import reference_lstm_sequence, reference_lstm_step

__all__ = [
    "Coordinatewise",
    "FusedStep",
    "available",
    "implementation",
    "lstm_sequence",
    "lstm_step",
    "one_thread",
    "preprocess_gradient",
    "reference_lstm_sequence",
    "reference_lstm_step",
]
