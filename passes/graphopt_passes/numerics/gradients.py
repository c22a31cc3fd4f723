"""Reverse-mode differentiation of the operators of networks of products, in numpy.

A rule computes an operator and returns, with the result, the function that turns the gradient by the result into those by
the operands. `Attributes` are the operator's own; operands that are no numbers to differentiate by (shapes, axes) are arrays as
well and have no gradient. Rules cover what transformers and perceptrons consist of; `RULES` says what that is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np

from graphopt_passes.numerics.quadratic import Array

Attributes: TypeAlias = Mapping[str, Any]
Backward: TypeAlias = Callable[[Array], Sequence["Array | None"]]
Rule: TypeAlias = Callable[[Sequence[Array], Attributes], tuple[Array, Backward]]


def _gathered(gradient: Array, shape: tuple[int, ...]) -> Array:
    """The gradient by an operand of `shape` that was broadcast."""
    if gradient.shape == shape:
        return gradient
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(axis=tuple(range(extra))) if extra else gradient
    axes = tuple(axis for axis, extent in enumerate(shape) if extent == 1 and gradient.shape[axis] != 1)
    return np.asarray(gradient.sum(axis=axes, keepdims=True)) if axes else gradient


def _add(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    return x[0] + x[1], lambda g: (_gathered(g, x[0].shape), _gathered(g, x[1].shape))


def _subtract(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    return x[0] - x[1], lambda g: (_gathered(g, x[0].shape), _gathered(-g, x[1].shape))


def _multiply(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    return x[0] * x[1], lambda g: (_gathered(g * x[1], x[0].shape), _gathered(g * x[0], x[1].shape))


def _divide(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    y = x[0] / x[1]
    return y, lambda g: (_gathered(g / x[1], x[0].shape), _gathered(-g * y / x[1], x[1].shape))


def _product(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    left, right = x

    def backward(g: Array) -> Sequence[Array]:
        if right.ndim == 2:
            rows = left.reshape(-1, left.shape[-1]), g.reshape(-1, g.shape[-1])
            return g @ right.T, rows[0].T @ rows[1]
        return _gathered(g @ np.swapaxes(right, -1, -2), left.shape), _gathered(
            np.swapaxes(left, -1, -2) @ g, right.shape
        )

    return left @ right, backward


def _gemm(x: Sequence[Array], attributes: Attributes) -> tuple[Array, Backward]:
    alpha, beta = attributes.get("alpha", 1.0), attributes.get("beta", 1.0)
    left = x[0].T if attributes.get("transA", 0) else x[0]
    right = x[1].T if attributes.get("transB", 0) else x[1]

    def backward(g: Array) -> Sequence[Array]:
        by_left, by_right = alpha * (g @ right.T), alpha * (left.T @ g)
        found = [
            by_left.T if attributes.get("transA", 0) else by_left,
            by_right.T if attributes.get("transB", 0) else by_right,
        ]
        return [*found, *(_gathered(beta * g, bias.shape) for bias in x[2:])]

    y = np.float32(alpha) * (left @ right) if alpha != 1 else left @ right
    return y + np.float32(beta) * x[2] if len(x) > 2 else y, backward


def _relu(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    return np.maximum(x[0], 0), lambda g: (g * (x[0] > 0),)


def _tanh(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    y = np.tanh(x[0])
    return y, lambda g: (g * (1 - y * y),)


def _sigmoid(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    y = 0.5 * (1 + np.tanh(0.5 * x[0]))
    return y, lambda g: (g * y * (1 - y),)


def _bell(x: Array) -> Array:
    return np.asarray(np.exp(-x * x))


def _erf(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    from scipy.special import erf

    return erf(x[0]), lambda g: (g * np.float32(2 / math.sqrt(math.pi)) * _bell(x[0]),)


def _gelu(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    from scipy.special import erf

    inside = np.float32(0.5) * (1 + erf(x[0] * np.float32(math.sqrt(0.5))))
    slope = inside + x[0] * np.float32(1 / math.sqrt(2 * math.pi)) * _bell(x[0] * np.float32(math.sqrt(0.5)))
    return x[0] * inside, lambda g: (g * slope,)


def _softmax(x: Sequence[Array], attributes: Attributes) -> tuple[Array, Backward]:
    axis = attributes.get("axis", -1)
    y = np.exp(x[0] - x[0].max(axis=axis, keepdims=True))
    y /= y.sum(axis=axis, keepdims=True)
    return y, lambda g: (y * (g - (g * y).sum(axis=axis, keepdims=True)),)


def _normalize(x: Sequence[Array], attributes: Attributes) -> tuple[Array, Backward]:
    first = attributes.get("axis", -1) % x[0].ndim
    axes, scale = tuple(range(first, x[0].ndim)), x[1]
    centred = x[0] - x[0].mean(axis=axes, keepdims=True)
    steep = 1 / np.sqrt(np.square(centred).mean(axis=axes, keepdims=True) + np.float32(attributes.get("epsilon", 1e-5)))
    unit = centred * steep

    def backward(g: Array) -> Sequence[Array]:
        inner = g * scale
        pull = inner.mean(axis=axes, keepdims=True) + unit * (inner * unit).mean(axis=axes, keepdims=True)
        return [steep * (inner - pull), _gathered(g * unit, scale.shape), *(_gathered(g, one.shape) for one in x[2:])]

    return unit * scale + x[2] if len(x) > 2 else unit * scale, backward


def _reshape(x: Sequence[Array], attributes: Attributes) -> tuple[Array, Backward]:
    shape = [int(extent) for extent in x[1]]
    if not attributes.get("allowzero", 0):
        shape = [extent or x[0].shape[axis] for axis, extent in enumerate(shape)]
    return x[0].reshape(shape), lambda g: (g.reshape(x[0].shape), None)


def _transpose(x: Sequence[Array], attributes: Attributes) -> tuple[Array, Backward]:
    order = tuple(attributes.get("perm", range(x[0].ndim)[::-1]))
    return x[0].transpose(order), lambda g: (g.transpose(np.argsort(order)),)


def _mean(x: Sequence[Array], attributes: Attributes) -> tuple[Array, Backward]:
    axes = attributes.get("axes", tuple(range(x[0].ndim)) if len(x) < 2 else tuple(int(axis) for axis in x[1]))
    keeps = bool(attributes.get("keepdims", 1))
    y = np.asarray(x[0].mean(axis=tuple(axes), keepdims=keeps))
    share = y.size / max(1, x[0].size)

    def backward(g: Array) -> Sequence[Array | None]:
        whole = g if keeps else np.expand_dims(g, tuple(axis % x[0].ndim for axis in axes))
        return [np.broadcast_to(whole * np.float32(share), x[0].shape), *(None for _ in x[1:])]

    return y, backward


def _same(x: Sequence[Array], _: Attributes) -> tuple[Array, Backward]:
    return x[0], lambda g: (g,)


RULES: Mapping[str, Rule] = MappingProxyType(
    {
        "Add": _add,
        "Sub": _subtract,
        "Mul": _multiply,
        "Div": _divide,
        "MatMul": _product,
        "Gemm": _gemm,
        "Relu": _relu,
        "Tanh": _tanh,
        "Sigmoid": _sigmoid,
        "Erf": _erf,
        "Gelu": _gelu,
        "Softmax": _softmax,
        "LayerNormalization": _normalize,
        "Reshape": _reshape,
        "Transpose": _transpose,
        "ReduceMean": _mean,
        "Identity": _same,
    }
)
"""Rules by operator type of the default domain."""
