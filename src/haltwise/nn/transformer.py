"""A transformer's block, which computes for those tokens alone that still run."""

import math
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from haltwise._core.errors import require
from haltwise._core.tensors import is_exporting

__all__ = ["TransformerBlock", "shares_keys"]

_Among = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]
_FINEST = 16
"""Tokens that run are computed in parts of this share of all, and of 2, 4 and 8 such shares."""
_FEWEST = 8
"""Tokens of the smallest part: matrix products of fewer are rounded in another way."""


@final
class TransformerBlock(nn.Module):
    """Self-attention and a perceptron, each behind a normalization and beside a shortcut.

    Args:
        dim: D, numbers of a token.
        num_heads: Heads of the attention, a divisor of D.
        hidden: Units of the perceptron; 4 D if None.
        causal: Whether tokens see those before them only.

    Raises:
        InputError: D is not divisible by the number of heads.
    """

    def __init__(
        self, dim: int, num_heads: int = 4, hidden: int | None = None, *, causal: bool = False
    ) -> None:
        super().__init__()
        require(num_heads > 0, f"num_heads must be at least 1, got {num_heads}")
        require(dim % num_heads == 0, f"dim must be a multiple of num_heads={num_heads}, got {dim}")
        self.num_heads, self.causal = num_heads, causal
        self.attention_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, hidden or 4 * dim)
        self.narrow = nn.Linear(hidden or 4 * dim, dim)

    def forward(
        self,
        tokens: Tensor,
        padding: Tensor | None = None,
        among: _Among | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The tokens after the block, both of shape [B, L, D]; padding as in `advance`.

        Args:
            tokens: Shape [B, L, D].
            padding: As in `advance`.
            among: What else `advance` is told, which goes this way so that hooks are called; keys
                and values are returned, too.
        """
        new, keys = self._advance(tokens, padding, *(among or (None, None, None, None)))
        return new if among is None else (new, keys)

    def advance(
        self,
        tokens: Tensor,
        active: Tensor | None = None,
        kept: Tensor | None = None,
        keys: Tensor | None = None,
        stale: Tensor | None = None,
        padding: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The tokens after the block, and the keys and values by which they saw each other.

        Without gradients, nothing is computed for tokens that need it not.

        Args:
            tokens: Shape [B, L, D].
            active: Which of them run, bool [B, L]; all if None.
            kept: What others are after the block, shape [B, L, D]; what they were if None.
            keys: Keys and values that are known, side by side, [B, L, 2 D]; none if None.
            stale: Of which tokens they are to be made anew, bool [B, L], those that run among
                them; of all if None.
            padding: Which tokens nobody sees, bool [B, L]; none if None.
        """
        found: tuple[Tensor, Tensor] = self(tokens, padding, (active, kept, keys, stale))
        return found

    def _advance(
        self,
        tokens: Tensor,
        padding: Tensor | None,
        active: Tensor | None,
        kept: Tensor | None,
        keys: Tensor | None,
        stale: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        kept = tokens if kept is None else kept
        if active is None or torch.is_grad_enabled() or is_exporting():
            normed = self.attention_norm(tokens)
            seen = self.key_value(normed)
            if keys is not None and stale is not None:
                seen = torch.where(stale.unsqueeze(-1), seen, keys)
            new = self._finish(tokens, self._attend(self.query(normed), seen, padding))
            return new if active is None else torch.where(active.unsqueeze(-1), new, kept), seen
        flat, running = tokens.flatten(0, 1), _parts(active.flatten())
        width, place = _places(active, in_order=self.causal)
        queries = len(tokens) * width
        if keys is None or stale is None:
            seen = self.key_value(self.attention_norm(tokens))
            query = seen.new_zeros(queries + 1, flat.shape[1])
            for part in running:
                normed = self.attention_norm(flat.index_select(0, part))
                query.index_copy_(0, place[part], self.query(normed).to(query))
        else:  # what runs is stale, so that both are made of one normalization
            seen, query = keys.clone(), keys.new_zeros(queries + 1, flat.shape[1])
            for part in _parts(stale.flatten()):
                normed = self.attention_norm(flat.index_select(0, part))
                seen.view(-1, seen.shape[-1]).index_copy_(0, part, self.key_value(normed).to(seen))
                query.index_copy_(0, place[part], self.query(normed).to(query))
        asked = query[:queries].view(len(tokens), width, -1)
        attended = self._attend(asked, seen, padding).flatten(0, 1)
        new = kept.flatten(0, 1).clone()
        for part in running:
            own, found = flat.index_select(0, part), attended.index_select(0, place[part])
            new.index_copy_(0, part, self._finish(own, found).to(new))
        return new.view_as(tokens), seen

    def _attend(self, query: Tensor, keys: Tensor, padding: Tensor | None) -> Tensor:
        """What queries [B, Q, D] find among keys and values [B, L, 2 D]; Q is L if causal."""
        parts = (query, *keys.chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        mask, causal = None, self.causal
        if padding is not None:
            mask = ~padding.view(padding.shape[0], 1, 1, -1)
            if causal:  # padding before the first token sees itself, else it would see nothing
                own = torch.eye(mask.shape[-1], dtype=torch.bool, device=mask.device)
                mask, causal = mask & torch.ones_like(own).tril() | own, False
        found: Tensor = scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
        return found.transpose(1, 2).flatten(2)

    def _finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Tokens [..., D] after the block, given what their queries found."""
        tokens = tokens + self.project(attended)
        new: Tensor = tokens + self.narrow(gelu(self.widen(self.norm(tokens))))
        return new


def shares_keys(keys: str, layers: Sequence[nn.Module]) -> bool:
    """Whether layers see tokens that have ended by keys and values of before."""
    require(keys in ("copied", "shared"), f"keys must be 'copied' or 'shared', got {keys!r}")
    require(
        keys == "copied" or all(isinstance(layer, TransformerBlock) for layer in layers),
        "keys and values are shared among layers of the kind TransformerBlock alone; choose "
        "keys='copied'",
    )
    return keys == "shared"


def _places(active: Tensor, *, in_order: bool) -> tuple[int, Tensor]:
    """Where the queries of tokens lie, active ones of [B, L] side by side in their sequence.

    Args:
        active: Which tokens run, bool [B, L].
        in_order: Whether each keeps its own place.

    Returns:
        Q, the places of a sequence, in few sizes; and the place of each token among B Q, int64
        [B L], behind them where it does not run.
    """
    num, length = active.shape
    rank = active.cumsum(1) - 1
    most = length if in_order else max(1, int(rank[:, -1].max()) + 1)
    width = min(length, math.ceil(most / _FEWEST) * _FEWEST)
    if width == length:
        rank = torch.arange(length, device=active.device).expand_as(active)
    row = torch.arange(num, device=active.device).unsqueeze(1)
    return width, torch.where(active, row * width + rank, num * width).flatten()


def _parts(active: Tensor) -> list[Tensor]:
    """The tokens that run, int64, in parts of few sizes, each twice the one before.

    The least is a sixteenth of all, so that less than that is computed in vain: the last part is
    filled up by a token that runs.
    """
    index = active.nonzero().squeeze(1)
    least = min(len(active), max(_FEWEST, math.ceil(len(active) / _FINEST)))
    parts = []
    while len(index):
        size = least
        while 2 * size <= min(len(index), _FINEST // 2 * least):
            size *= 2
        part, index = index[:size], index[size:]
        parts.append(torch.cat((part, part[:1].expand(size - len(part)))))
    return parts
