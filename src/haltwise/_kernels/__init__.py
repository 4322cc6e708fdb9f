"""Optional compiled accelerators, each with a plain PyTorch twin that says what it computes."""

from haltwise._kernels.lstm import (
    ReadOut,
    available,
    implementation,
    lstm_gradient,
    lstm_sequence,
    lstm_step,
    lstm_update,
    plain_lstm_sequence,
    plain_lstm_step,
    read_out,
)

__all__ = [
    "ReadOut",
    "available",
    "implementation",
    "lstm_gradient",
    "lstm_sequence",
    "lstm_step",
    "lstm_update",
    "plain_lstm_sequence",
    "plain_lstm_step",
    "read_out",
]
