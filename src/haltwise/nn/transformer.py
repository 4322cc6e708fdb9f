"""A transformer's block."""

from typing import final

from torch import Tensor, nn
from torch.nn.functional import gelu, scaled_dot_product_attention

from haltwise._core.errors import require

__all__ = ["TransformerBlock"]


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
        require(dim % num_heads == 0, f"dim must be a multiple of num_heads={num_heads}, got {dim}")
        self.num_heads, self.causal = num_heads, causal
        self.attention_norm, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.project = nn.Linear(dim, dim)
        self.widen = nn.Linear(dim, hidden or 4 * dim)
        self.narrow = nn.Linear(hidden or 4 * dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """The tokens after the block, both of shape [B, L, D]."""
        normed = self.attention_norm(tokens)
        attended = self.attend(self.query(normed), self.key_value(normed))
        return self.finish(tokens, attended)

    def attend(self, query: Tensor, key_value: Tensor) -> Tensor:
        """What the queries [B, L, D] find among keys and values, side by side [B, L, 2 D]."""
        parts = (query, *key_value.chunk(2, -1))
        q, k, v = (part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in parts)
        found: Tensor = scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return found.transpose(1, 2).flatten(2)

    def finish(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """The tokens [..., D] after the block, given what their queries found."""
        tokens = tokens + self.project(attended)
        new: Tensor = tokens + self.narrow(gelu(self.widen(self.norm(tokens))))
        return new
