"""Types and shapes: symbolic arithmetic, declarations, control flow, functions, `--shape`."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.analysis import dims, shapes
from graphopt.errors import OptionError


def parsed(text: str, opset: int = 18, functions: str = "") -> ir.Model:
    """A model from the text of its graph; domains `d` and `com.microsoft` are imported."""
    header = f'<ir_version: 9, opset_import: ["" : {opset}, "d" : 1, "com.microsoft" : 1]>'
    return ir.from_onnx_text(f"{header} {text} {functions}")


def shape_of(model: ir.Model, name: str) -> str:
    """The inferred shape of a value, `_` where an extent is open."""
    for graph in model.graphs():
        for node in graph:
            for value in node.outputs:
                if value.name == name:
                    assert value.shape is not None, f"{name} has no shape"
                    return " ".join("_" if dims.is_invented(dim) else str(dim).replace(" ", "") for dim in value.shape)
    raise AssertionError(f"no value {name}")


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("y = Conv<kernel_shape=[3,3], pads=[1,1,1,1]>(x, k)", "n 4 h w"),
        ("y = Conv<kernel_shape=[3,3], strides=[2,2]>(x, k)", "n 4 floor(h/2-3/2)+1 floor(w/2-3/2)+1"),
        ('y = Conv<kernel_shape=[3,3], strides=[2,1], auto_pad="SAME_UPPER">(x, k)', "n 4 floor(h/2+1/2) w"),
        ("y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)", "n 3 floor(h/2-1/2)+1 floor(w/2-1/2)+1"),
        ("y = MaxPool<kernel_shape=[2,2], strides=[3,3], ceil_mode=1>(x)", "n 3 _ _"),
        ("y = ConvTranspose<strides=[2,2]>(x, t)", "n 8 2*h+1 2*w+1"),
        ("y = GlobalAveragePool(x)", "n 3 1 1"),
        ("y = Flatten(x)", "n 3*h*w"),
        ("s = Constant<value_ints=[0,-1]>() y = Reshape(x, s)", "n 3*h*w"),
        ("s = Constant<value_ints=[0,0,-1]>() y = Reshape(x, s)", "n 3 h*w"),
        ("s = Constant<value_ints=[-1,3,5]>() y = Reshape(x, s)", "h*n*w/5 3 5"),
        ("y = Concat<axis=2>(x, x, x)", "n 3 3*h w"),
        ("p = Constant<value_ints=[0,0,1,2,0,0,3,4]>() y = Pad(x, p)", "n 3 h+4 w+6"),
        ("r = Constant<value_ints=[1,2,1,3]>() y = Tile(x, r)", "n 6 h 3*w"),
        ("y, z = Split<axis=2, num_outputs=2>(x)", "n 3 floor(h/2+1/2) w"),
        ("s = Constant<value_floats=[1.,1.,2.,0.5]>() y = Resize(x, , s)", "n 3 2*h floor(w/2)"),
        ("s = Constant<value_floats=[1.,1.,0.3,1.]>() y = Resize(x, , s)", "n 3 _ w"),
        ("y = SpaceToDepth<blocksize=2>(x)", "n 12 h/2 w/2"),
        ("i = Constant<value_int=3>() y, z = TopK(x, j)", "n 3 h _"),
        ("s = Shape(x) y = ConstantOfShape(s)", "n 3 h w"),
        ("s = Shape<start=2>(x) y = ConstantOfShape(s)", "h w"),
        ("s = Size(x) o = Constant<value_ints=[0]>() u = Unsqueeze(s, o) y = ConstantOfShape(u)", "3*h*n*w"),
    ],
)
def test_arithmetic_on_symbols(nodes: str, expected: str) -> None:
    model = parsed(
        f"""g (float[n,3,h,w] x, float[4,3,3,3] k, float[3,8,3,3] t, int64[1] j) => (float[n] y) {{ {nodes} }}"""
    )
    model.graph.outputs[0].shape = None
    assert shapes.infer(model) == []
    assert shape_of(model, "y") == expected


@pytest.mark.parametrize(
    ("bounds", "expected"),
    [
        ((0, 2**63 - 1, 1), "n"),
        ((1, 2**31 - 1, 1), "n-1"),
        ((0, -1, 1), "n-1"),
        ((-3, 2**63 - 1, 1), "Min(3,n)"),
        ((0, 512, 1), "Min(512,n)"),
        ((2, 5, 1), "Max(0,-Min(2,n)+Min(5,n))"),
        ((0, 2**63 - 1, 2), "floor(n/2+1/2)"),
        ((-1, -(2**63), -1), "n"),
        ((5, 2, -1), "_"),
    ],
)
def test_slices_stay_in_range(bounds: tuple[int, int, int], expected: str) -> None:
    start, end, step = bounds
    model = parsed(
        f"""g (float[n] x) => (float[m] y) <int64[1] a = {{{start}}}, int64[1] b = {{{end}}}, int64[1] c = {{0}},
        int64[1] d = {{{step}}}> {{ y = Slice(x, a, b, c, d) }}"""
    )
    model.graph.outputs[0].shape = None
    shapes.infer(model)
    assert shape_of(model, "y") == expected


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        # view(x.size(0), -1), as the legacy exporter writes it
        (
            """s = Shape(x) b = Gather<axis=0>(s, zero) u = Unsqueeze(b, axis) m = Constant<value_ints=[-1]>()
            t = Concat<axis=0>(u, m) y = Reshape(x, t)""",
            "batch seq*width",
        ),
        # expand(-1, ...), as both exporters write it
        (
            """s = Shape(x) m = Constant<value_ints=[-1,-1,-1]>() e = Equal(s, m)
            o = ConstantOfShape<value=int64[1]{1}>(r) t = Where(e, o, s) y = Expand(scalar, t)""",
            "batch seq width",
        ),
        # arange(x.size(1))
        ("s = Shape(x) n = Gather<axis=0>(s, one) y = Range(zero, n, one)", "seq"),
        # half of the sequence, in floating point and in integers
        (
            """s = Shape(x) n = Gather<axis=0>(s, one) f = Cast<to=1>(n) h = Mul(f, half) c = Floor(h) i = Cast<to=7>(c)
            u = Unsqueeze(i, axis) y = ConstantOfShape(u)""",
            "floor(seq/2)",
        ),
        (
            "s = Shape(x) n = Gather<axis=0>(s, axis1) h = Div(n, two) a = Add(h, n) y = ConstantOfShape(a)",
            "seq+floor(seq/2)",
        ),
        ("s = Shape(x) p = ReduceProd<keepdims=1>(s) y = Reshape(x, p)", "batch*seq*width"),
        ("s = Shape(x) a, b = Split<num_outputs=2>(s) y = ConstantOfShape(a)", "batch seq"),
        # a difference may be negative, and integers are divided towards zero
        ("s = Shape(x) d = Sub(s, five) h = Div(d, two) y = ConstantOfShape(h)", "_ _ _"),
        # data decides
        ("t = Concat<axis=0>(data, data) y = Reshape(x, t)", "_ _"),
        ("t = Concat<axis=0>(data, axis) y = Reshape(x, t)", "batch*width seq"),
        ("i = NonZero(x) y = Transpose(i)", "_ 3"),
        # two symbols may be broadcast either way
        ("y = Add(x, z)", "batch seq _"),
        ("y = Squeeze(x)", None),
    ],
)  # fmt: skip
def test_shapes_through_calculations(nodes: str, expected: str | None) -> None:
    model = parsed(
        f"""g (float[batch,seq,width] x, float[other] z, int64[1] data) => (float y)
        <int64 zero = {{0}}, int64 one = {{1}}, int64[1] axis = {{0}}, int64[1] axis1 = {{1}}, int64[1] two = {{2}},
        int64[1] r = {{3}}, int64[1] five = {{5}}, float half = {{0.5}}, float scalar = {{1.0}}> {{ {nodes} }}"""
    )
    model.graph.outputs[0].shape = None
    shapes.infer(model)
    if expected is None:
        assert model.graph.outputs[0].shape is None
    else:
        assert shape_of(model, "y") == expected


def test_open_extents_that_are_the_same_are_known_to_be() -> None:
    model = parsed("g (float[n,3] x) => (float y) { a = NonZero(x) b = Relu(c) c = Cast<to=1>(a) y = Add(b, c) }")
    model.graph.sort()
    model.graph.outputs[0].shape = None
    shapes.infer(model)
    nonzero, _, relu, add = (node.outputs[0].shape for node in model.graph)
    assert nonzero is not None
    assert dims.is_invented(nonzero[1])
    assert nonzero == relu == add


# --- Declarations ---------------------------------------------------------------------------------


def test_inputs_stay_as_declared_and_odd_names_survive() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([-1, "a b", "?", "?", None]))
    node = ir.node("Relu", [x])
    padded = ir.node("Concat", [node.outputs[0], node.outputs[0]], {"axis": 1})
    node.outputs[0].name, padded.outputs[0].name = "r", "c"
    model = ir.Model(
        ir.Graph([x], padded.outputs, nodes=[node, padded], opset_imports={"": 18}, name="g"), ir_version=9
    )
    shapes.infer(model)
    assert x.shape == [-1, "a b", "?", "?", None]
    relu = node.outputs[0].shape
    assert relu is not None
    assert relu[1] == "a b"
    assert len({str(dim) for dim in relu}) == 5
    assert shape_of(model, "c") == "_ _ _ _ _"


def test_outputs_keep_their_declaration_and_inner_values_do_not() -> None:
    model = parsed(
        """g (float[n,4] x) => (float[m,k] y, float[n,?] z) <float[n,5] r, double[n,4] s>
        { r = Relu(x) s = Abs(r) y = Relu(s) z = Relu(s) }"""
    )
    warnings = shapes.infer(model)
    assert [str(value.shape) for value in model.graph.outputs] == ["[m,k]", "[n,4]"]
    assert shape_of(model, "r") == shape_of(model, "s") == "n 4"
    assert [w.split(" is ")[0] for w in warnings] == ["'r'", "'s'"]
    assert "[n, 5]" in warnings[0]
    assert "DOUBLE" in warnings[1]


def test_declarations_fill_in_what_cannot_be_inferred() -> None:
    model = parsed(
        "g (float[n,4] x) => (float[n,4] y) <float[n,count] c> { c = d.Custom(x) y = Relu(c) z = d.Other(c) }"
    )
    shapes.infer(model)
    assert shape_of(model, "c") == "n count"
    assert model.graph[2].outputs[0].shape is None


def test_a_node_that_does_not_fit_is_a_warning() -> None:
    model = parsed("g (float[2,3] x, float[4,5] y) => (float z) { a = MatMul(x, y) z = Relu(a) }")
    assert shapes.infer(model) == ["MatMul 'a': no shape inferred (Incompatible dimensions for matrix multiplication)"]


# --- Control flow and functions -------------------------------------------------------------------


def test_branches_agree_or_are_left_open() -> None:
    model = parsed(
        """g (bool c, float[n,4,1] x) => (float p, float q) {
        p, q = If(c) <
            then_branch = t () => (float a, float b) { a = Relu(x) b = Flatten(x) },
            else_branch = e () => (float d, float f) { d = Abs(x) f = Transpose(d) }> }"""
    )
    for value in (*model.graph.outputs, *(out for graph in model.graph.subgraphs() for out in graph.outputs)):
        value.shape = None
    shapes.infer(model)
    assert shape_of(model, "p") == "n 4 1"
    assert model.graph.outputs[1].shape is None
    assert shape_of(model, "b") == "n 4"


def test_a_branch_that_cannot_run_is_not_taken() -> None:
    model = parsed(
        """g (bool c, float[n,4] x) => (float[a] y) {
        y = If(c) <then_branch = t () => (float[?] a) { s = Constant<value_ints=[1]>() a = Squeeze(x, s) },
                   else_branch = e () => (float[?,4] b) { b = Relu(x) }> }"""
    )
    model.graph.outputs[0].shape = None
    for graph in model.graph.subgraphs():
        graph.outputs[0].shape = None
    assert shapes.infer(model, fixed={"x": [2, 4]}) == []
    assert shape_of(model, "y") == "2 4"


def test_loops_keep_what_an_iteration_leaves_alone() -> None:
    model = parsed(
        """g (float[n,4] x, int64 count) => (float a, float b, float s) <bool yes = {1}> {
        a, b, s = Loop(count, yes, x, x) <body = body (int64 i, bool c, float[?,?] p, float[?,?] q)
            => (bool c, float[?,?] p2, float[?,?] q2, float[?,?] o)
            { p2 = Relu(p) q2 = Concat<axis=0>(q, x) o = Relu(q2) }> }"""
    )
    for value in model.graph.outputs:
        value.shape = None
    shapes.infer(model)
    assert [shape_of(model, name) for name in ("a", "b", "s", "p2")] == ["n 4", "_ 4", "_ _ 4", "n 4"]
    assert shape_of(model, "q2") == "_ 4"


def test_a_loop_with_a_known_number_of_iterations() -> None:
    model = parsed(
        """g (float[n,4] x) => (float a, float s) <bool yes = {1}> {
        z = Shape(x) i0 = Constant<value_int=0>() count = Gather(z, i0)
        a, s = Loop(count, yes, x) <body = body (int64 i, bool c, float[?,?] p) => (bool d, float[?,?] p2, float[?,?] o)
            { d = Identity(c) p2 = Relu(p) o = Relu(p2) }> }"""
    )
    for value in model.graph.outputs:
        value.shape = None
    shapes.infer(model)
    assert shape_of(model, "s") == "_ n 4"  # the condition goes through a node: it might end the loop
    body = next(iter(model.graph.subgraphs()))
    body.outputs[0] = body.inputs[1]
    shapes.infer(model)
    assert shape_of(model, "s") == "n n 4"


def test_scans() -> None:
    model = parsed(
        """g (float[h] s0, float[t,n,h] x) => (float s, float y) {
        s, y = Scan(s0, x) <num_scan_inputs=1, scan_output_axes=[1], body = body (float[?] st, float[?,?] e)
            => (float[?] s2, float[?,?] o) { s2 = Relu(st) o = Relu(e) }> }"""
    )
    for value in model.graph.outputs:
        value.shape = None
    shapes.infer(model)
    assert [shape_of(model, name) for name in ("s", "y", "o")] == ["h", "n t h", "n h"]


def test_functions_are_inferred_per_call() -> None:
    model = parsed(
        "g (float[n,4] x, float[2,m] z) => (float a, float b) { a = d.Twice<axis=0>(x) b = d.Twice<axis=1>(z) }",
        functions="""<domain: "d", opset_import: ["" : 18]>
        Twice <axis> (v) => (r) { s = Shape(v) c = Concat<axis: int = @axis>(v, v) r = Relu(c) }""",
    )
    for value in model.graph.outputs:
        value.shape = None
    shapes.infer(model)
    assert [shape_of(model, name) for name in "ab"] == ["2*n 4", "2 2*m"]


def test_extents_go_into_functions_as_data() -> None:
    model = parsed(
        "g (float[n,4] x) => (float y) { s = Shape(x) y = d.Zeros(s) }",
        functions='<domain: "d", opset_import: ["" : 18]> Zeros (s) => (r) { r = ConstantOfShape(s) }',
    )
    model.graph.outputs[0].shape = None
    shapes.infer(model)
    assert shape_of(model, "y") == "n 4"


def test_functions_that_call_functions_twice_each_take_no_exponential_time() -> None:
    calls = "".join(
        f' <domain: "d", opset_import: ["" : 18, "d" : 1]> F{i} (v) => (r) {{ a = d.F{i - 1}(v) r = d.F{i - 1}(a) }}'
        for i in range(1, 30)
    )
    base = '<domain: "d", opset_import: ["" : 18]> F0 (v) => (r) { r = Relu(v) }'
    model = parsed("g (float[n] x) => (float[n] y) { y = d.F29(x) }", functions=base + calls)
    model.graph.outputs[0].shape = None
    shapes.infer(model)
    assert shape_of(model, "y") == "n"


def test_loops_in_loops_take_no_exponential_time() -> None:
    nodes = "y0 = Concat<axis=0>(s0, x)"
    for d in range(1, 15):
        nodes = f"""y{d} = Loop(k, yes, x) <body = b (int64 i{d}, bool c{d}, float[?] s{d - 1})
            => (bool c{d}, float[?] z{d}) {{ {nodes} z{d} = Concat<axis=0>(y{d - 1}, x) }}>"""
    model = parsed(f"g (float[n] x, int64 k) => (float[?] y14) <bool yes = {{1}}> {{ {nodes} }}")
    shapes.infer(model)
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT


# --- Other domains --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        ("com.microsoft.Gelu(x)", "n 6 8"),
        ("com.microsoft.BiasGelu(x, b)", "n 6 8"),
        ("com.microsoft.FusedMatMul<transB=1>(x, x)", "n 6 6"),
        ("com.microsoft.SkipLayerNormalization(x, x, b)", "n 6 8"),
        ("com.microsoft.FusedConv<kernel_shape=[3], pads=[1,1]>(x, w)", "n 4 8"),
        ("com.microsoft.QLinearGlobalAveragePool(q, s, zp, s, zp)", "n 6 1"),
        ("com.microsoft.QLinearAveragePool<kernel_shape=[2], strides=[2]>(q, s, zp, s, zp)", "n 6 4"),
        ("com.microsoft.QLinearConcat<axis=1>(s, zp, q, s, zp, q, s, zp)", "n 12 8"),
        ("com.microsoft.QLinearAdd(q, s, zp, q, s, zp, s, zp)", "n 6 8"),
        ("LayerNormalization(x, b)", "n 6 8"),
        ("SimplifiedLayerNormalization(x, b)", "n 6 8"),
        ("com.microsoft.NoSuchOperator(x)", None),
        ("d.Custom(x)", None),
    ],
)
def test_operators_of_other_domains(call: str, expected: str | None) -> None:
    model = parsed(
        f"""g (float[n,6,8] x, uint8[n,6,8] q, float[8] b, float s, uint8 zp, float[4,6,3] w) => (float y)
        {{ y = {call} }}""",
        opset=16,
    )
    output = model.graph.outputs[0]
    output.type = output.shape = None
    assert shapes.infer(model) == []
    assert (output.type is None) == (expected is None)
    assert expected is None or shape_of(model, "y") == expected


# --- Fixing inputs --------------------------------------------------------------------------------

DETECTOR = """g (float[n,3,h,w] x, float[n,2] y, float[?,7] z, float[4,3,3,3] k)
    => (float[m,4,hh,ww] a, float[n,9] b, float[k,7] c) <int64[2] flat = {0,-1}>
    { a = Conv<strides=[2,2]>(x, k) r = Reshape(a, flat) b = Concat<axis=1>(y, y) c = Relu(z) }"""


def test_fixed_inputs_make_everything_behind_them_static() -> None:
    model = parsed(DETECTOR)
    shapes.infer(model)
    shapes.infer(model, fixed={"x": [5, 3, 33, 17]})
    x, y, z, _ = model.graph.inputs
    assert x.shape == [5, 3, 33, 17]
    assert y.shape == [5, 2]
    assert z.shape == [None, 7]
    assert [shape_of(model, name) for name in "arbc"] == ["5 4 16 8", "5 512", "5 9", "k 7"]
    shapes.infer(model, fixed={"z": [6, 7]})
    assert z.shape == [6, 7]
    assert shape_of(model, "c") == "6 7"


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"q": [1]}, r"no input 'q' \(its inputs: 'x', 'y', 'z', 'k'\)"),
        ({"x": [1, 3, 2]}, "--shape x: has 4 dims in the model, 3 were given"),
        ({"x": [1, 4, 8, 8]}, "--shape x: dim 1 is 3 in the model and cannot become 4"),
        ({"x": [1, 3, 8, 8], "y": [2, 2]}, "--shape y: dim 0 is 'n', which is 1 elsewhere, not 2"),
        ({"y": [-1, 2]}, "--shape y: an extent cannot be negative"),
    ],
)
def test_fixed_inputs_that_contradict_the_model(fixed: dict[str, list[int]], message: str) -> None:
    model = parsed(DETECTOR)
    with pytest.raises(OptionError, match=message):
        shapes.infer(model, fixed=fixed)
    assert model.graph.inputs[0].shape == ["n", 3, "h", "w"]


# --- Size -----------------------------------------------------------------------------------------


class Unread(ir.Tensor[np.ndarray]):
    """A tensor whose elements nobody may ask for."""

    def numpy(self) -> np.ndarray:
        raise AssertionError("a large tensor was read")


def test_large_constants_are_not_read() -> None:
    target = Unread(np.zeros(600, np.int64), name="t")
    value = ir.Value(name="t", type=ir.TensorType(ir.DataType.INT64), shape=ir.Shape([600]), const_value=target)
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n"]))
    node = ir.node("Expand", [x, value])
    node.outputs[0].name = "y"
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[value], opset_imports={"": 18}, name="g")
    shapes.infer(ir.Model(graph, ir_version=9))
    assert node.outputs[0].dtype == ir.DataType.FLOAT


def test_long_chains_of_shape_arithmetic_do_not_recurse() -> None:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", 2]))
    nodes = [ir.node("Shape", [x])]
    for _ in range(3000):
        nodes.append(ir.node("Identity", [nodes[-1].outputs[0]]))
    nodes.append(ir.node("ConstantOfShape", [nodes[-1].outputs[0]]))
    for index, node in enumerate(nodes):
        node.outputs[0].name = f"v{index}"
    model = ir.Model(ir.Graph([x], nodes[-1].outputs, nodes=nodes, opset_imports={"": 18}, name="g"), ir_version=9)
    shapes.infer(model)
    assert nodes[-1].outputs[0].shape == ["n", 2]


def test_shapes_and_types_are_not_shared_between_values() -> None:
    model = parsed("g (float[n,4] x) => (float[n,4] y) { a = Relu(x) b = Relu(x) y = Add(a, b) }")
    shapes.infer(model)
    a, b = (node.outputs[0] for node in list(model.graph)[:2])
    a.shape[0] = 3  # type: ignore[index]  # it has one
    a.dtype = ir.DataType.DOUBLE
    assert b.shape == ["n", 4]
    assert b.dtype == ir.DataType.FLOAT
