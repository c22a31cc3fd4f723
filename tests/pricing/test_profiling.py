"""Measured profiles: whole files at any time, gone on with where they stopped, and read like any other profile."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import onnx
import pytest

from graphopt.errors import ProfileError
from graphopt.lift import lift
from graphopt.pricing import DeviceProfile, price, profiling
from graphopt.pricing.chains import Chain
from graphopt.pricing.designs import Design


def network(width: int) -> onnx.ModelProto:
    chain = Chain((1, 8, 6, 6))
    for kernel in (1, 3, 1, 3):
        chain.conv(width, kernel)
    chain.layer("Sigmoid")
    return chain.model()


NAMES = [f"network {number}" for number in range(4)]


def few() -> Iterator[Design]:
    for number, name in enumerate(NAMES):
        yield Design(name, lambda number=number: network(8 * number + 8))  # type: ignore[misc]


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "designs", few)


def test_a_profile_predicts_from_what_was_measured(tmp_path: Path) -> None:
    path, told = tmp_path / "p.json", []
    made = profiling.measure_profile(path, progress=lambda *step: told.append(step))
    assert told[-1] == (4, 4)
    profile = DeviceProfile.load(path)
    assert profile == made
    assert list(profile.designs) == NAMES
    assert {"blocked window", "blocked pointwise"} <= {family for family, _, _ in profile.kernels}
    assert "kernels measured on" in profile.title
    model = lift(network(16)).model
    cost = price(model, device=profile)
    assert cost.predicted_by == profile.title
    assert 1e-3 < cost.predicted_ms < 1000
    assert cost.predicted_ms > 1e3 * profile.inference


def test_it_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.json"

    def stop(done: float, total: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        profiling.measure_profile(path, progress=stop)
    partial = DeviceProfile.load(path)
    assert list(partial.designs) == NAMES[:2]
    whole = profiling.measure_profile(path)
    assert list(whole.designs) == NAMES
    assert whole.kernels[: len(partial.kernels)] == partial.kernels

    def no_bench(block: int, pace: float | None) -> None:
        raise AssertionError("there is nothing left to measure")

    monkeypatch.setattr(profiling, "Bench", no_bench)
    assert profiling.measure_profile(path).kernels == whole.kernels
    assert [file.name for file in tmp_path.iterdir()] == ["p.json"]


def test_profiles_of_other_machines_are_not_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text('{"machine": "an abacus"}')
    with pytest.raises(ProfileError, match=r"measured on an abacus.*--overwrite"):
        profiling.measure_profile(path)
    path.write_text('{"flops": 1e9}')
    with pytest.raises(ProfileError, match="not measured"):
        profiling.measure_profile(path)
    machine = profiling.measure_profile(tmp_path / "q.json").machine
    path.write_text(json.dumps({"machine": machine, "kernels": [["conv", {"macs": 1}, 1e-6]]}))
    with pytest.raises(ProfileError, match="earlier version"):
        profiling.measure_profile(path)
    assert list(profiling.measure_profile(path, overwrite=True).designs) == NAMES


def test_others_may_read_it_as_they_may_any_file(tmp_path: Path) -> None:
    path, plain = tmp_path / "p.json", tmp_path / "plain"
    profiling.measure_profile(path)
    plain.write_text("")
    assert path.stat().st_mode == plain.stat().st_mode


def test_chains_say_how_the_kernels_fall_to_networks(tmp_path: Path) -> None:
    profile = profiling.measure_profile(tmp_path / "p.json")
    assert len(profile.chains) == len(NAMES)
    assert sum(count for count, _ in profile.chains) == len(profile.kernels)
    assert all(seconds > 0 for _, seconds in profile.chains)


def test_where_nothing_can_be_written(tmp_path: Path) -> None:
    with pytest.raises(ProfileError, match="cannot be written"):
        profiling.measure_profile(tmp_path / "missing" / "p.json")


@pytest.mark.parametrize("chains", ["[1]", "[[1, -1]]", '[["a", 1]]', "[[1.5, 1]]", "[[2, 1]]"])
def test_damaged_chains_are_an_error(chains: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(f'{{"chains": {chains}}}')
    with pytest.raises(ProfileError, match="damaged"):
        DeviceProfile.load(path)


@pytest.mark.parametrize("kernels", ['[["conv", {"macs": 1}]]', '[["conv", {"macs": -1}, 1]]', "[1]", '[["a", [], 1]]'])
def test_damaged_kernels_are_an_error(kernels: str, tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text(f'{{"kernels": {kernels}}}')
    with pytest.raises(ProfileError, match="damaged"):
        DeviceProfile.load(path)
    assert json.loads(path.read_text())
