"""Causal attention, also within documents: the mask, made once a forward pass for all layers, and its two kinds.

`flex` is flex_attention with a block mask, compiled: blocks without a visible pair cost nothing, and no `(T, T)` mask
exists. `dense` is a boolean mask for the plain attention, where flex_attention has no backward pass: T^2 bytes a row.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

Kind: TypeAlias = Literal["flex", "dense"]
Mask: TypeAlias = "Tensor | BlockMask"


def mask_kind(device: torch.device) -> Kind:
    """The kind of mask for `device`: flex on a GPU, else dense."""
    return "flex" if device.type == "cuda" else "dense"


def document_mask(positions: Tensor, kind: Kind) -> Mask:
    """The mask by which each position sees itself, and those before it in its own document.

    `positions`, int64 `(B, T)`, count from 0 in each document; a row begins one. A dense mask is bool `(B, 1, T, T)`.
    No shape depends on how many documents there are, so torch.compile compiles once.
    """
    document = (positions == 0).cumsum(1)  # (B, T): the document's number in its row, from 1
    length = positions.shape[1]
    if kind == "dense":
        same = document[:, None, :, None] == document[:, None, None, :]
        return same & torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    from torch.nn.attention.flex_attention import create_block_mask

    def is_visible(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 (flex_attention's)
        return (query >= key) & (document[row, query] == document[row, key])

    return create_block_mask(is_visible, len(positions), None, length, length, device=positions.device)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
    """Causal attention of `(B, heads, T, C / heads)`, of the same shape; without a mask over the whole row."""
    if mask is None or isinstance(mask, Tensor):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    from torch.nn.attention.flex_attention import flex_attention

    # Inside a compiled model it becomes a part of it; a model that is not compiled takes a kernel compiled by itself.
    kernel: Any = flex_attention if torch.compiler.is_compiling() else _compiled_flex_attention()
    out: Tensor = kernel(q, k, v, block_mask=mask)
    return out


@cache
def _compiled_flex_attention() -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)
