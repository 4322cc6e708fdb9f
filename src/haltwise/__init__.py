"""Learned optimizers for PyTorch that know when to stop."""

from haltwise import torch_optim
from haltwise._errors import InputError
from haltwise._version import __version__
from haltwise.optimizer import LearnedOptimizer
from haltwise.pretrained import load

__all__ = ["InputError", "LearnedOptimizer", "__version__", "load", "torch_optim"]
