"""A block that is repeated: the universal or looped transformer."""

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from haltwise._core.errors import require
from haltwise._core.settings import got, whole_number
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
from haltwise.nn.inputs import Inputs, pool_tokens, read_tokens
from haltwise.nn.transformer import TransformerBlock, shares_keys

__all__ = ["RepeatedBlock"]


@final
class RepeatedBlock(AdaptiveProcess):
    """One block applied again and again to sequences [B, L, D] (Dehghani et al. 2018).

    Per sequence an item returns its tokens [B, L, D]; per token it returns itself, and a token that
    has ended stays as it is, and is seen by the others that go on. In training by the
    expected loss all tokens run to the end, so that those which end earlier are then seen in a
    state that training did not show; by the expected state they end as they do when run.

    Sequences of different lengths are padded, and come as {"tokens": [B, L, D], "padding": [B, L]}
    with a mask that is True at padding: no token sees it, it is 0 in what sequences return, and is
    no item where tokens halt.

    Args:
        block: From tokens [B, L, D] to tokens of that shape, rows apart; for instance a
            `haltwise.nn.TransformerBlock`. Where there is padding, a module whose `forward` has an
            argument `padding` or, as PyTorch's encoder layers, `src_key_padding_mask`, a layer of
            PyTorch's that treats every token by itself, or several of them in an nn.Sequential.
        dim: D.
        max_steps: Times that it is applied at most; that is how many exits there are.
        per: What halts.
        inject: Whether the inputs are added to the tokens before every application, as looped
            models do; otherwise the first reads them alone.
        keys: By which tokens that have ended are seen, see `haltwise.nn.LayerStack`.
    """

    steps_alike: ClassVar[bool] = True

    def __init__(
        self,
        block: nn.Module,
        dim: int,
        max_steps: int,
        *,
        per: Literal["sequence", "token"] = "sequence",
        inject: bool = True,
        keys: Literal["copied", "shared"] = "copied",
    ) -> None:
        super().__init__(whole_number("max_steps", max_steps, least=2))
        require(per in ("sequence", "token"), f"per must be 'sequence' or 'token', got {per!r}")
        require(isinstance(block, nn.Module), f"block must be an nn.Module, {got(block)}")
        require_batch_first([block])
        self.dim = whole_number("dim", dim)
        self.block, self.inject = block, inject
        self._shares = shares_keys(keys, [block])
        self.items_interact = per == "token"
        self.num_features = self.dim + 1 if self.items_interact else 2 * self.dim + 1

    def init(self, inputs: Inputs) -> State:
        tokens, padding = read_tokens(inputs, "RepeatedBlock")
        require(
            tokens.ndim == 3 and tokens.shape[1] > 0 and tokens.shape[2] == self.dim,
            f"inputs must be tokens [B, L, {self.dim}], L at least 1, {got(tokens)}",
        )
        state = {"tokens": tokens}
        if self.inject:
            state = {"inputs": tokens, "tokens": torch.zeros_like(tokens)}
        if padding is not None:
            state["padding"] = padding
        if self.items_interact and isinstance(self.block, TransformerBlock):
            *shape, dim = tokens.shape
            ran = torch.ones(shape, dtype=torch.bool, device=tokens.device)
            state |= {"keys": tokens.new_zeros(*shape, 2 * dim), "ran": ran}
        return state

    def present(self, state: State) -> Tensor | None:
        return ~state["padding"] if self.items_interact and "padding" in state else None

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        before, padding = state["tokens"], state.get("padding")
        if padding is not None:
            active = ~padding if active is None else active & ~padding
        seen = before + state["inputs"] if self.inject else before
        if "keys" in state:
            assert isinstance(self.block, TransformerBlock)
            # Of a token that has just ended, copies are made of its last state, and then kept.
            stale = active if self._shares else state["ran"]
            tokens, keys = self.block.advance(seen, active, before, state["keys"], stale, padding)
            ran = torch.ones_like(state["ran"]) if active is None else active
            state = {**state, "keys": keys, "ran": ran}
        else:
            version, given = version_of(before), lent(self.block, seen)
            tokens = require_shape(apply_block(self.block, given, padding), before, "the block")
            require_kept(before, version, "the block changes tokens")
            if active is not None:
                tokens = torch.where(active.unsqueeze(-1), tokens, before)
        change = mse_loss(tokens, before, reduction="none").mean(-1, keepdim=True)
        if self.items_interact:
            features = torch.cat((tokens, _log(change)), -1)
        else:  # the token that moves most tells whether all is settled
            mean, most = pool_tokens(tokens, padding)
            features = torch.cat((mean, most, _log(change.amax(1))), -1)
        return ItemStep(tokens, features, {**state, "tokens": tokens})


def _log(square: Tensor) -> Tensor:
    """The logarithm of a mean square, finite where nothing moves: half precision knows no 1e-12."""
    wide = square.to(torch.promote_types(square.dtype, torch.float32))
    return wide.add(1e-12).log().to(square)
