"""CastLike, where it is known what it casts to.

    y = CastLike(x, like)  ->  y = Cast<to = type of like>(x)

Exporters cast constants to the type of a tensor that way. As a Cast it can be folded, merged and removed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import onnx_ir as ir

from graphopt_passes.rewriting import Done, Outcome, Rule, RulePass, Site


@dataclasses.dataclass(frozen=True)
class ResolveCasts(RulePass):
    """Write CastLike as Cast where the type is known."""

    name: ClassVar[str] = "resolve-casts"

    def rules(self) -> Sequence[Rule]:
        """The rule."""
        return (KnownType(),)


class KnownType(Rule):
    """CastLike -> Cast."""

    roots: ClassVar = frozenset({"CastLike"})

    def rewrite(self, node: ir.Node, site: Site) -> Outcome:
        """Name the type; inside functions it may depend on the call."""
        like = node.inputs[1]
        tensor = site.constant(like)
        dtype = tensor.dtype if tensor is not None else None if site.scope.is_function or like is None else like.dtype
        if dtype is None:
            return "kept: the type that it casts to is not known"
        present = {name: attribute.value for name, attribute in node.attributes.items()}
        cast = site.new_node("Cast", [node.inputs[0]], node.outputs[0], node, {**present, "to": int(dtype)})
        return Done("written as Cast", (cast, *site.replace(node, cast.outputs[0])))
