"""How graphopt scales: a 3 GB model with external data and a graph of 20,000 nodes, file to file.

Figures to hold: the large model through the first passes in at most 3 times what onnx-ir takes to load and save it
(warm cache), with at most 250 MiB resident; the long graph in at most 1.5 times what onnxsim takes.
Run as `python tools/bench_scale.py [--rounds N] [--folder DIR] [--gib 3] [--nodes 20000]`; needs 3 times the model's
size on disk.
"""

from __future__ import annotations

import argparse
import tempfile
from importlib.util import find_spec
from pathlib import Path

import measure
from peer_models import big, many_nodes

FIRST_PASSES = "eliminate-identity,fold-constants,fold-batch-norm,eliminate-dead-code,remove-unused-initializers"

LOAD_AND_SAVE = """
import sys, onnx_ir
model = onnx_ir.load(sys.argv[1])
onnx_ir.save(model, sys.argv[2], external_data=sys.argv[3])
"""

ONNXSIM = """
import sys, onnx, onnxsim
model, ok = onnxsim.simplify(sys.argv[1])
onnx.save(model, sys.argv[2])
"""


def compare(title: str, commands: dict[str, list[str]], reference: str, rounds: int) -> None:
    """Run the commands in turn and print the table."""
    print(f"\n{title}")
    print(measure.table(measure.interleaved(commands, rounds), reference))


def run_graphopt(model: Path, folder: Path) -> list[str]:
    """graphopt's command line through the first passes, without the equivalence check."""
    return measure.graphopt(
        "run", model, "-o", folder / "graphopt.onnx", "-p", FIRST_PASSES, "--no-check", "--overwrite", "-q"
    )


def main() -> None:
    """Make the models, run everything in turn, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="where models are made; default: a temporary folder")
    parser.add_argument("--gib", type=float, default=3)
    parser.add_argument("--nodes", type=int, default=20_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        if options.gib:
            large = big(folder, options.gib)
            commands = {
                "onnx-ir load + save": measure.python(LOAD_AND_SAVE, large, folder / "ir.onnx", "ir.onnx.data"),
                "graphopt": run_graphopt(large, folder),
            }
            title = f"{options.gib:g} GiB, external data, a duplicate pair and one tensor of a third of the size"
            compare(title, commands, "onnx-ir load + save", options.rounds)
        if options.nodes:
            long = many_nodes(folder, options.nodes)
            commands = {"graphopt": run_graphopt(long, folder)}
            if find_spec("onnxsim"):
                commands = {"onnxsim": measure.python(ONNXSIM, long, folder / "sim.onnx"), **commands}
            compare(f"{options.nodes} nodes", commands, next(iter(commands)), options.rounds)


if __name__ == "__main__":
    main()
