"""Integer weights whose products with u8 inputs are added in pairs, in 16 bits.

x86 processors without VNNI multiply 8-bit integers with `vpmaddubsw`: a0 w0 + a1 w1, two neighbours of the sum at a time,
with u8 a and s8 w, saturates at -32768 and 32767 before it joins the 32-bit sum. As 2 · 255 · 127 = 64770, two large
weights of one sign give wrong results wherever both inputs are large, silently. 7-bit weights never do, but cost up to 6 dB
of every weight. Two weights are safe, though, as long as

    max(w0, 0) A0 + max(w1, 0) A1 <= 32767        and        min(w0, 0) A0 + min(w1, 0) A1 >= -32768

with A the largest integers that the inputs take: only channels of output that break this need a larger scale, and no
larger than makes them fit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from graphopt_passes.numerics.quantizer import Array

MOST, LEAST = 32767, -32768

Float = npt.NDArray[np.float64]


def excess(rows: Array, highest: Array) -> Float:
    """(M,) the largest sum of two products of each row, over the limit that it must not pass.

    Args:
        rows: (M, K) integer weights in the order in which the runtime adds their products.
        highest: (M, K) the largest input of each weight, at least 0.
    """
    products = _paired(rows.astype(np.float64) * highest)
    upper = np.maximum(products, 0).sum(axis=2).max(axis=1, initial=0) / MOST
    lower = np.minimum(products, 0).sum(axis=2).min(axis=1, initial=0) / LEAST
    return np.asarray(np.maximum(upper, lower))


def fitted(rows: Array, highest: Array) -> Array:
    """`rows` with the pairs that would saturate moved to nearest integers, towards 0, that do not.

    Args:
        rows: (M, K) integer weights, each of which fits alone, in the order in which the runtime adds their products.
        highest: (M, K) the largest input of each weight, at least 0.
    """
    result = rows.astype(np.float64)
    for sign, most in ((1.0, float(MOST)), (-1.0, -float(LEAST))):
        size = np.maximum(_paired(sign * result), 0)
        inputs = _paired(highest.astype(np.float64))
        inputs = np.where(size > 0, inputs, 0)
        too_much = np.maximum((size * inputs).sum(axis=2, keepdims=True) - most, 0)
        length = np.square(inputs).sum(axis=2, keepdims=True)
        step = inputs * np.divide(too_much, length, where=length > 0, out=np.zeros_like(length))
        moved = np.where(too_much > 0, np.maximum(np.floor(size - step), 0), size)
        change = (size - moved).reshape(len(rows), -1)[:, : rows.shape[1]]
        result -= sign * change
    return np.asarray(result.astype(rows.dtype))


def _paired(rows: Float) -> Float:
    """(M, K) as (M, K / 2, 2), a zero behind an odd last one."""
    if rows.shape[1] % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    return rows.reshape(len(rows), -1, 2)
