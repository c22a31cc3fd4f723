"""Predicted time: the effects that were measured in onnxruntime, by their size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import ProfileError
from graphopt.pricing import DeviceProfile, price
from graphopt.pricing.device import this_machine

ModelOf = Callable[..., ir.Model]
AVX512 = DeviceProfile()

# Time of a 3x3 convolution of 14 x 14 with this many channels in and out, relative to 256; measured, 1 thread, AVX-512.
PRUNED = {
    255: 1.257,
    248: 0.992,
    240: 0.853,
    200: 0.663,
    193: 0.701,
    192: 0.565,
    136: 0.333,
    129: 0.346,
    128: 0.253,
    64: 0.060,
}
# Depthwise 3x3 and pointwise in place of the 3x3, relative to its time: channels and extent.
SEPARATED = {(64, 56): 0.156, (128, 28): 0.138, (256, 14): 0.124, (512, 7): 0.107}


def convolution(
    model_of: ModelOf, channels: int, extent: int, device: DeviceProfile = AVX512, filters: int | None = None
) -> float:
    """Predicted seconds of one 3x3 convolution that stays within its layout."""
    shape, filters = f"float[1,{channels},{extent},{extent}]", filters or channels
    square = f"float[{channels},{channels},3,3]"
    text = f"""g ({shape} x, {square} w, float[{filters},{channels},3,3] v, float[{channels},{filters},3,3] u) => ({shape} y) {{
        a = Conv<pads=[1,1,1,1]>(x, w) b = Conv<pads=[1,1,1,1]>(a, v) y = Conv<pads=[1,1,1,1]>(b, u) }}"""
    weights = {"w": (channels, channels), "v": (filters, channels), "u": (channels, filters)}
    model = model_of(text, **{name: np.zeros((*dims, 3, 3), np.float32) for name, dims in weights.items()})
    middle = price(model, device=device, per_node=True).per_node[1].seconds
    assert middle is not None
    return middle


def test_widths_are_paid_in_whole_blocks(model_of: ModelOf) -> None:
    full = convolution(model_of, 256, 14)
    predicted = {channels: convolution(model_of, channels, 14) / full for channels in PRUNED}
    for channels, measured in PRUNED.items():
        assert predicted[channels] == pytest.approx(measured, rel=0.15), channels
    assert convolution(model_of, 256, 14, filters=244) == pytest.approx(full, rel=0.01)
    # Leaving the fast path costs more than the channel that was pruned saves.
    assert predicted[255] > 1
    assert predicted[193] > predicted[200]
    assert predicted[129] > predicted[128]


@pytest.mark.parametrize(("channels", "extent"), SEPARATED)
def test_separated_convolutions(channels: int, extent: int, model_of: ModelOf) -> None:
    shape = f"float[1,{channels},{extent},{extent}]"
    text = f"""g ({shape} x, float[{channels},{channels},1,1] p, float[{channels},1,3,3] d) => ({shape} y) {{
        a = Conv(x, p) b = Conv<group={channels}, pads=[1,1,1,1]>(a, d) c = Conv(b, p) y = Conv(c, p) }}"""
    weights = {"p": np.zeros((channels, channels, 1, 1), np.float32), "d": np.zeros((channels, 1, 3, 3), np.float32)}
    rows = price(model_of(text, **weights), device=AVX512, per_node=True).per_node
    seconds = [row.seconds or 0 for row in rows]
    ratio = (seconds[1] + seconds[2]) / convolution(model_of, channels, extent)
    assert ratio == pytest.approx(SEPARATED[channels, extent], rel=0.25)


def test_smaller_blocks_waste_less(model_of: ModelOf) -> None:
    avx2 = DeviceProfile(block=8)
    assert convolution(model_of, 248, 14, avx2) < convolution(model_of, 256, 14, avx2) * 0.95
    plain = DeviceProfile(block=1)
    assert convolution(model_of, 255, 14, plain) < convolution(model_of, 256, 14, plain)


def test_integer_kernels_are_faster(model_of: ModelOf) -> None:
    text = """g (float[1,64,28,28] x, int8[64,64,3,3] w) => (float[1,64,28,28] y)
        <float s = {0.1}, uint8 z = {0}, int8 m = {0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) dw = DequantizeLinear(w, s, m)
        c = Conv<pads=[1,1,1,1]>(d, dw) o = QuantizeLinear(c, s, z) y = DequantizeLinear(o, s, z) }"""
    rows = price(model_of(text, w=np.zeros((64, 64, 3, 3), np.int8)), device=AVX512, per_node=True).per_node
    (integer,) = [row.seconds for row in rows if row.op_type == "Conv"]
    assert integer is not None
    assert integer == pytest.approx(convolution(model_of, 64, 28) / AVX512.integer_speedup, rel=0.15)


def test_elementwise_work_is_bound_by_memory_and_views_are_free(model_of: ModelOf) -> None:
    text = "g (float[1024,1024] x) => (float[1024,1024] y) { a = Relu(x) b = Flatten(a) y = Abs(b) }"
    rows = price(model_of(text), device=AVX512, per_node=True).per_node
    moved = 2 * 4 * 1024 * 1024
    assert rows[0].seconds == pytest.approx(moved / AVX512.bandwidth + AVX512.overhead)
    assert (rows[1].seconds, rows[1].activation_bytes, rows[1].intensity) == (0, 0, None)


def test_profiles_are_read_from_json(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    profile = DeviceProfile(name="edge box", isa="avx2", block=8, flops=2e10)
    path.write_text(json.dumps(profile.to_dict()))
    assert DeviceProfile.load(path) == profile
    path.write_text('{"block": 4}')
    assert DeviceProfile.load(path) == DeviceProfile(block=4)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "must be an object"),
        ('{"flopz": 1}', "must be an object"),
        ('{"flops": "many"}', "flops must be float"),
        ('{"flops": true}', "flops must be float"),
        ('{"isa": 5}', "isa must be str"),
        ('{"block": 0}', "block must be positive"),
        ('{"block": 8.5}', "block must be int"),
        ("\x00\xff", "not JSON"),
    ],
)
def test_a_file_that_is_no_profile_is_an_error(text: str, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ProfileError, match=reason):
        DeviceProfile.load(path)
    with pytest.raises(ProfileError, match="No such file"):
        DeviceProfile.load(tmp_path / "missing.json")


def test_widths_are_aligned_to_blocks_and_to_what_can_be_blocked() -> None:
    assert [DeviceProfile(block=block).alignment for block in (16, 8, 4, 1)] == [16, 8, 4, 4]


def test_this_machine_has_a_profile() -> None:
    assert this_machine().block in (1, 8, 16)
    assert this_machine() is this_machine()
