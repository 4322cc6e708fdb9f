"""A pretended accelerator: tensors that lie on the CPU and say that they do not.

What it refuses a real one refuses, too: operations on tensors of two devices, numbers drawn by a
generator of the CPU, arrays of NumPy over its memory. A narrow one has no float64, as Apple's.
"""

import functools
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only

from haltwise._core import tensors as core
from haltwise._kernels import operands
from haltwise.interfaces import watched
from haltwise.interfaces.torch_optim import groups, states

__all__ = ["NAME", "accelerator"]

NAME = "pretended"
_MOVES = {"_to_copy", "copy_"}
_INDEXES = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}


_NARROW = frozenset((NAME,))


def _is_narrow() -> bool:
    return core._NARROW >= _NARROW


class Pretended(Tensor):
    """A tensor whose values are another's, on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        if held.dtype in (torch.float64, torch.complex128) and _is_narrow():
            raise TypeError(f"{place()} has no {held.dtype}")
        made: Pretended = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=place(),
            requires_grad=held.requires_grad,
        )
        made.held = held
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(held: dict[str, Tensor], *_: Any) -> "Pretended":
        return Pretended(held["held"])

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(func, args, kwargs or {})

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(f"can't convert {place()} device type tensor to numpy")

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made = Pretended(self.held.detach().clone()).requires_grad_(self.requires_grad)
            if isinstance(self, torch.nn.Parameter):
                made._is_param = True
            memo[id(self)] = made
        return memo[id(self)]  # type: ignore[no-any-return]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"{self.held} on {place()}"

    def __format__(self, spec: str) -> str:
        return format(self.held.detach(), spec)

    def tolist(self) -> Any:
        return self.held.tolist()

    def __array__(self, *args: Any) -> Any:
        return self.numpy()


class _Accelerator(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@functools.cache
def place() -> torch.device:
    """The device, which the process has from now on."""
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    # `torch.tensor` and the like ask for memory past all modes.
    library.impl("empty.memory_format", _empty, "PrivateUse1")
    library.impl("empty_strided", _empty_strided, "PrivateUse1")
    library.impl("_copy_from", _copy_from, "PrivateUse1")
    return torch.device(NAME, 0)


library = torch.library.Library("aten", "IMPL")


def _empty(size: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Pretended(torch.empty(size, dtype=dtype, device="cpu"))


def _copy_from(source: Any, target: Any, non_blocking: bool = False) -> Tensor:
    del non_blocking
    own = [each.held if isinstance(each, Pretended) else each for each in (target, source)]
    own[0].copy_(own[1])
    return target  # type: ignore[no-any-return]


def _empty_strided(size: Any, stride: Any, *, dtype: Any = None, **_: Any) -> Tensor:
    return Pretended(torch.empty_strided(size, stride, dtype=dtype, device="cpu"))


@contextmanager
def accelerator(*, narrow: bool = False) -> Iterator[torch.device]:
    """Where tensors can be made on the device, which has no float64 if it is narrow."""
    device = place()
    mode = _Accelerator()  # type: ignore[no-untyped-call]
    with mode, ExitStack() as patched:
        # They refuse tensors of other classes than PyTorch's own, which may have no memory.
        if narrow:
            patched.enter_context(mock.patch.object(core, "_NARROW", core._NARROW | _NARROW))
        plain = (*operands._PLAIN_TYPES, Pretended)
        patched.enter_context(mock.patch.object(operands, "_PLAIN_TYPES", plain))
        for module in (groups, states, watched):
            patched.enter_context(mock.patch.object(module, "is_plain", return_value=True))
        yield device


def _run(func: Any, args: Any, kwargs: Any) -> Any:
    name = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_flatten((args, kwargs))[0] if isinstance(leaf, Tensor)]
    pretended = [tensor for tensor in tensors if isinstance(tensor, Pretended)]
    asked = kwargs.get("device")
    asked = None if asked is None else torch.device(asked)
    goes = asked.type == NAME if asked is not None else bool(pretended)
    if not goes and not pretended:
        return func(*args, **kwargs)
    if pretended and name not in _MOVES:
        others = [each for each in tensors if not isinstance(each, Pretended) and each.ndim]
        indexes = name in _INDEXES and isinstance(args[0], Pretended)
        if indexes:
            indices = {id(leaf) for leaf in tree_flatten(args[1])[0]}
            others = [each for each in others if id(each) not in indices]
        if others:
            raise RuntimeError(
                f"expected all tensors on the same device, but found {place()} and cpu, {name}"
            )
    if goes and isinstance(kwargs.get("generator"), torch.Generator):
        raise RuntimeError(f"Expected a {NAME!r} device type for generator but found 'cpu'")
    if pretended and kwargs.get("dtype") == torch.float64 and _is_narrow():
        raise TypeError(f"{place()} has no float64, {name}")
    own_args, own_kwargs = tree_map_only(Pretended, lambda each: each.held, (args, kwargs))
    if goes and asked is not None:
        own_kwargs["device"] = torch.device("cpu")
    found = func(*own_args, **own_kwargs)
    if name == "_to_copy" and asked is not None:  # a move is a copy
        found = found.clone() if any(found is each for each in own_args) else found
    if goes and name != "copy_":
        found = tree_map_only(Tensor, Pretended, found)
    elif name == "copy_":
        return args[0]
    return return_and_correct_aliasing(func, args, kwargs, found)
