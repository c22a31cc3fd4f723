"""Einsum: sums of products named by an equation, contracted pairwise from left to right as onnxruntime does.

Each step multiplies two operands over the union of their labels and sums the labels that nothing needs any more. Where
a label that both operands carry is summed, the step is a matrix product and its MACs are the product of all extents in
the union; where none is, it only multiplies, which is elementwise work. A label that one operand alone carries is
summed before the step.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import ClassVar

import onnx_ir as ir

from graphopt.ops import attributes
from graphopt.ops.base import Contraction, Extents


@dataclass(frozen=True)
class Work:
    """What one Einsum does: MACs, and operations that are none (products without a sum, sums without a product)."""

    macs: int = 0
    others: int = 0


def einsum_work(equation: str, shapes: Sequence[tuple[int, ...]]) -> Work | None:
    """Work of `equation` on operands of these shapes; None where they do not fit together."""
    terms, arrow, result = equation.replace(" ", "").partition("->")
    operands = [_labels(term, len(shape)) for term, shape in zip(terms.split(","), shapes, strict=False)]
    if len(terms.split(",")) != len(shapes) or None in operands:
        return None
    labelled = [labels for labels in operands if labels is not None]
    sizes = _extents(labelled, shapes)
    if sizes is None:
        return None
    kept = _labels_of_result(result, labelled) if arrow else _implicit_result(labelled)
    return _contract([set(labels) for labels in labelled], kept, sizes)


def _labels(term: str, rank: int) -> list[str] | None:
    """One label per axis; the axes of an ellipsis are called ".0", ".1" ... counted from the right."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    if hidden < 0 or (hidden and not dots):
        return None
    return [*before, *(f".{axis}" for axis in reversed(range(hidden))), *after]


def _extents(operands: Sequence[Sequence[str]], shapes: Sequence[tuple[int, ...]]) -> dict[str, int] | None:
    sizes: dict[str, int] = {}
    for labels, shape in zip(operands, shapes, strict=True):
        for label, extent in zip(labels, shape, strict=True):
            known = sizes.get(label, 1)
            if known != extent and 1 not in (known, extent):
                return None
            sizes[label] = extent if known == 1 else known
    return sizes


def _labels_of_result(term: str, operands: Sequence[Sequence[str]]) -> set[str]:
    dots = {label for labels in operands for label in labels if label.startswith(".")} if "..." in term else set()
    return set(term.replace("...", "")) | dots


def _implicit_result(operands: Sequence[Sequence[str]]) -> set[str]:
    """Without an arrow the result keeps the ellipsis and every label that occurs once."""
    flat = [label for labels in operands for label in labels]
    return {label for label in flat if label.startswith(".") or flat.count(label) == 1}


def _contract(operands: list[set[str]], kept: set[str], sizes: Mapping[str, int]) -> Work:
    """Fold the operands from left to right; each is reduced to the labels that others or the result still need."""

    def volume(labels: set[str]) -> int:
        return prod(sizes[label] for label in labels)

    others = macs = 0
    current: set[str] = set()
    for index, operand in enumerate(operands):
        needed = kept.union(*operands[index + 1 :])
        if index:
            own, shared = operand & (needed | current), (operand & current) - needed
            others += volume(operand) if own != operand else 0
            if shared:
                macs += volume(current | own)
            else:
                others += volume(current | own)
            current = (current | own) & needed
        else:
            current = operand & needed
            others += volume(operand) if current != operand else 0
    return Work(macs, others)


class Einsum(Contraction):
    """Einsum of any number of operands, with ellipsis, repeated labels and an implicit result."""

    op_types: ClassVar[Mapping[str, tuple[str, ...]]] = {"": ("Einsum",)}

    def macs(self, node: ir.Node, extents: Extents) -> int | None:
        """MACs of the pairwise contractions."""
        work = self._work(node, extents)
        return None if work is None else work.macs

    def other_flops(self, node: ir.Node, extents: Extents) -> int | None:
        """Products that are not summed and sums that are not of products."""
        work = self._work(node, extents)
        return None if work is None else work.others

    def _work(self, node: ir.Node, extents: Extents) -> Work | None:
        shapes = [extents.dims(value) for value in node.inputs]
        known = [shape for shape in shapes if shape is not None]
        if len(known) != len(shapes):
            return None
        return einsum_work(attributes.text(node, "equation", ""), known)


FAMILIES = (Einsum(),)
