"""BERT-base in plain torch, laid out like the eager implementation in HuggingFace transformers.

12 layers of width 768 with 12 heads and an inner width of 3072, vocabulary 30522, 512 positions, 2 token
types, pooler included. Attention is written out (MatMul, scale, mask, Softmax, MatMul): a fused operator
would hide the pattern that graph optimizers look for.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

VOCABULARY = 30522
_HIDDEN, _HEADS, _INNER, _LAYERS, _POSITIONS = 768, 12, 3072, 12, 512


class Embeddings(nn.Module):
    """Sum of word, position and token type embeddings, then LayerNorm."""

    position_ids: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(VOCABULARY, _HIDDEN, padding_idx=0)
        self.position_embeddings = nn.Embedding(_POSITIONS, _HIDDEN)
        self.token_type_embeddings = nn.Embedding(2, _HIDDEN)
        self.LayerNorm = nn.LayerNorm(_HIDDEN, eps=1e-12)
        self.dropout = nn.Dropout(0.1)
        self.register_buffer("position_ids", torch.arange(_POSITIONS).expand((1, -1)), persistent=False)

    def forward(self, input_ids: Tensor, token_type_ids: Tensor) -> Tensor:
        """Map two (N, T) id tensors to (N, T, 768)."""
        x = self.word_embeddings(input_ids) + self.token_type_embeddings(token_type_ids)
        x = x + self.position_embeddings(self.position_ids[:, : input_ids.size(1)])
        y: Tensor = self.dropout(self.LayerNorm(x))
        return y


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d) + mask) V over 12 heads of 64 dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(_HIDDEN, _HIDDEN)
        self.key = nn.Linear(_HIDDEN, _HIDDEN)
        self.value = nn.Linear(_HIDDEN, _HIDDEN)
        self.dropout = nn.Dropout(0.1)

    def _split(self, x: Tensor) -> Tensor:
        """Map (N, T, 768) to (N, 12, T, 64)."""
        return x.view((*x.size()[:-1], _HEADS, _HIDDEN // _HEADS)).permute(0, 2, 1, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Attend within x (N, T, 768); mask (N, 1, 1, T) is added to the scores."""
        query, key, value = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = torch.matmul(query, key.transpose(-1, -2)) / math.sqrt(_HIDDEN // _HEADS) + mask
        weights = self.dropout(torch.softmax(scores, dim=-1))
        context = torch.matmul(weights, value).permute(0, 2, 1, 3).contiguous()
        return context.view((*context.size()[:-2], _HIDDEN))


class Output(nn.Module):
    """Dense, residual Add, LayerNorm: what follows both the attention and the inner layer."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inputs, _HIDDEN)
        self.LayerNorm = nn.LayerNorm(_HIDDEN, eps=1e-12)
        self.dropout = nn.Dropout(0.1)

    def forward(self, x: Tensor, residual: Tensor) -> Tensor:
        """Map (N, T, inputs) and the residual (N, T, 768) to (N, T, 768)."""
        y: Tensor = self.LayerNorm(self.dropout(self.dense(x)) + residual)
        return y


class Attention(nn.Module):
    """Self-attention and its output layer."""

    def __init__(self) -> None:
        super().__init__()
        self.self = SelfAttention()
        self.output = Output(_HIDDEN)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, T, 768) to (N, T, 768)."""
        y: Tensor = self.output(self.self(x, mask), x)
        return y


class Intermediate(nn.Module):
    """Dense to the inner width, Gelu."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(_HIDDEN, _INNER)
        self.intermediate_act_fn = nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, 768) to (N, T, 3072)."""
        y: Tensor = self.intermediate_act_fn(self.dense(x))
        return y


class Layer(nn.Module):
    """One transformer layer, LayerNorm after each residual."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.intermediate = Intermediate()
        self.output = Output(_INNER)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, T, 768) to (N, T, 768)."""
        x = self.attention(x, mask)
        y: Tensor = self.output(self.intermediate(x), x)
        return y


class Encoder(nn.Module):
    """The stack of layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.ModuleList(Layer() for _ in range(_LAYERS))

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Map (N, T, 768) to (N, T, 768)."""
        for layer in self.layer:
            x = layer(x, mask)
        return x


class Pooler(nn.Module):
    """Dense and Tanh on the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(_HIDDEN, _HIDDEN)
        self.activation = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, T, 768) to (N, 768)."""
        y: Tensor = self.activation(self.dense(x[:, 0]))
        return y


_States = tuple[Tensor, Tensor]


class BertBase(nn.Module):
    """Devlin et al. 2019, "BERT: pre-training of deep bidirectional transformers": encoder and pooler."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = Embeddings()
        self.encoder = Encoder()
        self.pooler = Pooler()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor) -> _States:
        """Map three (N, T) integer tensors to the hidden states (N, T, 768) and the pooled state (N, 768)."""
        mask = attention_mask[:, None, None, :].to(torch.float32)
        mask = (1.0 - mask) * torch.finfo(torch.float32).min
        x = self.encoder(self.embeddings(input_ids, token_type_ids), mask)
        return x, self.pooler(x)
