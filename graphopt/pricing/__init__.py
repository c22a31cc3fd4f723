"""What a version of the model costs: MACs, FLOPs, parameters, bytes, peak memory and predicted time.

The package is not called `cost`, because `graphopt.cost` is the function that users call.
"""

from __future__ import annotations

from graphopt.pricing.cost import Cost, NodeCost
from graphopt.pricing.device import DeviceProfile
from graphopt.pricing.pricer import Pricer, price

__all__ = ["Cost", "DeviceProfile", "NodeCost", "Pricer", "price"]
