"""The original and the compressed network side by side, from the inputs to the outputs.

    with Walk(original, compressed, evidence) as walk:
        for layer in layers_of(compressed.graph):
            seen = walk.observe(layer)
            ...                              # rewrite the layer: other weights, or other nodes behind the same name
            walk.advance(layer.key)

A layer is refitted towards the *original's* output with its inputs from the *compressed* network, so that it makes up for
what the layers before it have lost (asymmetric reconstruction; He et al. 2017, "Channel Pruning for Accelerating Very Deep
Neural Networks"; Zhang et al. 2015). Where the output is added to a shortcut, the target is moved by what the shortcut lost.

Rows are a sample of all output positions, the same in both networks, drawn from (seed, number of the sample) alone; how
many there are is bounded by bytes. Nothing else is held in memory: both networks run piece by piece (`runtime.stepping`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.pipeline.evidence import Evidence
from graphopt.runtime.rows import ChannelRows, Choice, RowSource
from graphopt.runtime.streaming import Observation
from graphopt_passes.reconstruction.following import Activation, Following, following
from graphopt_passes.reconstruction.linear import Linear
from graphopt_passes.reconstruction.transposed import layers_of

Rows: TypeAlias = npt.NDArray[np.float32]

MOST_BYTES = 256 << 20
"""Bytes that the rows of one layer's input may take."""


@dataclass(frozen=True)
class Observed:
    """A layer on R rows.

    Attributes:
        inputs: (G, K, R), what the weight is multiplied with in the compressed network.
        targets: (C, R), what the layer should give: the original's output, plus what the shortcut has lost.
        offset: (C, R), the shortcut that the compressed network adds to the output before the activation; None without.
        activation: what follows the output (or the sum with `offset`); None where nothing is known to be cut off.
        original_inputs: (G', K', R), the same rows of the original network, where they were asked for.
    """

    inputs: Rows
    targets: Rows
    offset: Rows | None
    activation: Activation | None
    original_inputs: Rows | None = None

    @property
    def rows(self) -> int:
        """R."""
        return int(self.inputs.shape[-1])


class Walk:
    """Both networks, run up to the same place."""

    def __init__(
        self, original: ir.Model, compressed: ir.Model, evidence: Evidence, *, rows: int = 40_000, seed: int = 0
    ) -> None:
        """Start at the inputs.

        Args:
            original: is not changed.
            compressed: has the same inputs, and the same names for the outputs of its linear layers. What lies behind
                the last `advance` may be changed at any time. It may be `original` itself, where nothing changes.
            evidence: calibration samples.
            rows: at most how many rows of a layer are looked at.
            seed: of their choice.
        """
        self._rows = rows
        self._seed = seed
        self._originals = {layer.key: layer for layer in layers_of(original.graph)}
        self._stack = ExitStack()
        self._original = self._stack.enter_context(evidence.stepper(original))
        self._compressed = (
            self._original if compressed is original else self._stack.enter_context(evidence.stepper(compressed))
        )

    def __enter__(self) -> Walk:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def advance(self, *keys: str) -> None:
        """Run both networks, as they are now, up to the layers called `keys`."""
        if self._original is not self._compressed:
            self._original.advance([key for key in keys if key in self._originals])
        self._compressed.advance(keys)

    def observe(
        self,
        layer: Linear,
        *,
        kept: npt.NDArray[np.intp] | None = None,
        original_inputs: bool = False,
        rows: int | None = None,
    ) -> Observed:
        """`layer`, one of the compressed network, as it is now.

        Args:
            layer: its output has the name of one of the original's linear layers.
            kept: the original's output channels that the compressed layer still has, in its order; None for all.
            original_inputs: whether the original's inputs of the layer are wanted too.
            rows: at most how many rows are looked at, where fewer than usual are wanted.

        Raises:
            DataError: the original has no such layer, or a value is not finite.
        """
        theirs = self._originals.get(layer.key)
        if theirs is None:
            raise DataError(f"the original has no linear layer '{layer.key}'")
        mine, other = following(layer.output), following(theirs.output)
        shortcuts = _shortcuts(layer, mine, other)
        sides = (
            [layer.data.name or "", *([shortcuts[0]] if shortcuts else [])],
            [
                theirs.key,
                *([shortcuts[1]] if shortcuts else []),
                *([theirs.data.name or ""] if original_inputs else []),
            ],
        )
        picker = self._picker(layer, rows)
        columns: dict[str, list[Rows]] = {}
        for compressed, original in self._side_by_side(*sides):
            self._pick(columns, picker, layer, theirs, shortcuts, compressed, original, original_inputs)
        found = {name: np.concatenate(parts, axis=-1) for name, parts in columns.items()}
        # behind an Add whose other operand is not known row by row, nothing is known of what is cut off
        activation = mine.activation if mine.shortcut is None or "offset" in found else None
        return _observed(found, activation, kept, layer.key)

    def rows_behind(self, value: str, source: RowSource, layer: Linear, *, rows: int | None = None) -> Rows:
        """(G, width, R) rows that `source` makes of a value of the compressed network, as it is now.

        Args:
            value: its name.
            source: has as many positions in each sample as the output of `layer`.
            layer: R are those that `observe` looks at for this layer and the same `rows`.
            rows: at most how many.
        """
        picker = self._picker(layer, rows)
        stream = self._compressed.stream([value], even=True)
        return np.concatenate([picker.pick(source, seen, value) for seen in stream], axis=-1)

    def _picker(self, layer: Linear, rows: int | None) -> _Picker:
        most = self._rows_of(layer)
        return _Picker(most if rows is None else min(rows, most), self._seed, self._compressed.samples())

    def _rows_of(self, layer: Linear) -> int:
        return max(1, min(self._rows, MOST_BYTES // (4 * layer.groups * layer.width)))

    def _side_by_side(
        self, compressed: Sequence[str], original: Sequence[str]
    ) -> Iterator[tuple[Observation, Observation]]:
        mine = self._compressed.stream(list(dict.fromkeys(compressed)), even=True)
        theirs = self._original.stream(list(dict.fromkeys(original)), even=True)
        return zip(mine, theirs, strict=True)

    def _pick(
        self,
        columns: dict[str, list[Rows]],
        picker: _Picker,
        layer: Linear,
        theirs: Linear,
        shortcuts: tuple[str, str] | None,
        compressed: Observation,
        original: Observation,
        original_inputs: bool,
    ) -> None:
        """Add the rows of one piece of the samples to `columns`."""

        def add(name: str, source: RowSource, seen: Observation, value: str) -> None:
            columns.setdefault(name, []).append(picker.pick(source, seen, value))

        channels = ChannelRows(theirs.channel_axis)
        add("inputs", layer.rows(), compressed, layer.data.name or "")
        add("targets", channels, original, theirs.key)
        if original_inputs:
            add("original", theirs.rows(), original, theirs.data.name or "")
        if shortcuts is None or not _same_positions(original.values, theirs.key, shortcuts[1]):
            return
        add("offset", channels, compressed, shortcuts[0])
        add("original offset", channels, original, shortcuts[1])


class _Picker:
    """The same rows of every value with as many positions."""

    def __init__(self, rows: int, seed: int, samples: int) -> None:
        self._choice = Choice(rows, seed, samples)

    def pick(self, source: RowSource, seen: Observation, name: str) -> Rows:
        """(G, width, rows) float32 of the value called `name`."""
        array = seen.values[name]
        if not np.isfinite(array).all():
            raise DataError(f"value '{name}' is not finite on the calibration samples")
        samples, positions = source.samples(array.shape), source.positions(array.shape)
        chosen = [self._choice.of_sample(seen.first + sample, positions) for sample in range(samples)]
        rows = [np.arange(positions) if one is None else one for one in chosen]
        numbers = np.repeat(np.arange(samples), [len(one) for one in rows])
        taken = source.take(array, (numbers, np.concatenate(rows)))
        return np.ascontiguousarray(taken, dtype=np.float32)


def _shortcuts(layer: Linear, mine: Following, theirs: Following) -> tuple[str, str] | None:
    """Names of the shortcuts in the compressed and the original network, where both have one that is known beforehand."""
    if mine.shortcut is None or theirs.shortcut is None or mine.shortcut.name != theirs.shortcut.name:
        return None
    return (mine.shortcut.name or "", theirs.shortcut.name or "") if _comes_before(mine.shortcut, layer) else None


def _comes_before(value: ir.Value, layer: Linear) -> bool:
    """Whether `value` is made before `layer` in the order of the graph: then it has been compressed already."""
    producer, graph = value.producer(), layer.node.graph
    if producer is None or graph is None:
        return True
    for node in graph:
        if node is layer.node or node is producer:
            return node is producer
    return False


def _same_positions(values: Mapping[str, np.ndarray], one: str, other: str) -> bool:
    """Whether two values of the original have the same extents, so that the Add broadcasts nothing."""
    return values[one].shape == values[other].shape


def _observed(
    found: Mapping[str, Rows], activation: Activation | None, kept: npt.NDArray[np.intp] | None, key: str
) -> Observed:
    targets = found["targets"][0]
    targets = targets if kept is None else targets[kept]
    offset = found["offset"][0] if "offset" in found else None
    if offset is not None:
        lost = found["original offset"][0]
        lost = (lost if kept is None else lost[kept]) - offset
        targets = targets + lost
    if targets.shape[1] != found["inputs"].shape[-1]:
        raise DataError(f"layer '{key}' has other positions in the compressed network than in the original")
    return Observed(found["inputs"], targets, offset, activation, found.get("original"))
