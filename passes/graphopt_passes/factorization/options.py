"""What the options of both passes mean to the search."""

from __future__ import annotations

from collections.abc import Sequence

from graphopt.pipeline.base import PassContext
from graphopt_passes.factorization.candidates import Search
from graphopt_passes.factorization.schemes import SCHEMES


def search(
    options: Sequence[str],
    context: PassContext,
    *,
    align: int | None = None,
    faster: bool = True,
    rank: float | None = None,
    branches: int | None = None,
) -> Search:
    """The search for schemes as `options` call them; `svd` is `channel` of a product.

    Args:
        options: names of schemes, as in options.
        context: of the pass.
        align: what ranks are multiples of; None is what the device asks for.
        faster: whether only what is predicted to be faster counts.
        rank: the only rank, or fraction of the highest.
        branches: the only number of branches.
    """
    wanted = {"channel" if one == "svd" else one for one in options}
    schemes = tuple(name for name, scheme in SCHEMES.items() if scheme.option in wanted)
    together = tuple(one for one in ("heads", "hidden") if one in wanted)
    unit = context.device.alignment if align is None else align
    return Search(schemes, unit, context.device, faster, rank, branches, together)
