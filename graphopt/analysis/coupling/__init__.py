"""Which channels of a model depend on each other, and how to take some of them out."""

from graphopt.analysis.coupling.couple import couple
from graphopt.analysis.coupling.structure import Coupling, Group, Pinned, Unit
from graphopt.analysis.coupling.surgery import remove

__all__ = ["Coupling", "Group", "Pinned", "Unit", "couple", "remove"]
