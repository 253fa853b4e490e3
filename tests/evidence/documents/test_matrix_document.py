"""The document of a matrix: read back as it was written, and refused in one line where it is not one of ours."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents import matrix
from mlpdeploy.evidence.documents.matrix import Facts, Matrix, Needs, Row, Step
from mlpdeploy.selection import Selection

MACHINE = {"cpu": "Example 9000", "cores": 4, "gpu": None, "versions": {"torch": "9.9"}}
ROWS = (
    Row(
        "a", Selection("vip_s7", "fp16", "openvino").to_json(), Needs(2, 1 << 30, "L4"), "built", "ab" * 32, "x/y",
        {"model.onnx": "cd" * 32}, 1.5, 2, "host/7", MACHINE, None, "x/a.log",
        (Step("build", {}, "passed", 0, 1.0, None, {"cached": False}), Step("bench", {"batch": [1]}, "passed", 0, 1)),
        Facts(10, 3, 4, {"1": 0.5}, 0.25, 0.75),
    ),
    Row("b", Selection("nets:make").to_json(), state="failed", error="no", steps=(Step("build", outcome="failed"),)),
    Row("c", Selection("vip_s7").to_json()),
)  # fmt: skip
FOUND = Matrix("2030-01-02T03:04:05+00:00", {"path": "plan.toml", "sha256": "ef" * 32}, None, MACHINE, ROWS)


def saved(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_it_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    assert matrix.read(saved(tmp_path / "m.json", FOUND.to_json())) == FOUND
    assert FOUND.counts() == {"built": 1, "cached": 0, "failed": 1, "cancelled": 0, "pending": 1} and not FOUND.passed
    assert repr(FOUND) == "<Matrix of plan.toml: 1 built, 1 failed, 1 pending>"
    assert [Selection.from_json(row.selection).name for row in ROWS] == ["vip_s7", "nets:make", "vip_s7"]


def test_what_a_later_version_adds_is_left_out(tmp_path: Path) -> None:
    document = FOUND.to_json()
    document["more"] = 1
    for part in (document["rows"][0], document["rows"][0]["needs"], document["rows"][0]["steps"][0]):
        part["more"] = 1
    assert matrix.read(saved(tmp_path / "m.json", document)) == FOUND


def row(**changes: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda document: document["rows"][0].update(changes)


BAD: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "another kind": (lambda document: document.update(kind="bench"), "is no result of `mlpdeploy matrix`"),
    "another schema": (lambda document: document.update(schema=2), "has schema 2, this mlpdeploy reads 1"),
    "no rows": (lambda document: document.pop("rows"), "rows is missing"),
    "rows that are none": (lambda document: document.update(rows={}), "rows is an object, it must be a list"),
    "a shard from 0": (lambda document: document.update(shard={"index": 0, "count": 2}), "shard.index is 0"),
    "a row twice": (row(job="b"), "'b' stands there twice"),
    "no state": (row(state="fine"), "rows[0].state is none of built, cached"),
    "a file without a hash": (row(files={"a": 3}), "rows[0].files.a is a number"),
    "seconds below 0": (row(seconds=-1), "rows[0].seconds is -1"),
    "no selection": (row(selection={}), "rows[0].selection.name is missing"),
    "a step that is none": (row(steps=["build"]), "rows[0].steps[0] is text"),
    "a step of no outcome": (
        row(steps=[Step("build").__dict__ | {"outcome": "fine"}]), "rows[0] has a step whose outcome is none of",
    ),
    "a latency of text": (row(facts=Facts().__dict__ | {"latency_ms": {"1": "fast"}}), "latency_ms.1 is text"),
    "a need of nothing": (row(needs={"cpus": 0, "memory": None, "gpu": None}), "rows[0].needs.cpus is 0"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_damaged_document_is_refused_in_one_line(what: str, tmp_path: Path) -> None:
    change, said = BAD[what]
    document = json.loads(json.dumps(FOUND.to_json()))
    change(document)
    with pytest.raises(InputError) as refused:
        matrix.read(saved(tmp_path / "m.json", document))
    assert said in str(refused.value) and len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    "text", ["", "[" * 10_000, "NaN", '{"kind": "matrix"', "[]", '{"kind": "matrix", "schema": 1}']
)
def test_what_is_no_document_is_refused_in_one_line(text: str, tmp_path: Path) -> None:
    with pytest.raises(InputError) as refused:
        matrix.read(saved(tmp_path / "m.json", text))
    assert len(str(refused.value).splitlines()) == 1


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="cannot be read"):
            matrix.read(path)
