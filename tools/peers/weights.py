"""Random weights under which a network behaves like a trained one, as far as numerics go.

Convolutions and dense layers follow He et al. 2015 ("Delving deep into rectifiers", eq. 10): normal with
variance 2 / fan-in, or 1 / fan-in for the last layer of all, which no Relu halves. A BatchNormalization first
takes the statistics of the data that really arrives at it, as training would leave them, and is then shaken:
folding it is a test only while none of its four tensors is trivial, and a network is a test only while its
activations neither explode nor die. BERT's matrices get the deviation 0.04 (twice its published init), so
that attention is not uniform.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

SEED = 20240


def randomize(model: nn.Module, sample: tuple[Tensor, ...]) -> nn.Module:
    """Fill the weights of `model`, with `sample` giving the statistics, and return it in eval mode."""
    random = torch.Generator().manual_seed(SEED)
    transformer = any(isinstance(module, nn.LayerNorm) for module in model.modules())
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    with torch.no_grad():
        for module in model.modules():
            _fill_norm_or_embedding(module, random)
        for layer in layers:
            gain = 1.0 if layer is layers[-1] else 2.0
            deviation = 0.04 if transformer else math.sqrt(gain / layer.weight[0].numel())
            layer.weight.normal_(0.0, deviation, generator=random)
            if layer.bias is not None:
                layer.bias.normal_(0.0, 0.05, generator=random)
        _settle_batch_norms(model, sample, random)
    return model.eval().requires_grad_(False)


def _fill_norm_or_embedding(module: nn.Module, random: torch.Generator) -> None:
    if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
        module.weight.uniform_(0.6, 1.4, generator=random)
        module.bias.normal_(0.0, 0.1, generator=random)
    elif isinstance(module, nn.Embedding):
        module.weight.normal_(0.0, 0.04, generator=random)


def _settle_batch_norms(model: nn.Module, sample: tuple[Tensor, ...], random: torch.Generator) -> None:
    """Set the running statistics to those of `sample`, times and plus a random part."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    if not norms:
        return
    for norm in norms:
        norm.momentum = 1.0  # the running statistics become those of the one batch
        norm.train()
    model(*sample)
    for norm in norms:
        norm.momentum = 0.1
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        mean += variance.sqrt() * torch.empty_like(mean).normal_(0.0, 0.1, generator=random)
        variance *= torch.empty_like(variance).uniform_(0.7, 1.4, generator=random)
