"""The one place that makes onnxruntime sessions.

A session comes from a file, from serialized bytes, from a `ModelProto` or from the IR; the library's own log output
stays silent, and whatever it refuses becomes a `RuntimeFailureError` that holds its reason in one line. Element types
that numpy does not know (bfloat16, float8) cross the border as the `ml_dtypes` types that onnx-ir uses.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import importlib
import importlib.util
import os
import re
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import OptionError, RuntimeFailureError

ModelSource: TypeAlias = str | os.PathLike[str] | bytes | onnx.ModelProto | ir.Model
Feeds: TypeAlias = Mapping[str, np.ndarray]

SPILL_BYTES = 256 << 20
"""Above this many bytes of weights an IR model goes to onnxruntime through a temporary folder, not through memory."""

_FATAL = 4  # onnxruntime's log severity: only messages of errors that end the process
_REASON_LENGTH = 500
_EXTENSION_DOMAINS = ("com.microsoft.extensions", "ai.onnx.contrib")
_VIA_ORT_VALUE = {f"tensor({t.name.lower()})": t for t in ir.DataType if t.name.startswith(("BFLOAT16", "FLOAT8"))}


@dataclasses.dataclass(frozen=True)
class SessionOptions:
    """How a model is run.

    Attributes:
        optimize: whether onnxruntime applies its own graph optimizations.
        threads: threads within an operator.
        provider: execution provider, as "cuda" or "CUDAExecutionProvider"; None is the CPU.
        arena: whether freed memory is kept for the next run.
        layouts: whether onnxruntime may also change memory layouts, its last level of optimization.
        save_to: where onnxruntime writes the graph that it runs (see `graphopt.runtime.optimized`).
        profile_to: where onnxruntime writes the times of all kernels: the start of a path, to which each session adds an
            ending of its own.
        integer: whether quantized operators may run in integer kernels. Otherwise a model with QuantizeLinear and
            DequantizeLinear is computed as it is written, in float; optimizations else even quantize weights that the
            model leaves float.
    """

    optimize: bool = True
    threads: int = 1
    provider: str | None = None
    arena: bool = True
    layouts: bool = True
    save_to: Path | None = None
    profile_to: Path | None = None
    integer: bool = True


class Session:
    """A model that is loaded and ready to run."""

    def __init__(self, model: ModelSource, options: SessionOptions | None = None, *, name: str | None = None) -> None:
        """Load `model`; `name` is what messages call it.

        Raises:
            RuntimeFailureError: onnxruntime cannot load it.
            OptionError: this onnxruntime does not have the provider that was asked for.
        """
        self._name = name or (os.fspath(model) if isinstance(model, str | os.PathLike) else "the model")
        options = options or SessionOptions()
        with _loadable(model) as source:
            self._session = _load(source, options, self._name)
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._run_options = _quiet_run_options()
        values = [*self._session.get_inputs(), *self._session.get_outputs()]
        self._plain = not any(value.type in _VIA_ORT_VALUE for value in values)

    @property
    def input_names(self) -> list[str]:
        """Inputs that a run must be given."""
        return [value.name for value in self._session.get_inputs()]

    @property
    def output_names(self) -> list[str]:
        """Outputs in graph order."""
        return list(self._outputs)

    def run(self, feeds: Feeds) -> dict[str, Any]:
        """Outputs by name: arrays, and lists, dicts or None where the model has sequences, maps or empty optionals.

        Raises:
            RuntimeFailureError: the model fails on `feeds`.
        """
        try:
            if self._plain:
                outputs = self._session.run(None, dict(feeds), self._run_options)
            else:
                outputs = self._run_with_ort_values(feeds)
        except _failures() as error:
            raise RuntimeFailureError(f"onnxruntime cannot run {self._name}: {_reason(error)}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def end_profiling(self) -> Path:
        """The file with the times of all kernels so far, of a session that has `profile_to`."""
        return Path(self._session.end_profiling())

    def _run_with_ort_values(self, feeds: Feeds) -> list[Any]:
        types = {value.name: value.type for value in self._session.get_inputs()}
        values = {name: _to_ort_value(array, types.get(name, "")) for name, array in feeds.items()}
        return [_from_ort_value(value) for value in self._session.run_with_ort_values(None, values)]


def _load(source: str | bytes, options: SessionOptions, name: str) -> Any:
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL)
    providers = providers_for(options.provider)
    settings = _settings(options)
    try:
        return onnxruntime.InferenceSession(source, settings, providers=providers)
    except _failures() as error:
        reason = _reason(error)
        if not any(domain in reason for domain in _EXTENSION_DOMAINS):
            raise RuntimeFailureError(f"onnxruntime cannot load {name}: {reason}") from error
    if importlib.util.find_spec("onnxruntime_extensions") is None:
        raise RuntimeFailureError(
            f"onnxruntime cannot load {name}: {reason} (the package onnxruntime-extensions has these operators)"
        )
    extensions = importlib.import_module("onnxruntime_extensions")
    settings.register_custom_ops_library(extensions.get_library_path())
    try:
        return onnxruntime.InferenceSession(source, settings, providers=providers)
    except _failures() as error:
        raise RuntimeFailureError(f"onnxruntime cannot load {name}: {_reason(error)}") from error


def _settings(options: SessionOptions) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = _FATAL
    settings.intra_op_num_threads = options.threads
    settings.inter_op_num_threads = 1
    settings.enable_cpu_mem_arena = options.arena
    if not options.integer:
        settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if not options.optimize:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    elif not options.layouts:
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if options.profile_to is not None:
        settings.enable_profiling = True
        # onnxruntime adds the time in milliseconds, at which several sessions may begin.
        settings.profile_file_prefix = f"{options.profile_to}-{uuid.uuid4().hex}"
    if options.save_to is not None:
        settings.optimized_model_filepath = str(options.save_to)
        weights = {"file_name": f"{options.save_to.name}.data", "min_size_in_bytes": "1024"}
        for key, value in weights.items():
            settings.add_session_config_entry(f"session.optimized_model_external_initializers_{key}", value)
    return settings


def _quiet_run_options() -> Any:
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.log_severity_level = _FATAL
    return options


def providers_for(wanted: str | None) -> list[str]:
    """Names as onnxruntime takes them, the CPU as the last resort. Raises OptionError for one that is not there."""
    import onnxruntime

    cpu = "CPUExecutionProvider"
    if wanted is None:
        return [cpu]
    by_name = {name.removesuffix("ExecutionProvider").lower(): name for name in onnxruntime.get_available_providers()}
    found = by_name.get(wanted.lower().removesuffix("executionprovider"))
    if found is None:
        raise OptionError(f"--provider: this onnxruntime has no '{wanted}'; it has {', '.join(sorted(by_name))}")
    return [found] if found == cpu else [found, cpu]


@contextlib.contextmanager
def _loadable(model: ModelSource) -> Iterator[str | bytes]:
    """`model` as onnxruntime takes it; a temporary folder lives only until the session has read it."""
    if isinstance(model, bytes):
        yield model
    elif isinstance(model, onnx.ModelProto):
        yield model.SerializeToString()
    elif isinstance(model, ir.Model):
        from graphopt.ir import emit

        if weight_bytes(model) <= SPILL_BYTES:
            yield emit.to_bytes(model)
        else:
            with tempfile.TemporaryDirectory(prefix="graphopt-") as folder:
                path = Path(folder) / "model.onnx"
                emit.emit(model, path)
                yield str(path)
    else:
        yield os.fspath(model)


def weight_bytes(model: ir.Model) -> int:
    """Bytes of the initializers of the main graph."""
    tensors = (value.const_value for value in model.graph.initializers.values())
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


def _failures() -> tuple[type[BaseException], ...]:
    """What onnxruntime raises: its status codes as classes, and the standard errors of its Python layer."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "EPFail", "EngineError", "Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "ModelLoaded", "NoModel",
        "NoSuchFile", "NotImplemented", "RuntimeException",
    )  # fmt: skip
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError, TypeError, MemoryError)


def _reason(error: BaseException) -> str:
    """The library's message in one line, without its status prefix and the paths of its own sources."""
    text = " ".join(str(error).split())
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : ", "", text)
    text = re.sub(r"^Load model from .*? failed: ?", "", text)
    text = re.sub(r"\S*/onnxruntime/\S+:\d+ ", "", text)
    text = text.replace("Non-zero status code returned while running ", "").replace(" Status Message:", "")
    return text[:_REASON_LENGTH] or type(error).__name__


def _to_ort_value(array: np.ndarray, kind: str) -> Any:
    import onnxruntime

    exotic = _VIA_ORT_VALUE.get(kind)
    if exotic is None:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    raw = np.ascontiguousarray(array).view(np.uint16 if array.dtype.itemsize == 2 else np.uint8)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(raw, int(exotic))


def _from_ort_value(value: Any) -> Any:
    if not value.has_value():
        return None
    exotic = _VIA_ORT_VALUE.get(value.data_type())
    if exotic is None:
        return value.numpy()
    dtype = np.dtype(exotic.numpy())
    shape: Sequence[int] = value.shape()
    count = int(np.prod(shape, dtype=np.int64))
    raw = ctypes.string_at(value.data_ptr(), count * dtype.itemsize)
    return np.frombuffer(raw, dtype=dtype).reshape(shape)
