"""The README's tables are made from the results."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import tables
from mlpdeploy.zoo import recipe

MACHINE = {"cpu": "A CPU", "cores": 2, "python": "3.11.1", "versions": {"torch": "2.15", "openvino": "2026.4"}}


def ratio(value: float, verdict: str) -> dict[str, Any]:
    return {"value": value, "low": value, "high": value, "verdict": verdict}


def document(results: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {"date": "2026-01-02", "machine": MACHINE, "settings": settings, "results": results}


def test_ratios_say_how_much_slower_the_others_are() -> None:
    row = {
        "latency": {"openvino ours": {"median_ms": 12.34}},
        "ours": {"openvino": {"openvino plain": ratio(0.8, "faster"), "eager": ratio(0.5, "undecided")}},
    }
    lines = tables.cpu(document({"net": {"batch 8": row}}, threads=1))
    assert lines[2] == "| `net` | 8 | openvino | 12.3 | 1.25 | (2.00) |  |"
    assert lines[-1] == "A CPU, 1 of 2 cores, Python 3.11.1, openvino 2026.4, torch 2.15; 2026-01-02."


def test_what_runs_a_bundle_stands_beside_the_whole_installation() -> None:
    bundles = document({"openvino": {"environment": 281e6, "package": 151_634}})
    text = " ".join(tables.bundle(bundles, document({"whole": 6.6e9})))
    assert "281 MB for OpenVINO" in text and "6.6 GB; the part of mlpdeploy is 152 kB." in text


def test_what_a_call_costs_more_stands_with_the_least_and_the_most_of_its_loads() -> None:
    cost = {"microseconds": 14.6, "low": -2.4, "high": 17.2}
    results = {"net": {"openvino": {"batch 8": {"bare": 23.6, "arrays": cost}}}}
    lines = tables.call(document(results, threads=1))
    assert lines[2] == "| `net` | openvino | 8 | 24 | +15 (-2 to +17) | - |"


def test_a_rule_pays_above_one_whether_it_is_left_out_or_put_in() -> None:
    times = {
        "default rules": {"ratio": ratio(1.0, "undecided")},
        "without a": {"ratio": ratio(1.25, "slower")},
        "with b": {"ratio": ratio(1.25, "slower")},
        "bare": {"ratio": ratio(1.5, "undecided")},
    }
    lines = tables.rules(document({"net": {"fired": {"a": 1}, "openvino": {"batch 1": times}}}))
    assert lines[0] == "| network | rule | openvino, batch 1 |"
    assert lines[2] == "| `net` | (none: two loads of one file) | (1.00) |"
    assert lines[3:6] == ["| `net` | `a` | 1.25 |", "| `net` | `b` | 0.80 |", "| `net` | all of them | (1.50) |"]


def test_the_columns_of_a_verification_are_its_stages_by_name() -> None:
    errors = {
        "network, twice": 0.5, "emitted ONNX, ONNX Runtime": 2e-4, "rewritten graph, float64": 1e-15,
        "typed graph, PyTorch": 1e-4,
    }  # fmt: skip
    row = {"family": "f", "built": True, "verified": True, "engine_bytes": 2e6, "build_seconds": 9.0}
    broken = {"family": "f", "built": False, "verified": False, "reason": "no"}
    lines = tables.zoo(document({"net": row | {"errors": errors}, "other": broken}))
    assert lines[2] == "| f | `net` | 2 MB | 9 s | 1e-15 | 1e-04 | 2e-04 | passed |"
    assert lines[3] == "| f | `other` | - | - | - | - | - | no |"


def test_only_what_is_between_markers_changes(tmp_path: Path) -> None:
    def counts(layers: int, transposes: int) -> dict[str, int]:
        return {"layers": layers, "transposes": transposes, "reshapes": 0}

    row = {
        "before": {"total": counts(100, 9)},
        "after": {"total": counts(60, 3), "outside": counts(50, 1)},
    }
    (tmp_path / "graph.json").write_text(json.dumps(document({"net": row})))
    text = "before\n<!-- table:graph -->\nold\n<!-- /table:graph -->\nafter\n"
    made = tables.rewritten(text, tmp_path)
    assert made.startswith("before\n<!-- table:graph -->\n| network |")
    assert made.endswith("<!-- /table:graph -->\nafter\n")
    assert "| `net` | 100 → 60 | 9 → 1 (+ 2 in bodies) | 0 → 0 |" in made and "old" not in made
    assert tables.rewritten(made, tmp_path) == made


@pytest.mark.parametrize("text", ["<!-- table:graph -->", "<!-- table:other -->\n<!-- /table:other -->"])
def test_markers_that_are_unknown_or_not_closed_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="markers of tables do not match"):
        tables.rewritten(text)


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_the_pages_show_the_results(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert tables.rewritten(text) == text, "run `python -m benchmarks.tables`"


@pytest.mark.parametrize("page", tables.PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8"))
    assert not [link for link in links if not (page.parent / link).exists()]


def test_a_family_counts_what_was_verified_and_shows_its_smallest_network() -> None:
    stages = ("rewritten graph, float64", "typed graph, PyTorch", "emitted ONNX, ONNX Runtime")
    passed = {"verified": True, "errors": dict(zip(stages, (1e-15, 2e-3, 1e-3), strict=True))}
    worse = {"verified": True, "errors": dict(zip(stages, (3e-15, 1e-3, 1e-3), strict=True))}
    failed = {"verified": False, "reason": "typed"}
    total = {"layers": 9, "transposes": 2, "reshapes": 0}
    small = {"before": {"total": total}, "after": {"total": total | {"layers": 5}}}
    parsed = {name: small for name in (one.name for one in recipe.recipes().values())}
    built = document({"mixer_s32": passed, "mixer_s16": worse, "mixer_b16": failed})
    right, wrong = {"passed": True, "error": 1e-6}, {"passed": False, "error": 0.2}
    refused = {"passed": False, "reason": "no"}
    run = {
        "mixer_s32": {"family": "mixer", "onnxruntime": right, "openvino": right},
        "mixer_b16": {"family": "mixer", "onnxruntime": right, "openvino": wrong},
        "gmlp_s16": {"family": "gmlp", "onnxruntime": right, "openvino": refused},
    }
    ran = document(run, backends=["onnxruntime", "openvino"])
    lines = tables.families(built, document(parsed), ran)
    assert "| `mixer` | 2 of 3 | 1 of 3 | 9 → 5 | 2 → 2 | 3e-15 | 2e-03 | 1e-03 |" in lines
    assert "| `gmlp` | 0 of 1 | 0 of 1 | 9 → 5 | 2 → 2 | - | - | - |" in lines
    shown = tables.executed(ran)
    assert shown[0] == "| family | network | onnxruntime | openvino | executed |"
    assert shown[2] == "| gmlp | `gmlp_s16` | 1e-06 | no | failed |"
    assert "| mixer | `mixer_s32` | 1e-06 | 1e-06 | passed |" in shown
    assert "| mixer | `mixer_b16` | 1e-06 | 2e-01 | failed |" in shown


def test_reasons_are_listed_by_network() -> None:
    row = {"reasons": {"conv2d gives this; layer_norm wants that": 3}}
    assert tables.remaining(document({"net": row}))[2] == "| `net` | 3 | conv2d gives this; layer_norm wants that |"


def test_results_name_no_host_and_no_path() -> None:
    for file in tables.RESULTS.glob("*.json"):
        assert not re.search(r'"[^"]*(/home|/tmp|/work|/root|localhost)[^"]*"', file.read_text(encoding="utf-8")), file


def test_quantisation_has_a_table_for_each_part_that_was_measured() -> None:
    rivals = ("eager fp32", "torch.compile fp32", "openvino fp32 plain", "theirs")
    speed = {"latency": {"openvino int8": {"median_ms": 10.0}}, "ours": {one: ratio(0.5, "faster") for one in rivals}}
    coded = {"compiled": {"top1": 0.9875}, "hard": {"max": {"top1": 0.9}, "compiled": {"top1": 0.985}}}
    accuracy = {"fp32": 0.99, "hard fp32": 0.9901, "int8": coded, "fp8": coded}
    calibration = {"rows": 128, "seconds": 41.6, "peak_mib": 1781}
    results = {"speed net": {"batch 1": speed}, "accuracy net": accuracy, "calibration net": calibration}
    lines = tables.quantisation(document(results, threads=1))
    assert "| `net` | 1 | 10.0 | 2.00 | 2.00 | 2.00 | 2.00 |" in lines
    for precision in ("INT8", "FP8"):
        assert f"| `net` | {precision} | 99.00% | 98.75% | 99.01% | 90.00% | 98.50% |" in lines
    assert "| `net` | 128 | 42 s | 1781 MiB |" in lines


def test_engines_in_8_bits_are_shown_beside_those_of_fp16() -> None:
    int8 = {"executed": "HALF, 3 of 4 products in INT8", "launches": {"total": 20}, "size": 0.4}
    fp8 = {"executed": "HALF, 2 of 4 products in FP8", "launches": {"total": 19}, "size": 0.5}
    row = {p: one | {"size_without_source": 0.25} for p, one in (("int8", int8), ("fp8", fp8))}
    row["fp16"] = {"engine_bytes": 25_000_000, "launches": {"total": 15}}
    lines = tables.engines(document({"engines net": row, "speed net": {}}, threads=1))
    assert "| `net` | 25.0 MB | 0.40 (0.25) | 0.50 (0.25) | 15 | 20 | 19 | 3 of 4 | 2 of 4 |" in lines


def test_engines_with_weights_of_int4_are_shown_where_there_are_any() -> None:
    int4 = {
        "executed": "HALF, 3 of 4 products in INT4",
        "launches": {"total": 20},
        "size": 0.4,
        "size_without_source": 0.25,
    }
    row = {"fp16": {"engine_bytes": 25_000_000, "launches": {"total": 15}}, "int4": int4}
    lines = tables.weights(document({"weights net": row, "weights other": {"int4": None}}, threads=1))
    assert "| `net` | 25.0 MB | 0.40 (0.25) | 15 → 20 | 3 of 4 |" in lines and not any("other" in one for one in lines)


def test_engines_in_nvfp4_are_shown_where_there_are_any() -> None:
    fp8, nvfp4 = ({"launches": {"total": n}, "size": s, "size_without_source": 0.25} for n, s in ((20, 0.5), (30, 0.4)))
    nvfp4 |= {"executed": "HALF, 3 of 4 products in NVFP4", "products_of_fp4": 3, "share_of_macs": 0.871}
    row = {"fp16": {"engine_bytes": 25_000_000, "launches": {"total": 15}}, "fp8": fp8, "nvfp4": nvfp4}
    lines = tables.fp4(document({"fp4 net": row, "fp4 other": {"nvfp4": None}}, threads=1))
    assert "| `net` | 25.0 MB | 0.50 (0.25) | 0.40 (0.25) | 15 → 20 → 30 | 3 of 4 | 3 | 87% |" in lines
    assert not any("other" in one for one in lines)
    built = {"top1": 0.98, "sites": 8}
    row = {"fp32": 0.99, "nvfp4": built, "hard fp32": 0.99, "hard": built | {"top1": 0.97}}
    lines = tables.accuracy4(document({"accuracy4 net": row}, threads=1))
    assert "| `net` | 99.00% | 98.00% | 99.00% | 97.00% | 8 |" in lines


def test_generated_code_is_told_with_its_bytes_and_what_reads_through_a_table() -> None:
    calls = {"mm": 2, "our kernel": 1}
    plain, ours, other = (
        {"kernels": kernels, "tables": tables, "calls": calls, "bytes": {"kernels": size, "calls": 5e6}}
        for kernels, tables, size in ((9, 0, 1234e6), (8, 0, 99.96e6), (6, 2, 1e6))
    )
    row = {"plain export": plain, "default rules": ours, "with a": other, "without b": other, "bare": ours}
    lines = tables.generated(document({"net": {"batch 128": row, "machine": MACHINE}}))
    assert lines[2] == "| `net` | 128 | 9 → 8 | 3 → 3 | 1234 → 100 | 5 → 5 | `a` 6 (2 through a table) |"
    assert lines[-1] == "A CPU, 2 cores, Python 3.11.1, torch 2.15; 2026-01-02."


def test_packages_are_told_with_the_convolutions_whose_channels_are_last() -> None:
    sizes = {"kernels": 1234e6, "calls": 5e6}
    traced = {"kernels": 9, "convolutions": {"channels first": 3, "channels last": 1}, "bytes": sizes}
    package = {"kernels": 8, "convolutions": {"channels last": 4}, "bytes": sizes}
    lines = tables.packages(document({"net": {"batch 128": {"kernels as traced": traced, "package": package}}}))
    assert lines[2] == "| `net` | 4 | 1 → 4 | 9 → 8 | 1234 → 1234 | 5 → 5 |"


def test_launches_name_the_rules_that_change_their_number() -> None:
    counts = {"plain export": 9, "default rules": 7, "without fold_affine": 8, "without project_tokens": 7, "bare": 9}
    results = {"net": {label: {"total": count} for label, count in counts.items()}}
    moves = [{"copies": 3, "transposes": 1}, {"copies": 0, "transposes": 2}]
    results["other"] = {"plain export": {"total": 4, **moves[0]}, "default rules": {"total": 5, **moves[1]}}
    lines = tables.launches(document(results, threads=1))
    assert "| `net` | 9 | 7 | not measured | not measured | `fold_affine` 8 |" in lines
    assert "| `other` | 4 | 5 | 3 → 0 | 1 → 2 | not measured |" in lines


def test_the_memory_of_an_evaluation_is_that_of_each_half() -> None:
    row = {"images": 20_000, "contenders": ["engine", "PyTorch"], "peak_of_each_half_mib": [981, 984], "seconds": 401.6}
    settings = {"image_size": 96, "workers": 2, "backend": "openvino"}
    lines = tables.evaluate(document({"net": row}, **settings))
    assert lines[2] == "| `net` at 96 pixels | 20,000 | engine, PyTorch | 981 | 984 | 402 |"
    assert lines[-1].startswith(
        "2 workers; memory is theirs and the command's (PSS, which moves with what else runs). A"
    )
