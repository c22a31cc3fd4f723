"""Writing a replacement into the graph: convolutions or products, the Adds of branches, and the layer's own output name.

The stride, dilation and padding of a spatial axis go with the part that has the kernel along it; all other parts are 1 wide
there. No part but the last of the first branch has a bias, so that padded zeros stay zeros between parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.ir.surgery import Editor, FreshNames, drop_unread
from graphopt.ops import attributes
from graphopt.runtime.transposed_patches import TransposedWindow
from graphopt_passes.factorization.schemes import Fitted, Part
from graphopt_passes.factorization.sites import Site


def emit(site: Site, fitted: Fitted, names: FreshNames) -> list[ir.Node]:
    """Replace the layer of `site` by `fitted`; it keeps the bias that it has. Returns the new nodes."""
    return _Writer(site, names).write(fitted)


class _Writer:
    def __init__(self, site: Site, names: FreshNames) -> None:
        self.site = site
        self.old = site.layer.node
        self.names = names
        self.stem = self.old.outputs[0].name or self.old.op_type
        graph = self.old.graph
        assert isinstance(graph, ir.Graph)
        self.graph = graph
        self.made: list[ir.Node] = []

    def write(self, fitted: Fitted) -> list[ir.Node]:
        read = list(self.old.inputs)
        bias = read[2] if len(read) > 2 else None
        total: ir.Value | None = None
        for number, branch in enumerate(fitted.branches):
            value = self.site.layer.data
            for index, part in enumerate(branch):
                last = index == len(branch) - 1
                value = self._part(value, part, bias if last and number == 0 else None, last=last)
            total = value if total is None else self._node("Add", [total, value], self._shape(value), {})
        assert total is not None
        self._take_over(total)
        drop_unread(value for value in read if value is not None)
        return self.made

    def _take_over(self, new: ir.Value) -> None:
        """Let `new` be the layer's output, name included."""
        old, editor = self.old.outputs[0], Editor(self.graph)
        name, is_output = old.name, old.is_graph_output()
        if new.shape is None and old.shape is not None:
            new.shape = old.shape.copy()
        editor.replace(old, new)
        if not is_output:
            old.name = None
            new.name = name
        editor.remove(self.old)
        editor.commit()

    def _part(self, value: ir.Value, part: Part, bias: ir.Value | None, *, last: bool) -> ir.Value:
        if self.site.transposed and part.axes:
            return self._transposed(value, part, bias)
        if self.site.kernel:
            groups = part.weight.shape[0]
            weight = part.weight.reshape(groups * part.weight.shape[1], *part.weight.shape[2:])
            inputs = [value, self._constant(weight)]
            settings = _settings(self.old, part, self.site.kernel)
            if groups > 1:
                settings["group"] = groups
            shape = self._convolved(value, weight.shape[0], part)
            return self._node("Conv", [*inputs, bias] if bias is not None else inputs, shape, settings)
        matrix = part.weight[0]  # (O, C)
        if last and self.old.op_type == "Gemm":
            # alpha is in the weights, and beta goes on scaling the bias
            beta = attributes.number(self.old, "beta", 1.0)
            kept: dict[str, Any] = {"beta": beta} if beta != 1 else {}
            inputs = [value, self._constant(matrix.T)]
            inputs += [bias] if bias is not None else []
            return self._node("Gemm", inputs, self._row(value, len(matrix)), kept)
        return self._node("MatMul", [value, self._constant(matrix.T)], self._row(value, len(matrix)), {})

    def _transposed(self, value: ir.Value, part: Part, bias: ir.Value | None) -> ir.Value:
        """A part of a ConvTranspose that has some of its axes."""
        groups, outputs, inputs = part.weight.shape[:3]
        weight = part.weight.swapaxes(1, 2).reshape(groups * inputs, outputs, *part.weight.shape[3:])
        read = [value, self._constant(weight), *([] if bias is None else [bias])]
        settings = _transposed_settings(self.old, part)
        if groups > 1:
            settings["group"] = groups
        return self._node("ConvTranspose", read, self._convolved(value, groups * outputs, part), settings)

    def _constant(self, array: np.ndarray[Any, Any]) -> ir.Value:
        like = self.old.inputs[1]
        assert like is not None
        assert like.dtype is not None
        tensor = ir.Tensor(np.ascontiguousarray(array).astype(like.dtype.numpy()), dtype=like.dtype)
        name = self.names.fresh(f"{like.name or self.stem}_part")
        tensor.name = name
        value = ir.Value(
            name=name, type=ir.TensorType(like.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def _node(
        self, op_type: str, inputs: Sequence[ir.Value | None], shape: ir.Shape | None, settings: dict[str, Any]
    ) -> ir.Value:
        name = self.names.fresh(f"{self.stem}_part")
        output = ir.Value(name=name, type=self.old.outputs[0].type, shape=shape)
        present = ir.convenience.convert_attributes(settings)
        node = ir.Node("", op_type, inputs, present, outputs=[output], name=self.names.fresh(f"{name}_node"))
        self.graph.insert_before(self.old, node)
        self.made.append(node)
        return output

    def _shape(self, value: ir.Value) -> ir.Shape | None:
        return None if value.shape is None else value.shape.copy()

    def _convolved(self, value: ir.Value, channels: int, part: Part) -> ir.Shape | None:
        target = self.old.outputs[0].shape
        if value.shape is None or target is None or len(target) != len(value.shape):
            return None
        dims = [target[2 + axis] if axis in part.axes else dim for axis, dim in enumerate(value.shape[2:])]
        return ir.Shape([value.shape[0], channels, *dims])

    def _row(self, value: ir.Value, channels: int) -> ir.Shape | None:
        return None if value.shape is None else ir.Shape([*value.shape[:-1], channels])


def _settings(node: ir.Node, part: Part, kernel: Sequence[int]) -> dict[str, Any]:
    """Attributes of a part of a Conv, or of a 1 x 1 part of a ConvTranspose: those of its own axes."""
    count = len(kernel)
    own = [axis in part.axes for axis in range(count)]
    settings: dict[str, Any] = {"kernel_shape": [size if mine else 1 for size, mine in zip(kernel, own, strict=True)]}
    if not any(own):
        return settings
    mode = attributes.text(node, "auto_pad", "NOTSET")
    if mode != "NOTSET":
        settings["auto_pad"] = mode
    else:
        pads = attributes.integers(node, "pads")
        if pads is not None and any(pads):
            settings["pads"] = _own_pads(pads, own)
    for name in ("strides", "dilations"):
        _put_along(settings, name, attributes.integers(node, name) or (1,) * count, 1, own)
    return settings


def _transposed_settings(node: ir.Node, part: Part) -> dict[str, Any]:
    """Attributes of a part of a ConvTranspose that has some of its axes; what is cut off is in `pads`, however it was said."""
    window = TransposedWindow.of(node)
    own = [axis in part.axes for axis in range(len(window.kernel))]
    settings: dict[str, Any] = {
        "kernel_shape": [size if mine else 1 for size, mine in zip(window.kernel, own, strict=True)]
    }
    pads = _own_pads(window.pads, own)
    if any(pads):
        settings["pads"] = pads
    _put_along(settings, "strides", window.strides, 1, own)
    _put_along(settings, "dilations", window.dilations, 1, own)
    _put_along(settings, "output_padding", window.extra, 0, own)
    return settings


def _own_pads(pads: Sequence[int], own: Sequence[bool]) -> list[int]:
    return [pad if mine else 0 for pad, mine in zip(pads, [*own, *own], strict=True)]


def _put_along(settings: dict[str, Any], name: str, values: Sequence[int], other: int, own: Sequence[bool]) -> None:
    """Set an attribute with one number per axis, `other` along axes that are not the part's own."""
    found = [value if mine else other for value, mine in zip(values, own, strict=True)]
    if any(value != other for value in found):
        settings[name] = found
