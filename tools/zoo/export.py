"""Export a trained network with both exporters of torch, and check the files in onnxruntime.

The two differ as files in the wild do. The TorchScript exporter ("legacy") writes opset 17, computes shapes in the
graph (`Shape`, `Gather`, `Concat`, `Reshape`), spells Gelu out with `Erf`, and here keeps each BatchNormalization of
the networks in `EXPLICIT_NORMS`; the torch.export one ("dynamo") writes opset 20, folds BatchNormalization itself and
annotates every node. Both leave the batch axis symbolic.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

INPUT: Final = "input"
OUTPUT: Final = "logits"
EXPLICIT_NORMS: Final = frozenset({"residual", "depthwise"})
"""Networks whose legacy export keeps its BatchNormalization nodes."""

EXPORTERS: Final = {"legacy": ".onnx", "dynamo": ".dynamo.onnx"}
"""Ends of the file names by exporter."""

_OPSETS: Final = {"legacy": 17, "dynamo": 20}
_STACK_TRACE: Final = "pkg.torch.onnx.stack_trace"
_TOLERANCE: Final = 1e-4


def export(name: str, network: nn.Module, images: Tensor, folder: Path) -> dict[str, Path]:
    """Write the exports of `network` to `folder`; return their paths by exporter.

    Args:
        name: the network's name, the stem of the files.
        network: the trained network in evaluation mode.
        images: (N, 1, H, W) on which each file must agree with the network.
        folder: an existing folder.

    Raises:
        ValueError: a file deviates from the network or mentions a path of this machine.
    """
    with torch.no_grad():
        expected = network(images).numpy()
    paths = {}
    for exporter, end in EXPORTERS.items():
        path = paths[exporter] = folder / (name + end)
        if exporter == "legacy":
            _legacy(network, images[:2], path, keep_norms=name in EXPLICIT_NORMS)
        else:
            _dynamo(network, images[:2], path)
        path.write_bytes(_cleaned(onnx.load(path)))
        onnx.checker.check_model(str(path), full_check=True)
        error = np.abs(run(path, images.numpy()) - expected).max() / np.abs(expected).max()
        if error > _TOLERANCE:
            raise ValueError(f"{path.name}: onnxruntime deviates from torch by {error:.1e} of the largest logit")
    return paths


def run(path: Path, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the logits (N, 10) of the model at `path` in onnxruntime, one thread."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run([OUTPUT], {INPUT: images})[0]
    return logits


def _legacy(network: nn.Module, example: Tensor, path: Path, keep_norms: bool) -> None:
    # An export for evaluation folds BatchNormalization; one that preserves the mode of the network does not.
    modes = torch.onnx.TrainingMode
    with warnings.catch_warnings():
        # The exporter is deprecated, which is why it is here, and doubts constant folding in this mode.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=False,
            opset_version=_OPSETS["legacy"],
            training=modes.PRESERVE if keep_norms else modes.EVAL,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_axes={INPUT: {0: "batch"}, OUTPUT: {0: "batch"}},
        )


def _dynamo(network: nn.Module, example: Tensor, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns that torchvision is not installed
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch uses functions that torch itself deprecates
        torch.onnx.export(
            network,
            (example,),
            str(path),
            dynamo=True,
            opset_version=_OPSETS["dynamo"],
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False,
            verbose=False,
        )


def _cleaned(model: onnx.ModelProto) -> bytes:
    """Serialize `model` without the stack traces of its nodes; refuse one that still holds paths of this machine."""
    for node in model.graph.node:
        kept = [entry for entry in node.metadata_props if entry.key != _STACK_TRACE]
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    content: bytes = model.SerializeToString(deterministic=True)
    for folder in (Path(torch.__file__).parents[1], Path(__file__).parents[2]):
        if str(folder).encode() in content:
            raise ValueError(f"the export mentions a folder of this machine, {folder}: strip the metadata it is in")
    return content
