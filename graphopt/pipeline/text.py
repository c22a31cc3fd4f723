"""The grammar of pipeline text, without its meaning: names, options and words, each with where it stands.

    pipeline = [item {"," item}]            fold-constants,quantize{target=ort-x86,keep=head:"a,b"}
    item     = name ["{" [option {"," option}] "}"]
    option   = key "=" [word {":" word}]
    word     = bare | JSON string           bare: anything but white space and , : { } = "

White space between tokens means nothing, and a dash in a key is an underscore. Every error shows the line and points at
the character.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
from collections.abc import Iterable

from graphopt.errors import PipelineError
from graphopt.pipeline.options import BARE, Word

_SPACE = re.compile(r"\s*")


@dataclasses.dataclass(frozen=True)
class Setting:
    """`key=word:word`; `start` is the position of the key, `value_start` of what follows the sign."""

    key: str
    words: tuple[Word, ...]
    start: int
    value_start: int


@dataclasses.dataclass(frozen=True)
class Item:
    """`name{...}`; `start` is the position of the name."""

    name: str
    settings: tuple[Setting, ...]
    start: int


def parse(text: str) -> list[Item]:
    """Read the text of a pipeline. Raises PipelineError, pointing at the character that is wrong."""
    reader = _Reader(text)
    if reader.at_end():
        return []
    items = [reader.item()]
    while not reader.at_end():
        reader.expect(",", "',' and another pass")
        items.append(reader.item())
    return items


def pointed(message: str, text: str, position: int) -> str:
    """`message`, then the line of `text` that holds `position`, then a caret under it."""
    start = text.rfind("\n", 0, position) + 1
    line = text[start:].split("\n", 1)[0]
    indent = "".join("\t" if character == "\t" else " " for character in line[: position - start])
    return f"{message}\n  {line}\n  {indent}^"


def suggestion(name: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` where some known name is near, else an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean '{near[0]}'?" if near else ""


class _Reader:
    """A position in the text, and what can be read from there on."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.position = 0

    def at_end(self) -> bool:
        self._skip_space()
        return self.position == len(self.text)

    def item(self) -> Item:
        start, name = self._bare("the name of a pass")
        settings: list[Setting] = []
        if self._take("{") and not self._take("}"):
            while True:
                settings.append(self._setting(settings))
                if self._take("}"):
                    break
                self.expect(",", "',', ':' or '}'")
        return Item(name, tuple(settings), start)

    def expect(self, token: str, described: str) -> None:
        if not self._take(token):
            raise self._error(described)

    def _setting(self, earlier: list[Setting]) -> Setting:
        start, key = self._bare("the name of an option")
        key = key.replace("-", "_")  # names of passes have dashes, so that options are often typed with them, too
        if any(setting.key == key for setting in earlier):
            raise PipelineError(pointed(f"option '{key}' is given twice", self.text, start))
        self.expect("=", "'='")
        self._skip_space()
        value_start = self.position
        if self.text[self.position : self.position + 1] in (",", "}"):
            return Setting(key, (), start, value_start)
        words = [self._word()]
        while self._take(":"):
            words.append(self._word())
        return Setting(key, tuple(words), start, value_start)

    def _word(self) -> Word:
        self._skip_space()
        if self.text[self.position : self.position + 1] != '"':
            return Word(self._bare('a value (text with , : { } = " or spaces goes in double quotes)')[1])
        try:
            value, self.position = json.JSONDecoder().raw_decode(self.text, self.position)
        except json.JSONDecodeError as error:
            message = f"this quoted text is not a JSON string ({error.msg})"
            raise PipelineError(pointed(message, self.text, self.position)) from None
        return Word(value, quoted=True)

    def _bare(self, described: str) -> tuple[int, str]:
        self._skip_space()
        match = BARE.match(self.text, self.position)
        if match is None:
            raise self._error(described)
        self.position = match.end()
        return match.start(), match[0]

    def _take(self, token: str) -> bool:
        self._skip_space()
        taken = self.text.startswith(token, self.position)
        self.position += len(token) if taken else 0
        return taken

    def _skip_space(self) -> None:
        match = _SPACE.match(self.text, self.position)
        assert match is not None  # it matches the empty string
        self.position = match.end()

    def _error(self, expected: str) -> PipelineError:
        found = repr(self.text[self.position]) if self.position < len(self.text) else "the end"
        return PipelineError(pointed(f"expected {expected}, found {found}", self.text, self.position))
