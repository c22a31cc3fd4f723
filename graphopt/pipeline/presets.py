"""Named pipelines. A preset's name stands for its passes, also inside other pipelines."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

PRESETS: Mapping[str, str] = MappingProxyType(
    {
        "lossless": ",".join(
            (
                # what is known already, and what nobody needs; dead readers would block rules that want a single one
                "inline-constant-if,eliminate-identity,resolve-casts,split-tensors,fold-constants,simplify-shapes",
                "eliminate-no-ops,omit-zero-states,eliminate-dead-code,eliminate-common-subexpressions",
                # data movement, merged before it is moved
                "merge-consecutive,merge-rearrangements,move-transposes",
                # whole operators first, then arithmetic into the linear operators beside it
                "fuse-operators,fold-batch-norm,hoist-scales,fold-scale,fold-pad,flatten-linear,fuse-matmul-add",
                "deduplicate-initializers,eliminate-dead-code,remove-unused-initializers",
            )
        ),
        "int8": "lossless,quantize",
        "small": "lossless,prune-channels{ratio=0.1},factorize,quantize",
        "fast": "lossless,prune-channels{ratio=0.1},quantize",
    }
)
"""Name to pipeline text. A preset that names a pass which is not installed is known, but not available."""
