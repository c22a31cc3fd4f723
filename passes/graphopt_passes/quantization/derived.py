"""Constants made from constants: a quantized weight stands beside the weight that it comes from.

A weight may be read in several places, in bodies too, and what is made of it is made once: it goes into the graph that
holds the original, under a name like the original's, and whoever asks for the same again gets the same value. The
numbers lie on disk until the model is written (`graphopt.ir.spool`), so that they do not add up in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.spool import Spool
from graphopt.ir.surgery import FreshNames, drop_unread


class Derived:
    """The constants that were made from a model's constants."""

    def __init__(self, names: FreshNames) -> None:
        """None yet; `names` is where their names come from."""
        self._names = names
        self._spool = Spool()
        self._known: dict[tuple[ir.Value, Hashable], tuple[ir.Value, ...]] = {}

    def get(
        self,
        source: ir.Value,
        key: Hashable,
        make: Callable[[], Mapping[str, ir.TensorProtocol | np.ndarray[Any, Any]]],
    ) -> tuple[ir.Value, ...]:
        """What is made of the constant `source`.

        Args:
            source: an initializer, or the output of a Constant node.
            key: of what is made; the same again gives the same values.
            make: the tensors by the ending of their names; called at most once.
        """
        if (source, key) not in self._known:
            made = tuple(self._keep(source, ending, tensor) for ending, tensor in make().items())
            self._known[source, key] = made
        return self._known[source, key]

    def drop_sources(self) -> None:
        """Remove the originals that nothing reads any more."""
        drop_unread(dict.fromkeys(source for source, _ in self._known))

    def _keep(self, source: ir.Value, ending: str, tensor: ir.TensorProtocol | np.ndarray[Any, Any]) -> ir.Value:
        if isinstance(tensor, np.ndarray):
            tensor = ir.Tensor(np.asarray(tensor, order="C"))
        tensor.name = self._names.fresh(f"{source.name}_{ending}")
        tensor = self._spool.keep(tensor)
        kind, shape = ir.TensorType(tensor.dtype), ir.Shape(tensor.shape.numpy())
        constant = source.producer()
        if constant is None:
            assert source.graph is not None
            value = ir.Value(name=tensor.name, type=kind, shape=shape, const_value=tensor)
            source.graph.register_initializer(value)
            return value
        assert constant.graph is not None
        value = ir.Value(name=tensor.name, type=kind, shape=shape)
        node = ir.Node("", "Constant", [], [ir.AttrTensor("value", tensor)], outputs=[value], name="")
        constant.graph.insert_before(constant, node)
        return value
