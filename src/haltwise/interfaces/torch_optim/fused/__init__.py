"""Steps of the torch optimizer on a GPU: all tensors of a group in a few launches, and no waiting.

A step does what `haltwise.interfaces.torch_optim.optimizer` does elsewhere, with the same states.
What it decides stays on the device (`control.py`) until the host asks for it. Nothing of this room
is imported before `haltwise._kernels.fused.serves` has said that it can run.
"""
