"""From a stored sample to what the model reads: normalization, element type, and checks that nothing is lost.

Integers for a real-valued input are preprocessed (`--normalize`) or, without that, taken as they are, with a warning;
real numbers are taken as they are. Any other change of type must keep every value: uint8 to float32 does, int64 to int32
does where the values fit, real numbers to integers never do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from graphopt.data.normalization import Normalization
from graphopt.data.signature import Input, Signature, is_float
from graphopt.errors import DataError


class Preparer:
    """Makes samples ready for one model."""

    def __init__(
        self, signature: Signature, normalization: Normalization | None, option: str, warn: Callable[[str], None]
    ) -> None:
        """`option` is what messages call the source's option; `warn` takes what the user should know."""
        self._inputs = signature.inputs
        self._normalization = normalization
        self._option = option
        self._warn = warn

    def prepare(self, sample: Mapping[str, np.ndarray], where: str) -> dict[str, np.ndarray]:
        """Arrays by input name, each of the input's dtype and of one sample's shape.

        Args:
            sample: arrays by input name, without an axis of samples.
            where: what messages call the sample.

        Raises:
            DataError: an array has another shape or holds NaN or infinity, or its values cannot be converted.
        """
        prepared = {}
        for value in self._inputs:
            array = sample[value.name]
            try:
                self._check_shape(value, array)
                prepared[value.name] = self._convert(value, self._normalized(value, array))
            except DataError as error:
                raise DataError(f"{self._option}: {where}: input '{value.name}': {error}") from None
        return prepared

    def _check_shape(self, value: Input, array: np.ndarray) -> None:
        dims = value.sample_dims
        if dims is None or _fits(array.shape, dims):
            return
        wanted = ", ".join("?" if dim is None else str(dim) for dim in dims)
        hint = ""
        if len(dims) == 3 and array.ndim == 3:
            turned = {"channels last": (2, 0, 1), "channels first": (1, 2, 0)}
            moved = (name for name, axes in turned.items() if _fits([array.shape[axis] for axis in axes], dims))
            hint = "".join(f"; they seem to be stored {name}: transpose them" for name in moved)
        raise DataError(f"samples of shape {array.shape}, but the model reads ({wanted}){hint}")

    def _normalized(self, value: Input, array: np.ndarray) -> np.ndarray:
        """Preprocess integers for a real-valued input; nothing else is."""
        integers = array.dtype.kind in "ui"
        if self._normalization is None:
            if integers and value.is_float:
                self._warn(
                    f"{self._option}: integers ({array.dtype}) are fed to '{value.name}' ({value.dtype}) as they are; if "
                    "the model was trained on scaled values, say so with --normalize"
                )
            return array
        if integers and value.is_float:
            return self._normalization.apply(array)
        if is_float(array.dtype):
            reason = "its samples are real numbers, which count as normalized"
        elif integers:
            reason = f"the model reads integers ({value.dtype})"
        else:
            return array
        self._warn(f"{self._option}: --normalize was not applied to '{value.name}': {reason}")
        return array

    def _convert(self, value: Input, array: np.ndarray) -> np.ndarray:
        if value.dtype == object:
            return _strings(array)
        source_is_float = is_float(array.dtype)
        if source_is_float and not np.isfinite(array).all():
            raise DataError("holds NaN or infinity")
        if array.dtype == value.dtype:
            return array
        complex_target = value.dtype.kind == "c"
        readable = array.dtype.kind in "bui" or source_is_float or (array.dtype.kind == "c" and complex_target)
        if not readable or (source_is_float and not (value.is_float or complex_target)):
            raise DataError(f"samples of type {array.dtype}, but the model reads {value.dtype}")
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows is found below
            converted = array.astype(value.dtype)
            exact = source_is_float or array.dtype.kind == "c" or _is_exact(array, converted)
        if not exact:
            raise DataError(f"values of type {array.dtype} that {value.dtype}, which the model reads, cannot hold")
        if value.is_float and not np.isfinite(converted).all():
            raise DataError(f"values of type {array.dtype} too large for {value.dtype}, which the model reads")
        return converted


def _fits(shape: Any, dims: Any) -> bool:
    return len(shape) == len(dims) and all(dim in (None, extent) for extent, dim in zip(shape, dims, strict=True))


def _is_exact(array: np.ndarray, converted: np.ndarray) -> bool:
    """Whether integers (or truth values) have survived: they come back, and have not changed sign on the way."""
    if np.can_cast(array.dtype, converted.dtype, "safe"):
        return True
    return bool((converted.astype(array.dtype) == array).all() and ((converted < 0) == (array < 0)).all())


def _strings(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind not in "UST":
        raise DataError(f"samples of type {array.dtype}, but the model reads strings")
    texts = np.char.decode(array, "utf-8") if array.dtype.kind == "S" else array
    return np.asarray(texts, dtype=object)
