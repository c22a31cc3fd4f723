"""An ONNX file as protobuf lays it out: cutting weights out of it and splicing them in, without parsing them.

Protobuf stores a message as a sequence of fields, each a tag (field number and wire type) and a value; a submessage is
a length and its bytes. So the weights of a model can be left where they are: walk the fields that can lead to a
TensorProto, and where one carries a long run of raw numbers, replace these by a short *mark*. What remains is a small
ModelProto, a *stub*, that the protobuf library reads in milliseconds however large the model is. Writing goes the other
way: marks in a serialized stub become runs of raw bytes, and only the lengths of the enclosing messages change.

A mark is a regular external-data entry whose location no file can have; its offset is an index into a list of tensors.
Source: https://protobuf.dev/programming-guides/encoding/ and onnx.proto.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import NamedTuple

import onnx
from onnx import TensorProto

from graphopt.errors import InvalidModelError

MARK = "\x01graphopt"
"""The external-data location that stands for "tensor number <offset> of the stub's list"."""

MARKED_SIZE = 1024
"""Runs of raw numbers shorter than this (bytes) stay in the stub."""

MAX_DEPTH = 100
"""Protobuf refuses messages nested deeper than this."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Message(Enum):
    """The messages on the way from a model to its tensors."""

    MODEL = "ModelProto"
    GRAPH = "GraphProto"
    NODE = "NodeProto"
    ATTRIBUTE = "AttributeProto"
    FUNCTION = "FunctionProto"
    TENSOR = "TensorProto"


CHILDREN: dict[Message, dict[int, Message]] = {
    Message.MODEL: {7: Message.GRAPH, 25: Message.FUNCTION},
    Message.GRAPH: {1: Message.NODE, 5: Message.TENSOR},
    Message.NODE: {5: Message.ATTRIBUTE},
    Message.ATTRIBUTE: {5: Message.TENSOR, 6: Message.GRAPH, 10: Message.TENSOR, 11: Message.GRAPH},
    Message.FUNCTION: {7: Message.NODE, 11: Message.ATTRIBUTE},
    Message.TENSOR: {},
}

_RAW_DATA = TensorProto.RAW_DATA_FIELD_NUMBER
# Packed arrays of these types have the same bytes as raw_data.
_PACKED_AS_RAW = {
    TensorProto.FLOAT_DATA_FIELD_NUMBER: TensorProto.FLOAT,
    TensorProto.DOUBLE_DATA_FIELD_NUMBER: TensorProto.DOUBLE,
}


class Field(NamedTuple):
    """One field of a message: where it starts, where its value lies, and an integer value itself."""

    number: int
    wire_type: int
    start: int
    value: int
    end: int


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of raw numbers in the file that was cut."""

    offset: int
    length: int


class DamagedError(Exception):
    """The bytes are no protobuf message. Holds the position."""


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    result = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        result |= (byte & 0x7F) << shift
        if byte < 0x80:
            return result, position
        shift += 7
    raise DamagedError(position)


def fields(data: memoryview, start: int, end: int) -> Iterator[Field]:
    """The fields of the message in `data[start:end]`. Raises DamagedError."""
    position = start
    while position < end:
        field_start = position
        tag = data[position]
        if tag < 0x80:  # one-byte tags are nearly all there are
            position += 1
        else:
            tag, position = _varint(data, position, end)
        wire_type = tag & 7
        if wire_type == _BYTES:
            length, position = _varint(data, position, end)
            field_end = position + length
        elif wire_type == _VARINT:
            value, position = _varint(data, position, end)
            yield Field(tag >> 3, wire_type, field_start, value, position)
            continue
        elif wire_type in (_FIXED32, _FIXED64):
            field_end = position + (4 if wire_type == _FIXED32 else 8)
        else:
            raise DamagedError(field_start)
        if field_end > end or tag >> 3 == 0:
            raise DamagedError(field_start)
        yield Field(tag >> 3, wire_type, field_start, position, field_end)
        position = field_end


def encode_varint(value: int) -> bytes:
    """The protobuf form of a non-negative integer."""
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _header(number: int, length: int) -> bytes:
    return encode_varint(number << 3 | _BYTES) + encode_varint(length)


def cut(data: memoryview) -> tuple[bytes, list[Run]]:
    """Take the long runs of raw numbers out of a serialized ModelProto.

    Returns the stub, in which each such tensor carries a mark, and the runs in the order of their marks.
    Raises InvalidModelError where `data` is no protobuf message or is nested too deeply.
    """
    runs: list[Run] = []
    try:
        stub = _cut(data, 0, len(data), Message.MODEL, runs, 0)
    except DamagedError as error:
        raise InvalidModelError(f"not a valid ONNX file: no protobuf message at byte {error.args[0]}") from None
    return (bytes(data) if stub is None else stub), runs


def _cut(data: memoryview, start: int, end: int, kind: Message, runs: list[Run], depth: int) -> bytes | None:
    """The message with its runs cut out, or None where it holds none."""
    if depth >= MAX_DEPTH:
        raise InvalidModelError(f"graphs are nested deeper than the {MAX_DEPTH} messages that protobuf allows")
    if kind is Message.TENSOR:
        return _cut_tensor(data, start, end, runs)
    children = CHILDREN[kind]
    parts: list[bytes | memoryview] = []
    copied = start
    for field in fields(data, start, end):
        child = children.get(field.number)
        if child is None or field.wire_type != _BYTES or field.end - field.value < MARKED_SIZE:
            continue
        message = _cut(data, field.value, field.end, child, runs, depth + 1)
        if message is not None:
            parts += (data[copied : field.start], _header(field.number, len(message)), message)
            copied = field.end
    if not parts:
        return None
    parts.append(data[copied:end])
    return b"".join(parts)


def _cut_tensor(data: memoryview, start: int, end: int, runs: list[Run]) -> bytes | None:
    found: list[Field] = []
    data_type = 0
    for field in fields(data, start, end):
        if field.number == TensorProto.DATA_TYPE_FIELD_NUMBER and field.wire_type == _VARINT:
            data_type = field.value
        elif field.number == _RAW_DATA or field.number in _PACKED_AS_RAW:
            found.append(field)
    if len(found) != 1:
        return None
    run = found[0]
    if run.wire_type != _BYTES or run.end - run.value < MARKED_SIZE:
        return None
    if run.number != _RAW_DATA and data_type != _PACKED_AS_RAW[run.number]:
        return None
    mark = marked_tensor(len(runs)).SerializeToString()
    runs.append(Run(run.value, run.end - run.value))
    return b"".join((data[start : run.start], data[run.end : end], mark))


def marked_tensor(index: int) -> TensorProto:
    """The fields of a TensorProto that mark it as number `index` of a list."""
    tensor = TensorProto(data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=MARK)
    tensor.external_data.add(key="offset", value=str(index))
    return tensor


@dataclasses.dataclass(frozen=True)
class Spliced:
    """A serialized model in pieces: bytes, or the index of a tensor whose raw bytes stand in that place."""

    pieces: Sequence[bytes | int]
    size: int


def splice(stub: bytes, lengths: Sequence[int]) -> Spliced:
    """Put runs of raw bytes back where a serialized stub has marks.

    Args:
        stub: a serialized ModelProto with marks.
        lengths: raw length in bytes of each tensor that a mark can name.
    """
    spliced = _splice(memoryview(stub), stub, 0, len(stub), Message.MODEL, lengths)
    return spliced or Spliced([stub], len(stub))


_MARK_BYTES = MARK.encode()


def _splice(
    data: memoryview, raw: bytes, start: int, end: int, kind: Message, lengths: Sequence[int]
) -> Spliced | None:
    if raw.find(_MARK_BYTES, start, end) < 0:
        return None
    if kind is Message.TENSOR:
        return _splice_tensor(raw[start:end], lengths)
    pieces: list[bytes | int] = []
    size = 0
    copied = start
    for field in fields(data, start, end):
        child = CHILDREN[kind].get(field.number)
        if child is None:
            continue
        message = _splice(data, raw, field.value, field.end, child, lengths)
        if message is None:
            continue
        header = raw[copied : field.start] + _header(field.number, message.size)
        pieces.append(header)
        pieces += message.pieces
        size += len(header) + message.size
        copied = field.end
    if not pieces:
        return None
    pieces.append(raw[copied:end])
    return Spliced(pieces, size + end - copied)


def _splice_tensor(raw: bytes, lengths: Sequence[int]) -> Spliced | None:
    tensor = TensorProto.FromString(raw)
    index = mark_of(tensor)
    if index is None:
        return None
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    head = tensor.SerializeToString() + _header(_RAW_DATA, lengths[index])
    return Spliced([head, index], len(head) + lengths[index])


def mark_of(tensor: onnx.TensorProto) -> int | None:
    """The index that a marked tensor carries, or None for any other tensor."""
    if tensor.data_location != TensorProto.EXTERNAL:
        return None
    entries = {entry.key: entry.value for entry in tensor.external_data}
    return int(entries["offset"]) if entries.get("location") == MARK else None
