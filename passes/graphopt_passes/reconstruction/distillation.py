"""A last refit of all products of a compressed network together, by gradient steps towards the original (Hinton et al. 2015).

Layers are refitted one by one before; here all weights that only differentiable operators follow (`numerics.gradients`) move
together, so that what one layer cannot reach another one makes up for. No labels are needed: minimized is

    divergence of the outputs  +  `_INSIDE` · mean over the values v inside of  E |v - v'|² / var(v)

over sums (results of Add that both networks have under one name; of Gemm where there are none). A few hundred samples are few
for all weights at once: the values inside say much more than the outputs do, and where inputs are numbers, boxes of samples
are exchanged with those of others (after Yun et al. 2019, "CutMix"), which the original says the right answer to as well. No batch
comes twice then, and many more steps still gain (Beyer et al. 2022, "A good teacher is patient and consistent"). The steps are
Adam's, relative to the size of each tensor, with a rate that falls to 0. A part of the samples is held back, and exchanges boxes
among itself: the way to the new weights is gone as far as divergence times error inside falls there (the divergence alone is too
noisy on few samples).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphopt.ir.walk import constant_tensor
from graphopt.pipeline.evidence import Evidence
from graphopt.pricing import price
from graphopt.runtime.session import Session
from graphopt_passes.numerics.gradients import RULES
from graphopt_passes.numerics.quadratic import Array
from graphopt_passes.reconstruction.harm import divergence, is_classified, watched

_INSIDE = 10.0
_RATE = 2e-3
_MIXED_RATE = 4e-3
_MIXED_TEMPERATURE = 3.0
_BATCH = 32
_EPOCHS = 40
_MIXED_EPOCHS = 640
"""Where boxes are exchanged: no batch comes again, so that more and larger steps still gain."""
_FEWEST_STEPS = 40
_HELD = 8
"""One in so many samples is held back."""
_MOST_WORK = 1e12
"""Multiply-accumulates that all steps may take."""
_MOST_MIXED_WORK = 4e11
"""The same of what goes beyond `_EPOCHS`: about a minute of one core where products are small."""
_EXCHANGED = 0.9
"""Share of samples that get a box of another one."""
_BETAS = (0.9, 0.99)
_JUDGED = 8
"""Times that held-back samples are looked at where boxes are exchanged, once as they are."""
_NOTHING = 1e-12
"""Harm of rounding."""
_SHARES = (1.0, 0.5, 0.25)
"""Of the way to the new weights, one of which is gone."""


def distill(
    original: ir.Model,
    compressed: ir.Model,
    evidence: Evidence,
    *,
    seed: int = 0,
    fixed: Callable[[ir.Node], bool] = lambda node: False,
) -> list[ir.Node]:
    """Refit `compressed` in place; the nodes whose weights changed, none where that is not possible or does not help.

    It is not possible where other operators follow most of the weights, where there are less than a few dozen samples, and where
    the network is so large that the steps would take minutes.

    Args:
        original: has the same inputs and outputs.
        compressed: its weights change where they are float32.
        evidence: calibration samples.
        seed: of the order of samples, and of what is held back.
        fixed: says which nodes keep their weights.
    """
    count, plan = len(evidence.samples), _distillable(compressed, evidence, fixed)
    feeds = None if plan is None else _inputs(evidence)
    if plan is None or feeds is None:
        return []
    network, course = plan
    teacher = _Teacher(original, compressed, network, evidence)
    order = np.random.default_rng(seed).permutation(count)
    held = {name: array[np.sort(order[: count // _HELD])] for name, array in feeds.items()}
    seen = {name: array[np.sort(order[count // _HELD :])] for name, array in feeds.items()}
    if not teacher.understands(held):
        return []
    held = _multiplied(held, np.random.default_rng(seed))
    before = teacher.harm(held, network.weights)
    if before < _NOTHING:
        return []
    found = _descend(teacher, seen, course, np.random.default_rng(seed))
    best, weights = before, None
    for share in _SHARES:
        some = {name: array + np.float32(share) * (found[name] - array) for name, array in network.weights.items()}
        harm = teacher.harm(held, some)
        if harm < best:
            best, weights = harm, some
    if weights is None:
        return []
    for name, array in weights.items():
        value = compressed.graph.initializers[name]
        value.const_value = ir.Tensor(array, name=name)
    return [node for node in network.nodes if any(one is not None and one.name in weights for one in node.inputs)]


def is_distillable(model: ir.Model, evidence: Evidence, fixed: Callable[[ir.Node], bool] = lambda node: False) -> bool:
    """Whether `distill` would refit what becomes of `model`, as far as its operators and size say."""
    return _distillable(model, evidence, fixed) is not None


def _distillable(
    model: ir.Model, evidence: Evidence, fixed: Callable[[ir.Node], bool]
) -> tuple[_Network, _Course] | None:
    """What of a network can be refitted, and by which steps."""
    count, cost = len(evidence.samples), price(model)
    course = _Course.of(count, 3 * cost.macs * _BATCH, mixed=_takes_numbers(model))
    if count < 2 * _HELD or course.steps < _FEWEST_STEPS or not _takes_any_batch(model):
        return None
    network = _Network.of(model, fixed)
    made = {node.outputs[0].name for node in network.nodes}
    moved = sum(array.size for array in network.weights.values())
    return None if not made.issuperset(network.outputs) or moved < cost.params / 2 else (network, course)


@dataclass(frozen=True)
class _Course:
    """How to descend.

    Attributes:
        steps: how many.
        rate: of the first one, relative to the size of a tensor.
        temperature: that scores of classes are divided by, so that the small ones count as well (Hinton et al. 2015).
    """

    steps: int
    rate: float = _RATE
    temperature: float = 1.0

    @classmethod
    def of(cls, count: int, work: float, *, mixed: bool) -> _Course:
        """With `count` samples, where one step takes `work` multiply-accumulates; `mixed` where boxes are exchanged."""
        usual = min(math.ceil(_EPOCHS * count / _BATCH), int(_MOST_WORK / max(1, work)))
        if not mixed:
            return cls(usual)
        more = min(math.ceil(_MIXED_EPOCHS * count / _BATCH), int(_MOST_MIXED_WORK / max(1, work)))
        return cls(max(usual, more), _MIXED_RATE, _MIXED_TEMPERATURE)


@dataclass(frozen=True)
class _Network:
    """The part of a graph that has gradients.

    Attributes:
        nodes: in topological order.
        weights: what is changed, by name; float32.
        constants: all else that never changes.
        fed: names of the values that the part begins with.
        outputs: names of the values that the network is judged by.
    """

    nodes: list[ir.Node]
    weights: dict[str, Array]
    constants: dict[str, Array]
    fed: list[str]
    outputs: list[str]

    @classmethod
    def of(cls, model: ir.Model, fixed: Callable[[ir.Node], bool]) -> _Network:
        """All that only operators with rules follow, from the first weight on."""
        outputs, clear = watched(model), set[ir.Node]()
        for node in reversed(list(model.graph)):
            readers = {reader for value in node.outputs for reader, _ in value.uses()}
            ends = all(one.name in outputs for one in node.outputs) and all(
                reader in clear or all(one.is_graph_output() for one in reader.outputs) for reader in readers
            )
            if node.domain == "" and node.op_type in RULES and (readers or ends) and (readers <= clear or ends):
                clear.add(node)
        weights: dict[str, Array] = {}
        for node in model.graph:
            if node in clear and not fixed(node):
                weights |= {
                    one.name or "": _array(one)
                    for one in node.inputs
                    if one is not None and _is_weight(one, node, clear)
                }
        inside: set[ir.Value | None] = set()
        nodes = []
        for node in model.graph:
            if node in clear and any(one in inside or (one is not None and one.name in weights) for one in node.inputs):
                nodes.append(node)
                inside.update(node.outputs)
        read = [one for node in nodes for one in node.inputs if one is not None and one not in inside]
        constants = {one.name or "": _array(one) for one in read if constant_tensor(one) is not None}
        fed = [one.name or "" for one in dict.fromkeys(read) if constant_tensor(one) is None]
        return cls(nodes, weights, constants, fed, outputs)

    def run(self, weights: Mapping[str, Array], fed: Mapping[str, Array]) -> tuple[dict[str, Array], list[_Step]]:
        """All values by name, and what leads back."""
        values = {**self.constants, **fed, **weights}
        steps = []
        for node in self.nodes:
            inputs = [one.name or "" for one in node.inputs if one is not None]
            attributes = {name: one.value for name, one in node.attributes.items()}
            result, backward = RULES[node.op_type]([values[name] for name in inputs], attributes)
            output = node.outputs[0].name or ""
            values[output] = np.asarray(result, np.float32)
            steps.append(_Step(inputs, output, backward))
        return values, steps


@dataclass(frozen=True)
class _Step:
    inputs: list[str]
    output: str
    backward: Callable[[Array], Sequence[Array | None]]


def _takes_any_batch(model: ir.Model) -> bool:
    """Whether no input says how many samples there are at once."""
    shapes = [value.shape for value in model.graph.inputs if not value.is_initializer()]
    return all(shape is not None and len(shape) > 0 and not isinstance(shape[0], int) for shape in shapes)


def _takes_numbers(model: ir.Model) -> bool:
    """Whether all inputs are numbers, so that parts of samples make new samples."""
    dtypes = [value.dtype for value in model.graph.inputs if not value.is_initializer()]
    return all(dtype is not None and dtype.is_floating_point() for dtype in dtypes)


def _is_weight(value: ir.Value, node: ir.Node, clear: set[ir.Node]) -> bool:
    """Whether a constant is a weight, a bias or a scale that nothing else reads."""
    if not value.is_initializer() or value.is_graph_input() or value.dtype != ir.DataType.FLOAT:
        return False
    tensor = constant_tensor(value)
    if tensor is None or tensor.size < 2 or value.is_graph_output() or any(one not in clear for one, _ in value.uses()):
        return False
    most = {"Gemm": 2, "MatMul": 2, "Add": 1, "LayerNormalization": 1}.get(node.op_type, 0)
    return len(tensor.shape) <= most and bool(np.isfinite(tensor.numpy()).all())


def _array(value: ir.Value | None) -> Array:
    tensor = constant_tensor(value)
    assert tensor is not None
    return np.array(tensor.numpy())


def _inputs(evidence: Evidence) -> dict[str, Array] | None:
    """All samples by input; None where their extents differ."""
    parts: dict[str, list[Array]] = {}
    for batch in evidence.samples.batches():
        for name, array in batch.feeds.items():
            if array.ndim == 0 or len(array) < batch.count:
                return None
            parts.setdefault(name, []).append(array[: batch.count])
    shapes = [{array.shape[1:] for array in arrays} for arrays in parts.values()]
    if not parts or any(len(one) != 1 for one in shapes):
        return None
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


class _Teacher:
    """The original's answers, and how far the compressed network is from them."""

    def __init__(self, original: ir.Model, compressed: ir.Model, network: _Network, evidence: Evidence) -> None:
        self.network = network
        self.inside = _in_both(original, network, "Add") or _in_both(original, network, "Gemm")
        self._asked = [*network.outputs, *self.inside]
        self._original = _session(original, self._asked, evidence)
        self._compressed = _session(compressed, [*network.fed, *network.outputs], evidence)

    def understands(self, feeds: Mapping[str, Array]) -> bool:
        """Whether numpy and the runtime agree about the compressed network."""
        try:
            exact = self._compressed.run(_some(feeds))
            found, _ = self.network.run(self.network.weights, self._fed(_some(feeds)))
        except (ValueError, IndexError):  # extents that only the runtime's batch has
            return False
        theirs = self._original.run(_some(feeds))
        self.inside = [name for name in self.inside if theirs[name].shape == found[name].shape]
        return all(
            exact[name].shape == found[name].shape
            and np.allclose(exact[name], found[name], atol=1e-3 * float(np.abs(exact[name]).max() + 1e-9))
            for name in self.network.outputs
        )

    def harm(self, feeds: Mapping[str, Array], weights: Mapping[str, Array]) -> float:
        """Divergence of the outputs times relative error of the values inside, where there are any."""
        outputs, inside = [], []
        for start in range(0, len(next(iter(feeds.values()))), _BATCH):
            piece = {name: array[start : start + _BATCH] for name, array in feeds.items()}
            exact, values = self._original.run(piece), self.network.run(weights, self._fed(piece))[0]
            outputs += [divergence(exact[name], values[name]) for name in self.network.outputs]
            inside += [
                float(np.square(exact[name] - values[name]).mean() / _spread(exact[name])) for name in self.inside
            ]
        return float(np.concatenate(outputs).mean()) * (float(np.mean(inside)) if inside else 1.0)

    def gradients(
        self, feeds: Mapping[str, Array], weights: Mapping[str, Array], temperature: float
    ) -> dict[str, Array]:
        """Of the loss by all weights."""
        exact = self._original.run(feeds)
        values, steps = self.network.run(weights, self._fed(feeds))
        pull = {name: _pull(exact[name], values[name], temperature) for name in self.network.outputs}
        for name in self.inside:
            share = 2 * _INSIDE / (len(self.inside) * exact[name].size * _spread(exact[name]))
            pull[name] = np.float32(share) * (values[name] - exact[name])
        for step in reversed(steps):
            gradient = pull.get(step.output)
            if gradient is None:
                continue
            for name, part in zip(step.inputs, step.backward(gradient), strict=True):
                if part is not None:
                    pull[name] = part if name not in pull else pull[name] + part
        return {name: pull[name] for name in weights if name in pull}

    def _fed(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        found = self._compressed.run(feeds)
        return {name: found[name] if name in found else feeds[name] for name in self.network.fed}


def _in_both(original: ir.Model, network: _Network, op_type: str) -> list[str]:
    """Names of the results of an operator in both networks, apart from the outputs."""
    theirs = {node.outputs[0].name for node in original.graph if node.op_type == op_type and node.domain == ""}
    mine = [node.outputs[0].name or "" for node in network.nodes if node.op_type == op_type]
    return [name for name in mine if name in theirs and name not in network.outputs]


def _pull(exact: Array, found: Array, temperature: float) -> Array:
    """The gradient of the divergence of outputs, at temperature 1 that of `harm.divergence` but for constant factors."""
    if not is_classified(exact):
        return np.asarray(2 * (found - exact) / (exact.size * _spread(exact)), np.float32)
    shares = []
    for scores in (found, exact):
        power = np.exp((scores - scores.max(axis=-1, keepdims=True)) / temperature)
        shares.append(power / power.sum(axis=-1, keepdims=True))
    return np.asarray(temperature * (shares[0] - shares[1]) / len(exact), np.float32)


def _spread(values: Array) -> float:
    return max(float(values.var()), 1e-12)


def _some(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {name: array[:_BATCH] for name, array in feeds.items()}


def _session(model: ir.Model, names: Sequence[str], evidence: Evidence) -> Session:
    """`model` with more outputs."""
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    inputs = {value.name for value in copy.graph.inputs}
    for node in copy.graph:
        for value in node.outputs:
            if value.name in names and value.name not in present:
                copy.graph.outputs.append(value)
    assert set(names) <= {*(value.name for value in copy.graph.outputs), *inputs}
    return evidence.session(copy, integer=False)


def _batches(feeds: Mapping[str, Array], rng: np.random.Generator) -> Iterator[dict[str, Array]]:
    """Samples in random order, again and again; boxes of some are exchanged where inputs are numbers."""
    count = len(next(iter(feeds.values())))
    while True:
        order = rng.permutation(count)
        for start in range(0, count, _BATCH):
            chosen = order[start : start + _BATCH]
            batch = {name: array[chosen] for name, array in feeds.items()}
            if _are_numbers(feeds):
                _exchange(batch, feeds, rng)
            yield batch


def _multiplied(feeds: Mapping[str, Array], rng: np.random.Generator) -> dict[str, Array]:
    """Samples, and behind them `_JUDGED` - 1 times the same with boxes exchanged where inputs are numbers."""
    if not _are_numbers(feeds):
        return dict(feeds)
    parts = [feeds]
    for _ in range(_JUDGED - 1):
        part = {name: array.copy() for name, array in feeds.items()}
        _exchange(part, feeds, rng)
        parts.append(part)
    return {name: np.concatenate([part[name] for part in parts]) for name in feeds}


def _are_numbers(feeds: Mapping[str, Array]) -> bool:
    return all(np.issubdtype(array.dtype, np.floating) for array in feeds.values())


def _exchange(batch: Mapping[str, Array], feeds: Mapping[str, Array], rng: np.random.Generator) -> None:
    """Put boxes of any of `feeds` in the place of those of most samples of a batch."""
    count = len(next(iter(batch.values())))
    others = rng.integers(len(next(iter(feeds.values()))), size=count)
    for row in np.flatnonzero(rng.random(count) < _EXCHANGED):
        for name, array in feeds.items():
            box = tuple(_box(array.shape[1:], rng))
            batch[name][row][box] = array[others[row]][box]


def _box(shape: Sequence[int], rng: np.random.Generator) -> list[slice]:
    """A box anywhere in a sample; axes of one element are whole."""
    found = []
    for extent in shape:
        ends = np.sort(rng.integers(extent + 1, size=2))
        found.append(slice(None) if extent == 1 else slice(int(ends[0]), int(ends[1])))
    return found


def _descend(
    teacher: _Teacher, feeds: Mapping[str, Array], course: _Course, rng: np.random.Generator
) -> dict[str, Array]:
    """Weights after all steps of Adam."""
    weights = {name: array.copy() for name, array in teacher.network.weights.items()}
    moments = {name: (np.zeros_like(array), np.zeros_like(array)) for name, array in weights.items()}
    scales = {name: float(np.sqrt(np.square(array).mean())) + 1e-8 for name, array in weights.items()}
    for step, batch in enumerate(itertools.islice(_batches(feeds, rng), course.steps)):
        rate = course.rate * 0.5 * (1 + math.cos(math.pi * step / course.steps))
        rise = math.sqrt(1 - _BETAS[1] ** (step + 1)) / (1 - _BETAS[0] ** (step + 1))
        for name, gradient in teacher.gradients(batch, weights, course.temperature).items():
            mean, square = moments[name]
            mean += (1 - _BETAS[0]) * (gradient - mean)
            square += (1 - _BETAS[1]) * (gradient * gradient - square)
            weights[name] -= np.float32(rate * rise * scales[name]) * mean / (np.sqrt(square) + np.float32(1e-12))
    return weights
