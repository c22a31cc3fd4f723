"""The house's own tools for the manager: verification, inference, prices, opset upgrades, and starting over."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.analysis import meaning, opset
from graphopt.analysis import shapes as inference
from graphopt.ir import emit
from graphopt.ir.verify import verify
from graphopt.lift import Lifted
from graphopt.pipeline.manager import Tools, Touched

if TYPE_CHECKING:
    from graphopt.pricing import DeviceProfile
    from graphopt.runtime.equivalence import Verdict


def tools_for(
    lifted: Lifted,
    equivalent: Callable[[ir.Model], Verdict] | None,
    *,
    price_passes: bool = True,
    device: DeviceProfile | None = None,
) -> Tools:
    """Everything that running passes over `lifted` takes.

    Args:
        lifted: the model.
        equivalent: compares a model with the original; None for a run that compares nothing.
        price_passes: whether the model is priced after each pass.
        device: what time is predicted for; None for the built-in profile.
    """
    return Tools(
        verify_structure=verify,
        infer=inference.infer,
        verify_meaning=meaning.check,
        save=lambda model, path: emit.emit(model, path, fixed_shapes=bool(lifted.fixed)),
        upgrade=opset.upgrade,
        price=_pricing(lifted, device) if price_passes else None,
        equivalent=equivalent,
        relift=lifted.relift,
    )


def _pricing(lifted: Lifted, device: DeviceProfile | None) -> Callable[[ir.Model, Touched], Any]:
    from graphopt.pricing import Pricer  # here, because a run that prices nothing need not load it

    pricer = Pricer(shapes=lifted.fixed, device=device)
    return lambda model, touched: pricer.price(model, touched=touched)
