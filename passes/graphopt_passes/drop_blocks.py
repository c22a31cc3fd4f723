"""Removal of residual blocks whose branch the network hardly needs, once the layers behind have been refitted.

Each block is tried in a copy of the network: its branch is cut out, the next layers are refitted towards the original's outputs
(`weights.walking`; a branch behind makes up for what its shortcut has lost), and what the outputs lose is measured on
samples that nothing was fitted to. Blocks go in the order of their harm; each further one is measured together with those that
are gone already. In the end all layers behind the first cut are refitted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt.errors import DataError
from graphopt.ir.surgery import FreshNames
from graphopt.ir.walk import label
from graphopt.pipeline.base import PassContext, PassResult, option
from graphopt.pipeline.evidence import Evidence
from graphopt.pipeline.remarks import Remarks
from graphopt_passes.lossless.eliminate_identity import EliminateIdentity
from graphopt_passes.lossy import LossyPass
from graphopt_passes.reconstruction.harm import divergence, watched
from graphopt_passes.reconstruction.transposed import layers_of
from graphopt_passes.reconstruction.walk import Walk
from graphopt_passes.residual_blocks import Block, remove, residual_blocks
from graphopt_passes.weights.walking import ROWS, refit_dense

_FITTED_SAMPLES, _JUDGED_SAMPLES = 192, 192
_NEIGHBOURS = 4
"""Layers behind a cut that are refitted for a trial."""
_TRIAL_ROWS = 6_000


@dataclass(frozen=True)
class DropBlocks(LossyPass):
    """Remove residual blocks that the network hardly needs."""

    name: ClassVar[str] = "drop-blocks"
    needs_data: ClassVar[bool] = True

    harm: float = option(
        0.01,
        "how much the outputs may change, all removed blocks together: divergence in nats of classifiers, else squared "
        "error over the energy",
        minimum=0,
    )
    blocks: int | None = option(None, "how many blocks are removed at most", minimum=0)

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        """Remove blocks of the main graph.

        Raises:
            DataError: there are fewer than two samples, or activations are not finite.
        """
        assert context.evidence is not None  # the manager has seen to it
        remarks = Remarks()
        blocks = [
            block
            for block in residual_blocks(model.graph)
            if not any(context.excluded(node) for node in (block.add, *block.nodes))
        ]
        if not blocks:
            remarks.missed(model.graph.name or "model", "no residual block to remove")
            return PassResult(False, (), remarks.listed())
        trials = _Trials(model, context)
        gone = self._choice(blocks, trials, remarks)
        if not gone:
            return PassResult(False, (), remarks.listed())
        original = model.clone()
        made = remove(model, [block.key for block in gone])
        trials.refit(original, model, made, context.evidence, neighbours=None, rows=ROWS)
        harm = trials.harm_of(model)
        EliminateIdentity().run(model, context)
        remarks.applied(model.graph.name or "model", f"{len(gone)} of {len(blocks)} blocks removed, harm {harm:.2g}")
        return PassResult(True, None, remarks.listed())

    def _choice(self, blocks: Sequence[Block], trials: _Trials, remarks: Remarks) -> list[Block]:
        """The blocks to remove, in the order of the graph."""
        harms = {block.key: trials.harm([block.key]) for block in blocks}
        gone: list[Block] = []
        most = len(blocks) if self.blocks is None else self.blocks
        for block in sorted(blocks, key=lambda one: harms[one.key]):
            alone = harms[block.key]
            if len(gone) >= most or alone > self.harm:
                remarks.missed(label(block.add), f"stays: harm alone {alone:.2g}")
                continue
            inside = {node for other in gone for node in other.nodes}
            together = [*gone, block] if block.add not in inside else gone
            harm = alone if not gone else trials.harm([one.key for one in blocks if one in together])
            if harm <= self.harm and together is not gone:
                gone = together
                remarks.applied(label(block.add), f"branch removed: harm alone {alone:.2g}")
            else:
                remarks.missed(label(block.add), f"stays: harm {harm:.2g} together with those that are gone")
        return [block for block in blocks if block in gone]


class _Trials:
    """Copies of a network without some blocks, judged by what their outputs lose."""

    def __init__(self, model: ir.Model, context: PassContext) -> None:
        assert context.evidence is not None
        samples = context.evidence.samples
        if len(samples) < 2:
            raise DataError("drop-blocks: one sample is too few: harm is measured on samples that nothing is fitted to")
        numbers = np.random.default_rng(context.seed).permutation(len(samples))
        cut = max(1, min(len(numbers) // 3, _JUDGED_SAMPLES))
        fitted = numbers[cut : cut + _FITTED_SAMPLES]
        self._judging, self._fitting = (
            Evidence(samples.subset(sorted(part.tolist())), threads=context.threads) for part in (numbers[:cut], fitted)
        )
        self._model = model
        self._seed = context.seed
        self._watched = watched(model)
        self._right = self._outputs(model)

    def harm(self, keys: Sequence[str]) -> float:
        """Without the blocks called `keys`, their neighbours refitted."""
        trial = self._model.clone()
        made = remove(trial, keys)
        self.refit(self._model, trial, made, self._fitting, neighbours=_NEIGHBOURS, rows=_TRIAL_ROWS)
        return self.harm_of(trial)

    def refit(
        self,
        original: ir.Model,
        model: ir.Model,
        cuts: Sequence[ir.Node],
        evidence: Evidence,
        *,
        neighbours: int | None,
        rows: int,
    ) -> None:
        """Refit the layers behind each of the `cuts`, as many as `neighbours` says; None is all."""
        names, waiting, left = FreshNames(model), set(cuts), 0
        following = {layer.node: layer for layer in layers_of(model.graph)}
        with Walk(original, model, evidence, rows=rows, seed=self._seed) as walk:
            for node in model.graph:
                if node in waiting:
                    left = len(following) if neighbours is None else neighbours
                elif node in following and left:
                    left -= 1
                    refit_dense(walk, following[node], names)
                    walk.advance(following[node].key)

    def harm_of(self, model: ir.Model) -> float:
        """Mean harm per sample of `model`'s outputs."""
        parts = [
            divergence(exact, found)
            for right, now in zip(self._right, self._outputs(model), strict=True)
            for exact, found in zip(right, now, strict=True)
        ]
        harm = float(np.concatenate(parts).sum()) / len(self._judging.samples)
        return harm if np.isfinite(harm) else float("inf")

    def _outputs(self, model: ir.Model) -> list[list[np.ndarray]]:
        with self._judging.stepper(model) as stepper:
            return [[seen.values[name] for name in self._watched] for seen in stepper.stream(self._watched)]
