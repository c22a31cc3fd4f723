"""What a model reads: its inputs, and where in them the samples are.

A sample is one example: for an input (N, 3, 224, 224) an array (3, 224, 224). Almost always samples lie along the first
axis of every input, which the model either leaves open or fixes. Exceptions are decided here, once:

* recurrent states (layers, N, hidden) have samples along their second axis;
* an input without such an axis beside others that have it (a sampling rate, a scale) is given per sample as a whole, and
  only samples that agree on it are run together;
* a model none of whose inputs has such an axis (3, 224, 224), or whose only axis is a length, takes one sample per run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.runtime.inputs import graph_inputs

Dims: TypeAlias = tuple[int | None, ...]
"""Extents; None where the model leaves one open."""


@dataclasses.dataclass(frozen=True)
class Input:
    """One input of a model.

    Attributes:
        name: of the graph input.
        dtype: as onnxruntime takes it; objects are strings.
        dims: of the whole input; None where not even the rank is known.
        batch_axis: where samples are stacked; None where the input has no such axis.
    """

    name: str
    dtype: np.dtype[Any]
    dims: Dims | None
    batch_axis: int | None

    @property
    def sample_dims(self) -> Dims | None:
        """Dims of one sample."""
        if self.dims is None or self.batch_axis is None:
            return self.dims
        return self.dims[: self.batch_axis] + self.dims[self.batch_axis + 1 :]

    @property
    def is_float(self) -> bool:
        """Whether elements are real numbers."""
        return is_float(self.dtype)

    def __str__(self) -> str:
        dims = "..." if self.dims is None else ", ".join("?" if dim is None else str(dim) for dim in self.dims)
        return f"'{self.name}' {'string' if self.dtype == object else self.dtype}[{dims}]"


@dataclasses.dataclass(frozen=True)
class Signature:
    """All inputs that a model must be given, and how many samples it takes in one run (None: any number)."""

    inputs: tuple[Input, ...]
    batch: int | None

    def __str__(self) -> str:
        return ", ".join(str(value) for value in self.inputs)


def signature_of(model: ir.Model, option: str) -> Signature:
    """The signature of `model`. Raises DataError, naming `option`, where no samples can be given to it."""
    values = graph_inputs(model)
    if not values:
        raise DataError(f"{option}: the model has no inputs, so that there is nothing to give samples to")
    dims = [_dims(value) for value in values]
    outputs = model.graph.outputs
    batch = 0 if _are_signals(values, outputs) else _batch(dims, [_dims(value) for value in outputs])
    inputs = [
        Input(value.name or "", _dtype(value, option), extents, _batch_axis(extents, batch))
        for value, extents in zip(values, dims, strict=True)
    ]
    if all(value.batch_axis is None for value in inputs):
        batch = 1
    return Signature(tuple(inputs), batch)


def assign(keys: Collection[str], signature: Signature, where: str) -> dict[str, str]:
    """Which of the arrays called `keys` serves which input; a single array serves a single input whatever its key.

    Raises:
        DataError: an input has no array.
    """
    names = [value.name for value in signature.inputs]
    if all(name in keys for name in names):
        return {name: name for name in names}
    if len(names) == len(keys) == 1:
        return {names[0]: next(iter(keys))}
    missing = next(name for name in names if name not in keys)
    held = ", ".join(f"'{key}'" for key in sorted(keys)) or "none"
    raise DataError(f"{where}: no array for the input '{missing}' (arrays: {held}; inputs of the model: {signature})")


def is_float(dtype: np.dtype[Any]) -> bool:
    """Whether elements of `dtype` are real numbers, in the types that numpy does not know (bfloat16 ...) as well."""
    try:
        return ir.DataType.from_numpy(dtype).is_floating_point()
    except TypeError:  # a type that ONNX does not have, such as long double
        return dtype.kind == "f"


def _dims(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return tuple(dim if isinstance(dim, int) and dim >= 0 else None for dim in value.shape)


def _dtype(value: ir.Value, option: str) -> np.dtype[Any]:
    if not isinstance(value.type, ir.TensorType):
        raise DataError(
            f"{option}: input '{value.name}' is no tensor of a known type ({value.type}); it takes no samples"
        )
    dtype = value.type.dtype
    return np.dtype(object) if dtype == ir.DataType.STRING else np.dtype(dtype.numpy())


def _are_signals(inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> bool:
    """Whether all that inputs have is a length of its own name (an audio signal), which no output starts with."""
    starts = {value.shape[0] for value in outputs if value.shape is not None and len(value.shape)}
    for value in inputs:
        if value.shape is None or len(value.shape) != 1:
            return False
        dim = value.shape[0]
        if not isinstance(dim, ir.SymbolicDim) or dim.value is None or dim in starts:
            return False
    return True


def _batch(inputs: Sequence[Dims | None], outputs: Sequence[Dims | None]) -> int | None:
    """How many samples a run takes: None for any number, 0 where no input has an axis of samples."""
    firsts = [dims[0] if dims else None for dims in inputs if dims is None or dims]
    if None in firsts:
        return None
    if not firsts or 1 in firsts:
        return 1 if firsts else 0
    # A fixed first extent may be a batch or, as in (3, 224, 224), something else: a batch comes out again.
    produced = {dims[0] if dims else None for dims in outputs if dims is None or dims}
    return next((first for first in firsts if first in produced or None in produced), 0)


def _batch_axis(dims: Dims | None, batch: int | None) -> int | None:
    if dims is None:
        return 0 if batch != 0 else None
    if not dims or batch == 0:
        return None
    if dims[0] == batch:
        return 0
    is_state = len(dims) == 3 and dims[1] == batch and dims[0] is not None and dims[2] is not None
    return 1 if is_state else None
