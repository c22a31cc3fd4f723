"""ONNX GraphSurgeon graphs in and out, for flows that edit with it.

import onnx_graphsurgeon as gs
from graphopt.integrations import graphsurgeon
graph = graphsurgeon.optimize(gs.import_onnx(onnx.load("model.onnx")))
"""

from __future__ import annotations

from typing import Any


def optimize(graph: Any, pipeline: str | None = None, **optimize_options: Any) -> Any:
    """An optimized copy of `graph`, an `onnx_graphsurgeon.Graph`; `graph` itself is not changed.

    Args:
        graph: the graph to optimize.
        pipeline: passes in order, as `graphopt.optimize` takes them.
        **optimize_options: for `graphopt.optimize`.

    Raises:
        GraphoptError: as `graphopt.optimize` raises it; also where the result passes protobuf's 2 GiB.
    """
    import onnx_graphsurgeon as gs

    from graphopt import api

    return gs.import_onnx(api.optimize(graph, pipeline, **optimize_options).model)
