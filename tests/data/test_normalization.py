from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from graphopt.data import PRESETS, Normalization, open_samples, parse_normalize
from graphopt.errors import DataError, OptionError

if TYPE_CHECKING:
    from tests.data.conftest import MakeModel


PIXELS = np.random.default_rng(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
R, G, B = PIXELS.astype(np.float64)

# Each written out by hand from CONTRACT: (first, second and third channel of the result).
EXPECTED = {
    "imagenet": ((R / 255 - 0.485) / 0.229, (G / 255 - 0.456) / 0.224, (B / 255 - 0.406) / 0.225),
    "tf": (R / 127.5 - 1, G / 127.5 - 1, B / 127.5 - 1),
    "caffe": (B - 104, G - 117, R - 123),
    "scale=1/128,mean=0.9921875:0.9921875:0.9921875": ((R - 127) / 128, (G - 127) / 128, (B - 127) / 128),
    "scale=1/255": (R / 255, G / 255, B / 255),
    "mean=1:2:3,std=2": ((R - 1) / 2, (G - 2) / 2, (B - 3) / 2),
}


@pytest.mark.parametrize("text", EXPECTED)
@pytest.mark.parametrize("layout", ["channels first", "channels last", "video"])
def test_formulas_along_the_channel_axis(text: str, layout: str) -> None:
    expected = np.stack(EXPECTED[text])
    sample = PIXELS
    if layout == "channels last":
        sample, expected = sample.transpose(1, 2, 0), expected.transpose(1, 2, 0)
    elif layout == "video":
        sample, expected = np.stack([sample] * 2), np.stack([expected] * 2)
    normalized = parse_normalize(text).apply(sample)
    assert normalized.dtype == np.float32
    np.testing.assert_allclose(normalized, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("imagenet", PRESETS["imagenet"]),
        (" scale = 1/255 , std=1:2:4", Normalization((1 / 255,), (0.0,), (1.0, 2.0, 4.0))),
        ({"scale": "1/127.5", "mean": [0.5, "1/4", -1]}, Normalization((1 / 127.5,), (0.5, 0.25, -1.0))),
        ({"std": np.array([1.0, 2.0])}, Normalization(std=(1.0, 2.0))),
        ({"mean": 3}, Normalization(mean=(3.0,))),
        (PRESETS["tf"], PRESETS["tf"]),
    ],
)
def test_parse(given: Any, expected: Normalization) -> None:
    assert parse_normalize(given) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("imagnet", "'imagnet': write scale=1/255,mean=a:b:c,std=a:b:c, or imagenet, tf, caffe"),
        ("scale=1,scale=2", "'scale=2': write"),
        ("mean=1:x", "'1:x' is no list of numbers"),
        ("scale=1/0", "'1/0' is no list of numbers"),
        ("scale=nan", "scale holds a number that is not finite"),
        ("std=1:0:1", "std holds a zero"),
        ("mean=1:2:3,std=1:2", "there are 1 in scale, 3 in mean, 2 in std"),
        ({"means": 1}, "'means' is none of scale, mean, std"),
        ({"mean": []}, "one number per channel"),
        ({"mean": None}, "'None' is no list of numbers"),
    ],
)
def test_what_cannot_be_read(given: Any, message: str) -> None:
    with pytest.raises(OptionError, match=re.escape(message)) as raised:
        parse_normalize(given)
    assert str(raised.value).startswith("--normalize")


def test_no_axis_of_that_many_channels(make_model: MakeModel) -> None:
    message = r"input 'x': --normalize is for 3 channels, but samples of shape \(1, 4, 5\)"
    with pytest.raises(DataError, match=message):
        open_samples(np.zeros((2, 1, 4, 5), np.uint8), make_model("float[N, 1, 4, 5] x"), normalize="imagenet")


@pytest.mark.parametrize("normalize", [None, "tf"])
@pytest.mark.parametrize(("dtype", "kind"), [(np.uint8, "float"), (np.float32, "float"), (np.uint8, "uint8")])
def test_only_integers_for_real_inputs_are_normalized(
    normalize: str | None, dtype: Any, kind: str, make_model: MakeModel
) -> None:
    samples = open_samples(PIXELS[None].astype(dtype), make_model(f"{kind}[N, 3, 4, 5] x"), normalize=normalize)
    fed = next(samples.batches()).feeds["x"]
    assert fed.dtype == np.dtype("float32" if kind == "float" else kind)
    normalized = normalize is not None and dtype == np.uint8 and kind == "float"
    expected = np.stack(EXPECTED["tf"]) if normalized else PIXELS
    np.testing.assert_allclose(fed[0], expected, rtol=1e-5, atol=1e-5)
    warnings = {
        (None, np.uint8, "float"): "integers (uint8) are fed to 'x' (float32) as they are",
        ("tf", np.float32, "float"): "--normalize was not applied to 'x': its samples are real numbers",
        ("tf", np.uint8, "uint8"): "--normalize was not applied to 'x': the model reads integers",
    }
    expected_warning = warnings.get((normalize, dtype, kind))
    assert len(samples.warnings) == (expected_warning is not None)
    assert expected_warning is None or expected_warning in samples.warnings[0]
