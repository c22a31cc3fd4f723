"""Constant folding: what a model computes from constants alone is computed once, here.

A node whose inputs are all constant, and whose operator always gives the same result for the same inputs, is replaced
by that result. So is Shape (and Size) of a value whose dims are all known, whatever its elements:

    y = f(c1, c2 ...)     ->  y = constant
    y = Shape(x: [2, 3])  ->  y = [2, 3]

The runtime itself computes the results, its own optimizations off, so that they are bit for bit what it would compute
later. All foldable nodes of a scope run together as one program; where the runtime refuses it, halves of it are tried,
down to the single node that cannot be computed and is left alone.

A node that produces a graph output stays, because an output must be produced by a node; what it reads is folded.

Folding must not blow a file up. A result may be larger than what it is computed from by `max_growth` bytes at most. A
constant that several nodes read goes when all of them are folded: it counts for each of them in proportion to its
result, and for none where one of them cannot be folded. Large results wait on disk for the model to be written.
Quantized weights stay quantized: QuantizeLinear and DequantizeLinear are never folded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import RuntimeFailureError
from graphopt.ir.extract import extract
from graphopt.ir.spool import Spool
from graphopt.ir.surgery import Editor, Scope, add_constant, drop_unread, scopes
from graphopt.ir.walk import constant_tensor, label, subgraphs
from graphopt.pipeline.base import Evaluate, Pass, PassContext, PassResult, option
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.lossless.result_bytes import result_bytes, static_bytes, tensor_bytes
from graphopt_passes.rewriting import still_there

_BATCH_BYTES = 16 * 2**20
_MOST_REFUSED = 256
"""Programs that the runtime may refuse before halving stops: a runtime that refuses everything must not cost hours."""

_DOMAINS = frozenset({"", "ai.onnx.ml"})
_DIVISIONS = frozenset({"Div", "Mod"})
_QUANTIZATION = frozenset({"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"})


@dataclasses.dataclass(frozen=True)
class FoldConstants(Pass):
    """Compute now what depends on constants alone."""

    name: ClassVar[str] = "fold-constants"
    max_bytes: int = option(16 * 2**20, "bytes of the largest tensor that is read or made", minimum=0)
    max_growth: int = option(4096, "bytes by which a result may be larger than what it is computed from", minimum=0)

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Fold in the main graph, in bodies and in functions."""
        remarks = Remarks()
        touched: dict[ir.Node, None] = {}
        modified = False
        for scope in scopes(model):
            while True:
                folding = _Folding(self, model, scope, context, remarks)
                for node in _in_order(scope.graph):
                    folding.consider(node)
                folding.compute()
                modified |= folding.rewrite(touched)
                if not folding.made_room():
                    break
            for where, why in folding.missed:
                remarks.missed(where, why)
        return PassResult(modified, still_there(touched, model), remarks.listed())


class _Folding:
    """Folding in one scope: the nodes taken up so far, and the results computed so far."""

    def __init__(
        self, options: FoldConstants, model: ir.Model, scope: Scope, context: PassContext, remarks: Remarks
    ) -> None:
        self.options = options
        self.model = model
        self.scope = scope
        self.context = context
        self.remarks = remarks
        self.results: dict[ir.Value, ir.TensorProtocol] = {}
        self.spool = Spool()
        self.folded: dict[ir.Node, None] = {}
        self.pending: list[ir.Node] = []
        self.promised: dict[ir.Value, int] = {}
        self.promised_bytes = 0
        self.refused = 0
        self.missed: list[tuple[str, str]] = []
        self.too_large: dict[ir.Node, None] = {}
        self.fewer_readers: set[ir.Value] = set()
        self._shares: dict[ir.Value, dict[ir.Node, int]] = {}
        self._schemas: dict[ir.OperatorIdentifier, onnx.defs.OpSchema | None] = {}

    def consider(self, node: ir.Node) -> None:
        """Take `node` up if it can be folded. Nodes come in topological order."""
        dims = None if self.scope.is_function else _dims_asked_for(node)
        reads = [read for read in node.inputs if read is not None]
        if dims is None and (not reads or any(self._bytes(read) is None for read in reads)):
            return
        is_output = any(output.is_graph_output() for output in node.outputs)
        if is_output or not any(output.uses() for output in node.outputs) or self.context.excluded(node):
            return
        if dims is not None:
            self.results[node.outputs[0]] = ir.Tensor(dims)
            self.folded[node] = None
            return
        why_not = self._why_not(node, reads) or self._take_up(node, reads)
        if why_not is not None:
            self.missed.append((label(node), f"not folded: {why_not}"))

    def _why_not(self, node: ir.Node, reads: Sequence[ir.Value]) -> str | None:
        """Why `node`, whose inputs are all constant, cannot be computed now."""
        schema = self._schema(node)
        if schema is None:
            return "this operator is not known"
        if node.op_type in _QUANTIZATION:
            return "quantized weights stay quantized"
        if any(True for _ in subgraphs(node)) or any(attribute.is_ref() for attribute in node.attributes.values()):
            return "it has bodies, or attributes that only the caller of its function knows"
        determinism = schema.node_determinism  # type: ignore[attr-defined]  # missing in onnx's stubs
        if determinism == onnx.defs.OpSchema.NodeDeterminism.NonDeterministic:
            return "its result may differ from run to run"
        if self.context.evaluate is None:
            return "there is no runtime to compute it"
        if any((self._bytes(read) or 0) > self.options.max_bytes for read in reads):
            return f"it reads a tensor of more than max_bytes={self.options.max_bytes}"
        if node.op_type in _DIVISIONS and node.domain == "":
            return self._division_by_zero(*node.inputs)
        return None

    def _take_up(self, node: ir.Node, reads: Sequence[ir.Value]) -> str | None:
        """Take `node` up, or say why its result would be too large."""
        sizes = self._sizes(node)
        if sizes is None and any(read in self.promised for read in reads):
            self.compute()
            sizes = self._sizes(node)
        if sizes is None:
            return "the size of its result is not known before it is computed"
        size, options = sum(sizes), self.options
        if size > options.max_bytes:
            return f"its result has more than max_bytes={options.max_bytes}"
        if size > options.max_growth and size > options.max_growth + sum(
            self._share(read, node) for read in set(reads)
        ):
            self.too_large[node] = None
            return f"the model would grow by more than max_growth={options.max_growth} bytes"
        self.pending.append(node)
        self.promised.update(zip((output for output in node.outputs if output.name), sizes, strict=True))
        self.promised_bytes += size
        if self.promised_bytes > _BATCH_BYTES:
            self.compute()
        return None

    def compute(self) -> None:
        """Compute what was taken up; from now on the results can be read."""
        batch, self.pending = self.pending, []
        self.promised, self.promised_bytes = {}, 0
        if batch and self.context.evaluate is not None:
            self._compute(batch, self.context.evaluate)

    def _compute(self, batch: Sequence[ir.Node], evaluate: Evaluate) -> None:
        nodes = self._computable(batch)
        inside = set(nodes)
        wanted = [output for node in nodes for output in node.outputs if not inside.issuperset(output.consumers())]
        program = extract(nodes, wanted, self._tensor, self.scope.opset_imports, self.model.ir_version)
        try:
            computed = evaluate(program) if wanted else []
        except RuntimeFailureError as error:
            self.refused += 1
            if len(nodes) == 1 or self.refused > _MOST_REFUSED:
                for node in nodes:
                    self.missed.append((label(node), f"not folded: {error}"))
                return
            self._compute(nodes[: len(nodes) // 2], evaluate)
            self._compute(nodes[len(nodes) // 2 :], evaluate)
            return
        self.results.update(zip(wanted, map(self.spool.keep, computed), strict=True))
        self.folded.update(dict.fromkeys(nodes))

    def _computable(self, batch: Sequence[ir.Node]) -> list[ir.Node]:
        """The nodes of `batch` that read nothing which could not be computed."""
        nodes, made = [], set[ir.Value]()
        for node in batch:
            if all(read is None or read in made or self._tensor(read) is not None for read in node.inputs):
                nodes.append(node)
                made.update(node.outputs)
        return nodes

    def rewrite(self, touched: dict[ir.Node, None]) -> bool:
        """Put the results in the place of the nodes that compute them; say whether there were any."""
        editors: dict[ir.Graph, Editor] = {}
        reads = dict.fromkeys(read for node in self.folded for read in node.inputs if read is not None)
        for node in self.folded:
            graph = node.graph
            assert isinstance(graph, ir.Graph)  # the nodes were found in the graphs of the scope
            editor = editors.setdefault(graph, Editor(graph))
            for output in node.outputs:
                if not all(reader in self.folded for reader in output.consumers()):
                    self._replace(output, node, editor, touched)
            self.remarks.applied(label(node), "folded into a constant")
        for node in self.folded:
            assert isinstance(node.graph, ir.Graph)
            editors[node.graph].remove(node)
        for editor in editors.values():
            editor.commit()
        self.fewer_readers = set(reads).difference(drop_unread(reads))
        return bool(self.folded)

    def made_room(self) -> bool:
        """Whether a node whose result was too large now has a greater share in what it reads."""
        return any(read in self.fewer_readers for node in self.too_large for read in node.inputs)

    def _replace(self, output: ir.Value, node: ir.Node, editor: Editor, touched: dict[ir.Node, None]) -> None:
        constant = add_constant(editor.graph, output.name or "", self.results[output], node, self.scope)
        readers = editor.replace(output, constant)
        touched.update((reader, None) for reader in readers if reader not in self.folded)
        producer = constant.producer()
        if producer is not None:
            touched[producer] = None

    def _division_by_zero(self, dividend: ir.Value | None, divisor: ir.Value | None) -> str | None:
        """Why an integer division must not run: it would not fail, but end the process."""
        if self._tensor(dividend) is None or self._tensor(divisor) is None:
            self.compute()
        above, below = self._tensor(dividend), self._tensor(divisor)
        if above is None or below is None:
            return "what it reads cannot be computed"
        if not below.dtype.is_integer():
            return None
        divisors = below.numpy()
        overflows = below.dtype.is_signed() and bool((divisors == -1).any())
        if not divisors.all() or (overflows and bool((above.numpy() == above.dtype.min).any())):
            return "it divides by zero, or the smallest integer by -1"
        return None

    def _tensor(self, value: ir.Value | None) -> ir.TensorProtocol | None:
        return self.results[value] if value in self.results else constant_tensor(value)

    def _bytes(self, value: ir.Value) -> int | None:
        """Bytes of a value that is constant or will be; None for others."""
        promised = self.promised.get(value)
        tensor = self._tensor(value) if promised is None else None
        return promised if tensor is None else _nbytes(tensor)

    def _share(self, value: ir.Value, node: ir.Node) -> int:
        """Bytes of the constant `value` that folding `node`, one of its readers, counts as saved."""
        if value not in self._shares:
            self._shares[value] = self._divided(value)
        return self._shares[value].get(node, 0)

    def _divided(self, value: ir.Value) -> dict[ir.Node, int]:
        readers, whole = value.consumers(), self._bytes(value) or 0
        if len(readers) > 1 and not self._foldable.issuperset(readers):
            return {}
        sizes = [sum(static_bytes(output) or 0 for output in reader.outputs) for reader in readers]
        if not all(sizes):
            sizes = [1] * len(readers)
        return {reader: whole * size // sum(sizes) for reader, size in zip(readers, sizes, strict=True)}

    @functools.cached_property
    def _foldable(self) -> set[ir.Node]:
        """The nodes that depend on constants alone, and produce no graph output."""
        found = set[ir.Node]()
        for node in _in_order(self.scope.graph):
            constant = all(
                read is None or constant_tensor(read) is not None or read.producer() in found for read in node.inputs
            )
            if constant and not any(output.is_graph_output() for output in node.outputs):
                found.add(node)
        return found

    def _sizes(self, node: ir.Node) -> list[int] | None:
        return result_bytes(node, self._tensor, self.scope.opset(node.domain))

    def _schema(self, node: ir.Node) -> onnx.defs.OpSchema | None:
        """The schema of a node's operator, None where ONNX does not define it or the model does so itself."""
        key = node.op_identifier()
        if key not in self._schemas:
            self._schemas[key] = None
            if node.domain in _DOMAINS and key not in self.model.functions:
                with contextlib.suppress(onnx.defs.SchemaError):
                    version = self.scope.opset(node.domain)
                    self._schemas[key] = onnx.defs.get_schema(node.op_type, version, node.domain)
        return self._schemas[key]


def _in_order(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of `graph` and its bodies, each after those that it reads from."""
    for node in graph:
        yield node
        for body in subgraphs(node):
            yield from _in_order(body)


def _dims_asked_for(node: ir.Node) -> np.ndarray | None:
    """What Shape or Size gives, int64, where all the dims that it asks for are known; None for other nodes."""
    if node.op_type not in ("Shape", "Size") or node.domain != "" or not node.inputs or node.inputs[0] is None:
        return None
    shape = node.inputs[0].shape
    if shape is None:
        return None
    dims = list(shape)
    if node.op_type == "Shape":
        dims = dims[node.attributes.get_int("start", 0) : node.attributes.get_int("end", len(dims))]
    known = [dim for dim in dims if isinstance(dim, int)]
    if len(known) < len(dims):
        return None
    return np.array(known if node.op_type == "Shape" else math.prod(known), dtype=np.int64)


def _nbytes(tensor: ir.TensorProtocol) -> int:
    return tensor_bytes(tensor.dtype, tensor.shape.numpy())
