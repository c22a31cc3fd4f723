"""Reading real exporters' habits: what comes in must go out again."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.testing
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphopt.errors import UnsupportedModelError
from graphopt.ir import emit, stub, verify
from graphopt.ir.tensors import SparseTensor, StoredTensor, chunks
from graphopt.ir.walk import all_graphs


def info(name: str, shape: list[int | str | None] | None = None, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def round_trip(proto: onnx.ModelProto) -> onnx.ModelProto:
    model = stub.read_bytes(proto.SerializeToString()).stub.to_ir()
    verify.verify(model)
    return emit.to_proto(model)


def test_large_tensors_stay_on_disk(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [info("x", ["n", 300])],
        [info("y", ["n", 40])],
        [numpy_helper.from_array(weights, "w")],
    )
    path = tmp_path / "m.onnx"
    onnx.save(helper.make_model(graph), path)
    reading = stub.read_file(path)
    tensor = reading.stub.to_ir().graph.initializers["w"].const_value
    assert isinstance(tensor, StoredTensor)
    np.testing.assert_array_equal(tensor.numpy(), weights)
    assert b"".join(chunks(tensor, 1000)) == weights.tobytes()
    assert max(len(chunk) for chunk in chunks(tensor, 1000)) == 1000
    assert len(reading.stub.data) < 1000


@pytest.mark.parametrize("dtype", [name for name, number in TensorProto.DataType.items() if number])
@pytest.mark.parametrize("size", [3, 3000])
def test_every_dtype_survives(dtype: str, size: int) -> None:
    """3 elements stay in the stub, 3000 do not; odd counts leave half-filled bytes in packed types."""
    element = ir.DataType[dtype]
    if dtype == "STRING":
        tensor = TensorProto(name="w", data_type=TensorProto.STRING, dims=[size])
        tensor.string_data.extend(f"s{i}".encode() for i in range(size))
    else:
        length = -(-size * element.bitwidth // 8)
        raw = np.random.default_rng(0).integers(0, 2, length, dtype=np.uint8).tobytes()
        tensor = TensorProto(name="w", data_type=element.value, dims=[size], raw_data=raw)
    node = helper.make_node("Identity", ["w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [info("y", [size], element.value)], [tensor]))
    written = round_trip(model).graph.initializer[0]
    assert written.data_type == element.value
    assert list(written.dims) == [size]
    assert written.raw_data == tensor.raw_data
    assert list(written.string_data) == list(tensor.string_data)


def test_stored_types_below_a_byte_unpack() -> None:
    packed = np.array([0x21, 0x43, 0x05] * 700, dtype=np.uint8)
    tensor = TensorProto(name="w", data_type=TensorProto.INT4, dims=[2100, 2], raw_data=packed.tobytes())
    node = helper.make_node("Identity", ["w"], ["y"])
    model = helper.make_model(helper.make_graph([node], "g", [], [info("y", None, TensorProto.INT4)], [tensor]))
    value = stub.read_bytes(model.SerializeToString()).stub.to_ir().graph.initializers["w"].const_value
    assert isinstance(value, StoredTensor)
    assert value.numpy().dtype == ml_dtypes.int4
    assert value.numpy().reshape(-1)[:6].astype(int).tolist() == [1, 2, 3, 4, 5, 0]


def test_names_types_docs_and_metadata_survive() -> None:
    node = helper.make_node("Custom", ["x", "", "w"], ["", "y"], domain="my.domain", name="n0", doc_string="node doc")
    node.metadata_props.add(key="who", value="me")
    graph = helper.make_graph(
        [node], "main", [info("x", ["batch", None, 3])], [info("y", ["batch", 2])], doc_string="graph doc"
    )
    graph.input[0].doc_string = "an input"
    graph.input[0].type.denotation = "IMAGE"
    graph.input[0].type.tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    graph.output[0].metadata_props.add(key="unit", value="logit")
    graph.initializer.append(numpy_helper.from_array(np.ones(2, np.float32), "w"))
    graph.metadata_props.add(key="g", value="1")
    graph.quantization_annotation.add(tensor_name="w").quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("my.domain", 3), helper.make_opsetid("", 17)],
        producer_name="p",
        producer_version="v",
        domain="d",
        model_version=7,
        doc_string="model doc",
    )
    model.metadata_props.add(key="author", value="somebody")
    training = model.training_info.add()
    training.algorithm.name = "step"
    result = round_trip(model)
    onnx_ir.testing.assert_onnx_proto_equal(result, model)
    assert result == round_trip(result)


def test_initializers_as_inputs_before_ir_4_stay_inputs() -> None:
    graph = helper.make_graph(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        "g",
        [info("w", [2]), info("x", [2])],
        [info("y", [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )
    model = helper.make_model(graph, ir_version=3, opset_imports=[helper.make_opsetid("", 8)])
    assert [value.name for value in round_trip(model).graph.input] == ["w", "x"]
    model.ir_version = 8
    assert round_trip(model).graph.input == model.graph.input  # now an input with a default value


def test_inner_types_are_written_only_where_the_input_had_them() -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    graph = helper.make_graph(nodes, "g", [info("x", ["n"])], [info("y", ["n"])])
    model = stub.read_bytes(helper.make_model(graph).SerializeToString()).stub.to_ir()
    model.graph[0].outputs[0].shape = ir.Shape(["n"])
    model.graph[0].outputs[0].dtype = ir.DataType.FLOAT
    assert not emit.to_proto(model).graph.value_info

    graph.value_info.append(info("a", ["n"]))
    assert [value.name for value in round_trip(helper.make_model(graph)).graph.value_info] == ["a"]


def test_invented_dims_do_not_leak_into_the_file() -> None:
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [info("x", ["n"])], [info("y", [None])])
    model = stub.read_bytes(helper.make_model(graph).SerializeToString()).stub.to_ir()
    model.graph.outputs[0].shape = ir.Shape(["made_up"])
    assert emit.to_proto(model).graph.output[0] == graph.output[0]
    assert not emit.to_proto(model, fixed_shapes=True).graph.output[0].type.tensor_type.shape.dim[0].dim_param


def sparse_model(dims: list[int], indices: np.ndarray, as_constant: bool) -> onnx.ModelProto:
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.array([1.5, -2.0], np.float32), "" if as_constant else "w"),
        numpy_helper.from_array(indices, "indices"),
        dims,
    )
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if as_constant:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], sparse_value=sparse))
    graph = helper.make_graph(nodes, "g", [info("x", [3, 4])], [info("y", [3, 4])])
    if not as_constant:
        graph.sparse_initializer.append(sparse)
    return helper.make_model(graph)


@pytest.mark.parametrize("as_constant", [False, True])
@pytest.mark.parametrize("indices", [np.array([1, 7]), np.array([[0, 1], [1, 3]])], ids=["linear", "per axis"])
def test_sparse_tensors_look_dense_and_stay_sparse(indices: np.ndarray, as_constant: bool) -> None:
    model = stub.read_bytes(sparse_model([3, 4], indices, as_constant).SerializeToString()).stub.to_ir()
    if as_constant:
        tensor: ir.TensorProtocol | None = model.graph[0].attributes["value"].as_tensor()
    else:
        tensor = model.graph.initializers["w"].const_value
        written = emit.to_proto(model).graph
        assert not written.initializer
        assert list(written.sparse_initializer[0].values.float_data or [1.5, -2.0]) == [1.5, -2.0]
        assert written.sparse_initializer[0].values.name == "w"
    assert isinstance(tensor, SparseTensor)
    expected = np.zeros((3, 4), np.float32)
    expected[0, 1], expected[1, 3] = 1.5, -2.0
    np.testing.assert_array_equal(tensor.numpy(), expected)


def test_a_sparse_attribute_of_another_operator_is_refused_not_dropped() -> None:
    model = sparse_model([3, 4], np.array([1, 7]), True)
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "some.where"
    with pytest.raises(UnsupportedModelError, match=r"Mystery.*sparse"):
        stub.read_bytes(model.SerializeToString())


def test_map_types_survive() -> None:
    """scikit-learn's classifiers end in a ZipMap, whose type onnx-ir refuses."""
    output = onnx.ValueInfoProto(name="y")
    output.type.sequence_type.elem_type.map_type.key_type = TensorProto.INT64
    output.type.sequence_type.elem_type.map_type.value_type.tensor_type.elem_type = TensorProto.FLOAT
    node = helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=[0, 1])
    model = helper.make_model(
        helper.make_graph([node], "g", [info("x", ["n", 2])], [output]),
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("ai.onnx.ml", 3)],
    )
    assert round_trip(model).graph.output[0] == output


def test_unsorted_nodes_are_sorted() -> None:
    nodes = [helper.make_node("Neg", ["a"], ["y"]), helper.make_node("Relu", ["x"], ["a"])]
    model = helper.make_model(helper.make_graph(nodes, "g", [info("x", [2])], [info("y", [2])]))
    assert [node.op_type for node in round_trip(model).graph.node] == ["Relu", "Neg"]


def test_bodies_and_functions_keep_their_captured_values() -> None:
    model = onnx.parser.parse_model("""
        <ir_version: 10, opset_import: ["" : 18, "f" : 1]>
        g (bool c, float[2] x) => (float[2] y) {
            a = f.twice (x)
            y = If (c) <then_branch = t () => (float[2] r) { r = Add (a, x) },
                        else_branch = e () => (float[2] s) { b = Neg (a)  s = Identity (b) }>
        }
        <domain: "f", opset_import: ["" : 18]>
        twice (v) => (w) { w = Add (v, v) }
    """)
    onnx_ir.testing.assert_onnx_proto_equal(round_trip(model), model)
    assert len(list(all_graphs(stub.read_bytes(model.SerializeToString()).stub.to_ir()))) == 4


def test_an_ir_model_is_read_without_being_changed() -> None:
    tensor = ir.Tensor(np.arange(1000, dtype=np.float32), name="w")
    weight = ir.Value(name="w", const_value=tensor, shape=ir.Shape([1000]), type=ir.TensorType(ir.DataType.FLOAT))
    x = ir.Value(name="x", shape=ir.Shape([1000]), type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "Add", [x, weight])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    copy = stub.read_ir(model).stub.to_ir()
    assert copy.graph.initializers["w"].const_value is tensor is weight.const_value
    assert emit.to_proto(copy).graph.node == ir.to_proto(model).graph.node


@pytest.mark.parametrize("model", ["cifar10_resnet20/resnet20_bn.onnx", "structures/silero_vad.onnx"])
def test_real_models_come_out_as_they_went_in(corpus: Path, model: str) -> None:
    path = corpus / model
    proto = onnx.load(path)
    result = emit.to_proto(stub.read_file(path).stub.to_ir())
    for written, original in zip(result.graph.node, proto.graph.node, strict=True):
        onnx_ir.testing.assert_onnx_proto_equal(written, original)
    assert result.graph.input == proto.graph.input
    assert result.graph.output == proto.graph.output
