"""Every exact pass wherever nodes can be: in the main graph, in a branch, in a loop's body, in a function."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.ir.walk import all_graphs
from graphopt.pipeline.registry import Registry

RNG = np.random.default_rng(0)
TYPES = {"float32": "float", "int64": "int64", "bool": "bool"}
LAYER = "{v}m = MatMul(a, w{v})  {v}a = Add({v}m, b{v})  {v} = Reshape({v}a, heads)  "


@dataclasses.dataclass(frozen=True)
class Pattern:
    """Nodes that compute t from a, which a pass rewrites.

    Attributes:
        nodes: as text.
        constants: what they read besides a.
        x: extents of the input, and so of a.
        rank: of t.
        in_functions: whether they are rewritten where nothing is known of the shapes and types of values.
    """

    nodes: str
    constants: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    x: str = "n,4,3,3"
    rank: int = 4
    in_functions: bool = True


def floats(*dims: int) -> np.ndarray:
    return np.asarray(RNG.integers(1, 9, dims) / 4, np.float32)


PATTERNS = {
    "deduplicate-initializers": Pattern(
        "b = Mul(a, k)  t = Add(b, l)", {"k": np.float32(3), "l": np.float32(3)}, in_functions=False
    ),
    "eliminate-common-subexpressions": Pattern("b = Exp(a)  c = Exp(a)  t = Add(b, c)"),
    "eliminate-dead-code": Pattern("d = Exp(a)  t = Abs(a)"),
    "eliminate-identity": Pattern("t = Identity(a)"),
    "eliminate-no-ops": Pattern("t = Mul(a, k)", {"k": np.float32(1)}),
    "flatten-linear": Pattern(
        "".join(LAYER.format(v=v) for v in "qk") + "t = Add(q, k)",
        {"wq": floats(6, 6), "wk": floats(6, 6), "bq": floats(6), "bk": floats(6), "heads": [4, 5, 2, 3]},
        x="4,5,6",
        in_functions=False,
    ),
    "fold-batch-norm": Pattern(
        "c = Conv(a, w)  t = BatchNormalization(c, s, b, m, v)",
        {"w": floats(4, 4, 1, 1), "s": floats(4), "b": floats(4), "m": floats(4), "v": floats(4)},
    ),
    "fold-constants": Pattern("b = Exp(k)  t = Mul(a, b)", {"k": floats(4, 1, 1)}),
    "fold-pad": Pattern(
        "p = Pad(a, pads)  t = Conv(p, w)", {"pads": [0, 0, 1, 0, 0, 0, 1, 2], "w": floats(4, 4, 2, 2)}
    ),
    "fold-scale": Pattern("c = Conv(a, w)  t = Mul(c, k)", {"w": floats(4, 4, 1, 1), "k": np.float32(2)}),
    "fuse-matmul-add": Pattern(
        "m = MatMul(a, w)  t = Add(m, b)", {"w": floats(4, 5), "b": floats(5)}, x="n,4", rank=2, in_functions=False
    ),
    "fuse-operators": Pattern(
        "b = Add(a, three)  c = Clip(b, zero, six)  d = Mul(a, c)  t = Div(d, six)",
        {"three": np.float32(3), "zero": np.float32(0), "six": np.float32(6)},
    ),
    "hoist-scales": Pattern(
        LAYER.format(v="q") + LAYER.format(v="k") + "r = Transpose<perm = [0, 2, 1, 3]>(q)"
        "  l = Transpose<perm = [0, 2, 3, 1]>(k)  s = MatMul(r, l)  t = Div(s, eight)",
        {
            "wq": floats(6, 6),
            "wk": floats(6, 6),
            "bq": floats(6),
            "bk": floats(6),
            "heads": [0, 0, 2, 3],
            "eight": np.float32(8),
        },
        x="2,5,6",
    ),
    "inline-constant-if": Pattern(
        """t = If (yes) <then_branch = t1 () => (float[n,4,3,3] t2) { t2 = Exp(a) },
                         else_branch = e1 () => (float[n,4,3,3] e2) { e2 = Sin(a) }>""",
        {"yes": np.bool_(True)},
    ),
    "merge-consecutive": Pattern(
        "b = Transpose<perm = [0, 2, 3, 1]>(a)  c = Transpose<perm = [0, 2, 1, 3]>(b)  t = Exp(c)"
    ),
    "merge-rearrangements": Pattern(
        "b = Reshape(a, k)  c = Transpose<perm = [0, 2, 1]>(b)  d = Reshape(c, l)  t = Transpose<perm = [0, 3, 1, 2]>(d)",
        {"k": [0, 4, 9], "l": [0, 3, 3, 4]},
        in_functions=False,
    ),
    "move-transposes": Pattern(
        "b = Transpose<perm = [0, 2, 3, 1]>(a)  c = Exp(b)  t = Transpose<perm = [0, 3, 1, 2]>(c)", in_functions=False
    ),
    "omit-zero-states": Pattern(
        "t, h, c = LSTM<hidden_size = 3>(a, w, r, , , z, z)",
        {"w": floats(1, 12, 4), "r": floats(1, 12, 3), "z": np.zeros((1, 2, 3), np.float32)},
        x="5,2,4",
    ),
    "remove-unused-initializers": Pattern("t = Exp(a)", {"k": floats(4)}, in_functions=False),
    "resolve-casts": Pattern("b = Cast<to = 7>(a)  t = CastLike(b, a)", in_functions=False),
    "simplify-shapes": Pattern("s = Shape(a)  b = Exp(a)  t = Reshape(b, s)", in_functions=False),
    "split-tensors": Pattern(
        "s = SplitToSequence<axis = 1>(a, two)  b = SequenceAt(s, o)  c = SequenceAt(s, i)  t = Sub(b, c)",
        {"two": np.int64(2), "o": np.int64(0), "i": np.int64(1)},
        in_functions=False,
    ),
}


def literal(name: str, content: Any) -> tuple[str, str]:
    """Type and elements of a constant, as text; "type name = elements" declares it, or "type elements"."""
    array = np.asarray(content)
    dims = f"[{','.join(map(str, array.shape))}]" if array.ndim else ""
    numbers = ", ".join(str(number) for number in array.ravel().astype(int if array.dtype == bool else array.dtype))
    return TYPES[array.dtype.name] + dims, f"{{{numbers}}}"


def text(pattern: Pattern, place: str) -> str:
    """A model with the nodes of `pattern`, between two others, in some place."""
    literals = {name: literal(name, content) for name, content in pattern.constants.items()}
    declared = ", ".join(f"{kind} {name} = {elements}" for name, (kind, elements) in literals.items())
    initializers = f"<int64 trips = {{2}}, bool go = {{1}}{declared and ', ' + declared}>"
    nodes = f"a = Neg(x)  {pattern.nodes}  y = Relu(t)"
    dims = ",".join(f"d{axis}" for axis in range(pattern.rank))
    body = {
        "main": nodes,
        "branch": f"""y = If (chosen) <then_branch = t () => (float[{dims}] result) {{ {nodes.replace("y = ", "result = ")} }},
                                  else_branch = e () => (float[{dims}] other) {{ other = Identity(x) }}>""",
        "loop": f"""y = Loop(trips, go) <body = b (int64 i0, bool go1) => (bool go2, float[{dims}] result)
                    {{ go2 = Identity(go1)  {nodes.replace("y = ", "result = ")} }}>""",
        "function": "y = local.f(x)",
    }[place]
    header = '<ir_version: 10, opset_import: ["": 18, "local": 1]>'
    results = dims if place != "loop" else f"trips,{dims}"
    main = f"{header} g (float[{pattern.x}] x, bool chosen) => (float[{results}] y)"
    main += f" {'' if place == 'function' else initializers} {{ {body} }}"
    made = "  ".join(f"{name} = Constant<value = {kind} {elements}>()" for name, (kind, elements) in literals.items())
    function = f'<domain: "local", opset_import: ["": 18]> f (x) => (y) {{ {made}  {nodes} }}'
    return main + (function if place == "function" else "")


def same_outputs(rewriter: Any, before: ir.Model, after: ir.Model) -> None:
    dims = [2 if not isinstance(dim, int) else dim for dim in before.graph.inputs[0].shape or ()]
    for chosen in (True, False):
        feeds = {"x": RNG.standard_normal(dims).astype(np.float32), "chosen": np.array(chosen)}
        expected, actual = (rewriter.outputs(each, feeds)["y"] for each in (before, after))
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


def test_the_table_is_complete() -> None:
    registry = Registry()
    inputs_only = {"freeze-defaults"}  # bodies and functions have no inputs with default values
    assert set(PATTERNS) == {name for name in registry.names() if registry.find(name).exact} - inputs_only


@pytest.mark.parametrize("place", ["main", "branch", "loop", "function"])
@pytest.mark.parametrize("name", PATTERNS)
def test_rewrites_wherever_it_can(rewriter: Any, name: str, place: str) -> None:
    pattern = PATTERNS[name]
    before = text(pattern, place)
    outcome = rewriter.run(rewriter.typed(before), name)
    assert outcome.modified == (place != "function" or pattern.in_functions)
    same_outputs(rewriter, rewriter.typed(before), outcome.model)


@pytest.mark.parametrize("place", ["main", "branch"])
@pytest.mark.parametrize("name", sorted(set(PATTERNS) - {"remove-unused-initializers"}))
def test_leaves_what_is_excluded(rewriter: Any, name: str, place: str) -> None:
    model = rewriter.typed(text(PATTERNS[name], place))
    for graph in all_graphs(model):
        for index, node in enumerate(graph):
            node.name = f"{graph.name}{index}"
    assert not rewriter.run(model, name, exclude=".+").modified
