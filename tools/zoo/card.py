"""Write the model card of the zoo, `models/README.md`, from measured facts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from zoo.data import CANVAS, PART_SIZES
from zoo.measure import Accuracy, Spread
from zoo.training import RECIPES


@dataclass(frozen=True)
class Export:
    """One `.onnx` file.

    Attributes:
        file: its name.
        exporter: who wrote it.
        opset: of the default domain.
        size: in bytes.
        parameters: the numbers that it holds, as `graphopt cost` counts them.
        accuracy: on the held-out set.
    """

    file: str
    exporter: str
    opset: int
    size: int
    parameters: int
    accuracy: Accuracy


@dataclass(frozen=True)
class Facts:
    """What was measured about one trained network; `trained` numbers, `macs` are multiply-accumulates for one image."""

    name: str
    trained: int
    macs: int
    exports: tuple[Export, ...]
    spread: Spread | None


_WHAT: Final = {
    "residual": (
        "A ResNet of five blocks in three stages (16, 32, 48 channels), with stride 2 and 1x1 projection shortcuts "
        "where the stage changes. The legacy export keeps every BatchNormalization."
    ),
    "depthwise": (
        "A MobileNet (v1) of five depthwise-separable blocks, 32 to 128 channels, with ReLU6. The legacy export keeps "
        "every BatchNormalization."
    ),
    "shuffle": (
        "A ShuffleNetV2 of three stages (32, 64, 128 channels): each unit splits its channels, transforms one half, "
        "concatenates and shuffles."
    ),
    "transformer": (
        "A ViT: 16 patches of 4x4 pixels, three pre-normalized encoder layers of 48 channels with three heads and a "
        "feed-forward width of 96 (Gelu), mean pooling."
    ),
    "mlp": "A perceptron with hidden layers of 128, 96 and 64 units and ReLU.",
}

_HEAD: Final = """\
# Models

Small networks that `tools/train_models.py` trained; it also wrote this card. They read `input`, float32 (batch, 1,
{canvas}, {canvas}) in [0, 1], and answer `logits`, float32 (batch, 10); the batch axis is symbolic. Nothing has to be
normalized: the `.npz` files hold arrays as the models read them.

{overview}

## Data

The handwritten digits of scikit-learn (1797 images of 8x8 pixels in 17 grey levels), which are the test set of
E. Alpaydin and C. Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository, 1998,
<https://doi.org/10.24432/C50P49>, licensed CC BY 4.0. Changes: each digit is rotated, sheared, scaled, shifted and
dimmed on a canvas of {canvas}x{canvas} pixels and partly covered by fragments of other digits
(`tools/zoo/data.py`), because the digits as they are are too easy for these networks.

| part | digits | file | use |
| --- | --- | --- | --- |
| training | {train} | | rendered anew in each epoch |
| calibration | {calib} | `digits.calib.npz` | never trained on |
| held-out | {eval} | `digits.eval.npz` | never trained on; seen while the recipes were drafted |

The parts share no digit, and fragments come from the same part. Both files hold `input` and `labels` (int64). The
split ignores who wrote a digit, for the source does not say: the accuracies are those for known writers.

## Training and export

Cross-entropy, AdamW with a one-cycle schedule and decoupled weight decay, on one thread from fixed seeds; the last
weights are kept. A second run on the same machine gives the same files; another processor may round differently.
Trained and exported with {versions}.

The exports were compared with torch on the held-out images: no logit deviates by more than 1e-4 of the largest.
Accuracies are those of onnxruntime on the held-out images, with their standard errors sqrt(p (1 - p) / n). They
serve to measure what compression costs, on the same images sample by sample; they are no record of what such networks
can reach.

Parameters are what a file holds, as `graphopt cost` counts it: running statistics of BatchNormalization, where an export keeps
them, are among them, and what an export folds into the layer before it is not.
"""


def model_card(facts: Iterable[Facts], versions: Mapping[str, str]) -> str:
    """Return the card in Markdown; `versions` are those of the tools by name."""
    facts = list(facts)
    head = _HEAD.format(
        canvas=CANVAS,
        overview=_overview(facts),
        versions=", ".join(f"{tool} {version}" for tool, version in versions.items()),
        **PART_SIZES,
    )
    return head + "".join(_section(fact) for fact in facts)


def _overview(facts: Iterable[Facts]) -> str:
    rows = ["| network | parameters | MACs | accuracy |", "| --- | --- | --- | --- |"]
    rows += [
        f"| [{fact.name}](#{fact.name}) | {fact.exports[0].parameters:,} | {fact.macs / 1e6:.2f} M | {fact.exports[0].accuracy} |"
        for fact in facts
    ]
    return "\n".join(rows)


def _section(fact: Facts) -> str:
    recipe = RECIPES[fact.name]
    rows = "".join(
        f"| `{export.file}` | {export.exporter} | {export.opset} | {export.parameters:,} | {export.size / 1000:.0f} kB | "
        f"{export.accuracy} |\n"
        for export in fact.exports
    )
    return (
        f"\n## {fact.name}\n\n{_WHAT[fact.name]}\n\n"
        f"{fact.trained:,} trained parameters, {fact.macs / 1e6:.2f} M multiply-accumulates for one image. Trained for "
        f"{recipe.epochs} epochs in batches of {recipe.batch}, step size up to {recipe.peak_rate:g}, weight decay "
        f"{recipe.weight_decay:g}, seed {recipe.seed}.\n{_spread(fact.spread)}\n"
        f"| file | exporter | opset | parameters | size | accuracy |\n| --- | --- | --- | --- | --- | --- |\n{rows}"
    )


def _spread(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return (
        f"\nIts channels are uneven, as those of MobileNets tend to be: within one layer the scales of "
        f"BatchNormalization differ by up to {spread.scales:,.0f} times. Of the {spread.channels} channels behind a "
        f"ReLU6, {spread.clipping} reach 6 on held-out images and {spread.dead} are always 0; with ReLU in place of "
        f"ReLU6 the accuracy is {spread.unclipped}. It was trained to be so: see `spread_scales` in "
        f"`tools/zoo/networks.py`.\n"
    )
