"""The model as it was given: what results are held against, on seeded inputs, in time and on samples."""

from __future__ import annotations

import itertools

import onnx_ir as ir

from graphopt.lift import Lifted
from graphopt.runtime.equivalence import Equivalence, Verdict
from graphopt.runtime.inputs import candidate_inputs
from graphopt.runtime.latency import Latency, measure
from graphopt.runtime.quality import Samples
from graphopt.runtime.session import ModelSource
from graphopt.runtime.streaming import Progress


class Original:
    """The original of one run.

    Args:
        lifted: the model before any pass changes it.
        seed: of the inputs that it is compared and timed on.
        threads: threads of onnxruntime.
        provider: execution provider, None for the CPU.
    """

    def __init__(self, lifted: Lifted, *, seed: int = 0, threads: int = 1, provider: str | None = None) -> None:
        self._lifted = lifted
        self._seed = seed
        self._threads = threads
        self._provider = provider
        self._equivalence: Equivalence | None = None
        self.last: Verdict | None = None

    def expect_comparison(self) -> Original:
        """Read what comparing needs of the lifted model, before any pass changes it; the original runs later."""
        self._equivalence = Equivalence(
            self._lifted.model,
            source=lambda: self.source,
            seed=self._seed,
            threads=self._threads,
            provider=self._provider,
        )
        return self

    @property
    def source(self) -> ModelSource:
        """What to run."""
        return source_of(self._lifted)

    def verdict(self, result: ir.Model) -> Verdict:
        """Compare `result` with the original on seeded inputs."""
        assert self._equivalence is not None
        self.last = self._equivalence.verdict(result)
        return self.last

    def latency(self, result: ir.Model, samples: Samples | None = None, progress: Progress | None = None) -> Latency:
        """Time the original and `result` in turn, on one of the samples where there are some.

        Raises:
            RuntimeFailureError: one of them cannot be run.
        """
        given = (batch.feeds for batch in itertools.islice(samples.batches(1), 1)) if samples is not None else ()
        return measure(
            self.source,
            result,
            itertools.chain(given, candidate_inputs(self._lifted.relift(), seed=self._seed, batch=1)),
            threads=self._threads,
            provider=self._provider,
            progress=None if progress is None else lambda done: progress("measuring latency", done, 1.0),
        )


def source_of(lifted: Lifted) -> ModelSource:
    """What to run of a lifted model: the file itself where there is one, which no defect of ours can have touched."""
    path = lifted.source.path
    return path if path is not None and not lifted.fixed else lifted.relift()
