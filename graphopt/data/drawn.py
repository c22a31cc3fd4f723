"""Samples that are random numbers, `random:N`: for trying things out, never for judging quality.

They are drawn as `graphopt.runtime.inputs` draws for the equivalence check: real numbers from a standard normal, images
in integers over their whole range, other integers within what their consumers allow. Each sample has its own seed.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from graphopt.data.signature import Signature
from graphopt.errors import DataError, RuntimeFailureError
from graphopt.runtime.inputs import GUESSES, Guess, TooLargeError, guesses, seeded_inputs


def warning(count: int, option: str) -> str:
    """What must be said wherever such samples are used."""
    return (
        f"{option} random:{count}: RANDOM NUMBERS instead of samples. Ranges, statistics and quality measured on them say "
        "nothing about real inputs; give real samples before you use the result"
    )


def draws(model: ir.Model, signature: Signature, seed: int, option: str) -> Iterator[dict[str, np.ndarray]]:
    """Feeds of one sample (or one fixed batch) each, without end."""
    guess = _guess(model, signature, seed, option)
    number = 0
    while True:
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        yield seeded_inputs(model, seed=own_seed, batch=1, guess=guess)
        number += 1


def _guess(model: ir.Model, signature: Signature, seed: int, option: str) -> Guess:
    """Extents, apart from the batch, that the model runs on."""
    from graphopt.runtime.session import Session

    if all(value.sample_dims is not None and None not in value.sample_dims for value in signature.inputs):
        return GUESSES[0]
    session, failure = Session(model), ""
    for guess in guesses(model):
        try:
            session.run(seeded_inputs(model, seed=seed, batch=1, guess=guess))
        except (RuntimeFailureError, TooLargeError) as error:
            failure = failure or str(error)
        else:
            return guess
    raise DataError(
        f"{option} random: the model does not run on random inputs ({failure}); fix its inputs with --shape"
    )
