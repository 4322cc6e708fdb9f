"""Blocks that are not ours: how rows stay apart in them, and how padding is not seen."""

import inspect
from collections.abc import Collection, Sequence

from torch import Tensor, nn
from torch.nn.modules import activation

from haltwise._core.errors import InputError, require
from haltwise._core.settings import got
from haltwise.nn.inputs import without_padding

__all__ = ["apply_block", "require_batch_first"]

_MASKS = "padding", "src_key_padding_mask"
"""Arguments by which blocks, those of PyTorch among them, are told which tokens are padding."""
_ALONG_OTHERS = {"GLU", "LogSoftmax", "MultiheadAttention", "Softmax", "Softmax2d", "Softmin"}
_TOKENWISE: tuple[type[nn.Module], ...] = (
    nn.Embedding,
    nn.Linear,
    nn.LayerNorm,
    nn.RMSNorm,
    nn.Identity,
    nn.Dropout,
    *(getattr(activation, name) for name in activation.__all__ if name not in _ALONG_OTHERS),
)
"""Layers that treat every token [B, L, D], or word [B, L], by itself, normalizations if they are
over D alone."""


def require_batch_first(modules: Sequence[nn.Module]) -> None:
    """Refuse layers of PyTorch to which rows are tokens, so that they would see each other."""
    for module in modules:
        kind = _plain(module)
        if isinstance(kind, nn.Sequential | nn.ModuleList):
            require_batch_first([*kind])
        elif isinstance(kind, nn.TransformerEncoder):
            require_batch_first([*kind.layers])
        else:
            attention = getattr(kind, "self_attn", kind)
            require(
                not isinstance(attention, nn.MultiheadAttention | nn.RNNBase)
                or attention.batch_first,
                f"{type(kind).__name__} reads tokens [L, B, D], so that rows would see each other; "
                "make it with batch_first=True",
            )


def apply_block(block: nn.Module, tokens: Tensor, padding: Tensor | None) -> object:
    """What a block makes of tokens [B, L, D] without seeing those that are padding, bool [B, L].

    Padding is 0 in what it is given, and in what each block of a sequence is.

    Raises:
        InputError: There is padding, and the block cannot be told which tokens are; or a part of a
            sequence of blocks returns no tensor.
    """
    if padding is None:
        return block(tokens)
    kind = _plain(block)
    if isinstance(kind, nn.Sequential) and _forward_of(kind) is nn.Sequential.forward:
        found: object = tokens
        for part in kind:
            if not isinstance(found, Tensor):
                raise InputError(
                    f"what comes before a {type(part).__name__} must return a tensor, {got(found)}"
                )
            if found.ndim > 2 and found.shape[:2] == padding.shape:
                found = without_padding(found, padding)
            found = apply_block(part, found, padding)
        return found
    arguments = _arguments(kind)
    for name in _MASKS:
        if name in arguments:
            return block(tokens, **{name: padding})
    is_tokenwise = any(_forward_of(kind) is layer.forward for layer in _TOKENWISE)
    if is_tokenwise and len(getattr(kind, "normalized_shape", "D")) == 1:
        return block(tokens)
    raise InputError(
        f"{type(kind).__name__} cannot be told which tokens are padding; give its forward an "
        "argument padding, a mask [B, L] that is True there, or give no padding"
    )


def _forward_of(module: nn.Module) -> object:
    """What its class computes, which a class below PyTorch's own may have made another."""
    return getattr(type(module), "forward", None)


def _arguments(module: nn.Module) -> Collection[str]:
    try:
        return inspect.signature(module.forward).parameters
    except ValueError:  # it was traced by torch.jit, and takes what it was traced with
        return ()


def _plain(module: nn.Module) -> nn.Module:
    """The module that torch.compile has wrapped, or itself."""
    kind: nn.Module = getattr(module, "_orig_mod", module)
    return kind
