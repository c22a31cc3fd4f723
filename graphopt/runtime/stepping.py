"""Running a model piece by piece over all samples, so that what lies behind can be changed before it runs.

Sequential bias correction, error-feedback rounding and least-squares refits look at a layer's input as the layers
before it, already rewritten, produce it; then they rewrite the layer and go on. Run from the start for each of n layers
that costs n / 2 forward runs. A `Stepper` keeps the values that cross the border between what has run and what has not,
all batches of them, on disk:

    with Stepper(model, batches) as stepper:
        for layer in layers:
            seen = stepper.collect([PatchGram(layer.name)])     # runs from the border to the layer's input
            ...                                                 # rewrite the layer, insert nodes before or behind it
            stepper.advance([layer.outputs[0]])                 # runs the layer as it is now; the border moves

Nothing is remembered about the graph behind the border: what has to run is found in the graph as it is at each call.
Each node runs once for `advance` and once per `collect` that looks beyond the border, so that the whole costs one
or two forward runs however many steps there are.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.ir.walk import subgraphs
from graphopt.runtime.array_file import ArrayFile
from graphopt.runtime.pieces import Piece, part, reads, values_named
from graphopt.runtime.requests import Request, Results
from graphopt.runtime.statistics import answer
from graphopt.runtime.streaming import Batches, Observation, Part, Progress, cut_batches, even_rows, trimmed


class Stepper:
    """A model that runs up to a border, over all batches.

    Changing a node that has run already has no effect on values that are kept; a value that is needed again after it
    was dropped is computed anew from the inputs, with the model as it is then.
    """

    def __init__(
        self,
        model: ir.Model,
        batches: Batches,
        *,
        threads: int = 1,
        folder: str | os.PathLike[str] | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Nothing runs yet.

        Args:
            model: may be changed between the calls, but not by them.
            batches: makes a new iterator over all batches, the same ones every time; as a rule it is called once.
            threads: threads within an operator.
            folder: where temporary files go, by default where the system has them.
            progress: `progress(step, done, total)`, in nodes.
        """
        self.model = model
        self._batches = batches
        self._threads = threads
        self._folder = folder
        self._progress = progress
        self._kept: dict[ir.Value, ArrayFile] = {}
        self._parts: list[Part] = []  # without their feeds
        self._input_types: dict[ir.Value, np.dtype] = {}
        self._done: set[ir.Node] = set()

    def __enter__(self) -> Stepper:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Drop all values."""
        for file in self._kept.values():
            file.close()
        self._kept.clear()
        self._parts.clear()

    def samples(self) -> int:
        """How many samples there are."""
        self._open()
        return sum(part.count for part in self._parts)

    def collect(self, requests: Collection[Request[Any]]) -> Results:
        """Answer requests about the model as it is now, without moving the border; raises what `statistics.collect` does."""
        return answer(self, requests)

    def stream(self, names: Sequence[str], *, even: bool = False) -> Iterator[Observation]:
        """The values called `names` with the model as it is now; its pieces are always even. See `ValueStream`."""
        values = values_named(self.model, names)
        for portion, arrays in self._run(list(values.values())):
            found = {name: trimmed(arrays[value], value, portion) for name, value in values.items()}
            yield Observation(portion.first, portion.count, found)

    def advance(self, upto: Iterable[ir.Value | str]) -> None:
        """Run all that `upto` needs, with the model as it is now, and keep what nodes that have not run will read.

        Args:
            upto: values of the main graph, or their names. They are kept until the next call, read or not.

        Raises:
            DataError: no samples, or no room on disk.
            RuntimeFailureError: onnxruntime cannot run the model.
            UnsupportedModelError: a value that would have to be kept is no tensor of numbers.
        """
        given = list(upto)
        named = values_named(self.model, [value for value in given if isinstance(value, str)])
        targets = [named[value] if isinstance(value, str) else value for value in given]
        self._open()
        ran = part(targets, self._at_hand()).nodes
        self._done.update(ran)
        wanted = dict.fromkeys(value for value in targets if value.producer() is not None)
        border = _Border(self.model.graph, self._done)
        wanted.update((output, None) for node in ran for output in node.outputs if border.is_crossed_by(output))
        self._keep([value for value in wanted if value not in self._kept])
        for value in [value for value in self._kept if value not in wanted and not border.is_crossed_by(value)]:
            self._kept.pop(value).close()
        if self._progress is not None:
            self._progress("stepping", min(len(self._done), len(self.model.graph)), len(self.model.graph))

    def _open(self) -> None:
        """Keep the inputs of all batches, on the first call."""
        if self._parts:
            return
        for portion in cut_batches(self.model, self._batches, even_rows):
            for value, array in portion.feeds.items():
                self._file(value).append(array)
            self._input_types = {value: array.dtype for value, array in portion.feeds.items()}
            self._parts.append(dataclasses.replace(portion, feeds={}))
        if not self._parts:
            raise DataError("there are no calibration samples to run the model on")

    def _keep(self, values: Sequence[ir.Value]) -> None:
        for _, arrays in self._run(values) if values else ():
            for value, array in arrays.items():
                self._file(value).append(array)

    def _file(self, value: ir.Value) -> ArrayFile:
        if value not in self._kept:
            self._kept[value] = ArrayFile(self._folder)
        return self._kept[value]

    def _at_hand(self) -> dict[ir.Value, np.dtype]:
        """Values from which everything else can be computed, and their element types."""
        return {**self._input_types, **{value: file.dtype for value, file in self._kept.items()}}

    def _run(self, values: Sequence[ir.Value]) -> Iterator[tuple[Part, Mapping[ir.Value, np.ndarray]]]:
        """`values` part by part, from what is kept; from the samples where an input was dropped already."""
        self._open()
        piece = Piece(self.model, values, self._at_hand(), threads=self._threads)
        kept = {value: self._kept[value] for value in piece.inputs if value in self._kept}
        again = len(kept) < len(piece.inputs)
        samples = cut_batches(self.model, self._batches, even_rows) if again else iter(self._parts)
        for index, (portion, fed) in enumerate(zip(self._parts, samples, strict=True)):
            arrays = {**fed.feeds, **{value: file.read(index) for value, file in kept.items()}}
            yield portion, piece.run(arrays)


class _Border:
    """Between the nodes that have run and those that have not."""

    def __init__(self, graph: ir.Graph, done: Collection[ir.Node]) -> None:
        self._graph = graph
        self._done = done

    def is_crossed_by(self, value: ir.Value) -> bool:
        """Whether a node that has not run reads `value`."""
        readers = [use.node for use in value.uses() if use.node.graph is not None]
        if any(node.graph is self._graph and node not in self._done for node in readers):
            return True
        return any(node.graph is not self._graph for node in readers) and value in self._captured

    @functools.cached_property
    def _captured(self) -> set[ir.Value]:
        """What the bodies of nodes that have not run read from around them."""
        waiting = (node for node in self._graph if node not in self._done)
        return {value for node in waiting if any(subgraphs(node)) for value in reads(node)}
