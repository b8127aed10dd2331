"""GPT-2, exactly, and a bigram table. Parameters have the names that `transformers` gives them.

In shapes: B rows, T positions, C the width, V the vocabulary, padded to a multiple of 128 for the matrix units. The
logit of a padded id is -inf: it has no part in any loss and is never sampled, whatever weights are loaded.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shardkit import UsageError
from trainer.attention import Kind, Mask, attention, document_mask, mask_kind

IGNORED = -100  # the target of padding, which no loss counts
_CHUNK_ELEMENTS = {"cpu": 1 << 23, "cuda": 1 << 29, "mps": 1 << 26}  # logits alive at once, without torch.compile
_MOST_BIGRAMS = 8192


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Sizes of a model; with no layers it is a bigram table. `vocab_size` is without padding."""

    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    n_positions: int

    @property
    def padded_vocab_size(self) -> int:
        """`vocab_size`, rounded up to a multiple of 128."""
        return -(-self.vocab_size // 128) * 128


class Attention(nn.Module):
    """Causal self-attention: `(B, T, C)` to `(B, T, C)`, by flash attention where the device has it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = nn.Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = nn.Linear(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, mask: Mask | None) -> Tensor:
        """Mix each position with those before it that `mask` lets it see."""
        B, T, C = x.shape
        heads = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each (B, heads, T, C / heads)
        y = attention(q, k, v, mask)  # (B, heads, T, C / heads)
        out: Tensor = self.c_proj(y.transpose(1, 2).reshape(B, T, C))
        return out


class MLP(nn.Module):
    """Four times wider and back: `(B, T, C)` to `(B, T, C)`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.c_fc = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.c_proj = nn.Linear(4 * config.n_embd, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:
        """Each position on its own."""
        out: Tensor = self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))
        return out


class Block(nn.Module):
    """A layer: norm, attention, norm, MLP, each pair added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, mask: Mask | None) -> Tensor:
        """`(B, T, C)` to `(B, T, C)`."""
        x = x + self.attn(self.ln_1(x), mask)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class Model(nn.Module):
    """Next-token prediction. With `chunked_loss` only a chunk of the logits exists at a time, instead of B*T*V floats.

    Under torch.compile it must be off: that fuses the plain loss by itself, and its DDP optimizer refuses graphs with
    custom gradients.
    """

    pad_bias: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.n_layer == 0 and config.vocab_size > _MOST_BIGRAMS:
            raise UsageError(
                f"a bigram table of {config.vocab_size:,} ids squared does not fit: tokenize with --tokenizer bytes "
                f"(at most {_MOST_BIGRAMS:,} ids), or take another --model"
            )
        self.config = config
        self.chunked_loss = True
        self.mask_kind: Kind | None = None  # the device's
        padded, width = config.padded_vocab_size, config.n_embd if config.n_layer else config.padded_vocab_size
        parts: dict[str, nn.Module] = {"wte": nn.Embedding(padded, width)}
        if config.n_layer:
            parts["wpe"] = nn.Embedding(config.n_positions, width)
            parts["h"] = nn.ModuleList(Block(config) for _ in range(config.n_layer))
            parts["ln_f"] = nn.LayerNorm(width)
        self.transformer = nn.ModuleDict(parts)
        bias = torch.zeros(padded)
        bias[config.vocab_size :] = -torch.inf
        self.register_buffer("pad_bias", bias, persistent=False)
        self.apply(self._init)

    def _init(self, module: nn.Module) -> None:
        """GPT-2's: deviation 0.02; divided by the root of 2 * n_layer for the 2 * n_layer additions to the residual."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.02)
        elif isinstance(module, Attention | MLP):  # children come first: their c_proj is drawn anew
            nn.init.normal_(module.c_proj.weight, std=0.02 / math.sqrt(2 * self.config.n_layer))

    def forward(self, ids: Tensor, targets: Tensor, positions: Tensor | None = None) -> Tensor:
        """The loss in nats, a scalar: summed over targets that are not `IGNORED`, divided by all B*T of them.

        That divisor is known to every rank beforehand, so the gradients of ranks and micro-steps add up exactly, each
        counted token alike, without a collective for the counts. `ids`, `targets` and `positions` are int64 `(B, T)`.
        """
        hidden = self.hidden(ids, positions).flatten(0, 1)
        if self.config.n_layer and self.chunked_loss:
            return _chunked_loss(hidden, self.head, self.pad_bias, targets.flatten())
        logits = self.to_logits(hidden).float()
        return F.cross_entropy(logits, targets.flatten(), ignore_index=IGNORED, reduction="sum") / targets.numel()

    def hidden(self, ids: Tensor, positions: Tensor | None = None) -> Tensor:
        """The last hidden states `(B, T, C)`, which the head reads; of a bigram model its logits `(B, T, V)`.

        With `positions`, which count from 0 in each document, no document sees another; without, a row is one.
        """
        x: Tensor = self.transformer["wte"](ids)
        if not self.config.n_layer:
            return x
        mask = None
        if positions is None:
            positions = torch.arange(ids.shape[1], device=ids.device)
        else:
            mask = document_mask(positions, self.mask_kind or mask_kind(ids.device))
        x = x + self.transformer["wpe"](positions)
        for block in self.transformer["h"].children():
            x = block(x, mask)
        out: Tensor = self.transformer["ln_f"](x)
        return out

    def to_logits(self, hidden: Tensor) -> Tensor:
        """Logits `(..., padded_vocab_size)` of `hidden`; those of padded ids are -inf."""
        return F.linear(hidden, self.head, self.pad_bias) if self.config.n_layer else hidden + self.pad_bias

    @torch.no_grad()
    def token_losses(self, ids: Tensor, targets: Tensor, positions: Tensor | None = None) -> Tensor:
        """The loss of each target in nats, 0 of an ignored one: float32 `(B, T)`. Makes logits a chunk at a time."""
        hidden = self.hidden(ids, positions).flatten(0, 1)
        rows = _chunk_rows(self.pad_bias)
        parts = [
            F.cross_entropy(self.to_logits(h).float(), t, ignore_index=IGNORED, reduction="none")
            for h, t in zip(torch.split(hidden, rows), torch.split(targets.flatten(), rows), strict=True)
        ]
        return torch.cat(parts).view(targets.shape)

    @property
    def head(self) -> nn.Parameter:
        """The output matrix, which is the embedding's: `(padded_vocab_size, C)`."""
        return self.transformer["wte"].get_parameter("weight")

    @property
    def parameter_count(self) -> int:
        """Parameters, as GPT-2's are counted: the tied head once, padding not."""
        padding = self.config.padded_vocab_size - self.config.vocab_size
        return sum(p.numel() for p in self.parameters()) - padding * self.head.shape[1]

    def checksum(self) -> str:
        """SHA-256 of the weights, in hex: two models with it are the same. Copies them to the CPU one by one."""
        digest = hashlib.sha256()
        for tensor in self.state_dict().values():
            digest.update(tensor.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    def flops_per_token(self, seq_len: int) -> int:
        """Forward and backward, as usually counted for MFU: 6 a parameter in a matrix, and the attention's."""
        if not self.config.n_layer:
            return 0
        positions = self.config.n_positions * self.config.n_embd
        matrices = sum(p.numel() for p in self.parameters() if p.dim() > 1) - positions
        return 6 * matrices + 12 * self.config.n_layer * self.config.n_embd * seq_len


def _chunk_rows(bias: Tensor) -> int:
    return max(1, _CHUNK_ELEMENTS.get(bias.device.type, 1 << 26) // bias.numel())


class _ChunkedLoss(torch.autograd.Function):
    """Cross-entropy of `hidden @ weight.T + bias` over N, with its gradient made in the forward pass, chunk by chunk.

    So the `(N, V)` logits never exist at once, and no matrix product is done twice. In `autocast` the products are in
    its type; sums are float32. The division by N comes last: fp16 would round the small gradients to nothing.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor, targets: Tensor) -> Tensor:
        """`hidden` `(N, C)`, `weight` `(V, C)`, `bias` `(V,)`, `targets` int64 `(N,)`; a float32 scalar."""
        kind = hidden.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
        matrix, row_bias = weight.to(dtype), bias.to(dtype)
        wanted = any(ctx.needs_input_grad)
        loss = torch.zeros((), device=hidden.device)
        if wanted:
            hidden_grad = torch.empty(hidden.shape, device=hidden.device)
            weight_grad = torch.zeros(weight.shape, device=hidden.device)
        rows = _chunk_rows(bias)
        for first in range(0, len(hidden), rows):
            part, target = hidden[first : first + rows].to(dtype), targets[first : first + rows, None]
            ignored = target == IGNORED
            target = target.masked_fill(ignored, 0)
            logits = torch.addmm(row_bias, part, matrix.t()).float()
            odds = logits.softmax(1)  # one pass; log(sum(exp)) follows from the likeliest id, which never rounds to 0
            top, at = odds.max(1, keepdim=True)
            loss += (logits.gather(1, at) - top.log() - logits.gather(1, target)).masked_fill(ignored, 0.0).sum()
            if wanted:  # softmax minus one at the target
                odds.scatter_add_(1, target, torch.full_like(top, -1.0))
                slope = odds.to(dtype)
                hidden_grad[first : first + rows] = (slope @ matrix).masked_fill(ignored, 0.0)
                part = part.masked_fill(ignored, 0.0)  # both are narrower than the slope
                if dtype == torch.float32:
                    weight_grad.addmm_(slope.t(), part)
                else:
                    weight_grad += slope.t() @ part
        if wanted:
            ctx.save_for_backward(hidden_grad, weight_grad)
            ctx.dtypes = hidden.dtype, weight.dtype, len(hidden)
        return loss / len(hidden)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        """The saved gradients, scaled."""
        hidden_grad, weight_grad = ctx.saved_tensors
        hidden_dtype, weight_dtype, count = ctx.dtypes
        scale = grad / count
        return (hidden_grad * scale).to(hidden_dtype), (weight_grad * scale).to(weight_dtype), None, None


_chunked_loss: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] = _ChunkedLoss.apply  # torch leaves it untyped
