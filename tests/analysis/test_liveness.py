"""Peak activation memory: cases worked out by hand, and random graphs against a plan that is made the slow way."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.analysis import shapes
from graphopt.analysis.execution import Execution
from graphopt.analysis.extents import Extents
from graphopt.analysis.fusion import Kernel, Tensor
from graphopt.analysis.liveness import Peak, peak_activation_memory

KIB = 1024  # bytes of a float[256]


def model_of(text: str) -> ir.Model:
    model = ir.from_onnx_text('<ir_version: 9, opset_import: ["" : 21]>\n' + text)
    shapes.infer(model)
    return model


def peak_of(text: str, block: int = 16, best_order: bool = False) -> Peak:
    model = model_of(text)
    return peak_activation_memory(model.graph, Execution(model, Extents(model), block), best_order=best_order)


@pytest.mark.parametrize(
    ("body", "buffers"),
    [
        # The output alone: inputs belong to the caller.
        ("y = Exp(x)", 1),
        ("a = Exp(x) y = Log(a)", 2),
        # c takes a's buffer, which is dead by then.
        ("a = Exp(x) b = Log(a) c = Exp(b) y = Log(c)", 2),
        # In place, except onto what is read again and into the output.
        ("a = Exp(x) b = Relu(a) y = Log(b)", 2),
        ("a = Exp(x) b = Relu(a) c = Add(a, b) y = Log(c)", 3),
        ("a = Exp(x) y = Relu(a)", 2),
        # Views take nothing, but keep what they look at alive.
        ("a = Exp(x) b = Reshape(a, s) y = Log(b)", 2),
        ("a = Exp(x) b = Reshape(a, s) c = Exp(b) d = Log(c) e = Reshape(d, f) y = Add(a, e)", 3),
        ("b = Reshape(x, s) y = Reshape(b, f)", 1),
        # A result that nobody reads is freed at once.
        ("a = Exp(x) u = Log(x) b = Sin(a) y = Log(b)", 2),
        # Shortcut: x' stays alive across the branch.
        ("p = Exp(x) a = Sin(p) b = Cos(a) c = Add(p, b) y = Log(c)", 3),
        # Constants and what follows from them take nothing.
        ("k = ConstantOfShape(f) l = Cos(k) y = Add(x, l)", 1),
        # Nothing to change, nothing to keep.
        ("a = Exp(x) i = Identity(a) b = Sin(i) y = Log(b)", 2),
    ],
)
def test_buffers_at_the_peak(body: str, buffers: int) -> None:
    text = f"g (float[256] x) => (float[256] y) <int64[2] s = {{16,16}}, int64[1] f = {{256}}> {{ {body} }}"
    found = peak_of(text)
    assert found.bytes == buffers * KIB
    assert found.unsized == 0
    assert found.node is not None


@pytest.mark.parametrize(
    ("rows", "last", "kept"),
    [
        ("1", 512, 2 * KIB),  # d takes the buffer of a, which is kept for it while the large tensor is alive
        ("1", 511, 0),  # nothing like a comes again: its buffer is freed
        ("N", 512, 0),  # onnxruntime cannot know that it is like a
    ],
)
def test_a_buffer_lives_until_its_last_value_is_dead(rows: str, last: int, kept: int) -> None:
    text = f"""g (float[{rows},512] x) => (float[{rows},1] y)
        <int64[1] axis = {{1}}, int64[2] large = {{1,1024}}, int64[2] small = {{1,{last}}}> {{
        s = Shape(x) v = Reshape(x, s) a = Exp(v) r = ReduceSum(a, axis)
        b = Expand(r, large) q = ReduceSum(b, axis)
        d = Expand(q, small) y = ReduceSum(d, axis) }}"""
    assert peak_of(text).bytes == kept + 4 * KIB + 4  # the large tensor, and one sum before or after it


def test_elements_below_a_byte_are_packed() -> None:
    text = """g (float[1001] x) => (float[1001] y) <float s = {0.1}, int4 z = {0}> {
        q = QuantizeLinear(x, s, z) t = Transpose(q) d = DequantizeLinear(t, s, z) y = Exp(d) }"""
    model = model_of(text)
    execution = Execution(model, Extents(model), 16)
    value = next(node.outputs[0] for node in model.graph if node.op_type == "QuantizeLinear")
    assert execution.bytes(Tensor(value)) == 501


def test_channels_are_rounded_up_to_whole_blocks() -> None:
    text = """g (float[1,3,8,8] x, float[24,3,1,1] w, float[24,24,1,1] v) => (float[1,24,8,8] y) {
        c = Conv(x, w) d = Conv(c, v) y = Elu(d) }"""
    model = model_of(text)
    for value in list(model.graph.inputs)[1:]:
        assert value.shape is not None
        value.const_value = ir.tensor(np.zeros(value.shape.numpy(), np.float32), name=value.name)
        model.graph.inputs.remove(value)
        model.graph.initializers.add(value)
    plane = 8 * 8 * 4
    for block, channels in ((16, 32 + 32), (8, 24 + 24), (1, 24 + 24)):
        peak = peak_activation_memory(model.graph, Execution(model, Extents(model), block))
        assert peak.bytes == channels * plane


def test_bodies_are_added_while_their_node_runs() -> None:
    text = """g (bool c, float[256] x) => (float[256] y) {
        h = Exp(x)
        i = If (c) <
            then_branch = t () => (float[256] a) { a = Neg(h) },
            else_branch = e () => (float[256] d) { p = Neg(h) q = Abs(p) r = Neg(q) s = Add(p, r) d = Add(s, h) }>
        y = Log(i)
    }"""
    # h and i, and p, q, r; s takes q's buffer, and d is i.
    assert peak_of(text).bytes == (2 + 3) * KIB


def test_workspace_counts_while_the_kernel_runs() -> None:
    text = "g (float[1,64,4,4] x) => (float[1,64,4,4] y) { a = Exp(x) b = Softmax<axis=1>(a) y = Log(b) }"
    assert peak_of(text).bytes == (1 + 2) * 64 * 16 * 4


def test_unknown_extents_are_told() -> None:
    text = "g (float[8] x) => (int64[1,N] y) { a = NonZero(x) b = Neg(a) y = Abs(b) }"
    assert peak_of(text).unsized > 0


def test_the_best_order_is_never_worse() -> None:
    # Depth first from the later operand, the wide branch is made while the narrow one waits, or the other way round.
    text = """g (float[256] x) => (float[256] y) <int64[1] wide = {4096}, int64[1] z = {0}> {
        a = Exp(x)
        w = Expand(b, wide) v = Sin(w) r = ReduceSum(v, z)
        n = Sin(a)
        y = Add(n, r)
    }""".replace("w = Expand(b, wide)", "b = ReduceSum(a, z) w = Expand(b, wide)")
    assert peak_of(text, best_order=True).bytes <= peak_of(text).bytes


# --- random graphs ----------------------------------------------------------------------------------------------------


@st.composite
def graphs(draw: st.DrawFn) -> ir.Model:
    """A graph of nodes that work in place, make a view, copy, or change the size."""
    names = ["x"]
    sizes = {"x": 64}
    lines = []
    for index in range(draw(st.integers(1, 14))):
        source = draw(st.sampled_from(names))
        kind = draw(st.sampled_from(["Sin", "Relu", "Reshape", "Add", "Concat"]))
        name, size = f"v{index}", sizes[source]
        if kind == "Add":
            other = draw(st.sampled_from([other for other in names if sizes[other] == size]))
            lines.append(f"{name} = Add({source}, {other})")
        elif kind == "Concat" and size < 1024:
            lines.append(f"{name} = Concat<axis=0>({source}, {source})")
            size *= 2
        elif kind == "Reshape":
            lines.append(f"{name} = Reshape({source}, flat)")
        else:
            lines.append(f"{name} = {kind if kind != 'Concat' else 'Sin'}({source})")
        names.append(name)
        sizes[name] = size
    outputs = {names[-1], *draw(st.lists(st.sampled_from(names[1:]), max_size=2))}
    declared = ", ".join(f"float[{sizes[name]}] {name}" for name in sorted(outputs))
    return model_of(f"g (float[64] x) => ({declared}) <int64[1] flat = {{-1}}> {{ {' '.join(lines)} }}")


def slow_peak(steps: Sequence[Kernel]) -> int:
    """The same plan by looking forward from every step: which tensors are still read, and who had which buffer."""

    def later_reads(tensor: Tensor, step: int) -> int:
        return sum(kernel.reads.count(tensor) for kernel in steps[step:])

    def size(tensor: Tensor) -> int:
        assert tensor.value.shape is not None
        return int(np.prod(tensor.value.shape.numpy())) * 4

    tenants: list[list[tuple[Tensor, int]]] = []  # of each buffer: tensor and the step that made it
    freed: list[tuple[int, int]] = []  # (step, buffer) in the order of their becoming free

    def holds(tensor: Tensor) -> int | None:
        return next((b for b, own in enumerate(tenants) if any(t == tensor for t, _ in own)), None)

    def is_free(buffer: int, step: int) -> bool:
        own = tenants[buffer]
        return not any(t.is_output for t, _ in own) and not any(later_reads(t, step) for t, _ in own)

    for step, kernel in enumerate(steps):
        (made,) = kernel.writes
        buffer: int | None = None
        if made.is_output:
            pass
        elif kernel.view_of is not None:
            buffer = holds(kernel.view_of)
            if buffer is None:
                continue
        else:
            for source in kernel.overwrites:
                held = holds(source)
                if held is not None and size(source) == size(made) and is_free(held, step + 1):
                    others = [t for t, _ in tenants[held] if t != source]
                    if later_reads(source, step) == 1 and not any(later_reads(t, step) for t in others):
                        buffer = held
            if buffer is None:
                waiting = [b for _, b in freed if size(tenants[b][0][0]) == size(made)]
                if waiting:
                    buffer = waiting[-1]
                    freed = [entry for entry in freed if entry[1] != buffer]
        if buffer is None:
            tenants.append([])
            buffer = len(tenants) - 1
        tenants[buffer].append((made, step))
        touched = [holds(tensor) for tensor in (*kernel.reads, made)]
        for held in dict.fromkeys(touched):
            if held is not None and is_free(held, step + 1):
                freed.append((step, held))

    def last(own: list[tuple[Tensor, int]]) -> int:
        if any(t.is_output for t, _ in own):
            return len(steps)
        reads = [s for s, kernel in enumerate(steps) for t, _ in own if t in kernel.reads]
        return max(reads + [made for _, made in own])

    return max(sum(size(own[0][0]) for own in tenants if own[0][1] <= step <= last(own)) for step in range(len(steps)))


@settings(max_examples=150, deadline=None)
@given(graphs())
def test_random_graphs_against_the_slow_plan(model: ir.Model) -> None:
    execution = Execution(model, Extents(model), 16)
    steps = execution.steps(model.graph)
    made: set[Tensor] = set()
    for kernel in steps:
        inner = {tensor for tensor in kernel.reads if tensor.value.producer() is not None}
        assert inner <= made, "a kernel runs before one that it reads"
        made.update(kernel.writes)
    assert peak_activation_memory(model.graph, execution).bytes == slow_peak(steps)


def test_the_peak_names_what_is_held() -> None:
    peak = peak_of("g (float[256] x) => (float[256] y) { p = Exp(x) a = Sin(p) b = Cos(a) c = Add(p, b) y = Log(c) }")
    assert [(one.name, one.bytes, one.copy) for one in peak.held] == [
        ("p", 1024, False),
        ("a", 1024, False),
        ("b", 1024, False),
    ]
    reused = peak_of("g (float[256] x) => (float[256] y) { a = Exp(x) b = Log(a) c = Exp(b) y = Log(c) }")
    assert sum(one.bytes for one in reused.held) == reused.bytes == 2048


def test_a_half_filled_block_is_held_twice() -> None:
    """The second convolution reads 8 channels plainly, which the first one made in a block of 16."""
    text = """g (float[1,16,8,8] x, float[8,16,1,1] k, float[16,8,1,1] l) => (float[1,16,1,1] y)
        { a = Conv(x, k) b = Conv(a, l) c = Add(b, x) y = GlobalAveragePool(c) }"""
    model = model_of(text)
    for name, shape in (("k", (8, 16, 1, 1)), ("l", (16, 8, 1, 1))):
        weight = next(value for value in model.graph.inputs if value.name == name)
        weight.const_value = ir.tensor(np.zeros(shape, np.float32), name=name)
        model.graph.inputs.remove(weight)
        model.graph.initializers.add(weight)
    peak = peak_activation_memory(model.graph, Execution(model, Extents(model), 16))
    of_a = [(one.bytes, one.copy) for one in peak.held if one.name == "a"]
    assert of_a == [(16 * 64 * 4, False), (8 * 64 * 4, True)]
