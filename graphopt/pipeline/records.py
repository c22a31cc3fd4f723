"""What a run of a pipeline leaves behind: a record per pass, and one of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import onnx_ir as ir

from graphopt.pipeline.base import Pass, Remark


@dataclasses.dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        name: of the pass.
        options: all its options, by name.
        seconds: time that the pass itself took.
        modified: whether it changed the model, and the change was kept.
        before: cost of the model before it, or None where nothing is priced.
        after: cost of the model after it.
        remarks: what it did where, and above all why not.
        facts: figures for the report, under keys of the pass's own.
        sparable: how many places it could still leave alone.
        exact: whether the result had to compute what the model before it did.
    """

    name: str
    options: Mapping[str, Any]
    seconds: float
    modified: bool
    before: Any
    after: Any
    remarks: tuple[Remark, ...] = ()
    facts: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sparable: int = 0
    exact: bool = True


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run did.

    Attributes:
        model: the result. It need not be the object that the run was given.
        pipeline: text of the pipeline as it was understood, with what its passes require.
        passes: one record per pass, in order.
        warnings: what the user should know.
    """

    model: ir.Model
    pipeline: str
    passes: tuple[PassRecord, ...]
    warnings: tuple[str, ...]


def options_of_record(pass_: Pass) -> dict[str, Any]:
    """All options of `pass_` with their values."""
    return {field.name: getattr(pass_, field.name) for field in dataclasses.fields(pass_)}  # type: ignore[arg-type]
