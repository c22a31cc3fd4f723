"""Finding passes through entry points: in-tree, third-party, broken and doubled ones."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
import tomllib
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
import pytest

from graphopt.errors import PipelineError
from graphopt.pipeline.base import Pass, PassContext, PassResult
from graphopt.pipeline.registry import GROUP, Registry

ROOT = Path(__file__).parents[2]


@dataclasses.dataclass(frozen=True)
class Good(Pass):
    name: ClassVar[str] = "good"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return PassResult(modified=False)


@dataclasses.dataclass(frozen=True)
class Untyped(Good):
    name: ClassVar[str] = "untyped"
    table: dict[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Unfinished(Pass):
    name: ClassVar[str] = "unfinished"


def entry(name: str, attribute: str, module: str = __name__) -> EntryPoint:
    return EntryPoint(name, f"{module}:{attribute}", GROUP)


def test_names_are_known_without_importing_anything() -> None:
    registry = Registry([entry("zebra", "Gone", "no_such_module"), entry("good", "Good")])
    assert registry.names() == ("good", "zebra")
    assert registry.find("good") is Good


@pytest.mark.parametrize(
    ("name", "attribute", "module", "reason"),
    [
        ("gone", "Gone", "no_such_module", "ModuleNotFoundError"),
        ("gone", "Gone", __name__, "AttributeError"),
        ("path", "Path", __name__, "not a subclass"),
        ("unfinished", "Unfinished", __name__, "not a dataclass with a method run"),
        ("other", "Good", __name__, "the class calls itself 'good'"),
        ("untyped", "Untyped", __name__, r"untyped\.table: an option cannot have"),
    ],
)
def test_a_broken_pass_is_a_warning_and_the_others_stay(name: str, attribute: str, module: str, reason: str) -> None:
    registry = Registry([entry("good", "Good"), entry(name, attribute, module)])
    found, warnings = registry.find_all()
    assert found == [Good]
    (warning,) = warnings
    assert f"the pass '{name}' of the distribution" in warning
    with pytest.raises(PipelineError, match=reason):
        registry.find(name)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(PipelineError, match="there is no pass 'goood'; did you mean 'good'"):
        Registry([entry("good", "Good")]).find("goood")


def test_one_name_registered_twice_is_an_error_that_names_both() -> None:
    with pytest.raises(PipelineError, match=r"two distributions register a pass 'good'.*:Good.*:Other"):
        Registry([entry("good", "Good"), entry("good", "Other")])
    assert Registry([entry("good", "Good"), entry("good", "Good")]).names() == ("good",)


def test_a_broken_distribution_on_the_path_is_named(tmp_path: Path) -> None:
    metadata = tmp_path / "acme_passes-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-passes\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text("[graphopt.passes]\nacme-fuse = acme_passes:Fuse\n")
    (tmp_path / "acme_passes.py").write_text("raise RuntimeError('licence expired')\n")
    program = """
        from graphopt.pipeline.registry import Registry
        print(*Registry().find_all()[1])
    """
    path = [str(tmp_path), str(ROOT), str(ROOT / "passes"), *sys.path]
    output = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={"PYTHONPATH": ":".join(path)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "'acme-fuse' of the distribution acme-passes" in output
    assert "RuntimeError: licence expired" in output


def test_the_passes_of_this_repository_can_be_found() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        declared = tomllib.load(file)["project"]["entry-points"][GROUP]
    registry = Registry(EntryPoint(name, value, GROUP) for name, value in declared.items())
    found, warnings = registry.find_all()
    assert warnings == []
    assert [cls.name for cls in found] == sorted(declared)
    assert all(cls.__doc__ for cls in found)
    if any(entry.name == "fold-constants" for entry in entry_points(group=GROUP)):
        assert set(declared) <= set(Registry().names())
