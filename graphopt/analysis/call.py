"""One use of an operator with all that is known about its inputs: what every inference rule is asked about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import onnx_ir as ir

from graphopt.analysis.dims import Dims
from graphopt.analysis.facts import UNKNOWN, Fact

_BY_IDENTITY = frozenset(
    {
        ir.AttributeType.TENSOR, ir.AttributeType.TENSORS, ir.AttributeType.SPARSE_TENSOR,
        ir.AttributeType.SPARSE_TENSORS, ir.AttributeType.TYPE_PROTO, ir.AttributeType.TYPE_PROTOS,
        ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS,
    }
)  # fmt: skip


_Answer = TypeVar("_Answer")

_MOST_ANSWERS = 20_000


class Call(NamedTuple):
    """An operator, its attributes, and its inputs.

    Attributes:
        domain: "" for ONNX's own operators.
        version: the opset version of that domain.
        attributes: by name; references to a function's parameters are already resolved.
        inputs: what is known of each input; None where an optional input is left out.
        contents: the elements of those inputs on which the result's shape depends, where they are known (see
            `graphopt.analysis.contents`).
        outputs: for each output whether it is used at all.
    """

    domain: str
    op_type: str
    version: int
    attributes: Mapping[str, ir.Attr]
    inputs: tuple[Fact | None, ...]
    contents: tuple[np.ndarray | None, ...]
    outputs: tuple[bool, ...]

    def fact(self, index: int) -> Fact:
        """What is known of an input; nothing for one that is left out."""
        fact = self.inputs[index] if index < len(self.inputs) else None
        return UNKNOWN if fact is None else fact

    def dims(self, index: int) -> Dims | None:
        """The extents of an input."""
        return self.fact(index).dims

    def has(self, index: int) -> bool:
        """Whether an optional input is given."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def content(self, index: int) -> np.ndarray | None:
        """The elements of an input, or None where nothing is known of them."""
        return self.contents[index] if index < len(self.contents) else None

    def integer(self, name: str, default: int) -> int:
        """An integer attribute; one of another type, which is illegal, counts as left out."""
        attribute = self.attributes.get(name)
        return default if attribute is None or attribute.type != ir.AttributeType.INT else attribute.as_int()

    def integers(self, name: str) -> Sequence[int] | None:
        """A list attribute, or None where it is left out."""
        attribute = self.attributes.get(name)
        return None if attribute is None or attribute.type != ir.AttributeType.INTS else list(attribute.as_ints())

    def text(self, name: str, default: str) -> str:
        """A string attribute."""
        attribute = self.attributes.get(name)
        return default if attribute is None or attribute.type != ir.AttributeType.STRING else attribute.as_string()

    def key(self) -> tuple[object, ...] | None:
        """A key under which an answer about this call can be kept, or None where an attribute does not hash."""
        settings: list[object] = []
        for name, attribute in self.attributes.items():
            if attribute.type in _BY_IDENTITY:
                return None
            value = attribute.value
            settings.append((name, tuple(value) if isinstance(value, list) else value))
        contents = tuple(
            None if array is None else (array.dtype.str, array.shape, tuple(array.flat)) for array in self.contents
        )
        inputs = tuple(None if fact is None else (_type_key(fact.type), fact.dims) for fact in self.inputs)
        return (self.domain, self.op_type, self.version, tuple(settings), inputs, contents, self.outputs)


def _type_key(kind: ir.TypeProtocol | None) -> object:
    """What stands for a type in a key: onnx-ir's types hash by their text, which is slow for the common kind."""
    return kind.dtype if type(kind) is ir.TensorType else kind


class Answers(Generic[_Answer]):
    """Answers that follow from a call alone, so that they hold for every model; all go when they are too many."""

    def __init__(self) -> None:
        self._found: dict[object, _Answer] = {}

    def get(self, key: object) -> _Answer | None:
        """What was kept under `key`, which holds all that the answer depends on."""
        return self._found.get(key)

    def keep(self, key: object, answer: _Answer) -> None:
        """Keep `answer`, which nobody changes."""
        if len(self._found) >= _MOST_ANSWERS:
            self._found.clear()
        self._found[key] = answer
