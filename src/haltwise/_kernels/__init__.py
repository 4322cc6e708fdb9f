"""Optional compiled accelerators, each with a plain PyTorch twin that says what it computes."""

from haltwise._kernels.coordinatewise import Coordinatewise, Mover, Pooled, preprocess_gradient
from haltwise._kernels.lstm import (
    available,
    implementation,
    lstm_sequence,
    lstm_step,
    one_thread,
    plain_lstm_sequence,
    plain_lstm_step,
)

__all__ = [
    "Coordinatewise",
    "Mover",
    "Pooled",
    "available",
    "implementation",
    "lstm_sequence",
    "lstm_step",
    "one_thread",
    "plain_lstm_sequence",
    "plain_lstm_step",
    "preprocess_gradient",
]
