"""Attention: scores Q K', their Softmax, and the weighted sum of V, with the projections where the operator holds them.

With L queries and S keys of Hq heads, width E for queries and keys and Ev for values, the two products cost
L x S x Hq x (E + Ev) MACs per batch item. A causal mask or a window saves nothing here: the kernels compute all scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import MICROSOFT, Contraction, Extents, MacFree, input_at, output_at

SOFTMAX_FLOPS = 5
"""Maximum, difference, exponential, sum and quotient, per element."""


@dataclass(frozen=True)
class Heads:
    """Extents of one attention: batch B, query heads Hq, L queries, S keys, widths E (query, key) and Ev (value)."""

    batch: int
    heads: int
    queries: int
    keys: int
    width: int
    value_width: int

    @property
    def scores(self) -> int:
        """Elements of Q K' over all heads."""
        return self.batch * self.heads * self.queries * self.keys

    @property
    def macs(self) -> int:
        """Both products."""
        return self.scores * (self.width + self.value_width)


class _Attending(Contraction):
    """What all attention operators share: subclasses say the extents, and the MACs of their projections."""

    mask_input: ClassVar[int | None] = None

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """Scores, weighted sum, and projections."""
        heads, projections = self.heads(node, extents), self.projections(node, extents)
        return None if heads is None or projections is None else heads.macs + projections

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Scaling, mask and Softmax of the scores."""
        heads = self.heads(node, extents)
        masked = self.mask_input is not None and input_at(node, self.mask_input) is not None
        return None if heads is None else heads.scores * (1 + int(masked) + SOFTMAX_FLOPS)

    def workspace(self, node: ir.Node, extents: Extents, *, integer: bool = False) -> int:
        """The scores."""
        heads = self.heads(node, extents)
        return 0 if heads is None else heads.scores

    def heads(self, node: ir.Node, extents: Extents) -> Heads | None:
        """The extents, or None where they are not known."""
        raise NotImplementedError

    def projections(self, node: ir.Node, extents: Extents) -> int | None:
        """MACs that make Q, K and V from the operator's input."""
        return 0


def _split_heads(dims: tuple[int, ...] | None, heads: int) -> tuple[int, int, int, int] | None:
    """(B, H, L, E) of a tensor that is laid out so, or packed as (B, L, H x E)."""
    if dims is None:
        return None
    if len(dims) == 4:
        return (dims[0], dims[1], dims[2], dims[3])
    if len(dims) == 3 and heads > 0:
        return (dims[0], heads, dims[1], dims[2] // heads)
    return None


class Attention(_Attending):
    """ai.onnx Attention: 4D, or 3D with the numbers of heads as attributes; grouped queries; a cache of past keys."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Attention",)}
    mask_input: ClassVar[int | None] = 3

    def heads(self, node: ir.Node, extents: Extents) -> Heads | None:
        """Past and new keys together are attended to."""
        shared = attributes.integer(node, "kv_num_heads", 0)
        query = _split_heads(extents.dims(input_at(node, 0)), attributes.integer(node, "q_num_heads", 0))
        key = _split_heads(extents.dims(input_at(node, 1)), shared)
        value = _split_heads(extents.dims(input_at(node, 2)), shared)
        past = _past(node, extents, 4)
        if query is None or key is None or value is None or past is None:
            return None
        return Heads(query[0], query[1], query[2], past + key[2], query[3], value[3])


def _past(node: ir.Node, extents: Extents, index: int) -> int | None:
    """Length of the cache at input `index`, the axis before the last; 0 without a cache, None where not known."""
    if input_at(node, index) is None:
        return 0
    dims = extents.dims(input_at(node, index))
    return None if dims is None or len(dims) < 4 else dims[-2]


class LinearAttention(Contraction):
    """LinearAttention: per token and head a (d_k x d_v) state is updated and read; the delta rules read it twice."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "": ("LinearAttention",),
        MICROSOFT: ("LinearAttention",),
    }

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """One d_k x d_v product per token for each state update, correction and query."""
        state = self._state(node, extents)
        if state is None:
            return None
        tokens, key_heads, query_heads, cells = state
        corrected = "delta" in attributes.text(node, "update_rule", "gated_delta")
        return tokens * cells * (key_heads * (2 if corrected else 1) + query_heads)

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """The decay of the state, where there is one."""
        state = self._state(node, extents)
        if state is None:
            return None
        tokens, key_heads, _, cells = state
        decays = "gated" in attributes.text(node, "update_rule", "gated_delta")
        return int(decays) * tokens * key_heads * cells

    def _state(self, node: ir.Node, extents: Extents) -> tuple[int, int, int, int] | None:
        """Tokens of the batch, key heads, query heads, and cells of one head's state."""
        key_heads = attributes.integer(node, "kv_num_heads", 0)
        key = _split_heads(extents.dims(input_at(node, 1)), key_heads)
        value = _split_heads(extents.dims(input_at(node, 2)), key_heads)
        if key is None or value is None:
            return None
        return key[0] * key[2], key_heads, attributes.integer(node, "q_num_heads", 0), key[3] * value[3]


class ProjectedAttention(_Attending):
    """com.microsoft Attention: one input (B, L, D) times the stacked weights (D, q + k + v), then self-attention."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("Attention",)}
    mask_input: ClassVar[int | None] = 5
    past_input: ClassVar[int] = 4

    def heads(self, node: ir.Node, extents: Extents) -> Heads | None:
        """Widths come from the attribute `qkv_hidden_sizes`, or are equal thirds of the weights."""
        data, weight = extents.dims(input_at(node, 0)), extents.dims(input_at(node, 1))
        count, past = attributes.integer(node, "num_heads", 0), _past(node, extents, self.past_input)
        if data is None or len(data) != 3 or weight is None or len(weight) != 2 or count <= 0 or past is None:
            return None
        hidden = attributes.integers(node, "qkv_hidden_sizes") or (weight[1] // 3,) * 3
        return Heads(data[0], count, data[1], past + data[1], hidden[0] // count, hidden[-1] // count)

    def projections(self, node: ir.Node, extents: Extents) -> int | None:
        """Elements of the input times columns of the weights."""
        size, weight = extents.size(input_at(node, 0)), extents.dims(input_at(node, 1))
        return None if size is None or not weight else size * weight[-1]


class QuantizedAttention(ProjectedAttention):
    """QAttention: the same with an int8 projection."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("QAttention",)}
    quantization_parameters: ClassVar[tuple[int, ...]] = (3, 4, 6, 7)
    mask_input: ClassVar[int | None] = None
    past_input: ClassVar[int] = 8


class MultiHeadAttention(_Attending):
    """com.microsoft MultiHeadAttention: query, key, value as (B, L, D), packed with heads, or already split."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("MultiHeadAttention",)}
    mask_input: ClassVar[int | None] = 5

    def heads(self, node: ir.Node, extents: Extents) -> Heads | None:
        """Packed forms are (B, L, H, 3, E) for all three and (B, S, H, 2, E) for key and value."""
        count, past = attributes.integer(node, "num_heads", 0), _past(node, extents, 6)
        query = extents.dims(input_at(node, 0))
        if query is None or count <= 0 or past is None:
            return None
        if len(query) == 5:
            return Heads(query[0], query[2], query[1], past + query[1], query[4], query[4])
        split, key = _split_heads(query, count), extents.dims(input_at(node, 1))
        if split is None or key is None:
            return None
        batch, _, queries, width = split
        if len(key) == 5:
            return Heads(batch, count, queries, past + key[1], width, key[4])
        keys, value = _split_heads(key, count), _split_heads(extents.dims(input_at(node, 2)), count)
        if keys is None or value is None:
            return None
        return Heads(batch, count, queries, past + keys[2], width, value[3])


class GroupQueryAttention(_Attending):
    """com.microsoft GroupQueryAttention: fewer key heads than query heads, and a cache that the kernel appends to."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {MICROSOFT: ("GroupQueryAttention",)}
    mask_input: ClassVar[int | None] = 10

    def heads(self, node: ir.Node, extents: Extents) -> Heads | None:
        """Keys are as many as the cache that comes out holds; the query may hold key and value behind it."""
        query, present = extents.dims(input_at(node, 0)), extents.dims(output_at(node, 1))
        count, shared = attributes.integer(node, "num_heads", 0), attributes.integer(node, "kv_num_heads", 0)
        if query is None or len(query) != 3 or present is None or len(present) != 4 or count <= 0:
            return None
        packed = input_at(node, 1) is None
        width = query[2] // (count + 2 * shared if packed else count)
        return Heads(query[0], count, query[1], present[2], width, width)


class RotaryEmbedding(MacFree):
    """RotaryEmbedding: each element is rotated with its partner, two products and one sum."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("RotaryEmbedding",), MICROSOFT: ("RotaryEmbedding",)}

    def flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Three per element."""
        dims = extents.dims(input_at(node, 0))
        return None if dims is None else 3 * prod(dims)


FAMILIES = (
    Attention(),
    LinearAttention(),
    ProjectedAttention(),
    QuantizedAttention(),
    MultiHeadAttention(),
    GroupQueryAttention(),
    RotaryEmbedding(),
)
