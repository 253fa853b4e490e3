"""What TensorRT's parser refuses is one line that names the node, whatever TensorRT itself tells of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from onnx import TensorProto, helper

from mlpdeploy.engine.backend import BuildRequest
from mlpdeploy.engine.backends.tensorrt import TensorRT, _parser, parse
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.errors import BuildError
from mlpdeploy.progress import Silent
from tests.engine.small_networks import emitted, graph_model

BATCH = Batch(1, 2, 4)


def refused_by_the_parser() -> Emitted:
    ports = {"x": (TensorProto.FLOAT, ["n", 3, 4])}, {"y": (TensorProto.FLOAT, ["n", 3, 4])}
    model = graph_model([helper.make_node("MatMul", ["x", "x"], ["y"], name="mismatch")], *ports)
    return Emitted(model, emitted("fp32").typed)


def test_what_the_parser_refuses_is_one_line_with_the_node_then_detail(
    rtx: TensorRT, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(BuildError) as raised:
        rtx.build(refused_by_the_parser(), BuildRequest("fp32", BATCH), tmp_path, Silent())
    first, *detail = str(raised.value).splitlines()
    assert first.startswith("TensorRT cannot parse the ONNX file at node mismatch (MatMul): ") and "must match" in first
    assert "driver" not in first and detail
    assert capfd.readouterr() == ("", "")


def test_what_the_parser_does_not_know_is_named_too(rtx: TensorRT) -> None:
    ports = {"x": (TensorProto.FLOAT, ["n", 3, 3])}, {"y": (TensorProto.FLOAT, ["n"])}
    with pytest.raises(BuildError, match=r"at node determinant \(Det\): unsupported node \(checkDet\)"):
        parse(graph_model([helper.make_node("Det", ["x"], ["y"], name="determinant")], *ports))


class Code:
    """An ErrorCode as TensorRT 10.13 has it, where `name` is a method that gives something else."""

    def __str__(self) -> str:
        return "ErrorCode.UNSUPPORTED_NODE"

    def name(self) -> None:
        return None


class Refusal:
    """A ParserError of a version that logs nothing of what it refuses."""

    def __init__(self, desc: str) -> None:
        self.desc = lambda: desc
        self.node_name, self.node_operator, self.func = lambda: "blocks.0/Call", lambda: "Foo", lambda: "importFoo"
        self.code = Code


@pytest.mark.parametrize(
    ("desc", "reason"),
    [
        ("Invalid Node - blocks.0/Call\nAPI Usage Error (two axes)", "API Usage Error (two axes)"),
        ("Assertion failed: creator: no plugin", "Assertion failed: creator: no plugin"),
        ("false", "unsupported node (importFoo)"),
        ("", "unsupported node (importFoo)"),
    ],
)
def test_the_parsers_own_reason_is_told_whatever_is_logged(desc: str, reason: str) -> None:
    told = _parser._refusal([Refusal(desc)], [])
    assert told.splitlines()[0] == f"TensorRT cannot parse the ONNX file at node blocks.0/Call (Foo): {reason}"
    assert _parser._refusal([], ["[6] it is no ONNX file"]).startswith("TensorRT cannot parse the ONNX file: it is no")
