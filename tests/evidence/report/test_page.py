"""The page about an artifact: what is in it, that it is whole and alone, and that a browser shows it."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import mlpdeploy
from mlpdeploy.artifact import store
from mlpdeploy.evidence.report import charts, charts_quantised
from mlpdeploy.evidence.report.page import page
from mlpdeploy.evidence.report.page.page import precisions
from mlpdeploy.evidence.report.page.rendering import count, error, ms
from mlpdeploy.evidence.report.time_by_module import times
from mlpdeploy.evidence.report.verdicts import speedup
from mlpdeploy.evidence.report.words import evaluated_rows, extreme_text
from tests.browser import browser, chromium
from tests.evidence.examples import MILLISECONDS, bench, evaluation, on_gpu
from tests.evidence.report.read_page import SMALLEST, Page, contrast, visible
from tests.test_api import Net, images

SECTIONS = (
    "built", "accuracy", "evaluation", "latency", "roofline", "operations", "block", "rules", "time", "precision",
    "environment", "reproduce",
)  # fmt: skip
HOSTILE = """<script>alert(1)</script>"'><img src=x onerror=alert(2)> {{ 7 * 7 }} $\\frac{1}$ &amp; | `x` 模型 🎉"""


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """Of a small network whose engine was run: manifest, verification, measurement and graph."""
    engine = mlpdeploy.compile(Net(), images(1), precision="bf16", backend="openvino", batch="1:2:4")
    engine.verify()
    read = {name: json.loads((engine.folder / name).read_text()) for name in (store.VERIFICATION, store.GRAPH)}
    manifest = json.loads((engine.folder / store.MANIFEST).read_text())
    manifest["rules"][0]["refused"] = [{"where": f"blocks.{i}", "reason": "axes differ"} for i in range(13)]
    return {
        "manifest": manifest,
        "verification": read[store.VERIFICATION],
        "bench": bench(manifest),
        "evaluation": evaluation(manifest),
        "outlines": read[store.GRAPH],
    }


@pytest.fixture(scope="module")
def text(documents: dict[str, Any]) -> str:
    return page(**documents)


@pytest.mark.slow
def test_it_is_whole_and_every_section_is_there(text: str) -> None:
    found = Page(text)
    assert text.startswith("<!doctype html>") and set(SECTIONS) <= set(found.ids)
    assert len(found.ids) == len(set(found.ids)), "an id stands twice"
    assert {link[1:] for link in found.links if link.startswith("#")} <= set(found.ids)
    assert set(re.findall(r"url\(#([\w-]+)\)", text)) <= set(found.ids)
    assert text.count('<svg class="chart"') == 5 and text.count('<svg class="graph"') == 2


@pytest.mark.slow
def test_it_needs_nothing_from_elsewhere(text: str) -> None:
    found = Page(text)
    assert not found.names & {"script", "iframe", "img", "object", "embed", "base", "form"}
    assert all(link.startswith("#") or link == "data:," for link in found.links)
    assert not [name for name in found.attributes if name.startswith("on")]
    assert "http:" not in text and "https:" not in text and "@import" not in text
    assert not re.findall(r"url\((?!#)", text) and "default-src 'none'" in text


def test_the_same_documents_give_the_same_page(documents: dict[str, Any], text: str) -> None:
    assert page(**documents) == text


def test_the_verdicts_come_first_in_plain_words(text: str) -> None:
    shown = visible(text)
    assert "The engine computes what the network computes" in shown
    assert "Slower than export (batch 1); faster than eager, compile (batch 8) and export (batch 8)" in shown
    assert "undecided against compile (batch 1)" in shown and "5 transposes became 1" in shown
    assert "Matrix products: 6 in bfloat16" in shown
    assert shown.index("The engine computes") < shown.index("What was built")


def allowed(documents: dict[str, Any]) -> Iterator[str]:
    """Every number that a table may show, from the documents."""
    manifest, measured = documents["manifest"], documents["bench"]
    for stage in documents["verification"]["stages"]:
        yield error(stage["budget"]["max_relative_error"])
        yield from (extreme_text(one, stage["budget"]["max_relative_error"]) for one in stage["extremes"])
        for check in stage["checks"]:
            ranked = check["agreement"]
            yield from (str(check["batch"]), "" if ranked is None else f"{100 * ranked['top1']:.0f}%")
            yield from (error(one["max_relative"]) for one in (check["reference"], check["permuted"]) if one)
    yield from (cell for row in evaluated_rows(documents["evaluation"]) for cell in row[1:])
    for measurement in measured["measurements"]:
        for one in measurement["contenders"]:
            yield from (ms(one[key]) for key in ("median_ms", "p90_ms", "p99_ms", "images_per_second"))
        for found in measurement["contenders"][0]["ratios"]:
            value, low, high = speedup(found)
            yield f"{value:.2f}\N{MULTIPLICATION SIGN} ({low:.2f}\N{EN DASH}{high:.2f})"
    for limit in measured["roofline"]["limits"]:
        yield from (count(limit["macs"]), f"{count(limit['bytes'])}B", ms(limit["limit_ms"]), limit["bound"])
        yield from (f"{percent:.0f} %" for percent in limit["percent_of_limit"].values())
    for operations in manifest["ops"].values():
        yield from map(str, operations.values())
    for rule in manifest["rules"]:
        yield from (str(rule["fired"]), str(len(rule["refused"])), f"{rule['seconds']:.2f}")
    worth = measured["credit"][0]
    yield f"{worth['value']:.2f} ({worth['low']:.2f}\N{EN DASH}{worth['high']:.2f})"
    for row in times(measured["layers"]["before"], measured["layers"]["after"]).rows:
        assert row.before is not None
        yield from (str(row.modules), ms(row.before), ms(row.after), f"{100 * row.share:.1f}%")
    yield from (str(row["modules"]) for row in precisions(documents["outlines"]["after"]))
    yield from ("", "0", "\N{EN DASH}", "not measured")


def test_every_number_in_a_table_is_one_of_the_documents(documents: dict[str, Any], text: str) -> None:
    known = set(allowed(documents))
    cells = [" ".join(cell.split()) for cell in Page(text).cells]
    assert len(cells) > 150
    assert [cell for cell in cells if cell not in known] == []


def test_on_a_gpu_the_copies_stand_beside_the_computing(documents: dict[str, Any], text: str) -> None:
    assert "GPU's clock" not in visible(text)
    shown = page(**{**documents, "bench": on_gpu(copy.deepcopy(documents["bench"]))})
    assert {"0.0625", "0.0156", "3.33"} <= set(Page(shown).cells)
    assert "no: it waits while it computes" in visible(shown)
    assert "At batch 8 times are the host's, copies included: PyTorch cannot use the GPU" in visible(shown)


def test_the_charts_show_the_numbers_of_the_documents(documents: dict[str, Any]) -> None:
    measurement = documents["bench"]["measurements"][0]
    drawn = re.findall(r">([^<>]+)</text>", charts.latency(measurement))
    assert {"1.5 ms", "3.25 ms, 2.17×", "1.53 ms, 1.02×", "1.38 ms, 0.92×", *MILLISECONDS[1]} <= set(drawn)  # noqa: RUF001
    ops = documents["manifest"]["ops"]
    drawn = re.findall(r">([^<>]+)</text>", charts.operations(ops["before"], ops["after"]))
    assert {"linear", "transpose", str(ops["before"]["aten::linear"])} <= set(drawn)
    drawn = re.findall(r">([^<>]+)</text>", charts.roofline(documents["bench"]))
    assert {"71.5 GMAC/s", "8.25 GB/s", "batch 1", "batch 8"} <= set(drawn)


CODED = {
    "precision": "int8", "calibrator": "mse", "sqnr_db": {"max": 31.5, "mse": 33.25}, "data": "256 images below photos",
    "rows": 256, "random": False, "warning": None, "equalised": 3, "beside": "fp16", "sites": 4, "of_sites": 5,
    "share_of_macs": 0.8125,
    "kept": [{"node": "linear_3", "module": "blocks.1.fc2", "reason": "in INT8 it alone leaves 21.5 dB"}],
    "refused": [{"node": "linear_5", "module": HOSTILE, "reason": HOSTILE}],
    "curve": [{"kept": 0, "quantised_macs": 1.0, "sqnr_db": 20.5, "top1": 0.875},
              {"kept": 1, "quantised_macs": 0.8125, "sqnr_db": 33.25, "top1": None},
              {"kept": 5, "quantised_macs": 0.0, "sqnr_db": None, "top1": 1.0}],
    "ranked": [{"node": "linear_3", "module": "blocks.1.fc2", "macs": 3, "noise": 7e-3, "sqnr_db": 21.5, "top1": -1.25},
               {"node": "linear_4", "module": HOSTILE, "macs": 3, "noise": 0.0, "sqnr_db": None, "top1": None}],
    "worth": {"batch": 4, "verdicts": ["openvino: 1.75 times faster than fp32"],
              "backends": {"openvino": {"median_ms": {"int8": 1.25, "fp16": 3.5, "fp32": 2.1875}}},
              "not_measured": {"tensorrt": "there is no GPU"}},
}  # fmt: skip


def test_int8_has_a_section_of_its_own(documents: dict[str, Any], text: str) -> None:
    assert "quantised" not in Page(text).ids
    made = page(**documents | {"manifest": documents["manifest"] | {"quantised": CODED}})
    shown, drawn = visible(made), re.findall(r">([^<>]+)</text>", made)
    assert "4 of 5 products take INT8, 81% of their multiply-accumulates" in shown
    assert "1 stayed out by what they would cost; openvino: 1.75 times faster than fp32" in shown
    assert "tensorrt was not measured: there is no GPU" in shown and "in INT8 it alone leaves 21.5 dB" in shown
    assert {"1.25", "3.5", "2.19"} <= {cell.strip() for cell in Page(made).cells}
    assert {"0 kept, top-1 87.5%", "1 kept", "-21.5 dB, top-1 -1.25 points", "none"} <= set(drawn)
    assert "5 kept" not in made and "<script" not in made and "Calibration" not in shown


def test_fp8_is_called_by_its_name(documents: dict[str, Any]) -> None:
    worth = {"batch": 4, "verdicts": [], "backends": {"one": {"median_ms": {"fp8": 1.5, "fp16": 2.0, "fp32": 4.0}}}}
    coded = CODED | {"precision": "fp8", "kept": [], "refused": [], "worth": worth | {"not_measured": {}}}
    made = page(**documents | {"manifest": documents["manifest"] | {"quantised": coded}})
    assert "4 of 5 products take FP8" in visible(made) and "FP8 ms" in visible(made) and "INT8" not in visible(made)
    assert "1.5" in {cell.strip() for cell in Page(made).cells}


def test_ranges_that_come_from_noise_are_a_verdict(documents: dict[str, Any]) -> None:
    warned = CODED | {"random": True, "warning": "calibrated on random noise: do not deploy", "curve": [], "ranked": []}
    shown = visible(page(**documents | {"manifest": documents["manifest"] | {"quantised": warned}}))
    assert shown.index("Calibrated on random noise: do not deploy") < shown.index("What was built")


def test_charts_stand_alone_too() -> None:
    made = charts.standalone(charts_quantised.noise(CODED["ranked"], "int8"), HOSTILE)  # type: ignore[arg-type]
    root = ElementTree.fromstring(made)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    # Every variable that it uses is one that it sets.
    assert set(re.findall(r"var\(--(\w+)\)", made)) <= set(re.findall(r"--(\w+): #", made))
    assert charts_quantised.tradeoff(CODED["curve"][2:], "int8") == ""  # type: ignore[index]


def test_what_was_not_done_is_said_with_the_command(documents: dict[str, Any]) -> None:
    chosen = {"name": "vip_s7", "enabled_rules": ["hoist_reweighting"], "seed": 7}
    manifest = documents["manifest"] | {"selection": documents["manifest"]["selection"] | chosen}
    shown = visible(page(manifest))
    assert "Not verified yet: run mlpdeploy verify vip_s7" in shown
    assert shown.count("Not measured: run mlpdeploy bench vip_s7") == 3
    assert shown.count("--seed 7") == shown.count("--enable-rule hoist_reweighting") >= 6
    assert shown.count("The graph was not recorded in this artifact") == 2
    assert "Not verified yet: run engine.verify()" in visible(page(documents["manifest"]))


def test_a_failure_is_not_dressed_up(documents: dict[str, Any]) -> None:
    failed = copy.deepcopy(documents["verification"])
    stage = failed["stages"][-2]
    stage |= {"status": "failed", "reason": "the output is not finite", "max_relative": None}
    stage["checks"][0]["reference"] |= {"max_relative": None, "finite": False}
    failed |= {"passed": False, "verdict": "emitted ONNX, ONNX Runtime: the output is not finite"}
    text = page(**documents | {"verification": failed})
    shown = visible(text)
    assert "It does not compute what the network computes Emitted ONNX, ONNX Runtime: the output is not finite" in shown
    assert "not finite" in shown and 'class="verdict bad"' in text and 'class="tag bad">failed' in text


def test_an_engine_that_was_not_run_is_not_called_proved(documents: dict[str, Any]) -> None:
    found = copy.deepcopy(documents["verification"])
    reason = "built, not executed: no NVIDIA GPU"
    found["stages"][-1] |= {"status": "not executed", "reason": reason, "checks": [], "max_relative": None}
    shown = visible(page(**documents | {"verification": found}))
    assert "Proved up to the ONNX file; the engine was not run" in shown and reason.capitalize()[:5] in shown
    assert "The engine computes what" not in shown


def spoiled(value: Any, key: str = "") -> Any:
    """The documents with hostile text in the place of everything that a user or another program could have named."""
    kept = {"status", "verdict", "kind", "created", "dtype", "op", "bound", "inputs", "name", "baseline", "rule"}
    if isinstance(value, dict):
        return {k: spoiled(v, k) for k, v in value.items()}
    if isinstance(value, list):
        return [spoiled(v, key) for v in value]
    return value if not isinstance(value, str) or key in kept else f"{value} {HOSTILE}"


def test_hostile_names_stay_text(documents: dict[str, Any]) -> None:
    found = {name: spoiled(document) for name, document in documents.items()}
    found["manifest"]["recipe"]["name"] = found["manifest"]["inputs"][0]["name"] = HOSTILE
    found["manifest"]["ops"]["before"][f"aten::{HOSTILE}"] = 99
    for measurement in found["bench"]["measurements"]:
        measurement["contenders"][1]["name"] = HOSTILE
        measurement["contenders"][0]["ratios"][0]["baseline"] = HOSTILE
    for limit in found["bench"]["roofline"]["limits"]:
        limit["percent_of_limit"][HOSTILE] = limit["percent_of_limit"].pop("eager")
    names = {one["name"] for when in ("before", "after") for one in found["outlines"][when]}
    for one in (*found["outlines"]["before"], *found["outlines"]["after"]):
        one["name"] += HOSTILE
        one["inputs"] = [name + HOSTILE * (name in names) for name in one["inputs"]]
    text = page(**found)
    parsed = Page(text)
    assert not parsed.names & {"script", "img"} and "onerror" not in parsed.attributes
    shown = "".join(parsed.text)
    assert HOSTILE in shown and "49" not in text.split("<style>")[0] and len(parsed.ids) == len(set(parsed.ids))


@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it_in_light_and_dark(width: int, text: str, tmp_path: Path) -> None:
    if chromium() is None:
        pytest.skip("needs Chromium: apt-get install chromium")
    file = tmp_path / "report.html"
    file.write_text(text, encoding="utf-8")
    backgrounds = set()
    with browser() as shown:
        for scheme in ("light", "dark"):
            shown.open(file, width, scheme)
            # The page itself is all that was asked for, and the console stayed empty.
            assert shown.messages == [file.as_uri()]
            assert shown.evaluate("document.documentElement.scrollWidth") <= width
            assert shown.evaluate("document.querySelectorAll('section').length") == len(SECTIONS)
            assert shown.evaluate(SMALLEST) >= 6.5, "text that nobody can read"
            colours = shown.evaluate(
                "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.body).color,"
                " getComputedStyle(document.querySelector('.chart text')).fill]"
            )
            assert contrast(colours[0], colours[1]) > 7 and contrast(colours[0], colours[2]) > 4.5
            backgrounds.add(colours[0])
    assert len(backgrounds) == 2
