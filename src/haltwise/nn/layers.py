"""A stack of layers with early exit."""

from collections.abc import Callable, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from haltwise._core.errors import InputError, require
from haltwise._core.settings import got
from haltwise.nn.base import (
    AdaptiveProcess,
    ItemStep,
    State,
    lent,
    require_kept,
    require_shape,
    version_of,
)
from haltwise.nn.blocks import apply_block, require_batch_first
from haltwise.nn.inputs import Inputs, pool_tokens, read_tokens, without_padding
from haltwise.nn.transformer import TransformerBlock, shares_keys

__all__ = ["LayerStack"]


@final
class LayerStack(AdaptiveProcess):
    """Layers one after the other, behind each of which a row or a token may end.

    A token that has ended keeps its state. Later layers see it by *copied* keys and values, which
    they make of that state, or by *shared* ones, those of the last layer that it went through: that
    saves the projection as well, and all layers must be a `TransformerBlock` of one width.

    Inputs are a tensor [n, ...], or {"tokens": [n, L, D], "padding": [n, L]} with a mask that is
    True at padding: no token sees it, layers and heads put out 0 for it, and it is no item where
    tokens end. Layers and heads must then be such as `RepeatedBlock` takes for its block. Where
    rows end, layers may change D, and the first may embed words, tokens [n, L].

    Args:
        layers: Each from the output of the one before, rows apart.
        num_features: F, the numbers that `features` makes of an item.
        heads: Of each layer, from its output to what an item returns there, all of one shape; what
            the layers put out themselves if None.
        features: From what items return, [n, items..., ...], to what the halting head reads,
            [n, items..., F]; by default the numbers of an item, averaged over tokens [n, L, F]
            where sequences end and over pixels [n, F, H, W] where images do.
        costs: Of ending behind each layer, rising; 1, 2, ... if None.
        per: What halts.
        keys: Where later layers have the keys and values of tokens that have ended from.

    Raises:
        InputError: Numbers do not fit, or keys are to be shared among layers that have none.

    Examples:
        >>> layers = [nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(3)]
        >>> stack = LayerStack(layers, 2, heads=[nn.Linear(4, 2) for _ in layers])
        >>> stack.step(0, stack.init(torch.randn(5, 4))).output.shape
        torch.Size([5, 2])
    """

    def __init__(
        self,
        layers: Sequence[nn.Module],
        num_features: int,
        *,
        heads: Sequence[nn.Module] | None = None,
        features: Callable[[Tensor], Tensor] | None = None,
        costs: Sequence[float] | None = None,
        per: Literal["row", "token"] = "row",
        keys: Literal["copied", "shared"] = "copied",
    ) -> None:
        super().__init__(len(layers), costs)
        require(per in ("row", "token"), f"per must be 'row' or 'token', got {per!r}")
        require(
            heads is None or len(heads) == len(layers),
            f"{len(layers)} layers need as many heads, got {len(heads or ())}",
        )
        require_batch_first(layers)
        self.layers = nn.ModuleList(layers)
        self.heads = None if heads is None else nn.ModuleList(heads)
        self.num_features, self.items_interact = num_features, per == "token"
        require(
            features is None or callable(features),
            f"features must be a function of outputs, {got(features)}",
        )
        self._features = features
        self._shares = shares_keys(keys, layers)

    def init(self, inputs: Inputs) -> State:
        values, padding = read_tokens(inputs, "LayerStack")
        state = {"values": values}
        if padding is not None:
            state["padding"] = padding
        if self._shares:  # the first layer makes its own
            state["keys"] = values.new_zeros(*values.shape[:-1], 2 * values.shape[-1])
        return state

    def present(self, state: State) -> Tensor | None:
        return ~state["padding"] if self.items_interact and "padding" in state else None

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        assert isinstance(step, int)  # layers differ
        layer, values, padding = self.layers[step], state["values"], state.get("padding")
        after = {**state}
        if padding is not None:
            active = ~padding if active is None else active & ~padding
        if isinstance(layer, TransformerBlock):
            stale = active if self._shares else None
            new, keys = layer.advance(
                values, active, keys=state.get("keys"), stale=stale, padding=padding
            )
            if self._shares:
                after["keys"] = keys
        else:
            version, given = version_of(values), lent(layer, values)
            new = _tensor(apply_block(layer, given, padding), f"layer {step}", layer)
            if self.items_interact:
                require_shape(new, values, f"layer {step}")
                if active is not None:
                    require_kept(values, version, f"layer {step} changes tokens that have ended")
                    new = torch.where(active.unsqueeze(-1), new, values)
            elif padding is not None:
                require(
                    new.ndim > 2 and new.shape[:2] == padding.shape,
                    f"layer {step} must keep the tokens {list(padding.shape)} where some are "
                    f"padding, {got(new)}",
                )
                new = without_padding(new, padding)
        after["values"] = output = new
        if self.heads is not None:
            head = self.heads[step]
            output = _tensor(apply_block(head, new, padding), f"head {step}", head)
        if padding is not None:
            is_of_tokens = self.items_interact or output.ndim > 2
            padding = padding if is_of_tokens and output.shape[:2] == padding.shape else None
        output = without_padding(output, padding)
        return ItemStep(output, self._shown(output, padding), after)

    def _shown(self, output: Tensor, padding: Tensor | None) -> Tensor:
        if self._features is not None:
            return self._features(output)
        if self.items_interact or output.ndim == 2:
            return output
        require(
            output.ndim in (3, 4),
            f"outputs of shape {list(output.shape)} have no features of their own; give features, "
            "a function of them",
        )
        return pool_tokens(output, padding)[0] if output.ndim == 3 else output.mean((2, 3))


def _tensor(found: object, whose: str, module: nn.Module) -> Tensor:
    if not isinstance(found, Tensor):
        kind = type(module).__name__
        raise InputError(f"{whose}, a {kind}, must return a tensor, {got(found)}")
    return found
