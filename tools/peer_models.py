"""The models on which the benches compare graphopt with its peers, by name.

    python tools/peer_models.py resnet50 --exporter legacy --folder DIR
    python tools/peer_models.py light-shufflenet
    python tools/peer_models.py --list

The networks of `peers.networks` come from torch's two exporters (`peers.exports`), nine from the onnx wheel
(`peers.light`), one is large (`peers.big`) and one is long (`peers.many_nodes`). All have random weights from
fixed seeds, so that a bench needs no download; all are built once and kept in a cache folder (`peers.cache`).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from peers.big import big
from peers.cache import cache_folder
from peers.exports import (
    EXPORTERS,
    REFERENCES,
    Exporter,
    export,
)
from peers.light import light, light_names
from peers.many_nodes import many_nodes
from peers.networks import NETWORKS, example_inputs, images, network, weighted_network

__all__ = [
    "EXPORTERS",
    "NETWORKS",
    "REFERENCES",
    "Exporter",
    "big",
    "cache_folder",
    "example_inputs",
    "export",
    "images",
    "light",
    "light_names",
    "many_nodes",
    "network",
    "weighted_network",
]


def names() -> list[str]:
    """Return every name the command accepts."""
    return [*NETWORKS, *(f"light-{name}" for name in light_names()), "big", "many-nodes"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Build a bench model and print its path.")
    parser.add_argument("name", nargs="?", choices=names(), metavar="NAME", help="see --list")
    parser.add_argument("--list", action="store_true", help="print the names and leave")
    parser.add_argument("--folder", type=Path, help="cache (default: $GRAPHOPT_BENCH_CACHE or the user's)")
    parser.add_argument("--exporter", choices=EXPORTERS, default="legacy", help="for the torch networks")
    parser.add_argument("--batch", type=int, default=1, help="for the torch networks; 0 means symbolic")
    parser.add_argument("--keep-bn", action="store_true", help="leave BatchNormalization in the export")
    parser.add_argument("--opset", type=int, help="for the torch networks")
    parser.add_argument("--gib", type=float, default=3.0, help="for big: size of the weights")
    parser.add_argument("--nodes", type=int, default=20_000, help="for many-nodes: number of nodes")
    return parser


def main(arguments: list[str] | None = None) -> None:
    """Build the model that the command line asks for and print where it is."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list:
        print("\n".join(names()))
    elif options.name is None:
        parser.error("which model? --list prints the names")
    else:
        print(_build(options))


def _build(options: argparse.Namespace) -> Path:
    name: str = options.name
    if name == "big":
        return big(options.folder, options.gib)
    if name == "many-nodes":
        return many_nodes(options.folder, options.nodes)
    if name.startswith("light-"):
        return light(name.removeprefix("light-"), options.folder)
    choice = {"batch": options.batch or None, "keep_bn": options.keep_bn, "opset": options.opset}
    return export(name, options.exporter, options.folder, **choice)


if __name__ == "__main__":
    main()
