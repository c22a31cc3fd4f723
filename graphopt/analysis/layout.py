"""Layout: which tensors onnxruntime keeps in blocks of channels (NCHWc), and where it has to reorder them.

On x86 a float convolution of images wants its channels in blocks (16 under AVX-512, 8 under AVX2). Its result stays in
blocks, rounded up to whole ones, as long as what reads it can work on blocks; anything else first gets a plain copy. So
24 channels take the memory and the time of 32, and a channel shuffle costs two copies.

A residual sum and the activation after it go into one of the two convolutions that feed it, if both operands have the
same layout. The convolution then accumulates onto the other operand in place.

The rules are those of onnxruntime's NchwcTransformer and ConvAddActivationFusion. A plain and a blocked copy of a value
are different tensors here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import prod

import onnx_ir as ir

from graphopt.analysis.fusion import ACTIVATIONS, Kernel, Tensor
from graphopt.ops import attributes
from graphopt.ops.base import Extents, input_at

_POOLS = frozenset({"MaxPool", "AveragePool", "GlobalMaxPool", "GlobalAveragePool"})
_UNARY = ACTIVATIONS | {"Gelu", "BatchNormalization"}
_SUMS = frozenset({"Add", "Sum"})
_REORDERABLE = 4
"""Reordering into blocks needs the number of channels to be a multiple of this."""


def laid_out(kernels: Iterable[Kernel], extents: Extents, block: int) -> list[Kernel]:
    """The kernels on the tensors that they really work on, reorders among them, residual sums in their convolutions.

    Args:
        kernels: of one graph, in the order in which onnxruntime looks at them.
        extents: concrete extents of its values.
        block: channels per block; 1 where the machine has no blocked convolutions.
    """
    layout = _Layout(extents, block)
    for kernel in kernels:
        layout.place(kernel)
    return layout.placed


class _Layout:
    """The kernels placed so far, and the state of every value they made."""

    def __init__(self, extents: Extents, block: int) -> None:
        self._extents = extents
        self._block = block
        self._blocked: set[ir.Value] = set()  # made in blocks
        self._plain: set[ir.Value] = set()  # made in blocks, with a plain copy
        self._copied: set[ir.Value] = set()  # made plain, with a copy in blocks that only convolutions and pools read
        # Results of convolutions that can still take a sum or an activation, and where in `placed` these are.
        self._open: dict[Tensor, int] = {}
        self._ranks = 0
        self.placed: list[Kernel] = []

    def place(self, kernel: Kernel) -> None:
        """Put `kernel` into its layout, after the reorders that it needs, or into the convolution before it."""
        in_blocks = self._block > 1 and self._works_on_blocks(kernel)
        if not in_blocks and not self._reads_blocks(kernel):
            for tensor in kernel.reads:
                self._make_plain(tensor.value, kernel)
        if self._extends_convolution(kernel, self._block if in_blocks else 0):
            return
        if not in_blocks:
            self._place_plain(kernel)
        else:
            self._place_blocked(kernel)
        self._finish(kernel)

    def _place_plain(self, kernel: Kernel) -> None:
        reads = tuple(self._in_blocks(t) for t in kernel.reads) if self._reads_blocks(kernel) else kernel.reads
        self.placed.append(replace(kernel, reads=reads) if reads != kernel.reads else kernel)
        self._note_open(kernel, kernel.writes)

    def _place_blocked(self, kernel: Kernel) -> None:
        direct = kernel.main.op_type == "Conv" and self._reads_plain(kernel.main)
        if direct:
            self._make_plain(kernel.reads[0].value, kernel)
        else:
            for tensor in kernel.reads:
                self._make_blocked(tensor.value, kernel)
        written = tuple(self._in_blocks(tensor) for tensor in kernel.writes)
        self._blocked.update(tensor.value for tensor in kernel.writes)
        replaced = kernel.main.op_type == "Conv" or kernel.main.op_type in _POOLS
        self.placed.append(
            replace(
                kernel,
                reads=kernel.reads if direct else tuple(self._in_blocks(tensor) for tensor in kernel.reads),
                writes=written,
                rank=self._new_rank() if replaced else kernel.rank,
                overwrites=tuple(self._in_blocks(tensor) for tensor in kernel.overwrites),
            )
        )
        self._note_open(kernel, written)

    def _finish(self, kernel: Kernel) -> None:
        """What the graph hands out must be plain."""
        for tensor in kernel.writes:
            if tensor.value in self._blocked and tensor.value.is_graph_output():
                self._make_plain(tensor.value, kernel)

    # --- sums and activations -------------------------------------------------------------------------------------

    def _note_open(self, kernel: Kernel, written: tuple[Tensor, ...]) -> None:
        convolves = kernel.main.op_type == "Conv" and not kernel.integer and kernel.nodes[-1].op_type not in ACTIVATIONS
        if convolves and len(written) == 1 and self._channels(written[0].value):
            self._open[written[0]] = len(self.placed) - 1

    def _extends_convolution(self, kernel: Kernel, block: int) -> bool:
        """Merge a sum, or the activation after one, into the open convolution that makes one of its operands."""
        op_type = kernel.main.op_type
        if (op_type not in _SUMS and op_type not in ACTIVATIONS) or not self._open:
            return False
        if len(kernel.nodes) != 1 or len(kernel.writes) != 1:
            return False
        tensors = [Tensor(value, block) for value in kernel.main.inputs if value is not None]
        if op_type in _SUMS and len(set(tensors)) == 2:
            if len({self._extents.dims(tensor.value) for tensor in tensors}) != 1:
                return False
            for own, other in (tensors, reversed(tensors)):
                if other.value in (t.value for t in kernel.reads) and self._merge(kernel, own, other):
                    return True
        return op_type in ACTIVATIONS and bool(tensors) and self._merge(kernel, tensors[0], None)

    def _merge(self, kernel: Kernel, own: Tensor, other: Tensor | None) -> bool:
        at = self._open.get(own)
        if at is None or own.value.is_graph_output() or len(own.value.uses()) != 1:
            return False
        before = self.placed[at]
        if other is not None and before.overwrites:
            return False
        del self._open[own]
        written = Tensor(kernel.writes[0].value, own.block)
        self.placed[at] = replace(
            before,
            nodes=before.nodes + kernel.nodes,
            reads=before.reads if other is None else (*before.reads, other),
            writes=(written,),
            overwrites=before.overwrites if other is None else (other,),
        )
        if own.block:
            self._blocked.add(written.value)
        if other is not None:
            self._open[written] = at
        self._finish(kernel)
        return True

    # --- reorders -------------------------------------------------------------------------------------------------

    def _make_plain(self, value: ir.Value, reader: Kernel) -> None:
        if value in self._blocked and value not in self._plain:
            self._plain.add(value)
            self._reorder(Tensor(value, self._block), Tensor(value), reader)

    def _make_blocked(self, value: ir.Value, reader: Kernel) -> None:
        if value not in self._blocked and value not in self._copied:
            self._copied.add(value)
            self._reorder(Tensor(value), Tensor(value, self._block), reader)

    def _reorder(self, source: Tensor, target: Tensor, reader: Kernel) -> None:
        self.placed.append(Kernel((), reader.main, (source,), (target,), self._new_rank()))

    def _new_rank(self) -> int:
        """New nodes come after all others, and are numbered as they are made."""
        self._ranks += 1
        return (1 << 40) + self._ranks

    def _in_blocks(self, tensor: Tensor) -> Tensor:
        return Tensor(tensor.value, self._block)

    # --- what can work on blocks ----------------------------------------------------------------------------------

    def _channels(self, value: ir.Value) -> int:
        dims = self._extents.dims(value)
        return dims[1] if dims is not None and len(dims) == 4 else 0

    def _works_on_blocks(self, kernel: Kernel) -> bool:
        main, op_type = kernel.main, kernel.main.op_type
        if kernel.integer or not kernel.reads or len(kernel.writes) != 1:
            return False
        starts = op_type == "Conv" or op_type in _POOLS
        if not starts and any(tensor.value not in self._blocked for tensor in kernel.reads):
            return False
        if not self._is_image(kernel.writes[0].value):
            return False
        if op_type == "Conv":
            constant = len(kernel.reads) == 1  # nothing but the image
            return constant and self._convolves_blocks(main)
        if op_type in _POOLS:
            return self._channels(kernel.reads[0].value) % self._block == 0
        if op_type in _UNARY or len(kernel.nodes) > 1:
            return len(kernel.reads) == 1
        if op_type in _SUMS or op_type == "Mul":
            return len({self._extents.dims(value) for value in main.inputs}) == 1
        if op_type == "Concat":
            whole = all(self._channels(tensor.value) % self._block == 0 for tensor in kernel.reads)
            return whole and attributes.integer(main, "axis", 0) in (1, -3)
        return op_type in ("Resize", "Upsample") and self._magnifies(main)

    def _is_image(self, value: ir.Value) -> bool:
        return value.dtype == ir.DataType.FLOAT and self._channels(value) > 0

    def _reads_plain(self, node: ir.Node) -> bool:
        """A convolution of so few channels that it takes them as they are."""
        weight = self._extents.dims(input_at(node, 1))
        return attributes.integer(node, "group", 1) == 1 and weight is not None and weight[1] < self._block

    def _convolves_blocks(self, node: ir.Node) -> bool:
        """Whether the numbers of channels and groups fit into blocks, or can be made to by reordering."""
        weight = self._extents.dims(input_at(node, 1))
        if weight is None or len(weight) != 4:
            return False
        outputs, inputs = weight[:2]
        groups = attributes.integer(node, "group", 1)
        if groups == 1:
            return self._reads_plain(node) or inputs % _REORDERABLE == 0
        if inputs == 1 and outputs == groups:
            return outputs % _REORDERABLE == 0
        return inputs % self._block == 0 and outputs % groups == 0 and (outputs // groups) % self._block == 0

    def _magnifies(self, node: ir.Node) -> bool:
        """Whether images grow by whole factors."""
        before, after = self._extents.dims(input_at(node, 0)), self._extents.dims(node.outputs[0])
        if before is None or after is None or len(before) != 4 or not prod(before):
            return False
        return before[:2] == after[:2] and all(b % a == 0 for a, b in zip(before[2:], after[2:], strict=True))

    def _reads_blocks(self, kernel: Kernel) -> bool:
        """A transpose to NHWC is itself a way to reorder."""
        return (
            kernel.main.op_type == "Transpose"
            and attributes.integers(kernel.main, "perm") == (0, 2, 3, 1)
            and all(tensor.value in self._blocked and tensor.value not in self._plain for tensor in kernel.reads)
        )
