from __future__ import annotations

import json

import numpy as np

from graphopt.report.model import Comparison, Report, cost_dict, to_json

COST = {"macs", "params", "bytes", "weight_bytes", "peak_activation_bytes", "nodes", "latency_ms", "unknown_cost_ops"}


def test_keys_of_the_report_are_the_documented_ones(report: Report) -> None:
    data = json.loads(report.to_json())
    documented = "graphopt input pipeline before after quality passes plan warnings seconds peak_rss_bytes"
    assert data.keys() >= set(documented.split())
    assert data["before"].keys() == data["after"].keys() == COST
    assert data["input"].keys() >= {"path", "sha256"}
    quality = data["quality"]
    assert {"standard_error", "interval", "unit", "against"} <= quality.keys()
    assert {
        name: quality[name] for name in ("metric", "before", "after", "samples", "calibration_samples", "gate")
    } == {
        "metric": "top1",
        "before": 0.91,
        "after": 0.905,
        "samples": 500,
        "calibration_samples": 256,
        "gate": {"before": 0.92, "after": 0.915, "samples": 128, "interval": [0.86, 0.95]},
    }
    assert [record["name"] for record in data["passes"]] == ["eliminate-identity", "fold-constants", "fold-batch-norm"]
    record = data["passes"][2]
    assert record.keys() == {"name", "options", "seconds", "modified", "before", "after", "remarks"}
    assert record["remarks"] == [{"where": "bn <script>", "what": "its input has two uses", "applied": False}]
    assert (record["before"]["nodes"], record["after"]["nodes"]) == (160, 123)


def test_comparison_is_strict_json(comparison: Comparison) -> None:
    data = json.loads(comparison.to_json(), parse_constant=lambda name: 1 / 0)  # no NaN, no Infinity
    assert (data["check"]["status"], data["check"]["max_error"]) == ("different", None)
    assert data["after"]["params"] == comparison.after.params


def test_cost_with_and_without_nodes(report: Report) -> None:
    assert cost_dict(report.before, per_node=False).keys() == COST | {
        "flops",
        "predicted_ms",
        "predicted_by",
        "assumed",
        "peak",
    }
    rows = json.loads(to_json(cost_dict(report.before, per_node=True)))["per_node"]
    assert [row["macs"] for row in rows] == [0, 4_000_000_000, None]


def test_numbers_of_numpy_are_numbers() -> None:
    data = {"a": np.float32(0.5), "b": np.arange(3), "c": (np.int64(7), np.bool_(True)), "d": np.nan, 5: {"x"}}
    assert json.loads(to_json(data)) == {"a": 0.5, "b": [0, 1, 2], "c": [7, True], "d": None, "5": ["x"]}
