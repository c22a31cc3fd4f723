"""The table as a whole: it knows every operator of ai.onnx, and asking it anything never fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import InvalidModelError
from graphopt.ops import base, table
from graphopt.ops.base import OPAQUE, Extents, operator

ONNX_OPERATORS = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
EVERYTHING = sorted(table.BY_NAME)


class Nothing:
    """Extents of which none is known."""

    def dims(self, value: ir.Value | None) -> tuple[int, ...] | None:
        return None

    def size(self, value: ir.Value | None) -> int | None:
        return None


def test_every_operator_of_onnx_is_known_or_knowingly_opaque() -> None:
    known = {op_type for domain, op_type in table.BY_NAME if domain == ""}
    assert ONNX_OPERATORS - known - table.KNOWINGLY_OPAQUE == set()
    assert known & table.KNOWINGLY_OPAQUE == set()
    assert table.KNOWINGLY_OPAQUE <= ONNX_OPERATORS


def test_no_operator_belongs_to_two_families() -> None:
    names = [(domain, name) for family in table.FAMILIES for domain, own in family.op_types.items() for name in own]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    assert list(base.families()) == list(table.FAMILIES)


def test_an_operator_outside_the_table_is_opaque(make_node: Callable[..., ir.Node], extents: Extents) -> None:
    for domain, op_type in (("", "NonMaxSuppression"), ("my.domain", "Conv"), ("ai.onnx.ml", "TreeEnsemble")):
        node = make_node(op_type, [(1, 3, 8, 8)], (1, 3, 8, 8), domain=domain)
        assert operator(node) is OPAQUE
        assert (operator(node).macs(node, extents), operator(node).flops(node, extents)) == (None, None)


@pytest.mark.parametrize(("domain", "op_type"), EVERYTHING)
def test_nothing_known_means_unknown_or_nothing_to_do(
    domain: str, op_type: str, make_node: Callable[..., ir.Node]
) -> None:
    for node in (make_node(op_type, [], domain=domain), make_node(op_type, [None, (2,), None], domain=domain)):
        family = operator(node)
        assert family is not OPAQUE
        assert family.macs(node, Nothing()) in (0, None)
        assert family.flops(node, Nothing()) in (0, None)
        assert family.workspace(node, Nothing()) >= 0
        assert family.view_of(node) in (0, None)
        assert all(index >= 0 for index in family.may_overwrite(node))


@pytest.mark.parametrize(("domain", "op_type"), EVERYTHING)
def test_scalars_everywhere_break_nothing(
    domain: str, op_type: str, make_node: Callable[..., ir.Node], extents: Extents
) -> None:
    for shape in ((), (0,), (1,), (2, 0, 3), (2, 3, 4, 5)):
        node = make_node(op_type, [shape] * 5, shape, domain=domain)
        macs, flops = operator(node).macs(node, extents), operator(node).flops(node, extents)
        assert macs is None or macs >= 0
        assert flops is None or flops >= 2 * (macs or 0)
        assert operator(node).workspace(node, extents) >= 0


@pytest.mark.parametrize("op_type", ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "QuantizeLinear"])
def test_quantization_parameters_are_where_the_schema_has_them(op_type: str) -> None:
    inputs = onnx.defs.get_schema(op_type).inputs
    expected = tuple(index for index, value in enumerate(inputs) if value.name.endswith(("scale", "zero_point")))
    assert table.BY_NAME[("", op_type)].quantization_parameters == expected


def test_an_attribute_of_the_wrong_type_is_an_invalid_model(
    make_node: Callable[..., ir.Node], extents: Extents
) -> None:
    node = make_node("Gemm", [(2, 3), (3, 4)], (2, 4), transA=1.5)
    with pytest.raises(InvalidModelError, match="Gemm 'value': attribute 'transA' is of type FLOAT, but must be INT"):
        operator(node).macs(node, extents)
