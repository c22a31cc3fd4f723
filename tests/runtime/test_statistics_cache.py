from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.runtime.requests import ChannelRange, Gram, Histogram, Moments, Range, Request
from graphopt.runtime.statistics_cache import Cache

X = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
REQUESTS: list[Request[Any]] = [Range("y"), Histogram("y", 16), Moments("y", 1), Gram("y", 1), ChannelRange("y", 1)]


@dataclasses.dataclass(frozen=True)
class Batch:
    feeds: Mapping[str, np.ndarray]
    count: int


class Batches:
    def __init__(self) -> None:
        self.asked = 0

    def __call__(self) -> Iterator[Batch]:
        self.asked += 1
        yield Batch({"x": X}, 6)


def model(factor: float = 2) -> ir.Model:
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["": 21]> g (float[N, 3] x, float[3000, 1] w) => (float[M, 3] y) '
        "{ m = ReduceMax <keepdims = 0> (w)  y = Mul(x, m) }"
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.Tensor(np.full((3000, 1), factor, np.float32), name="w")
    model.graph.register_initializer(value)
    return model


def same(one: Any, two: Any) -> bool:
    fields = dataclasses.fields(one)
    return type(one) is type(two) and all(
        np.array_equal(getattr(one, field.name), getattr(two, field.name))
        and isinstance(getattr(two, field.name), type(getattr(one, field.name)))
        for field in fields
    )


def test_the_same_version_is_run_once_and_another_one_anew() -> None:
    batches, cache = Batches(), Cache("data")
    first = cache.collect(model(), REQUESTS, batches)
    again = cache.collect(model(), [*REQUESTS], batches)
    assert batches.asked == 1
    assert all(again[request] is first[request] for request in REQUESTS)
    assert cache.collect(model(3), [Range("y")], batches)[Range("y")].high == pytest.approx(
        first[Range("y")].high * 1.5
    )
    assert batches.asked == 2
    cache.collect(model(), [Range("x"), Range("y")], batches)
    assert batches.asked == 3


def test_answers_on_disk_are_those_of_the_run(tmp_path: Path) -> None:
    batches, folder = Batches(), tmp_path / "deep" / "cache"
    first = Cache("data", folder).collect(model(), REQUESTS, batches)
    again = Cache("data", folder).collect(model(), REQUESTS, batches)
    assert batches.asked == 1
    assert all(same(first[request], again[request]) for request in REQUESTS)
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    Cache("other data", folder).collect(model(), REQUESTS, batches)
    assert batches.asked == 2


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut off"])
def test_a_damaged_file_is_computed_anew(tmp_path: Path, content: bytes) -> None:
    batches = Batches()
    first = Cache("data", tmp_path).collect(model(), [Range("y")], batches)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    assert Cache("data", tmp_path).collect(model(), [Range("y")], batches) == first
    assert batches.asked == 2


def test_a_pickle_is_not_read(tmp_path: Path) -> None:
    batches = Batches()
    Cache("data", tmp_path).collect(model(), [Range("y")], batches)
    (path,) = tmp_path.iterdir()
    pickled = np.array([Path], object)
    np.savez(path, low=pickled, high=pickled, finite=pickled, count=pickled)
    Cache("data", tmp_path).collect(model(), [Range("y")], batches)
    assert batches.asked == 2


def test_memory_is_bounded() -> None:
    batches, cache = Batches(), Cache("data", most_bytes=200)
    cache.collect(model(), [Gram("y", 1)], batches)
    cache.collect(model(3), [Gram("y", 1)], batches)
    cache.collect(model(3), [Gram("y", 1)], batches)
    assert batches.asked == 2
    cache.collect(model(), [Gram("y", 1)], batches)
    assert batches.asked == 3
