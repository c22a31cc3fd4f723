"""What a process that lives for half a second leaves out: libraries it will not call, and collections of no garbage.

onnx-ir imports sympy, which takes longer to load than most models take to rewrite, for arithmetic on symbolic dims that
few models need; onnx imports protobuf's text formats for files that are not in them. These modules are put off until
something is asked of them (`importlib.util.LazyLoader`). Nobody who has them sees a difference, and where a library
stops importing one of them, nothing happens.

The cyclic garbage collector looks at every object again and again while graphs are built from some hundred thousand of
them, all of which stay. In a process that soon ends it may come by rarely.

Both concern the whole process, so the command line does it and the library does not.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import LazyLoader
from types import ModuleType

POSTPONED = frozenset(
    {
        "sympy",
        "onnx_ir._symbolic_shapes",  # asks sympy for its functions as soon as it runs
        "google.protobuf.json_format",
        "google.protobuf.text_format",
    }
)
"""Modules that their importers bind to a name first and use later, if ever."""

RARELY = 50_000
"""Objects that are new since the last collection of the youngest generation, at least (Python's default: 700)."""


class _Postponing(MetaPathFinder):
    """Finds the modules in `POSTPONED` where Python would, with a loader that waits."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in POSTPONED:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = LazyLoader(spec.loader)
        return spec


@contextmanager
def quick_start() -> Iterator[None]:
    """Within this context imports are put off and garbage is collected rarely."""
    finder, thresholds = _Postponing(), gc.get_threshold()
    sys.meta_path.insert(0, finder)
    gc.set_threshold(RARELY, *thresholds[1:])
    try:
        yield
    finally:
        gc.set_threshold(*thresholds)
        sys.meta_path.remove(finder)
