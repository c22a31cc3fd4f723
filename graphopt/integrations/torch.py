"""From a PyTorch module to an optimized `.onnx` file in one call.

    from graphopt.integrations.torch import export
    result = export(module, (torch.zeros(1, 3, 224, 224),), "model.onnx")

Both exporters of `torch.onnx.export` are served: the current one hands its program over as it is, the TorchScript-based
one (`export_options={"dynamo": False}`) goes through a temporary folder and is limited to 2 GiB.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx

from graphopt.errors import InvalidModelError

if TYPE_CHECKING:
    from graphopt.api import Result


def export(
    module: Any,
    args: tuple[Any, ...],
    path: str | os.PathLike[str],
    *,
    export_options: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    **optimize_options: Any,
) -> Result:
    """Export `module`, optimize the result and write it to `path`.

    Args:
        module: a `torch.nn.Module` or anything else that `torch.onnx.export` takes.
        args: example inputs.
        path: the `.onnx` file to make; nothing is left there when something fails.
        export_options: for `torch.onnx.export`, such as `dynamo`, `input_names`, `dynamic_axes` or `opset_version`.
        overwrite: whether `path` may be replaced.
        **optimize_options: for `graphopt.optimize`.

    Raises:
        InvalidModelError: the exporter made nothing that can be lifted.
        GraphoptError: as `graphopt.optimize` and `Result.save` raise them. Errors of the exporter pass through.
    """
    from graphopt import api

    result = api.optimize(_exported(module, args, dict(export_options or {})), **optimize_options)
    result.save(Path(path), overwrite=overwrite)
    return result


def _exported(module: Any, args: tuple[Any, ...], options: dict[str, Any]) -> Any:
    """A `torch.onnx.ONNXProgram`, or a ModelProto from the exporter that only writes files."""
    import torch

    dynamo = options.pop("dynamo", True)
    if dynamo:
        program = torch.onnx.export(module, args, dynamo=True, **options)
        if program is None:
            raise InvalidModelError("torch.onnx.export returned no program; leave 'f' out of export_options")
        return program
    with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
        file = Path(folder) / "exported.onnx"
        torch.onnx.export(module, args, file, dynamo=False, **options)
        return onnx.load(file)
