"""Torch-Pruning on the network itself: NETWORK OUTPUT RATIO. Writes a line of JSON with the MACs before and after.

L2 norms, one ratio for all layers, the last layer left alone: what its README shows. The pruned network has to run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch_pruning
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from peers.networks import example_inputs, weighted_network


def main() -> None:
    """Prune."""
    name, output, ratio = sys.argv[1:]
    network = weighted_network(name).requires_grad_(True)  # parameters that need no gradient are not looked at
    inputs = tuple(torch.from_numpy(array) for array in example_inputs(name).values())
    before = _macs(network, inputs)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    heads = {module.qkv: module.heads for module in network.modules() if hasattr(module, "qkv")}
    pruner = torch_pruning.pruner.MetaPruner(
        network,
        inputs,
        importance=torch_pruning.importance.MagnitudeImportance(p=2),
        pruning_ratio=float(ratio),
        ignored_layers=layers[-1:],
        num_heads=heads,
    )
    pruner.step()
    Path(output).write_text(json.dumps({"before": before, "after": _macs(network, inputs)}))


def _macs(network: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops()) / 2


if __name__ == "__main__":
    main()
