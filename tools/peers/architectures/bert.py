"""BERT in plain torch, laid out like the eager implementation in HuggingFace transformers.

512 positions, 2 token types, pooler included; BERT-base has 12 layers of width 768 with 12 heads and an inner width of
3072, and a vocabulary of 30522. Attention is written out (MatMul, scale, mask, Softmax, MatMul): a fused operator
would hide the pattern that graph optimizers look for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

_POSITIONS = 512


@dataclass(frozen=True)
class Size:
    """Widths and depth of an encoder."""

    hidden: int
    heads: int
    inner: int
    layers: int
    vocabulary: int


BASE = Size(768, 12, 3072, 12, 30522)
SMALL = Size(256, 4, 1024, 4, 2000)


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, then LayerNorm."""

    position_ids: Tensor

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(size.vocabulary, size.hidden, padding_idx=0)
        self.position_embeddings = nn.Embedding(_POSITIONS, size.hidden)
        self.token_type_embeddings = nn.Embedding(2, size.hidden)
        self.LayerNorm = nn.LayerNorm(size.hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(_POSITIONS).expand((1, -1)), persistent=False)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map two (N, T) id tensors to (N, T, hidden)."""
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(self.position_ids[:, : input_ids.size(1)])
        y: Tensor = self.dropout(self.LayerNorm(x))
        return y


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + mask) V over several heads."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads, self.width = size.heads, size.hidden // size.heads
        self.query = nn.Linear(size.hidden, size.hidden)
        self.key = nn.Linear(size.hidden, size.hidden)
        self.value = nn.Linear(size.hidden, size.hidden)
        self.dropout = nn.Dropout(0.1)

    def _split(self, x: Tensor) -> Tensor:
        """Map (N, T, hidden) to (N, heads, T, width)."""
        return x.view((*x.size()[:-1], self.heads, self.width)).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within x (N, T, hidden); mask (N, 1, 1, T) is added to the scores."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(self.width) + mask
        weights = self.dropout(torch.softmax(scores, dim=-1))
        context = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous()
        return context.view((*context.size()[:-2], self.heads * self.width))


class Output(nn.Module):
    """Dense, residual Add, LayerNorm: what follows both the attention and the inner layer."""

    def __init__(self, size: Size, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, size.hidden)
        self.LayerNorm = nn.LayerNorm(size.hidden, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map (N, T, inputs) and the residual (N, T, hidden) to (N, T, hidden)."""
        y: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return y


class Attention(nn.Module):
    """Self-attention and its output layer."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.self = SelfAttention(size)
        self.output = Output(size, size.hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, T, hidden) to (N, T, hidden)."""
        y: Tensor = self.output(self.self(x, mask), x)
        return y


class Intermediate(nn.Module):
    """Dense to the inner width, Gelu."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.dense = nn.Linear(size.hidden, size.inner)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, hidden) to (N, T, inner)."""
        y: Tensor = self.intermediate_act_fn(self.dense(x))
        return y


class Layer(nn.Module):
    """One transformer layer, LayerNorm after each residual."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.attention = Attention(size)
        self.intermediate = Intermediate(size)
        self.output = Output(size, size.inner)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, T, hidden) to (N, T, hidden)."""
        x = self.attention(x, mask)
        y: Tensor = self.output(self.intermediate(x), x)
        return y


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer(size) for _ in range(size.layers))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, T, hidden) to (N, T, hidden)."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Pooler(nn.Module):
    """Dense and Tanh on the first token."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.dense = nn.Linear(size.hidden, size.hidden)
        self.activation = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, hidden) to (N, hidden)."""
        y: Tensor = self.activation(self.dense(x[:, 0]))
        return y


_States = tuple[Tensor, Tensor]


class Bert(nn.Module):
    """Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers": encoder and pooler."""

    def __init__(self, size: Size = BASE) -> None:
        super().__init__()
        self.embeddings = Embeddings(size)
        self.encoder = Encoder(size)
        self.pooler = Pooler(size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> _States:
        """Map three (N, T) integer tensors to the hidden states (N, T, hidden) and the pooled state (N, hidden)."""
        mask = attention_mask[:, None, None, :].to(torch.float32)
        mask = (1.0 - mask) * torch.finfo(torch.float32).min
        x = self.encoder(self.embeddings(input_ids, token_type_ids), mask)
        return x, self.pooler(x)


class SmallBert(Bert):
    """Four layers of width 256."""

    def __init__(self) -> None:
        super().__init__(SMALL)
