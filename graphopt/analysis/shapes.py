"""A type and a shape for every value, as far as they can be inferred.

`infer` runs the engine (`graphopt.analysis.inference`) over a model, or over the part of it that a rewrite touched,
and writes what it found onto the values of the main graph and of all If/Loop/Scan bodies. Values inside function
bodies have no types of their own: they depend on the call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx_ir as ir

from graphopt.analysis import annotate, dims, facts
from graphopt.analysis.dims import Bindings, Dims
from graphopt.analysis.facts import Fact
from graphopt.analysis.inference import Inference
from graphopt.analysis.update import Update
from graphopt.errors import OptionError

_SYMBOLS = "graphopt.symbols"
"""Where the main graph keeps the number of the next symbol to invent (`Graph.meta`: cloned, but never written)."""


def infer(
    model: ir.Model, nodes: Collection[ir.Node] | None = None, fixed: Mapping[str, Sequence[int]] | None = None
) -> list[str]:
    """Give every value the type and shape that follow from the graph, in place.

    Graph inputs and initializers are taken as they are. What is declared on inner values fills in what cannot be
    inferred; where it contradicts what is inferred, it is replaced, with a warning. Graph outputs keep what is
    declared on them and are only filled in. An extent that depends on data gets a symbol of its own (see
    `graphopt.analysis.dims.is_invented`).

    Args:
        model: it is changed only in the types and shapes of its values.
        nodes: only these nodes are looked at, and then what follows from them, until nothing changes any more. What
            stands on values is then taken for an earlier result rather than a declaration: no warnings.
        fixed: extents of graph inputs, by name (`--shape`). Symbols that get a number that way have it everywhere, and
            graph outputs become static too.

    Returns:
        Warnings.

    Raises:
        OptionError: `fixed` names no graph input, or has another rank or other extents than it declares.
    """
    bindings = None if fixed is None else _fix_inputs(model, fixed)
    first = int(model.graph.meta.get(_SYMBOLS, 0))
    if nodes is not None:
        update = Update(model, first_symbol=first)
        update.follow(nodes)
        model.graph.meta[_SYMBOLS] = update.symbols
        return []
    inference = Inference(model, bindings=bindings, first_symbol=first)
    inference.run()
    _write_all(model, inference, static_outputs=bool(fixed))
    model.graph.meta[_SYMBOLS] = inference.symbols
    return inference.warnings


def known(model: ir.Model) -> Inference:
    """What stands on the values of `model`, for questions about facts and contents; nothing is inferred anew."""
    return Inference(model, first_symbol=int(model.graph.meta.get(_SYMBOLS, 0)))


# --- Fixing inputs --------------------------------------------------------------------------------


def bind(model: ir.Model, fixed: Mapping[str, Sequence[int]]) -> dict[str, int]:
    """The numbers that symbols get when graph inputs have the extents in `fixed`.

    Raises:
        OptionError: `fixed` names no graph input, or contradicts what the model declares, or itself.
    """
    inputs = {value.name: (index, value) for index, value in enumerate(model.graph.inputs)}
    bound: dict[str, int] = {}
    for name, extents in fixed.items():
        if name not in inputs:
            known = ", ".join(f"'{known}'" for known in inputs) or "none"
            raise OptionError(f"--shape: the model has no input '{name}' (its inputs: {known})")
        index, value = inputs[name]
        _bind_input(name, index, facts.declared(value).dims, tuple(extents), bound)
    return bound


def _bind_input(name: str, index: int, declared: Dims | None, extents: tuple[int, ...], bound: dict[str, int]) -> None:
    if any(extent < 0 for extent in extents):
        raise OptionError(f"--shape {name}: an extent cannot be negative")
    if declared is None:
        return
    if len(declared) != len(extents):
        raise OptionError(f"--shape {name}: has {len(declared)} dims in the model, {len(extents)} were given")
    for axis, (dim, extent) in enumerate(zip(declared, extents, strict=True)):
        if isinstance(dim, int) and dim != extent:
            raise OptionError(f"--shape {name}: dim {axis} is {dim} in the model and cannot become {extent}")
        symbol = dims.input_symbol(index, axis) if dim is None else dim
        if isinstance(symbol, str) and bound.setdefault(symbol, extent) != extent:
            text = dims.to_ir(symbol)
            raise OptionError(
                f"--shape {name}: dim {axis} is '{text}', which is {bound[symbol]} elsewhere, not {extent}"
            )


def _fix_inputs(model: ir.Model, fixed: Mapping[str, Sequence[int]]) -> Bindings:
    """Give graph inputs the extents in `fixed`, and every input that shares their symbols the same numbers."""
    bindings = Bindings(bind(model, fixed))
    for value in model.graph.inputs:
        given = fixed.get(value.name or "")
        extents = tuple(given) if given is not None else facts.declared(value).dims
        if extents is not None:
            annotate.set_shape(value, tuple(map(bindings.substitute, extents)))
    return bindings


# --- Writing --------------------------------------------------------------------------------------


def _write_all(model: ir.Model, inference: Inference, static_outputs: bool) -> None:
    outputs = set(model.graph.outputs)
    inputs = set(model.graph.inputs)
    for value, fact in inference.main.facts.items():
        if value in outputs and value.producer() is not None:
            _write_output(value, inference.declared(value), fact, static_outputs)
        elif value not in inputs:
            annotate.write(value, fact)


def _write_output(value: ir.Value, declared: Fact, fact: Fact, static: bool) -> None:
    """Fill in what is declared on a graph output; where inputs were fixed, its symbols become numbers."""
    kept = facts.refine(annotate.without_invented(declared), fact)
    if static and kept.dims is not None and fact.dims is not None and len(kept.dims) == len(fact.dims):
        pairs = zip(kept.dims, fact.dims, strict=True)
        kept = Fact(kept.type, tuple(b if isinstance(a, str) and isinstance(b, int) else a for a, b in pairs))
    annotate.write(value, kept)
