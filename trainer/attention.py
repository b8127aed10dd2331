"""Attention that stays inside documents: the mask, made once a forward pass for all layers, and what computes it.

`flex` is flex_attention with a block mask, compiled: blocks without a visible pair cost nothing, no mask of T x T is
kept. `dense` is a boolean mask for the plain attention, for devices where flex_attention has no backward pass.
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
    """What masks documents on `device`."""
    return "flex" if device.type == "cuda" else "dense"


def document_mask(positions: Tensor, kind: Kind) -> Mask:
    """Each position sees those before it in its own document, and itself.

    `positions`, int64 `(B, T)`, count from 0 in each document; a row begins one. A dense mask is bool `(B, 1, T, T)`.
    No shape depends on how many documents there are, so torch.compile compiles once.
    """
    document = (positions == 0).cumsum(1)
    length = positions.shape[1]
    if kind == "dense":
        same = document[:, None, :, None] == document[:, None, None, :]
        return same & torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    from torch.nn.attention.flex_attention import create_block_mask

    def sees(row: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:  # noqa: ARG001 (flex_attention's)
        return (query >= key) & (document[row, query] == document[row, key])

    return create_block_mask(sees, len(positions), None, length, length, device=positions.device)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Mask | None) -> Tensor:
    """Causal attention of `(B, heads, T, C / heads)`; without a mask over the whole row."""
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
