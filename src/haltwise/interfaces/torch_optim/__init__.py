"""Learned optimizers as `torch.optim` optimizers."""

from haltwise.interfaces.torch_optim.optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]
