"""A block that is repeated: the universal or looped transformer."""

from typing import ClassVar, Literal, final

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from haltwise._core.errors import require
from haltwise._core.settings import got, whole_number
from haltwise.nn.base import AdaptiveProcess, ItemStep, State, require_batch_first, require_shape
from haltwise.nn.transformer import TransformerBlock, shares_keys

__all__ = ["RepeatedBlock"]


@final
class RepeatedBlock(AdaptiveProcess):
    """One block applied again and again to sequences [B, L, D] (Dehghani et al. 2018).

    Per sequence an item returns its tokens [B, L, D]; per token it returns itself, and a token that
    has ended stays as it is, and is seen by the others that go on. In training by the
    expected loss all tokens run to the end, so that those which end earlier are then seen in a
    state that training did not show; by the expected state they end as they do when run.

    Args:
        block: From tokens [B, L, D] to tokens of that shape, rows apart; for instance a
            `haltwise.nn.TransformerBlock`.
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

    def init(self, inputs: Tensor) -> State:
        require(
            inputs.ndim == 3 and inputs.shape[1] > 0 and inputs.shape[2] == self.dim,
            f"inputs must be tokens [B, L, {self.dim}], L at least 1, {got(inputs)}",
        )
        state = {"tokens": inputs}
        if self.inject:
            state = {"inputs": inputs, "tokens": torch.zeros_like(inputs)}
        if self.items_interact and isinstance(self.block, TransformerBlock):
            *shape, dim = inputs.shape
            ran = torch.ones(shape, dtype=torch.bool, device=inputs.device)
            state |= {"keys": inputs.new_zeros(*shape, 2 * dim), "ran": ran}
        return state

    def step(self, step: int | Tensor, state: State, active: Tensor | None = None) -> ItemStep:
        before = state["tokens"]
        seen = before + state["inputs"] if self.inject else before
        if "keys" in state:
            assert isinstance(self.block, TransformerBlock)
            # Of a token that has just ended, copies are made of its last state, and then kept.
            stale = active if self._shares else state["ran"]
            tokens, keys = self.block.advance(seen, active, before, state["keys"], stale)
            ran = torch.ones_like(state["ran"]) if active is None else active
            state = {**state, "keys": keys, "ran": ran}
        else:
            tokens = self.block(seen)
            require_shape(tokens, before, "the block")
            if active is not None:
                tokens = torch.where(active.unsqueeze(-1), tokens, before)
        change = mse_loss(tokens, before, reduction="none").mean(-1, keepdim=True)
        if self.items_interact:
            features = torch.cat((tokens, _log(change)), -1)
        else:  # the token that moves most tells whether all is settled
            features = torch.cat((tokens.mean(1), tokens.amax(1), _log(change.amax(1))), -1)
        return ItemStep(tokens, features, {**state, "tokens": tokens})


def _log(square: Tensor) -> Tensor:
    """The logarithm of a mean square, 0 where nothing moves."""
    return square.add(1e-12).log()
