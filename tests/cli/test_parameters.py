from __future__ import annotations

import re

import click
import pytest

from graphopt.cli import parameters


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("x=1,3,224,224", ("x", (1, 3, 224, 224))),
        ("x:1x3x224x224", ("x", (1, 3, 224, 224))),
        ("input:0=5", ("input:0", (5,))),
        ("a=b:2x2", ("a=b", (2, 2))),
        ("/model/x.1:7", ("/model/x.1", (7,))),
    ],
)
def test_shape(text: str, expected: tuple[str, tuple[int, ...]]) -> None:
    assert parameters.shape(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("macs=0.5", ("macs", 0.5)),
        ("params=2e6", ("params", 2e6)),
        ("macs=1.5 G", ("macs", "1.5 G")),
        ("bytes=3MB", ("bytes", "3MB")),
        ("memory=512KiB", ("memory", "512KiB")),
        ("latency=5ms", ("latency", "5ms")),
    ],
)
def test_budget(text: str, expected: tuple[str, float | str]) -> None:
    assert parameters.budget(text) == expected


@pytest.mark.parametrize("text", ["imagenet", "scale=1/255", "scale=1/128,mean=0.5:0.25:-1,std=1:2:4"])
def test_normalize_passes_on_what_the_data_layer_can_read(text: str) -> None:
    assert parameters.normalize(text) == text


@pytest.mark.parametrize("text", ["top1", "sqnr", "my_metric.py:f1_macro", "package.module:function"])
def test_metric(text: str) -> None:
    assert parameters.metric(text) == text


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        ("shape", "x", "is no shape"),
        ("shape", "x=", "is no shape"),
        ("shape", "x=1,a", "is no shape"),
        ("shape", "x=0,3", "has a dim that no tensor can have"),
        ("shape", "x=9999999999,9999999999", "has a dim that no tensor can have"),
        ("budget", "mac=0.5", "'mac' is no budget; there are macs, params, bytes, memory, latency"),
        ("budget", "macs", "'' is no amount of macs"),
        ("budget", "macs=3MB", "'3MB' is no amount of macs"),
        ("budget", "bytes=nan", "'nan' is no amount of bytes"),
        ("budget", "bytes=-1", "'-1' is no amount of bytes"),
        ("budget", "latency=0ms", "leaves nothing"),
        ("metric", "top7", "'top7' is no metric; there are top1"),
        ("normalize", "scal=1", "'scal=1': write scale=1/255"),
        ("normalize", "scale=1/0", "is no list of numbers"),
        ("normalize", "mean=a:b", "is no list of numbers"),
        ("normalize", "std=1:0:1", "std holds a zero"),
        ("pattern", "conv(", "is no regular expression"),
        ("pattern", "(?i)conv", "is no regular expression"),
    ],
)
def test_what_cannot_be_read_says_what_was_expected(read: str, text: str, message: str) -> None:
    with pytest.raises(click.BadParameter, match=re.escape(message)):
        getattr(parameters, read)(text)
