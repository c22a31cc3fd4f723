"""The figures themselves: what one inference costs, in total and per node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graphopt.analysis.liveness import Held


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What one node costs in one inference. None means unknown, never zero.

    Attributes:
        name: of the node, or of its first output where it has none; for a node inside a body after the names of the
            nodes around it.
        op_type: the operator, with its domain where it is not ai.onnx.
        macs: multiply-accumulates.
        flops: operations; 2 per MAC plus the rest.
        params: elements of the weights that it reads (a weight that several nodes read counts for each).
        weight_bytes: bytes of the constants that it reads.
        activation_bytes: bytes of the activations that it reads and writes; none for a view.
        intensity: FLOPs per byte of weights and activations, or None where one of them is unknown or nothing moves.
        seconds: predicted for a device. A node that disappears into another's kernel takes none; None
            where the work is unknown.
    """

    name: str
    op_type: str
    macs: int | None
    flops: int | None
    params: int
    weight_bytes: int
    activation_bytes: int | None
    intensity: float | None
    seconds: float | None


@dataclass(frozen=True)
class Cost:
    """What one inference of a model costs.

    Attributes:
        macs: multiply-accumulates of convolution- and matmul-like nodes; unknown ones are left out and listed.
        flops: operations; 2 per MAC plus the rest.
        params: elements of all weights, shared ones once.
        bytes: of the model file, external data included.
        weight_bytes: of all initializers.
        peak_activation_bytes: of the activations that onnxruntime's CPU provider holds at once.
        peak_node: the name of the node that runs then.
        peak_held: what is held then, the largest first: values, bytes, and whether it is a copy in another layout.
        nodes: in the main graph, all bodies and all functions; constants are none.
        predicted_ms: milliseconds on a device. Predicted, not measured.
        unknown_cost_ops: operators of which at least one node has unknown MACs or FLOPs, sorted.
        latency_ms: milliseconds as measured, or None where nobody measured.
        predicted_by: what predicted `predicted_ms`, for reports.
        assumed: symbolic dims that nobody gave a number, and what was taken for them.
        per_node: one row per node that runs, where rows were asked for; of an If those of the dearer branch.
    """

    macs: int
    flops: int
    params: int
    bytes: int
    weight_bytes: int
    peak_activation_bytes: int
    nodes: int
    predicted_ms: float
    unknown_cost_ops: tuple[str, ...] = ()
    latency_ms: float | None = None
    predicted_by: str = ""
    assumed: Mapping[str, int] = field(default_factory=dict)
    peak_node: str = ""
    peak_held: tuple[Held, ...] = ()
    per_node: tuple[NodeCost, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The keys that a JSON report has for a cost."""
        return {
            "macs": self.macs,
            "params": self.params,
            "bytes": self.bytes,
            "weight_bytes": self.weight_bytes,
            "peak_activation_bytes": self.peak_activation_bytes,
            "nodes": self.nodes,
            "latency_ms": self.latency_ms,
            "unknown_cost_ops": list(self.unknown_cost_ops),
        }
