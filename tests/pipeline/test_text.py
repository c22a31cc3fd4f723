"""Pipelines as text: what is read, what is printed, and where errors point."""

from __future__ import annotations

import dataclasses
import types
from importlib.metadata import EntryPoint
from typing import Any, ClassVar, Literal

import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.errors import NotAvailableError, OptionError, PipelineError
from graphopt.pipeline.base import Pass, PassContext, PassResult, option
from graphopt.pipeline.options import Option, Word, options_of
from graphopt.pipeline.pipeline import Pipeline, missing_passes
from graphopt.pipeline.presets import PRESETS
from graphopt.pipeline.registry import Registry


class Inert(Pass):
    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return PassResult(modified=False)


@dataclasses.dataclass(frozen=True)
class Prune(Inert):
    name: ClassVar[str] = "prune-channels"
    ratio: float = option(0.5, "how much goes", minimum=0, maximum=1)
    keep: tuple[str, ...] = ()
    rank: int | None = None
    target: Literal["ort-x86", "ort-arm"] = "ort-x86"
    label: str | None = None
    mode: Literal["auto"] | float = "auto"
    window: tuple[int, int] = (1, 1)
    exact_only: bool = False


@dataclasses.dataclass(frozen=True)
class Fold(Inert):
    name: ClassVar[str] = "fold-constants"
    max_bytes: int = 16


@dataclasses.dataclass(frozen=True)
class Quantize(Inert):
    name: ClassVar[str] = "quantize"
    requires: ClassVar[tuple[str, ...]] = ("fold-constants", "prune-channels")


@dataclasses.dataclass(frozen=True)
class Chicken(Inert):
    name: ClassVar[str] = "chicken"
    requires: ClassVar[tuple[str, ...]] = ("egg",)


@dataclasses.dataclass(frozen=True)
class Egg(Inert):
    name: ClassVar[str] = "egg"
    requires: ClassVar[tuple[str, ...]] = ("chicken",)


@dataclasses.dataclass(frozen=True)
class Sized(Inert):
    name: ClassVar[str] = "sized"
    size: int


REGISTRY = Registry(
    EntryPoint(cls.name, f"{__name__}:{cls.__name__}", "graphopt.passes")
    for cls in (Prune, Fold, Quantize, Chicken, Egg, Sized)
)


def parse(text: str) -> Pipeline:
    return Pipeline.parse(text, REGISTRY)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ()),
        ("fold-constants", (Fold(),)),
        (" fold-constants , prune-channels { ratio = 0.3 } ", (Fold(), Prune(ratio=0.3))),
        ("fold-constants{}", (Fold(),)),
        ("prune-channels{ratio=1}", (Prune(ratio=1.0),)),
        ("prune-channels{keep=a:b/c:d}", (Prune(keep=("a", "b/c", "d")),)),
        ('prune-channels{keep="a:b,{c}":"\\u00e9\\"":"":plain}', (Prune(keep=("a:b,{c}", 'é"', "", "plain")),)),
        ("prune-channels{keep=,rank=3}", (Prune(keep=(), rank=3),)),
        ('prune-channels{label="none",rank=none}', (Prune(label="none"),)),
        ("prune-channels{label=none,mode=2}", (Prune(mode=2.0),)),
        ("prune-channels{window=3:-4,exact_only=true}", (Prune(window=(3, -4), exact_only=True),)),
        ("prune-channels{exact-only=true}", (Prune(exact_only=True),)),
    ],
)
def test_reads(text: str, expected: tuple[Pass, ...]) -> None:
    assert parse(text).passes == expected


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        ((), ""),
        ((Prune(), Fold(max_bytes=16)), "prune-channels,fold-constants"),
        ((Prune(ratio=1),), "prune-channels{ratio=1.0}"),
        ((Prune(label="none", keep=("none", "5")),), 'prune-channels{keep=none:5,label="none"}'),
        ((Prune(label="", keep=("",)),), 'prune-channels{keep="",label=""}'),
        ((Prune(keep=("a b", "c", 'd"')),), 'prune-channels{keep="a b":c:"d\\""}'),
        ((Prune(mode=0.25, rank=4, exact_only=True),), "prune-channels{rank=4,mode=0.25,exact_only=true}"),
    ],
)
def test_prints_with_quotes_only_where_needed(pipeline: tuple[Pass, ...], expected: str) -> None:
    assert str(Pipeline(pipeline)) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fold-constants,prune-chanels", "there is no pass 'prune-chanels'; did you mean 'prune-channels'?\n"
         "  fold-constants,prune-chanels\n"
         "                 ^"),
        ("lossles", "there is no pass 'lossles'; did you mean 'lossless'?\n  lossles\n  ^"),
        ("zzz", "there is no pass 'zzz'\n  zzz\n  ^"),
        ("fold-constants,", "expected the name of a pass, found the end\n  fold-constants,\n                 ^"),
        ("fold-constants quantize", "expected ',' and another pass, found 'q'\n"
         "  fold-constants quantize\n"
         "                 ^"),
        ("prune-channels{ratoi=0.3}", "'prune-channels' has no option 'ratoi'; did you mean 'ratio'?\n"
         "  prune-channels{ratoi=0.3}\n"
         "                 ^"),
        ("prune-channels{ratio}", "expected '=', found '}'\n  prune-channels{ratio}\n                      ^"),
        ("prune-channels{ratio=0.3", "expected ',', ':' or '}', found the end\n"
         "  prune-channels{ratio=0.3\n"
         "                          ^"),
        ("prune-channels{ratio=.1,ratio=.2}", "option 'ratio' is given twice\n"
         "  prune-channels{ratio=.1,ratio=.2}\n"
         "                          ^"),
        ("prune-channels{exact-only=true,exact_only=false}", "option 'exact_only' is given twice\n"
         "  prune-channels{exact-only=true,exact_only=false}\n"
         "                                 ^"),
        ('prune-channels{keep="a}', 'this quoted text is not a JSON string (Unterminated string starting at)\n'
         '  prune-channels{keep="a}\n'
         "                      ^"),
        ("fold-constants,\nfold-const", "there is no pass 'fold-const'; did you mean 'fold-constants'?\n"
         "  fold-const\n"
         "  ^"),
    ],
)  # fmt: skip
def test_errors_point_at_the_character(text: str, message: str) -> None:
    with pytest.raises(PipelineError) as caught:
        parse(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prune-channels{ratio=x}", "prune-channels.ratio: x is not a number >= 0 and <= 1"),
        ("prune-channels{ratio=1.5}", "prune-channels.ratio: 1.5 is not a number >= 0 and <= 1"),
        ("prune-channels{ratio=nan}", "prune-channels.ratio: nan is not a number >= 0 and <= 1"),
        ('prune-channels{ratio="1"}', 'prune-channels.ratio: "1" is not a number >= 0 and <= 1'),
        ("prune-channels{ratio=}", "prune-channels.ratio: nothing is not a number >= 0 and <= 1"),
        ("prune-channels{rank=1.5}", "prune-channels.rank: 1.5 is not an integer or none"),
        ("prune-channels{rank=1:2}", "prune-channels.rank: 1:2 is not an integer or none"),
        ("prune-channels{target=gpu}", "prune-channels.target: gpu is not one of ort-x86, ort-arm"),
        ("prune-channels{exact_only=yes}", "prune-channels.exact_only: yes is not true or false"),
        ("prune-channels{mode=fast}", "prune-channels.mode: fast is not a number or auto"),
        ("prune-channels{window=1}", "prune-channels.window: 1 is not 2 values joined by ':' (an integer, an integer)"),
        ("sized", "sized.size has no default: give it an integer"),
    ],
)
def test_option_errors_name_option_and_legal_values(text: str, message: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse(text)
    assert str(caught.value).splitlines()[0] == message
    assert str(caught.value).splitlines()[1] == f"  {text}"


@pytest.mark.parametrize(
    "pass_",
    [Prune(ratio=2.0), Prune(ratio="x"), Prune(rank=True), Prune(exact_only=1), Prune(keep=["a"]), Fold(max_bytes=0.5)],  # type: ignore[arg-type]
)
def test_values_given_in_python_are_checked_when_printed(pass_: Pass) -> None:
    with pytest.raises(OptionError):
        str(Pipeline((pass_,)))


def test_an_option_of_an_unusable_type_is_refused() -> None:
    @dataclasses.dataclass(frozen=True)
    class Odd(Inert):
        name: ClassVar[str] = "odd"
        table: dict[str, int] = dataclasses.field(default_factory=dict)

    with pytest.raises(OptionError, match=r"odd\.table: an option cannot have the type"):
        options_of(Odd)


def test_a_preset_stands_for_its_passes() -> None:
    lossless = Registry(
        EntryPoint(name, f"{__name__}:Fold", "graphopt.passes")
        for name in [*PRESETS["lossless"].split(","), "unrelated"]
        if name != "fold-batch-norm"
    )
    with pytest.raises(NotAvailableError, match=r"preset 'lossless' needs the pass fold-batch-norm, which"):
        Pipeline.parse("lossless", lossless)
    with pytest.raises(NotAvailableError, match=r"preset 'small' needs the passes .*factorize"):
        parse("small")
    assert missing_passes("int8", lossless) == ["fold-batch-norm", "quantize"]
    with pytest.raises(PipelineError, match="takes no options"):
        parse("lossless{ratio=1}")


def test_what_a_pass_requires_is_inserted_once_and_before_it() -> None:
    assert str(parse("quantize,prune-channels{ratio=0.3},quantize").completed(REGISTRY)) == (
        "fold-constants,prune-channels,quantize,prune-channels{ratio=0.3},quantize"
    )
    with pytest.raises(PipelineError, match="egg -> chicken -> egg"):
        Pipeline((Egg(),)).completed(REGISTRY)


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(),
    float: st.floats(allow_nan=False),
    str: st.text(),
    Literal["auto", "none", "1"]: st.sampled_from(["auto", "none", "1"]),
}


@st.composite
def annotated_values(draw: st.DrawFn) -> tuple[Any, Any]:
    scalar: Any = draw(st.sampled_from(list(SCALARS)))
    values = SCALARS[scalar]
    match draw(st.sampled_from(["scalar", "optional", "list", "optional list", "pair", "number or text"])):
        case "scalar":
            return scalar, draw(values)
        case "optional":
            return scalar | None, draw(values | st.none())
        case "list":
            return types.GenericAlias(tuple, (scalar, ...)), tuple(draw(st.lists(values, max_size=4)))
        case "optional list":
            return types.GenericAlias(tuple, (scalar, ...)) | None, draw(
                st.none() | st.lists(values, max_size=4).map(tuple)
            )
        case "pair":
            return types.GenericAlias(tuple, (scalar, str)), (draw(values), draw(st.text()))
        case _:
            return int | float | str, draw(st.integers() | st.floats(allow_nan=False) | st.text())


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # the first text draws build Unicode tables
@given(st.lists(st.lists(annotated_values(), max_size=4), max_size=3))
def test_text_to_pipeline_to_text_is_the_identity(shapes: list[list[tuple[Any, Any]]]) -> None:
    classes, passes = {}, []
    for position, fields in enumerate(shapes):
        default = object()
        names = [f"option_{index}" for index in range(len(fields))]
        options = [
            (name, kind, dataclasses.field(default=default)) for name, (kind, _) in zip(names, fields, strict=True)
        ]
        body = {"name": f"pass-{position}"}
        cls = dataclasses.make_dataclass("Generated", options, bases=(Inert,), namespace=body, frozen=True)
        classes[f"pass-{position}"] = cls
        passes.append(cls(*(value for _, value in fields)))

    class InMemory(Registry):
        def names(self) -> tuple[str, ...]:
            return tuple(classes)

        def find(self, name: str) -> type[Pass]:
            return classes[name]

    pipeline = Pipeline(tuple(passes))
    text = str(pipeline)
    read = Pipeline.parse(text, InMemory(()))
    assert read == pipeline
    assert str(read) == text


@given(st.text(alphabet='ab-,:{}=" \\\n1.', max_size=30))
def test_no_text_makes_anything_but_a_pipeline_error(text: str) -> None:
    try:
        printed = str(parse(text))
    except (PipelineError, OptionError):
        return
    assert str(parse(printed)) == printed


def test_words_of_an_option_read_alone() -> None:
    option_ = Option("p", "o", int | None, None)
    assert option_.read([Word("none")]) is None
    with pytest.raises(OptionError, match=r'p\.o: "none" is not an integer or none'):
        option_.read([Word("none", quoted=True)])
