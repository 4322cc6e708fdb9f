"""Learned optimizers as `torch.optim` optimizers."""

from haltwise.torch_optim.optimizer import LearnedOptimizer

__all__ = ["LearnedOptimizer"]
