from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import OptionError, RuntimeFailureError
from graphopt.runtime import session as sessions
from graphopt.runtime.session import ModelSource, Session, SessionOptions

SCALE = """<ir_version: 10, opset_import: ["": 21]>
g (float[2] x) => (float[2] y) <float[2] w = {2, 3}> { y = Mul(x, w) }"""
X = {"x": np.array([1, 2], np.float32)}


def scale_sources(folder: Path) -> dict[str, ModelSource]:
    proto = onnx.parser.parse_model(SCALE)
    path = folder / "scale.onnx"
    onnx.save(proto, path)
    return {
        "text path": str(path),
        "path": path,
        "bytes": proto.SerializeToString(),
        "proto": proto,
        "ir": ir.from_proto(proto),
    }


@pytest.mark.parametrize("kind", ["text path", "path", "bytes", "proto", "ir"])
@pytest.mark.parametrize("optimize", [True, False])
def test_every_source_runs(kind: str, optimize: bool, tmp_path: Path) -> None:
    session = Session(scale_sources(tmp_path)[kind], SessionOptions(optimize=optimize, arena=optimize))
    assert (session.input_names, session.output_names) == (["x"], ["y"])
    np.testing.assert_array_equal(session.run(X)["y"], [2, 6])


def test_large_ir_goes_through_a_folder_that_is_gone_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "SPILL_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    session = Session(ir.from_onnx_text(SCALE))
    assert list(tmp_path.iterdir()) == []
    np.testing.assert_array_equal(session.run(X)["y"], [2, 6])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (b"no model", "protobuf parsing failed"),
        ("/no/such/file.onnx", "doesn't exist"),
        (onnx.parser.parse_model(SCALE.replace("Mul", "Mull")), "Mull"),
    ],
)
def test_what_cannot_be_loaded_is_one_line(source: ModelSource, reason: str) -> None:
    with pytest.raises(RuntimeFailureError, match=reason) as caught:
        Session(source, name="m.onnx")
    message = str(caught.value)
    assert message.startswith("onnxruntime cannot load m.onnx: ")
    assert "\n" not in message
    assert "ONNXRuntimeError" not in message


def test_failing_run_names_the_node(capfd: pytest.CaptureFixture[str]) -> None:
    text = """<ir_version: 10, opset_import: ["": 21]>
    g (float[N] x, int64[2] s) => (float[A, B] y) { y = Reshape(x, s) }"""
    session = Session(onnx.parser.parse_model(text))
    with pytest.raises(RuntimeFailureError, match="cannot run the model: Reshape node") as caught:
        session.run({"x": np.zeros(5, np.float32), "s": np.array([2, 2])})
    assert "\n" not in str(caught.value)
    assert "onnxruntime_src" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("feeds", [{}, {"x": np.zeros(3, np.float32)}, {"x": np.zeros(2)}])
def test_wrong_feeds_fail_cleanly(feeds: dict[str, np.ndarray]) -> None:
    with pytest.raises(RuntimeFailureError):
        Session(onnx.parser.parse_model(SCALE)).run(feeds)


@pytest.mark.parametrize("provider", ["cpu", "CPUExecutionProvider", "CPU"])
def test_provider_by_any_name(provider: str) -> None:
    Session(onnx.parser.parse_model(SCALE), SessionOptions(provider=provider))
    assert sessions.providers_for(provider) == sessions.providers_for(None) == ["CPUExecutionProvider"]


def test_unknown_provider_lists_the_known() -> None:
    with pytest.raises(OptionError, match=r"--provider.*'tpu'.*cpu"):
        Session(onnx.parser.parse_model(SCALE), SessionOptions(provider="tpu"))


@pytest.mark.parametrize("dtype", ["bfloat16", "float8e4m3fn", "float8e5m2"])
def test_types_that_numpy_does_not_know(dtype: str) -> None:
    text = f"""<ir_version: 10, opset_import: ["": 21]>
    g ({dtype}[2, 2] x) => ({dtype}[2, 2] y, float[2, 2] z) {{ y = Identity(x)  z = Cast<to = 1>(x) }}"""
    numpy_type = np.dtype(ir.DataType[dtype.upper()].numpy())
    x = np.array([[1, -2], [0.5, 4]], np.float32).astype(numpy_type)
    outputs = Session(onnx.parser.parse_model(text)).run({"x": x})
    assert outputs["y"].dtype == numpy_type
    np.testing.assert_array_equal(outputs["y"].astype(np.float32), x.astype(np.float32))
    np.testing.assert_array_equal(outputs["z"], x.astype(np.float32))


def test_missing_extension_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = """<ir_version: 10, opset_import: ["": 21, "com.microsoft.extensions": 1]>
    g (uint8[N] x) => (uint8[A, B, 3] y) { y = com.microsoft.extensions.DecodeImage(x) }"""
    with pytest.raises(RuntimeFailureError, match="package onnxruntime-extensions"):
        Session(onnx.parser.parse_model(text))
