"""Every command in README and docs parses: the options are there, and the passes and their options in the pipelines too."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from graphopt.cli.main import graphopt
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.registry import Registry

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
COMMAND = re.compile(
    r"^\s*(?:.*# |.*&& )?(graphopt (?:run|cost|compare|passes|profile-device) [^`|\n]*)$", re.MULTILINE
)
PIPELINE = re.compile(r'`?-p "([^"]+)"')


def commands() -> list[tuple[str, str]]:
    return [(path.name, found) for path in DOCUMENTS for found in COMMAND.findall(path.read_text(encoding="utf-8"))]


def test_there_are_commands_to_look_at() -> None:
    assert len(commands()) > 20


@pytest.mark.parametrize(("document", "text"), commands())
def test_documented_commands_parse(document: str, text: str) -> None:
    name, *arguments = shlex.split(text, comments=True)[1:]
    with graphopt.make_context("graphopt", [name, *arguments]) as group:
        pipeline = graphopt.commands[name].make_context(name, arguments, parent=group).params.get("pipeline")
    if pipeline is not None:
        assert Pipeline.parse(pipeline, Registry()), document


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documented_pipelines_parse(path: Path) -> None:
    """Those inside of sentences, too."""
    for text in PIPELINE.findall(path.read_text(encoding="utf-8")):
        assert Pipeline.parse(text, Registry())
