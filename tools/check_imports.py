"""Check that imports point one way: a layer may import the layers before it, never one after it.

Run as `python tools/check_imports.py`; prints each offending import and exits 1 where there is one.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Layers in one tuple may not import each other either.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("graphopt.errors",),
    ("graphopt.ir",),
    ("graphopt.ops",),
    ("graphopt.analysis",),
    ("graphopt.lift",),
    ("graphopt.runtime",),
    ("graphopt.data", "graphopt.pricing"),
    ("graphopt.pipeline",),
    ("graphopt_passes",),
    ("graphopt.planning",),
    ("graphopt.report",),
    ("graphopt.arguments",),
    ("graphopt.api",),
    ("graphopt.integrations", "graphopt.cli"),
)
RUNTIME_ONLY = {"onnxruntime": "graphopt.runtime"}
# The package's front names what the layers offer; it may look at all of them.
FRONT = ("graphopt", "graphopt.__main__")


def rank(module: str) -> int | None:
    """The layer of a module, or None for modules outside of the order."""
    for position, layer in enumerate(LAYERS):
        if any(module == name or module.startswith(name + ".") for name in layer):
            return position
    return None


def layer_name(module: str) -> str:
    """The name of the layer that a module belongs to."""
    names = (name for layer in LAYERS for name in layer if module == name or module.startswith(name + "."))
    return next(names, module)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and module of every import in a file, those inside functions included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.lineno, node.module
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def violations(root: Path = ROOT) -> Iterator[str]:
    """One sentence per import that points the wrong way."""
    for base in (root, root / "passes"):
        for package in ("graphopt", "graphopt_passes"):
            for path in sorted((base / package).rglob("*.py")):
                module = ".".join(path.relative_to(base).with_suffix("").parts).removesuffix(".__init__")
                if module not in FRONT:
                    yield from _violations_of(module, path, root)


def _violations_of(module: str, path: Path, root: Path) -> Iterator[str]:
    where, own = path.relative_to(root), rank(module)
    if own is None:
        yield f"{where}: '{module}' is in no layer"
        return
    for line, target in imports(path):
        owner = RUNTIME_ONLY.get(target.split(".")[0])
        if owner and layer_name(module) != owner:
            yield f"{where}:{line}: only {owner} imports {target}"
        other = rank(target)
        if other is not None and other >= own and layer_name(target) != layer_name(module):
            yield f"{where}:{line}: {layer_name(module)} may not import {layer_name(target)}"


if __name__ == "__main__":
    found = sorted(set(violations()))
    print("\n".join(found) or "imports point one way")
    sys.exit(bool(found))
