"""Typed options: from the words of a pipeline to the values of a pass's fields, and back.

A pass is a frozen dataclass, and the annotation of a field says what the option may be: bool, int, float, str, a
`Literal`, several of these joined by `|`, a tuple of one of them, or a tuple or None (written `none`). A value is a
list of words; only tuples have other than one. A quoted word is always text, so that the string "none" and the name
"12" can be told from None and 12: text is quoted exactly where its bare form would be read as something else.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from graphopt.errors import OptionError
from graphopt.pipeline.base import Pass

BARE = re.compile(r'[^\s,:{}="\x00-\x1f\x7f]+')
"""What needs no quotes in the text of a pipeline."""


class Word(typing.NamedTuple):
    """One word of an option's value."""

    text: str
    quoted: bool = False

    def __str__(self) -> str:
        return json.dumps(self.text, ensure_ascii=False) if self.quoted else self.text


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a pass.

    Attributes:
        owner: name of the pass.
        name: name of the field.
        annotation: type of the field.
        default: its value where a pipeline says nothing.
        help: one sentence, empty where the pass gives none.
        minimum: smallest legal number, or None.
        maximum: largest legal number, or None.
    """

    owner: str
    name: str
    annotation: Any
    default: Any
    help: str = ""
    minimum: float | None = None
    maximum: float | None = None

    @property
    def legal(self) -> str:
        """The legal values, as messages and `graphopt passes` describe them."""
        limits = [f">= {self.minimum:g}"] if self.minimum is not None else []
        limits += [f"<= {self.maximum:g}"] if self.maximum is not None else []
        return _describe(self.annotation) + (f" {' and '.join(limits)}" if limits else "")

    def read(self, words: Sequence[Word]) -> Any:
        """The value that `words` stand for. Raises OptionError where they stand for none."""
        try:
            value = _read(self.annotation, tuple(words))
        except ValueError:
            raise self.error(":".join(map(str, words))) from None
        numbers = value if isinstance(value, tuple) else (value,)
        if not all(self._within(number) for number in numbers):
            raise self.error(":".join(map(str, words)))
        return value

    def write(self, value: Any) -> str:
        """`value` as pipelines write it. Raises OptionError where the option cannot have it."""
        exact = self.read(self._wording(value))  # 1 given for a float is 1.0
        return ":".join(map(str, self._wording(exact)))

    def error(self, found: str) -> OptionError:
        """The complaint that the option cannot be `found`."""
        return OptionError(f"{self.owner}.{self.name}: {found or 'nothing'} is not {self.legal}")

    def _wording(self, value: Any) -> list[Word]:
        """Words that read as `value`, quoted only where bare ones would read as something else."""
        bare = _words(value)
        for words in (bare, [Word(word.text, quoted=True) for word in bare]):
            try:
                if _read(self.annotation, tuple(words)) == value:
                    return words
            except ValueError:
                continue
        raise self.error(repr(value))

    def _within(self, number: Any) -> bool:
        if isinstance(number, bool) or not isinstance(number, int | float):
            return True
        return (self.minimum is None or number >= self.minimum) and (self.maximum is None or number <= self.maximum)


@functools.cache
def options_of(cls: type[Pass]) -> Mapping[str, Option]:
    """The options of a pass in the order of its fields. Raises OptionError where a field has no usable type."""
    hints = typing.get_type_hints(cls)
    found = {}
    for field in dataclasses.fields(cls):  # type: ignore[arg-type]  # a Pass is a dataclass by contract
        annotation = hints[field.name]
        if not _is_supported(annotation):
            raise OptionError(f"{cls.name}.{field.name}: an option cannot have the type {field.type}")
        default = field.default_factory() if callable(field.default_factory) else field.default
        facts = {key: field.metadata.get(key) for key in ("minimum", "maximum")}
        help_text = field.metadata.get("help", "")
        found[field.name] = Option(cls.name, field.name, annotation, default, help_text, **facts)
    return types.MappingProxyType(found)


def configure(cls: type[Pass], values: Mapping[str, Any]) -> Pass:
    """A pass with these option values. Raises OptionError where one is missing or the pass refuses them."""
    for option in options_of(cls).values():
        if option.default is dataclasses.MISSING and option.name not in values:
            raise OptionError(f"{cls.name}.{option.name} has no default: give it {option.legal}")
    try:
        return cls(**values)
    except ValueError as error:
        raise OptionError(f"{cls.name}: {error}") from error


def settings(pass_: Pass) -> dict[str, str]:
    """The options of `pass_` that differ from their defaults, as text. Raises OptionError on an illegal value."""
    options = options_of(type(pass_)).values()
    written = {option.name: option.write(getattr(pass_, option.name)) for option in options}
    return {option.name: written[option.name] for option in options if getattr(pass_, option.name) != option.default}


def to_text(pass_: Pass) -> str:
    """`pass_` as pipelines write it."""
    listed = ",".join(f"{name}={value}" for name, value in settings(pass_).items())
    return f"{pass_.name}{{{listed}}}" if listed else pass_.name


def _words(value: Any) -> list[Word]:
    """The words of a value, none quoted that could be bare."""
    if isinstance(value, tuple):
        return [word for element in value for word in _words(element)]
    if isinstance(value, str):
        return [Word(value, quoted=not BARE.fullmatch(value))]
    return [Word(repr(value).lower() if value is None or isinstance(value, bool) else repr(value))]


def _is_supported(annotation: Any) -> bool:
    members = _members(annotation)
    if any(typing.get_origin(member) is tuple for member in members):
        *others, last = members
        elements = [member for member in typing.get_args(last) if member is not Ellipsis]
        return others in ([], [types.NoneType]) and bool(elements) and all(map(_is_scalar, elements))
    return all(map(_is_scalar, members))


def _is_scalar(annotation: Any) -> bool:
    if typing.get_origin(annotation) is Literal:
        return all(isinstance(value, str | int) for value in typing.get_args(annotation))
    return annotation in (bool, int, float, str, types.NoneType)


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, in the order in which words are read; others are their own only one."""
    if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
        return (annotation,)
    order = [types.NoneType, Literal, bool, int, float, str, tuple]
    kinds = {member: typing.get_origin(member) or member for member in typing.get_args(annotation)}
    return tuple(sorted(kinds, key=lambda member: order.index(kinds[member]) if kinds[member] in order else len(order)))


def _read(annotation: Any, words: tuple[Word, ...]) -> Any:
    """The value of `annotation` that `words` stand for; raises ValueError."""
    members = _members(annotation)
    if len(members) > 1:
        for member in members:
            try:
                return _read(member, words)
            except ValueError:
                continue
        raise ValueError
    if typing.get_origin(annotation) is tuple:
        elements = list(_element_types(annotation, len(words)))
        if len(elements) != len(words):
            raise ValueError
        return tuple(_read_word(element, word) for element, word in zip(elements, words, strict=True))
    if len(words) != 1:
        raise ValueError
    return _read_word(annotation, words[0])


def _element_types(annotation: Any, length: int) -> Iterator[Any]:
    arguments = typing.get_args(annotation)
    yield from [arguments[0]] * length if arguments[-1] is Ellipsis else arguments


def _read_word(annotation: Any, word: Word) -> Any:
    if typing.get_origin(annotation) is Literal:
        for value in typing.get_args(annotation):
            if str(value) == word.text and (isinstance(value, str) or not word.quoted):
                return value
    elif annotation is str:
        return word.text
    elif not word.quoted:
        return _read_bare(annotation, word.text)
    raise ValueError


def _read_bare(annotation: Any, text: str) -> Any:
    if annotation is types.NoneType and text == "none":
        return None
    if annotation is bool and text in ("true", "false"):
        return text == "true"
    if annotation is int and re.fullmatch(r"[+-]?[0-9]+", text):
        return int(text)
    if annotation is float and not math.isnan(float(text)):
        return float(text)
    raise ValueError


def _describe(annotation: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", types.NoneType: "none"}
    members = _members(annotation)
    if len(members) > 1:
        return " or ".join(_describe(member) for member in (*members[1:], members[0]))
    if typing.get_origin(annotation) is Literal:
        values = [str(value) for value in typing.get_args(annotation)]
        return values[0] if len(values) == 1 else f"one of {', '.join(values)}"
    if typing.get_origin(annotation) is tuple:
        arguments = typing.get_args(annotation)
        if arguments[-1] is Ellipsis:
            return f"a list a:b:c, each {_describe(arguments[0])}"
        return f"{len(arguments)} values joined by ':' ({', '.join(map(_describe, arguments))})"
    return names[annotation]
