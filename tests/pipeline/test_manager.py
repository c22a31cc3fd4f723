"""The manager: what is verified and priced, and what happens when a pass goes wrong."""

from __future__ import annotations

import dataclasses
import re
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

import onnx
import onnx_ir as ir
import pytest

from graphopt.errors import EmitError, NotAvailableError, PassError, UnsupportedModelError, VerificationError
from graphopt.ir.verify import verify
from graphopt.pipeline.base import Pass, PassContext, PassResult, Remark
from graphopt.pipeline.instruments import Dump, Instrument, Steps
from graphopt.pipeline.manager import MOST_GUILTY, MOST_SWEEPS, Manager, Tools
from graphopt.pipeline.pipeline import Pipeline
from graphopt.pipeline.records import PassRecord, RunRecord
from graphopt.pipeline.registry import Registry
from graphopt.pricing.device import DeviceProfile, this_machine
from graphopt.runtime.equivalence import Status, Verdict

TEXT = """<ir_version: 10, opset_import: ["": 13]>
g (float[N] x) => (float[N] y) { a = Relu(x)  b = Abs(a)  y = Neg(b) }"""


def build() -> ir.Model:
    return ir.from_onnx_text(TEXT)


def rename(model: ir.Model, op_type: str, to: str) -> PassResult:
    """Turn every node of one operator into another."""
    found = [node for node in model.graph if node.op_type == op_type]
    for node in found:
        node.op_type = to
    return PassResult(bool(found), found)


@dataclasses.dataclass(frozen=True)
class Swap(Pass):
    name: ClassVar[str] = "swap"
    old: str
    new: str

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return rename(model, self.old, self.new)


@dataclasses.dataclass(frozen=True)
class Idle(Pass):
    name: ClassVar[str] = "idle"
    requires: ClassVar[tuple[str, ...]] = ()

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        return PassResult(modified=False, remarks=[Remark("everywhere", "nothing to do")])


@dataclasses.dataclass(frozen=True)
class Raising(Pass):
    """Fails half way."""

    name: ClassVar[str] = "raising"
    kind: str = "KeyError"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        rename(model, "Relu", "Broken")
        raise {error.__name__: error for error in ERRORS}[self.kind]("needs data")


ERRORS: tuple[type[Exception], ...] = (KeyError, RecursionError, NotAvailableError)


@dataclasses.dataclass(frozen=True)
class Breaking(Pass):
    """Leaves the graph with a node that reads a value from nowhere."""

    name: ClassVar[str] = "breaking"

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        node = model.graph[1]
        node.replace_input_with(0, ir.Value(name="nowhere"))
        return PassResult(True, [node])


@dataclasses.dataclass(frozen=True)
class LossyBreaking(Breaking):
    name: ClassVar[str] = "lossy-breaking"
    exact: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class LossySwap(Swap):
    name: ClassVar[str] = "lossy-swap"
    exact: ClassVar[bool] = False


@dataclasses.dataclass(frozen=True)
class Modern(Swap):
    name: ClassVar[str] = "modern"
    min_opset: ClassVar[int] = 18


@dataclasses.dataclass(frozen=True)
class ModernLossy(Modern):
    name: ClassVar[str] = "modern-lossy"
    exact: ClassVar[bool] = False


class Watch:
    """Fakes of the rest of the house that note what they were asked."""

    def __init__(self, differs: Callable[[set[str]], bool] = lambda operators: False) -> None:
        self.differs = differs
        self.verified: list[list[str] | None] = []
        self.inferred: list[list[str] | None] = []
        self.priced: list[list[str] | None] = []
        self.compared = 0

    def tools(self, **others: Any) -> Tools:
        return Tools(
            **{
                "verify_structure": self.verify,
                "infer": lambda model, touched: self.inferred.append(names(touched)),
                "verify_meaning": lambda model, touched: None,
                "save": lambda model, path: ir.save(model, path),
                "price": self.price,
                "equivalent": self.equivalent,
                "relift": build,
                **others,
            }
        )

    def verify(self, model: ir.Model, touched: Collection[ir.Node] | None) -> None:
        self.verified.append(names(touched))
        verify(model, touched)

    def price(self, model: ir.Model, touched: Collection[ir.Node] | None) -> int:
        self.priced.append(names(touched))
        return sum(len(node.op_type) for node in model.graph)

    def equivalent(self, model: ir.Model) -> Verdict:
        self.compared += 1
        operators = {node.op_type for node in model.graph}
        return Verdict(Status.DIFFERENT, "output 'y' differs") if self.differs(operators) else Verdict(Status.SAME)


def names(touched: Collection[ir.Node] | None) -> list[str] | None:
    return None if touched is None else [node.op_type for node in touched]


def run(*passes: Pass, watch: Watch | None = None, tools: dict[str, Any] | None = None, **options: Any) -> RunRecord:
    context = PassContext(seed=7, exclude=re.compile("a|b"))
    manager = Manager(Registry(()), context, (watch or Watch()).tools(**(tools or {})), **options)
    return manager.run(build(), Pipeline(passes))


def operators(record: RunRecord) -> list[str]:
    return [node.op_type for node in record.model.graph]


def test_a_pass_sees_the_device_of_the_run() -> None:
    given = DeviceProfile(name="box", block=8, overhead=1.0)
    context, other = PassContext(profile=given), PassContext()
    assert (context.device, context.device.alignment) == (given, 8)
    assert other.device is this_machine()
    assert context.predicted_ms(build()) >= 1000 > other.predicted_ms(build())


def test_only_what_was_touched_is_looked_at() -> None:
    watch = Watch()
    record = run(Idle(), Swap("Abs", "Floor"), Idle(), watch=watch)
    assert operators(record) == ["Relu", "Floor", "Neg"]
    assert watch.inferred == [["Floor"]]
    assert watch.verified == [["Floor"], None]  # the whole model once, at the end
    assert watch.priced == [None, ["Floor"]]
    assert watch.compared == 1
    assert [(p.name, p.modified, p.before, p.after) for p in record.passes] == [
        ("idle", False, 10, 10),
        ("swap", True, 10, 12),
        ("idle", False, 12, 12),
    ]
    assert record.passes[0].remarks == (Remark("everywhere", "nothing to do"),)
    assert record.passes[1].options == {"old": "Abs", "new": "Floor"}
    assert record.pipeline == "idle,swap{old=Abs,new=Floor},idle"
    assert record.warnings == ()


def test_passes_that_change_nothing_cost_nothing() -> None:
    watch = Watch()
    run(Idle(), Idle(), watch=watch)
    assert (watch.verified, watch.inferred, watch.priced, watch.compared) == ([], [], [None], 0)


def test_the_whole_model_can_be_verified_after_each_pass() -> None:
    watch = Watch()
    run(Swap("Abs", "Floor"), watch=watch, verify_all=True)
    assert watch.verified == [None, None]


@pytest.mark.parametrize("kind", ["KeyError", "RecursionError"])
def test_a_failing_pass_leaves_a_reproducer(tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "new"
    with pytest.raises(PassError, match=f"pass 'raising.*' failed: {kind}: .*needs data") as caught:
        run(Swap("Abs", "Floor"), Raising(kind), Idle(), crash_folder=folder, crash_options=["--data", "a b.npz"])
    assert type(caught.value.__cause__).__name__ == kind
    (crash,) = folder.iterdir()
    assert crash.name.startswith("graphopt-crash-")
    assert str(crash) in str(caught.value)
    model = onnx.load(crash / "model.onnx")
    assert [node.op_type for node in model.graph.node] == ["Relu", "Floor", "Neg"]  # as the failing pass got it
    remaining = (crash / "pipeline.txt").read_text().strip()
    assert remaining == str(Pipeline((Raising(kind), Idle())))
    command = shlex.split((crash / "README.txt").read_text().splitlines()[-1])
    asked = ["--seed", "7", "--exclude", "a|b", "--data", "a b.npz"]
    assert command == ["graphopt", "run", str(crash / "model.onnx"), "-p", remaining, *asked]


def test_a_reproducer_that_cannot_be_written_does_not_hide_the_failure(tmp_path: Path) -> None:
    def full(model: ir.Model, path: Path) -> None:
        raise EmitError("disk full")

    with pytest.raises(PassError, match=r"'raising' failed: KeyError.*no reproducer could be written: disk full"):
        run(Raising(), crash_folder=tmp_path, tools={"save": full})
    (tmp_path / "file").write_text("")
    with pytest.raises(PassError, match="no reproducer could be written"):
        run(Raising(), crash_folder=tmp_path / "file")


def test_errors_meant_for_the_user_go_up_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(NotAvailableError, match="needs data"):
        run(Raising("NotAvailableError"), crash_folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_exact_pass_that_breaks_the_graph_is_taken_back() -> None:
    watch = Watch()
    record = run(Swap("Abs", "Floor"), Breaking(), Swap("Neg", "Ceil"), watch=watch)
    assert operators(record) == ["Relu", "Floor", "Ceil"]
    assert [p.modified for p in record.passes] == [True, False, True]
    (warning,) = record.warnings
    assert warning.startswith("pass 'breaking' was taken back: ")
    assert "'nowhere'" in warning
    assert str(record.passes[1].remarks[0]).startswith("pass 'breaking': taken back: ")
    assert watch.priced == [None, ["Floor"], None]  # after going back the nodes are others
    verify(record.model)


def test_another_pass_that_breaks_the_graph_fails(tmp_path: Path) -> None:
    with pytest.raises(PassError, match=r"pass 'lossy-breaking' failed: .*nowhere"):
        run(LossyBreaking(), crash_folder=tmp_path)


@pytest.mark.parametrize("position", range(5))
def test_the_pass_that_changes_the_outputs_is_found_and_taken_back(position: int) -> None:
    passes = [Swap("Relu", "Elu"), Swap("Abs", "Floor"), Swap("Elu", "Selu"), Swap("Floor", "Round")]
    passes.insert(position, Swap("Neg", "Exp"))
    passes.append(Swap("Exp", "Erf"))  # changes nothing once the guilty pass is out
    watch = Watch(lambda operators: bool(operators & {"Exp", "Erf"}))
    record = run(*passes, watch=watch)
    assert operators(record) == ["Selu", "Round", "Neg"]
    assert [p.modified for p in record.passes] == [p.old not in ("Neg", "Exp") for p in passes]
    assert record.warnings == (
        "pass 'swap{old=Neg,new=Exp}' was taken back: the model computes something else: output 'y' differs",
    )
    assert record.passes[position].before == record.passes[position].after
    assert record.passes[-1].after == sum(map(len, operators(record)))
    assert watch.compared <= 2 + 3  # the end twice, and the bisection


def test_two_guilty_passes_are_both_found() -> None:
    passes = (Swap("Relu", "Exp"), Swap("Abs", "Floor"), Swap("Neg", "Erf"))
    record = run(*passes, watch=Watch(lambda operators: bool(operators & {"Exp", "Erf"})))
    assert operators(record) == ["Relu", "Floor", "Neg"]
    assert [p.modified for p in record.passes] == [False, True, False]
    assert len(record.warnings) == 2


def test_when_too_many_are_guilty_all_exact_passes_are_taken_back() -> None:
    chain = ["Neg", *(f"Wrong{index}" for index in range(MOST_GUILTY + 2))]
    passes = [Swap("Abs", "Floor"), *(Swap("Neg", wrong) for wrong in chain[1:])]
    record = run(*passes, watch=Watch(lambda operators: any(name.startswith("Wrong") for name in operators)))
    assert operators(record) == ["Relu", "Abs", "Neg"]
    assert not any(p.modified for p in record.passes)


def test_what_could_not_be_compared_is_a_warning() -> None:
    verdict = Verdict(Status.NOT_DONE, "it is random")
    record = run(Swap("Abs", "Floor"), tools={"equivalent": lambda model: verdict})
    assert operators(record) == ["Relu", "Floor", "Neg"]
    assert record.warnings == ("the result was not compared with the original: it is random",)


def test_after_a_pass_that_is_not_exact_nothing_is_compared() -> None:
    watch = Watch(lambda operators: "Exp" in operators)
    record = run(Swap("Abs", "Floor"), LossySwap("Neg", "Exp"), Swap("Relu", "Elu"), watch=watch)
    assert operators(record) == ["Elu", "Floor", "Exp"]
    assert watch.compared == 1
    assert watch.verified[-1] is None


def test_the_opset_is_raised_where_a_pass_needs_it() -> None:
    def upgrade(model: ir.Model, version: int) -> list[str]:
        model.opset_imports[""] = version
        return ["converted"]

    watch = Watch()
    record = run(Modern("Missing", "X"), Modern("Abs", "Floor"), watch=watch, tools={"upgrade": upgrade})
    assert record.model.opset_imports[""] == 18
    assert [str(remark) for remark in record.passes[0].remarks] == [
        "opset 13 -> 18: raised",
        "opset 13 -> 18: converted",
    ]
    assert [p.modified for p in record.passes] == [True, True]
    assert watch.inferred == [None, ["Floor"]]


def test_a_pass_whose_opset_cannot_be_reached_is_left_out() -> None:
    def upgrade(model: ir.Model, version: int) -> list[str]:
        model.opset_imports[""] = 15
        raise UnsupportedModelError("Upsample cannot be converted")

    record = run(Swap("Relu", "Elu"), Modern("Abs", "Floor"), Swap("Neg", "Ceil"), tools={"upgrade": upgrade})
    assert operators(record) == ["Elu", "Abs", "Ceil"]
    assert record.model.opset_imports[""] == 13
    assert "left out: it needs opset 18, but Upsample cannot be converted" in str(record.passes[1].remarks[0])
    (lossy,) = run(ModernLossy("Abs", "Floor"), tools={"upgrade": upgrade}).passes
    assert (lossy.exact, lossy.modified) == (False, False)
    assert lossy.facts["unchanged"].startswith("left out: it needs opset 18")


def test_nodes_say_which_passes_touched_them() -> None:
    record = run(Swap("Abs", "Floor"), Modern("Floor", "Round"), Swap("Round", "Ceil"), provenance=True, tools={
        "upgrade": lambda model, version: []
    })  # fmt: skip
    assert [dict(node.metadata_props) for node in record.model.graph] == [{}, {"graphopt": "swap,modern"}, {}]


def test_older_models_have_no_metadata_on_nodes() -> None:
    def older() -> ir.Model:
        model = build()
        model.ir_version = 9
        return model

    manager = Manager(Registry(()), PassContext(), Watch().tools(relift=older))
    record = manager.run(older(), Pipeline((Swap("Abs", "Floor"),)))
    assert not any(node.metadata_props for node in record.model.graph)


class Listening(Instrument):
    def __init__(self) -> None:
        self.heard: list[str] = []

    def run_started(self, pipeline: Pipeline, model: ir.Model) -> None:
        self.heard.append(f"run {pipeline}")

    def pass_started(self, pass_: Pass, model: ir.Model) -> None:
        self.heard.append(f"start {pass_.name}")

    def pass_finished(self, record: PassRecord, model: ir.Model) -> None:
        self.heard.append(f"finish {record.name} {record.modified}")


def test_instruments_hear_everything() -> None:
    listening = Listening()
    run(Idle(), Swap("Abs", "Floor"), instruments=[listening])
    assert listening.heard == [
        "run idle,swap{old=Abs,new=Floor}",
        "start idle",
        "finish idle False",
        "start swap",
        "finish swap True",
        "start idle",
        "finish idle False",
        "start swap",  # what was inferred behind it may be news to it
        "finish swap False",
    ]


def test_exact_passes_run_to_a_fixed_point() -> None:
    record = run(Swap("Floor", "Ceil"), Swap("Abs", "Floor"), Idle())
    assert operators(record) == ["Relu", "Ceil", "Neg"]
    assert [(each.name, each.modified) for each in record.passes] == [
        ("swap", False),
        ("swap", True),
        ("idle", False),
        ("swap", True),  # the first again, for what the second made
    ]


def test_passes_that_undo_each_other_come_to_an_end() -> None:
    record = run(Swap("Abs", "Floor"), Swap("Floor", "Abs"))
    assert len(record.passes) == 2 * (MOST_SWEEPS + 1)


def test_a_pass_that_is_wrong_only_in_a_later_sweep_is_taken_back() -> None:
    record = run(
        Swap("Floor", "Ceil"),
        Swap("Abs", "Floor"),
        Swap("Neg", "Exp"),
        watch=Watch(lambda operators: "Ceil" in operators),
    )
    assert operators(record) == ["Relu", "Floor", "Exp"]
    assert len(record.warnings) == 1
    assert "swap{old=Floor,new=Ceil}" in record.warnings[0]


def test_passes_that_are_not_exact_run_once() -> None:
    record = run(LossySwap("Floor", "Ceil"), LossySwap("Abs", "Floor"))
    assert operators(record) == ["Relu", "Floor", "Neg"]


def test_progress_counts_passes_once() -> None:
    heard: list[tuple[str, float, float]] = []
    steps = Steps(lambda *step: heard.append(step))
    run(Swap("Abs", "Floor"), Swap("Neg", "Exp"), watch=Watch(lambda ops: "Exp" in ops), instruments=[steps])
    assert heard[:2] == [("passes", 1, 2), ("passes", 2, 2)]
    assert set(heard[2:]) == {("passes", 2, 2)}


def test_dumps_are_numbered_text_and_the_same_in_every_run(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        run(Idle(), Swap("Abs", "Floor"), instruments=[Dump(tmp_path / folder)])
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == ["000-lifted.txt", "002-swap.txt"]
    texts = [(tmp_path / "one" / name).read_text() for name in files]
    assert ["Abs" in text for text in texts] == [True, False]
    assert texts == [(tmp_path / "two" / name).read_text() for name in files]


def test_a_dump_leaves_large_tensors_out(tmp_path: Path) -> None:
    model = build()
    tensor = ir.tensor(list(range(100000, 100100)), name="w")
    model.graph.register_initializer(ir.Value(name="w", const_value=tensor))
    Dump(tmp_path).run_started(Pipeline(), model)
    text = (tmp_path / "000-lifted.txt").read_text()
    assert '"w"' in text
    assert "100050" not in text


def test_a_dump_into_a_file_is_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EmitError, match=r"--dump .*file"):
        Dump(tmp_path / "file")


def test_the_final_verification_catches_what_a_pass_did_not_report() -> None:
    @dataclasses.dataclass(frozen=True)
    class Sly(LossyBreaking):
        name: ClassVar[str] = "sly"

        def run(self, model: ir.Model, context: PassContext) -> PassResult:
            super().run(model, context)
            return PassResult(True, [])

    with pytest.raises(VerificationError, match="nowhere"):
        run(Sly())


def test_a_reproducer_of_the_api_has_the_data_and_the_device() -> None:
    from graphopt.api import _as_options

    said = _as_options(
        {"--data": Path("a b.npz"), "--normalize": None, "--device": "d.json", "--threads": 2, "-x": [1]}
    )
    assert said == ["--data", "a b.npz", "--device", "d.json", "--threads", "2"]
