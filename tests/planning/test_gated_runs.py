"""Runs with samples from end to end: who gets which of them, what the gate stops, and what is reported."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import graphopt
from graphopt.cli.main import main
from graphopt.errors import DataError, GraphoptError, OptionError, TargetNotMetError
from graphopt.pipeline.base import Pass, PassContext, PassResult, Remark, option
from graphopt.pipeline.registry import GROUP
from graphopt.planning.gate import Gate
from graphopt.runtime.latency import measure
from graphopt.runtime.session import Session

MODELS = Path(__file__).parents[2] / "models"
RESIDUAL, CALIBRATION, EVALUATION = (MODELS / name for name in ("residual.onnx", "digits.calib.npz", "digits.eval.npz"))


@dataclasses.dataclass(frozen=True)
class Blur(Pass):
    """Add seeded noise to all weights."""

    name: ClassVar[str] = "blur"
    exact: ClassVar[bool] = False
    strength: float = option(0.1, "standard deviation of the noise over that of the weight")

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        rng = context.rng()
        for value in model.graph.initializers.values():
            tensor = value.const_value
            if tensor is None or len(tensor.shape) < 2:
                continue
            array = tensor.numpy()
            noise = rng.standard_normal(array.shape) * array.std() * self.strength
            value.const_value = ir.Tensor((array + noise).astype(array.dtype), name=value.name)
        return PassResult(self.strength != 0)


@dataclasses.dataclass(frozen=True)
class Ask(Pass):
    """Say how many samples there are to calibrate on."""

    name: ClassVar[str] = "ask"
    exact: ClassVar[bool] = False
    reads_data: ClassVar[bool] = True

    def run(self, model: ir.Model, context: PassContext) -> PassResult:
        if context.evidence is None:
            return PassResult(False, remarks=[Remark("everywhere", "nothing to ask")])
        rows = [np.asarray(batch.feeds["input"]) for batch in context.evidence.samples.batches()]
        said = f"{len(np.concatenate(rows))} samples, positions {sorted(context.evidence.samples.indices())}"
        return PassResult(False, remarks=[Remark("everywhere", said, applied=True)])


@dataclasses.dataclass(frozen=True)
class Insist(Ask):
    """The same, and not without any."""

    name: ClassVar[str] = "insist"
    needs_data: ClassVar[bool] = True


@dataclasses.dataclass(frozen=True)
class Choosy(Ask):
    """Insists where its option says so."""

    name: ClassVar[str] = "choosy"
    static: bool = option(True, "whether it needs data")

    @property
    def needs_data(self) -> bool:
        return self.static


PASSES = (Blur, Ask, Insist, Choosy)


@pytest.fixture(autouse=True)
def lossy_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """`blur`, `ask`, `insist` and `choosy` beside the installed passes."""
    ours = [EntryPoint(cls.name, f"{__name__}:{cls.__name__}", GROUP) for cls in PASSES]

    def found(group: str) -> list[Any]:
        return [*entry_points(group=group), *ours]

    monkeypatch.setattr("graphopt.pipeline.registry.entry_points", found)


@pytest.fixture(autouse=True)
def hasty_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gates ask for latency; here the fewest rounds will do."""
    monkeypatch.setattr("graphopt.runtime.original.measure", functools.partial(measure, seconds=0))


def optimize(pipeline: str, **options: Any) -> graphopt.Result:
    return graphopt.optimize(RESIDUAL, pipeline, **{"data": CALIBRATION, "check": False, **options})


def asked(result: graphopt.Result) -> tuple[int, list[int]]:
    """How many samples the pass `ask` found, and their positions."""
    said = next(record for record in result.report.passes if record.name == "ask").remarks[0].what
    count, *positions = map(int, re.findall(r"\d+", said))
    return count, positions


def accuracy(outputs: dict[str, Any], labels: Any) -> float:
    return float((outputs["logits"].argmax(axis=1) == labels).mean())


def digits(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as arrays:
        return {key: arrays[key] for key in arrays}


@pytest.mark.parametrize(
    ("options", "calibrating", "held_out"),
    [
        ({}, 256, 0),
        ({"calibration_samples": 40}, 40, 0),
        ({"max_drop": 1}, 192, 64),
        ({"max_drop": 1, "calibration_samples": 60}, 28, 32),
    ],
)
def test_who_gets_which_samples(options: dict[str, Any], calibrating: int, held_out: int) -> None:
    result = optimize("ask", **options)
    count, positions = asked(result)
    assert count == len(set(positions)) == calibrating
    assert max(positions) < 300
    data = result.report.data
    assert data is not None
    assert (data.samples, data.held_out_samples, data.source) == (calibrating + held_out, held_out, str(CALIBRATION))
    assert re.fullmatch("[0-9a-f]{64}", data.digest)
    assert asked(optimize("ask", **options)) == (count, positions)
    assert asked(optimize("ask", seed=1, **options)) != (count, positions)
    quality = result.report.quality
    assert (quality is None) == (held_out == 0)  # nothing is measured on samples that calibrate
    assert quality is None or (quality.samples, quality.calibration_samples) == (held_out, calibrating)


def test_held_out_samples_are_never_calibrated_on(monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[int] = []
    check = Gate.check

    def spied(self: Gate, *arguments: Any) -> Any:
        judged.extend(self.held_out.indices())
        return check(self, *arguments)

    monkeypatch.setattr(Gate, "check", spied)
    _, positions = asked(optimize("ask", max_drop=1))
    assert len(judged) == 64
    assert not set(judged) & set(positions)


def test_a_gate_that_holds_is_reported() -> None:
    result = optimize("blur{strength=0.02}", max_drop=0.05)
    quality = result.report.quality
    assert quality is not None
    gate = quality.gate
    assert gate is not None
    assert (quality.metric, quality.against, gate.samples) == ("top1", "labels", 64)
    assert gate.before - gate.after <= 0.05
    assert gate.interval[0] <= gate.after <= gate.interval[1]
    assert quality.fidelity is not None
    assert quality.fidelity.sqnr_db is not None
    assert 10 < quality.fidelity.sqnr_db < 60
    assert result.report.after.latency_ms is not None  # a gate alone asks for latency
    data = json.loads(result.report.to_json())
    assert data["quality"].keys() >= {"metric", "before", "after", "samples", "calibration_samples", "gate"}
    assert data["quality"]["gate"].keys() == {"before", "after", "samples", "interval"}
    assert data["data"]["digest"] == result.report.data.digest if result.report.data else False
    assert data["fidelity"]["outputs"].keys() == {"logits"}


def test_a_gate_that_does_not_hold_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.onnx"
    arguments = ["run", RESIDUAL, "-p", "blur{strength=3}", "-d", CALIBRATION, "--max-drop", "0.01", "-o", out,
                 "--json", tmp_path / "r.json"]  # fmt: skip
    code = main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert code == 3
    assert list(tmp_path.iterdir()) == []
    assert printed.out == "pipeline: blur{strength=3.0}\n\n"  # understood before anything ran
    assert printed.err.count("\n") == 1
    message = (
        r"the gate does not hold: top1 0\.\d+ -> 0\.\d+ on 64 held-out samples \(90 % interval .*\), a drop of 0\.\d+"
    )
    assert re.search(message + r" where --max-drop allows 0\.01; nothing was written", printed.err)
    with pytest.raises(TargetNotMetError, match="the gate does not hold"):
        optimize("blur{strength=3}", max_drop=0.01)


def test_for_an_error_the_drop_is_its_increase() -> None:
    result = optimize("blur{strength=0.05}", max_drop=100, metric="mse")
    quality = result.report.quality
    assert quality is not None
    assert quality.before == 0 < quality.after
    with pytest.raises(TargetNotMetError, match="mse 0 -> "):
        optimize("blur{strength=0.05}", max_drop=quality.after / 2, metric="mse")


def test_evaluation_is_measured_beside_the_gate() -> None:
    result = optimize("blur{strength=0.1}", max_drop=0.5, eval_data=EVALUATION)
    quality = result.report.quality
    assert quality is not None
    assert quality.gate is not None
    assert (quality.samples, quality.gate.samples, quality.calibration_samples) == (700, 64, 192)
    assert quality.before == pytest.approx(0.9586, abs=1e-4)  # the model's card
    assert quality.before != quality.gate.before
    assert not result.warnings
    mine = optimize("blur{strength=0.1}", max_drop=0.5, eval_data=EVALUATION, metric=accuracy).report.quality
    assert mine is not None
    assert (mine.metric, mine.before, mine.after) == ("accuracy", quality.before, quality.after)


def test_evaluation_that_misses_the_gate_is_a_warning() -> None:
    """On samples that the two models disagree about, labelled by the original, everything is lost."""
    pipeline = "blur{strength=0.3}"
    images = digits(EVALUATION)["input"]
    right, found = (predictions(model, images) for model in (RESIDUAL.read_bytes(), optimize(pipeline).model))
    disputed = {"input": images[right != found], "labels": right[right != found]}
    result = optimize(pipeline, max_drop=0.9, eval_data=disputed)
    assert result.report.quality is not None
    assert (result.report.quality.before, result.report.quality.after) == (1, 0)
    assert list(result.warnings) == [
        "top1 got worse by 1 on --eval-data, more than the 0.9 of --max-drop that the held-out samples stayed within"
    ]


def predictions(model: bytes | onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    return np.asarray(Session(model).run({"input": images})["logits"].argmax(axis=1))


def test_evaluation_is_read_once_after_everything_else(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    reader = tmp_path / "reader.py"
    reader.write_text(
        "import pathlib\nimport numpy as np\n"
        f"def held():\n    pathlib.Path({str(log)!r}).write_text('opened')\n"
        f"    for image, label in zip(*np.load({str(EVALUATION)!r}).values()):\n        yield {{'input': image}}, label\n"
    )
    said: list[str] = []
    result = optimize(
        "blur{strength=0.1}", eval_data=f"{reader}:held", announce=lambda text: said.append(f"{text} {log.exists()}")
    )
    assert said == ["blur False"]
    assert result.report.quality is not None
    assert (result.report.quality.samples, result.report.quality.gate) == (700, None)


def test_data_that_nobody_reads_is_a_warning() -> None:
    unread = "no pass of this pipeline reads data: --data was not used"
    assert unread in optimize("blur").warnings
    assert unread not in optimize("ask").warnings
    assert unread not in optimize("blur", max_drop=1).warnings
    assert unread not in optimize("blur", data=None).warnings


def test_metric_that_nothing_is_measured_by_is_a_warning() -> None:
    assert [text for text in optimize("ask", metric="top1").warnings if text.startswith("--metric was not used")]


def test_evaluating_on_the_calibration_data_is_a_warning() -> None:
    assert [text for text in optimize("ask", eval_data=CALIBRATION).warnings if "is the calibration data" in text]


def test_made_up_samples_calibrate_and_gate_with_a_warning() -> None:
    result = optimize("insist", data="random:64", max_drop=0.5)
    assert result.report.quality is not None
    assert (result.report.quality.metric, result.report.quality.calibration_samples) == ("agreement", 32)
    assert [text for text in result.warnings if "RANDOM" in text]


@pytest.mark.parametrize("pipeline", ["insist", "choosy", "blur,choosy{static=true}"])
def test_a_pass_that_needs_data_stops_before_any_work(pipeline: str) -> None:
    with pytest.raises(
        DataError, match=r"the pass '(insist|choosy)' needs calibration samples; .* -d FILE\.npz .*random:N"
    ):
        graphopt.optimize("no_such_file.onnx", pipeline)
    with pytest.raises(GraphoptError, match="no_such_file"):
        graphopt.optimize("no_such_file.onnx", "ask,choosy{static=false}")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"max_drop": 0.1, "data": "random:64", "metric": "top1"},
            DataError,
            "--metric top1 needs labels, and --data has",
        ),
        ({"eval_data": "random:64", "metric": "auc"}, DataError, "--metric auc needs labels, and --eval-data has none"),
        ({"max_drop": 0.1, "calibration_samples": 20}, DataError, "holds 32 samples out"),
        ({"max_drop": 0.1, "metric": "best"}, OptionError, "'best' is no metric"),
        ({"max_drop": 0.1, "metric": "gone.py:f"}, DataError, "--metric gone.py:f: .* there is no file gone.py"),
        ({"data": "gone.npz"}, DataError, "--data: there is no file"),
        ({"eval_data": "gone.npz"}, DataError, "--eval-data: there is no file"),
        ({"max_drop": 0.1, "eval_data": {"image": np.zeros((4, 3, 9, 9), np.float32)}}, DataError, "--eval-data"),
    ],
)
def test_what_cannot_be_judged_stops_before_any_pass(
    options: dict[str, Any], error: type[GraphoptError], message: str
) -> None:
    said: list[str] = []
    with pytest.raises(error, match=message):
        optimize("blur", announce=said.append, **options)
    assert said == []


def test_labels_that_are_no_classes_of_the_model() -> None:
    arrays = digits(CALIBRATION)
    with pytest.raises(DataError, match=r"hold 10, which is no class .the output has 10 classes"):
        optimize("blur", data={**arrays, "labels": arrays["labels"] + 1}, max_drop=0.1, metric="top1")


def test_max_drop_without_data(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code = main(["run", str(RESIDUAL), "-p", "blur", "--max-drop", "0.1", "-o", str(tmp_path / "o.onnx")])
    printed = capsys.readouterr()
    assert (code, printed.out) == (1, "")
    assert printed.err.startswith("graphopt: error: --max-drop needs samples to measure on; give some with -d FILE.npz")


def test_passes_say_what_they_ask_for(capsys: pytest.CaptureFixture[str]) -> None:
    said = {}
    for name in ("blur", "ask", "insist", "choosy"):
        assert main(["passes", name]) == 0
        said[name] = next((line for line in capsys.readouterr().out.splitlines() if "calibration samples" in line), "")
    assert said == {
        "blur": "",
        "ask": "It reads calibration samples (-d) where there are some.",
        "insist": "It needs calibration samples (-d).",
        "choosy": "It needs calibration samples (-d) with some of its options.",
    }


def test_table_report_and_page_show_quality(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["run", RESIDUAL, "-p", "blur", "-d", CALIBRATION, "--max-drop", "0.5", "--eval-data", EVALUATION, "-o",
                 tmp_path / "o.onnx", "--report", tmp_path / "r.html", "--json", "-"]  # fmt: skip
    assert main([str(argument) for argument in arguments]) == 0
    printed = capsys.readouterr()
    quality = json.loads(printed.out)["quality"]
    shown = f"top1: {quality['before']:.4g} -> {quality['after']:.4g} on 700 samples, 90 % interval "
    for text in (printed.err, (tmp_path / "r.html").read_text()):
        assert shown in text.replace("&gt;", ">")
        assert "held-out samples" in text
        assert "SQNR" in text
    lines = printed.err.splitlines()
    assert lines[0] == "pipeline: blur"
    assert "quality" in next(line for line in lines if line.strip().startswith("pass"))
