"""Statistics of the values of a model over calibration samples, in one streamed run.

What is asked (`graphopt.runtime.requests`) becomes one accumulator each; the values that they need are computed piece
by piece (`graphopt.runtime.streaming`), added, and dropped. Memory does not depend on the number of samples.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import onnx_ir as ir

from graphopt.errors import DataError, OptionError
from graphopt.runtime.accumulators import Accumulator, ChannelRangeOf, HistogramOf, MomentsOf, RangeOf, View
from graphopt.runtime.patches import Window
from graphopt.runtime.pieces import values_named
from graphopt.runtime.requests import (
    ChannelRange,
    Channels,
    CrossGram,
    Gram,
    Histogram,
    Moments,
    Patches,
    PatchGram,
    Range,
    Request,
    Results,
)
from graphopt.runtime.rows import ChannelRows, Choice, PatchRows, RowSource
from graphopt.runtime.second_moments import CrossGramOf, GramOf
from graphopt.runtime.streaming import Batches, ModelStream, Observation, Progress, ValueStream


def collect(
    model: ir.Model,
    requests: Collection[Request[Any]],
    batches: Batches,
    *,
    samples: int | None = None,
    threads: int = 1,
    progress: Progress | None = None,
) -> Results:
    """Answer all requests in one run over the batches.

    Args:
        model: not changed.
        requests: what is asked; see `graphopt.runtime.requests`.
        batches: makes a new iterator over all batches.
        samples: how many samples there are, for `progress` and for requests that bound their rows; counted if needed.
        threads: threads within an operator.
        progress: `progress(step, done, total)`, in samples.

    Raises:
        DataError: no samples, or NaN or infinity in a value; the message names it. `Range` alone reports them.
        UnsupportedModelError: a value lies in the body of an If or Loop, or is no tensor of numbers.
        RuntimeFailureError: onnxruntime cannot run the model.
    """
    return answer(ModelStream(model, batches, samples=samples, threads=threads, progress=progress), requests)


def collect_cross(left: ValueStream, right: ValueStream, requests: Collection[CrossGram]) -> Results:
    """Answer requests for cross moments between two models, or between one model and itself, run on the same samples.

    Args:
        left: where the left sides' values come from: a `ModelStream`, or a `Stepper`.
        right: where the right sides' values come from.
        requests: what is asked.

    Raises:
        DataError: the two do not give the same samples or as many rows; and what `collect` raises.
    """
    questions = {request: _cross(left.model, right.model, request, left.samples) for request in requests}
    names = [list(dict.fromkeys(question[1][side] for question in questions.values())) for side in (0, 1)]
    for pair in _side_by_side(left, right, names) if questions else ():
        views = [{name: View(name, array, seen.first) for name, array in seen.values.items()} for seen in pair]
        for accumulator, (first, second) in questions.values():
            accumulator.add(views[0][first], views[1][second])
    return Results((request, accumulator.result()) for request, (accumulator, _) in questions.items())


def answer(stream: ValueStream, requests: Collection[Request[Any]]) -> Results:
    """Answer all requests about one model from one pass of `stream`.

    Raises:
        DataError: there are no samples.
    """
    model = stream.model
    questions = {request: _question(model, request, stream.samples) for request in requests}
    by_value: dict[str, list[Accumulator]] = {}
    for accumulator, name in questions.values():
        by_value.setdefault(name, []).append(accumulator)
    values = values_named(model, list(by_value))
    constants = {name: value for name, value in values.items() if _is_constant(value)}
    for name, value in constants.items():
        assert value.const_value is not None
        _add(by_value[name], View(name, value.const_value.numpy(), 0))
    moving = [name for name in values if name not in constants]
    seen = 0
    for observation in stream.stream(moving) if moving else ():
        seen += observation.count
        for name, array in observation.values.items():
            _add(by_value[name], View(name, array, observation.first))
    if moving and not seen:
        raise DataError("there are no calibration samples to take statistics of")
    return Results((request, accumulator.result()) for request, (accumulator, _) in questions.items())


def _add(accumulators: list[Accumulator], view: View) -> None:
    for accumulator in accumulators:
        accumulator.add(view)


def _is_constant(value: ir.Value) -> bool:
    return value.producer() is None and value.const_value is not None and not value.is_graph_input()


_Samples: TypeAlias = Callable[[], int]
_Question: TypeAlias = tuple[Accumulator, str]
_Pair: TypeAlias = tuple[Observation, Observation]


def _question(model: ir.Model, request: Request[Any], samples: _Samples) -> _Question:
    """The accumulator that answers a request, and the name of the value that it takes."""
    maker = _MAKERS.get(type(request))
    if maker is None:
        raise OptionError(f"{type(request).__name__} is no statistic of a single model")
    return maker(model, request, samples)


def _patch_gram(model: ir.Model, request: PatchGram, samples: _Samples) -> _Question:
    source, name = _rows(model, Patches(request.node))
    return GramOf(source, _choice(request, samples), grouped=True), name


def _gram(model: ir.Model, request: Gram, samples: _Samples) -> _Question:
    return GramOf(ChannelRows(request.axis), _choice(request, samples), grouped=False), request.value


_MAKERS: Mapping[type, Callable[[ir.Model, Any, _Samples], _Question]] = {
    Range: lambda _, request, __: (RangeOf(), request.value),
    Histogram: lambda _, request, __: (HistogramOf(request.bins), request.value),
    ChannelRange: lambda _, request, __: (ChannelRangeOf(request.axis), request.value),
    Moments: lambda _, request, __: (MomentsOf(request.axis, magnitudes=request.magnitudes), request.value),
    Gram: _gram,
    PatchGram: _patch_gram,
}


def _cross(
    left: ir.Model, right: ir.Model, request: CrossGram, samples: _Samples
) -> tuple[Accumulator, tuple[str, str]]:
    groups = max(_groups(left, request.left), _groups(right, request.right))
    (one, first), (two, second) = _rows(left, request.left, groups), _rows(right, request.right, groups)
    return CrossGramOf(one, two, _choice(request, samples)), (first, second)


def _groups(model: ir.Model, side: Channels | Patches) -> int:
    return 1 if isinstance(side, Channels) else Window.of(conv_named(model, side.node)).groups


def _rows(model: ir.Model, side: Channels | Patches, groups: int = 1) -> tuple[RowSource, str]:
    """Where rows come from, and the name of the value that they are rows of."""
    if isinstance(side, Channels):
        return ChannelRows(side.axis, groups), side.value
    node = conv_named(model, side.node)
    read = node.inputs[0]
    assert read is not None
    return PatchRows(Window.of(node)), read.name or ""


def _choice(request: Gram | PatchGram | CrossGram, samples: _Samples) -> Choice:
    if request.rows is None:
        return Choice(None, request.seed, 1)
    if request.rows < 1:
        raise OptionError(f"{type(request).__name__} needs one row or more, not {request.rows}")
    return Choice(request.rows, request.seed, samples())


def conv_named(model: ir.Model, name: str) -> ir.Node:
    """The node of the main graph whose first output is `name`, or that itself goes by it; raises DataError without one."""
    by_name = None
    for node in model.graph:
        if node.outputs and node.outputs[0].name == name:
            return node
        if node.name == name:
            by_name = node
    if by_name is None:
        raise DataError(f"the model has no node '{name}' to take statistics of")
    return by_name


def _side_by_side(left: ValueStream, right: ValueStream, names: Sequence[Sequence[str]]) -> Iterator[_Pair]:
    """The same samples of both streams."""
    mine, theirs = left.stream(names[0], even=True), right.stream(names[1], even=True)
    for one, two in itertools.zip_longest(mine, theirs):
        if one is None or two is None or (one.first, one.count) != (two.first, two.count):
            raise DataError("cross moments: the two models were not given the same batches")
        yield one, two
