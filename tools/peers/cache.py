"""Where bench models live on disk, and how they get there whole.

A model takes seconds to minutes to build, so each is written once. Several benches may ask for the same one
at the same time: each builds in a folder of its own beside the final place, and a rename publishes the
result. Whoever comes second replaces an equal file; nobody ever reads half a model.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

REVISION = 1
"""Part of every file name. Raise it when the content of any bench model changes."""


def cache_folder(folder: Path | str | None = None) -> Path:
    """Return the folder of the bench models: the given one, `$GRAPHOPT_BENCH_CACHE`, or the user's cache."""
    if folder is not None:
        return Path(folder)
    if chosen := os.environ.get("GRAPHOPT_BENCH_CACHE"):
        return Path(chosen)
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or Path.home() / ".cache"
    return Path(base) / "graphopt-bench"


def cached(folder: Path | str | None, stem: str, build: Callable[[Path], None]) -> Path:
    """Return the file `<stem>-r<REVISION>.onnx` of the cache, built by `build(path)` if missing."""
    home = cache_folder(folder)
    target = home / f"{stem}-r{REVISION}.onnx"
    if not target.exists():
        publish(home, [target.name], lambda scratch: build(scratch / target.name))
    return target


def publish(home: Path, names: list[str], build: Callable[[Path], None]) -> None:
    """Let `build(scratch)` write the files `names` into a scratch folder, then move them to `home`, in order.

    The file that others look for comes last in `names`: once it is there, all of them are.
    """
    home.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".building-", dir=home))
    try:
        build(scratch)
        for name in names:
            os.replace(scratch / name, home / name)
    finally:
        shutil.rmtree(scratch)
