"""`mlpdeploy report` as a user meets it, and the verdicts that it prints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

import mlpdeploy
from mlpdeploy import Engine
from mlpdeploy.evidence.report import drawing
from mlpdeploy.evidence.report.verdicts import verdicts
from tests.evidence.examples import bench, ratio
from tests.terminal.test_cli import in_process
from tests.test_api import Net, images


@pytest.fixture(scope="module")
def engine() -> Engine:
    return mlpdeploy.compile(Net(), images(1), precision="fp32", backend="onnxruntime", batch="1:2:4")


@pytest.fixture
def folder(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return engine.save(tmp_path / "artifact")


def measured(folder: Path, **changes: Any) -> None:
    document = bench(json.loads((folder / "manifest.json").read_text())) | changes
    (folder / "bench.json").write_text(json.dumps(document))


@pytest.mark.slow
def test_the_page_and_the_markdown_lie_beside_the_engine(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("report", "artifact") == 0
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert "Not verified yet" in printed and "5 transposes became 1" in printed
    assert "wrote artifact/report.html" in printed and "wrote artifact/report.md" in printed
    assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert "- **Graph: 5 transposes became 1.**" in (folder / "report.md").read_text()
    # It can be loaded and verified as before, and the report then knows it.
    assert mlpdeploy.load(folder).verify(Net()).passed
    assert "The engine computes what the network computes" in (folder / "report.md").read_text()
    assert in_process("report", str(folder / "model.onnx")) == 0
    assert "The engine computes what the network computes" in capsys.readouterr().out


def test_without_graphviz_the_page_lacks_its_drawing_alone_and_says_so(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pygraphviz", None)
        reason = drawing.lacking()
    assert drawing.lacking() is None and reason is not None
    assert reason.startswith("no drawing of a block: ") and reason.endswith("apt-get install libglib2.0-0")
    monkeypatch.setattr(drawing, "lacking", lambda: reason)
    assert in_process("report", str(folder)) == 0
    assert "wrote" in (printed := capsys.readouterr().out) and reason in printed
    page = (folder / "report.html").read_text()
    assert f"<p>{reason}</p>" in page and "Before: as it was traced" not in page and "Every operation" in page


def test_files_of_one_s_own_leave_the_artifact_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert in_process("report", str(folder), "--html", "page.html", "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == ["page.html"] and document["verdicts"][0]["status"] == "unknown"
    assert in_process("report", str(folder), "--markdown", "page.md") == 0
    assert Path("page.html").exists() and Path("page.md").read_text().startswith("# python:Net, fp32, onnxruntime")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_python_callers_get_the_same(folder: Path) -> None:
    engine = mlpdeploy.load(folder)
    assert engine.report(html="a.html") == [Path("a.html")] and Path("a.html").exists()
    assert engine.report() == [folder / "report.html", folder / "report.md"]


def test_measurements_are_shown_where_they_are_about_this_build(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    measured(folder)
    assert in_process("report", str(folder)) == 0
    assert "Slower than export (batch 1)" in capsys.readouterr().out
    text = (folder / "report.md").read_text()
    assert "| 1 | eager | 3.25 | 3.66 | 4.47 | 308 | 2.17 (2.10 to 2.23), faster |" in text
    measured(folder, network={"model_sha256": "of another"})
    assert in_process("report", str(folder)) == 0
    assert "Not measured" in capsys.readouterr().out


BAD: dict[str, tuple[str, str, str]] = {
    "bench of another schema": ("bench.json", '{"kind": "bench", "schema": 9}', "measure it again"),
    "bench of another kind": ("bench.json", '{"kind": "regress", "schema": 1}', "measure it again"),
    "bench that lacks something": ("bench.json", '{"kind": "bench", "schema": 1}', "is damaged or of another version"),
    "bench cut short": ("bench.json", '{"kind": "ben', "bench.json cannot be read"),
    "a list": ("verification.json", "[]", "is no document of mlpdeploy"),
    "verification that lacks something": ("verification.json", '{"files": 1', "cannot be read"),
    "manifest of another version": ("manifest.json", '{"schema": 7, "files": {}}', "has schema 7"),
    "altered graph": ("graph.json", "{}", "was altered after it was built"),
}


@pytest.mark.parametrize("what", BAD)
def test_documents_that_cannot_be_used(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, content, message = BAD[what]
    (folder / file).write_text(content)
    assert in_process("report", str(folder)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and message in errors[0]
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("damage", ["no engine", "no time", "no ratio", "no limits"])
def test_measurements_that_cannot_be_used(damage: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = bench(json.loads((folder / "manifest.json").read_text()))
    contenders = document["measurements"][0]["contenders"]
    match damage:
        case "no engine":
            del contenders[0]
        case "no time":
            contenders[0]["median_ms"] = contenders[0]["ratios"][0]["low"] = 0
        case "no ratio":
            contenders[0]["ratios"] = None
        case "no limits":
            document["roofline"]["limits"] = [{}]
    (folder / "bench.json").write_text(json.dumps(document))
    assert in_process("report", str(folder)) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len(errors) == 1 and "is damaged or of another version" in errors[0]


def test_no_artifact_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for target, message in {
        str(folder.parent): "there is no artifact at",
        "some/where": "there is no artifact at some/where",
        "vip_s7": "nothing of vip_s7 is built",
        "vip_s8": "there is no network 'vip_s8': did you mean",
    }.items():
        assert in_process("report", target) == 2
        assert message in capsys.readouterr().err
    for path, message in {
        "": "--html: an argument is empty",
        ".": ".: cannot be written",
        "/proc/none/page.html": "/proc/none/page.html: cannot be",
    }.items():
        assert in_process("report", str(folder), "--html", path) == 2
        assert message in capsys.readouterr().err


def test_a_report_may_go_into_a_folder_that_is_not_there_yet(folder: Path, tmp_path: Path) -> None:
    assert in_process("report", str(folder), "--markdown", str(tmp_path / "deep" / "er" / "page.md")) == 0
    assert (tmp_path / "deep" / "er" / "page.md").read_text().startswith("# ")


def speed(*ratios: tuple[int, str, float]) -> tuple[str, str]:
    """Status and line of the verdict on speed, for ratios (batch, baseline, value)."""
    found = bench(MANIFEST)
    for measurement in found["measurements"]:
        ours = [{"baseline": name, **ratio(value)} for size, name, value in ratios if size == measurement["batch"]]
        measurement["contenders"][0]["ratios"] = ours
    verdict = next(one for one in verdicts(MANIFEST, None, found) if one.topic == "Speed")
    return verdict.status, verdict.line


MANIFEST: dict[str, Any] = {
    "recipe": {"name": "n"},
    "selection": {"name": "vip_s7"},
    "files": {"model.onnx": {"sha256": "a"}},
    "ops": {"before": {"aten::linear": 2}, "after": {"aten::linear": 2}},
    "rules": [],
    "dtypes": {"aten::linear": {"float16": 1, "float32": 1}, "aten::gelu": {"float16": 9}},
    "kept_fp32": [{"node": "linear", "module": "head", "reason": "large"}],
    "facts": {},
    "weights": {"random": False, "text": "weights from a.pth"},
}


def test_the_verdict_on_speed_claims_no_more_than_was_measured() -> None:
    assert speed((1, "eager", 0.5), (8, "eager", 0.6)) == ("good", "Faster than eager")
    assert speed((1, "eager", 0.5), (8, "eager", 1.0)) == (
        "mixed",
        "Faster than eager (batch 1); undecided against eager (batch 8)",
    )
    assert speed((1, "eager", 0.5), (1, "export", 1.5)) == ("bad", "Slower than export; faster than eager")
    assert speed((1, "a", 0.5), (1, "b", 0.5), (1, "c", 0.5)) == ("good", "Faster than a, b and c")
    assert speed() == ("mixed", "Measured, against no baseline")


def test_the_other_verdicts() -> None:
    found = {one.topic: one for one in verdicts(MANIFEST, None, None)}
    assert found["Graph"].line == "There was no transpose to remove" and "Weights" not in found
    assert found["Precision"].line == "Matrix products: 1 in float16 and 1 in float32"
    assert (found["Precision"].status, found["Precision"].because) == ("mixed", "1 operations were kept in FP32")
    assert found["Correctness"].because.startswith("Run mlpdeploy verify vip_s7")
