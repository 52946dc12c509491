"""torch.nn.MultiheadAttention with heads removed: the same tensors and the same call, without torch's size rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PrunedMultiheadAttention(nn.MultiheadAttention):
    """A MultiheadAttention whose heads need not add up to its width: num_heads * head_dim < embed_dim is welcome.

    torch's own forward, and its fused kernels, take embed_dim / num_heads for the size of a head. This is the same
    computation with head_dim kept: in_proj_weight has 3 * num_heads * head_dim rows, out_proj as many columns / 3.
    It *is* a MultiheadAttention, for the TransformerEncoderLayer around it and for pruning it again, with
    `_qkv_same_embed_dim` False, by which torch's layers tell whether their fused kernels may take the weights.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As torch.nn.MultiheadAttention's; a mask for each head, (n * num_heads, ...), counts those that are left."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is only a hint: give the causal attn_mask as well, as for torch's own layer")
        q, k, v = (self._heads(self._batched(x), i) for i, x in enumerate((query, key, value)))
        if self.bias_k is not None and self.bias_v is not None:
            k, v = (_appended(x, self._split(b)) for x, b in ((k, self.bias_k), (v, self.bias_v)))
        if self.add_zero_attn:
            k, v = (_appended(x, x.new_zeros(1, self.num_heads, 1, self.head_dim)) for x in (k, v))
        bias = self._bias(q, k.shape[2], attn_mask, key_padding_mask)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            logits = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = (logits if bias is None else logits + bias).softmax(-1)  # (n, heads, queries, keys)
            mixed = F.dropout(weights, dropout) @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            mixed = F.scaled_dot_product_attention(q, k, v, bias, dropout)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))  # (n, queries, heads*head_dim) -> (n, queries, width)
        if query.dim() == 2:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batched(self, x: Tensor) -> Tensor:
        """(n, tokens, width), however it comes."""
        if x.dim() == 2:
            return x[None]
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Tensor, which: int) -> Tensor:
        """Queries (0), keys (1) or values (2) of every head."""
        if self.in_proj_weight is not None:
            weight = self.in_proj_weight.chunk(3)[which]
        else:
            weight = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)[which]
        bias = None if self.in_proj_bias is None else self.in_proj_bias.chunk(3)[which]
        return self._split(F.linear(x, weight, bias))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (n, heads, tokens, head_dim)

    def _bias(self, q: Tensor, keys: int, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
        """Both masks as one thing to add to the logits, (n or 1, heads or 1, queries or 1, keys)."""
        parts = []
        if attn_mask is not None:
            parts.append(_as_bias(attn_mask, q.dtype, keys))
            if attn_mask.dim() == 3:
                parts[0] = parts[0].unflatten(0, (len(q), self.num_heads))
        if padding is not None:
            parts.append(_as_bias(padding, q.dtype, keys).view(-1, 1, 1, keys))
        return sum(parts[1:], parts[0]) if parts else None


def _appended(x: Tensor, token: Tensor) -> Tensor:
    """One more key or value: (n, heads, tokens, head_dim) and (1, heads, 1, head_dim)."""
    return torch.cat([x, token.expand(len(x), -1, -1, -1)], 2)


def _as_bias(mask: Tensor, dtype: torch.dtype, keys: int) -> Tensor:
    """A mask where True is "not this one" as -inf there and 0 elsewhere; keys appended later are open to all."""
    bias = torch.zeros_like(mask, dtype=dtype).masked_fill_(mask, -torch.inf) if mask.dtype == torch.bool else mask
    return F.pad(bias, (0, keys - bias.shape[-1]))
