from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.data import open_samples
from graphopt.errors import DataError

if TYPE_CHECKING:
    from tests.data.conftest import MakeModel


def test_random_samples_are_seeded_and_warned_of(make_model: MakeModel) -> None:
    model = make_model("float[N, 3, 8, 8] x, uint8[N, 64] i")
    first, again, other = (open_samples("random:200", model, seed=seed) for seed in (3, 3, 4))
    assert len(first) == 200
    assert first.digest == again.digest != other.digest
    assert "--data random:200: RANDOM NUMBERS instead of samples" in first.warnings[0]
    x, i = (np.concatenate([batch.feeds[name] for batch in first.batches()]) for name in "xi")
    assert x.dtype == np.float32
    assert abs(x.mean()) < 0.05
    assert abs(x.std() - 1) < 0.05
    assert (x[0] != x[1]).any()
    assert (i.min(), i.max()) == (0, 255)
    assert len(open_samples("random:200", model, limit=7)) == 7


def test_a_fixed_batch_and_extents_that_the_model_runs_on() -> None:
    """The length is open, but the constant in the graph lets only 64 run."""
    zeros = ",".join(["0"] * 64)
    model = ir.from_onnx_text(
        f"""<ir_version: 10, opset_import: ["": 21]> g (float[2, L] x) => (float[2, 64] y)
            <float[64] bias = {{{zeros}}}> {{ y = Add(x, bias) }}"""
    )
    samples = open_samples("random:5", model)
    assert [(batch.count, batch.feeds["x"].shape) for batch in samples.batches()] == [(2, (2, 64))] * 2 + [(1, (2, 64))]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("random:0", "there are no samples in random:0"),
        ("random", "there is no file or folder random; give FILE.npz"),
        ("random:x", "random:x: write random:N with a number of samples"),
        ("no/such.npz", "there is no file or folder no/such.npz; give FILE.npz"),
    ],
)
def test_sources_that_are_not_there(source: str, message: str, make_model: MakeModel) -> None:
    with pytest.raises(DataError, match=f"^--data.*({message})"):
        open_samples(source, make_model("float[N] x"))


def test_other_files(tmp_path_factory: pytest.TempPathFactory, make_model: MakeModel) -> None:
    path = tmp_path_factory.mktemp("data") / "d.csv"
    path.write_text("1,2")
    with pytest.raises(DataError, match=r"d\.csv is no kind of file that holds samples; give FILE\.npz"):
        open_samples(path, make_model("float[N] x"))
