"""What an engine says that it launches: read from real engines, and from text as TensorRT-RTX writes it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest

from mlpdeploy.engine.backend import ITSELF, BuildRequest, backends
from mlpdeploy.engine.backends.tensorrt import TensorRT, _programme
from mlpdeploy.engine.backends.tensorrt._launches import Launches
from mlpdeploy.engine.backends.tensorrt._launches import launches as counted
from mlpdeploy.engine.backends.tensorrt._layer_information import layer_information
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import ArtifactError
from mlpdeploy.evidence.report.words import launches_text, moving_facts
from tests.engine.small_networks import emitted

SOURCE = "#undef __HAS_FP8\n" + "// a kernel\n" * 3000


class Silent:
    def step(self, phase: str, done: int, total: int) -> None: ...


def launches(engine: bytes) -> Launches | None:
    programmes = _programme.read(engine)
    return counted(programmes[0]) if programmes else None


def programme(*statements: str, fallback: bool = False) -> bytes:
    """As an engine holds it; `fallback` is that of a fused product, of which the engine has one for each."""
    marks = "  accelerators={*}\n" if fallback else ""
    lines = [f'  {kind}={{ name="{kind}" output={{"y" }} stream=0 layers="" }}' for kind in statements]
    text = f"header {{\n  n_streams = 1\n{marks}}}\ndescriptors {{\n}}\nmain {{\n label bb1: \n" + "\n".join(lines)
    return b"\0\1" + text.encode() + b"\n}\nshape_main {\n label bb2: \n}\n\xff"


def test_each_statement_that_computes_is_a_launch() -> None:
    engine = programme("shape_call", "function", "fully_connected", "signal", "wait", "function")
    assert launches(engine) == Launches(3, {"fully_connected": 1, "function": 2}, 0)


def test_what_a_fused_product_falls_back_to_is_none() -> None:
    fallback = programme("fully_connected", "add", fallback=True)
    engine = programme("runtime_fusion", "runtime_fusion") + fallback + fallback
    assert launches(engine) == Launches(2, {"runtime_fusion": 2}, 0)


def test_all_programmes_of_an_engine_count_and_so_does_the_source_of_its_kernels() -> None:
    text = SOURCE.encode()
    engine = programme("function") + text + b"\0" + text + b"\0" + programme("corrltn", "function") + b"#define short\0"
    assert launches(engine) == Launches(3, {"corrltn": 1, "function": 2}, 2 * len(text))


@pytest.mark.parametrize("engine", [b"", b"\0" * 100, SOURCE.encode(), b"main {\n", programme(), programme("wait")])
def test_an_engine_that_does_not_tell(engine: bytes) -> None:
    assert launches(engine) is None


def test_a_real_engine_tells(tmp_path: Path) -> None:
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    facts = backend.build(emitted("fp16"), BuildRequest("fp16", Batch(1, 2, 4)), tmp_path, Silent()).facts
    told = facts["launches"]
    assert told["total"] == sum(told["by_kind"].values())
    products = sum(told["by_kind"].get(kind, 0) for kind in ("corrltn", "fully_connected", "runtime_fusion"))
    assert 1 <= products <= 4  # the network has four products, which may run within what follows them
    assert 0 < told["source_bytes"] < facts["engine_bytes"]
    assert told["bytes_moved"] is None and told["copies"] <= told["by_kind"]["function"]
    one = backend.build(emitted("fp16"), BuildRequest("fp16", Batch(2, 2, 2)), tmp_path, Silent()).facts["launches"]
    assert one["bytes_moved"] > 0


def test_an_engine_that_cannot_run_is_read_and_held_to_its_file(tmp_path: Path) -> None:
    """A file whose hash fits may be another network's all the same, where the manifest was written for it."""
    backend = backends()["tensorrt-rtx"]
    if (reason := backend.available()) is not None:
        pytest.skip(reason)
    made = emitted("fp16")
    built = backend.build(made, BuildRequest("fp16", Batch(1, 2, 4)), tmp_path, Silent())
    file = built.prepared.model
    backend.require_of(built.engine, built.facts, file)

    other = onnx.ModelProto()
    other.CopyFrom(file)
    for node in other.graph.node:
        node.name = f"other/{node.name}"
    whole = built.engine.read_bytes()
    refused = "is not the engine that was built of model.onnx"
    with pytest.raises(ArtifactError, match=refused):
        backend.require_of(built.engine, built.facts, other)
    for damaged in (whole[:1000], whole[: len(whole) // 2], b"", b"\0" * len(whole)):
        built.engine.write_bytes(damaged)
        with pytest.raises(ArtifactError, match=refused):
            backend.require_of(built.engine, built.facts, file)
    backend.require_of(built.engine, {**built.facts, "launches": None}, file)  # it did not tell


def test_in_words() -> None:
    kinds = {"corrltn": 1, "fully_connected": 2, "function": 4, "pooling": 1, "runtime_fusion": 3}
    told = {"total": 11, "by_kind": kinds, "source_bytes": 2_340_000}
    assert launches_text(told) == (
        "11 for one inference: 3 products, 3 products with what follows them, 5 other; "
        "2.3 MB of the engine is source of kernels"
    )
    counted = {"copies": 2, "normalisations": 1, "pointwise": 1, "transposes": 3, "bytes_moved": 7_000_000}
    assert launches_text(told | counted) == (
        "11 for one inference: 3 products, 3 products with what follows them, 2 that only copy, 1 of norms, "
        "1 pointwise, 1 other; 3 of them transpose; 7 MB read and written; 2.3 MB of the engine is source of kernels"
    )


def test_an_engine_tells_its_layers_in_trtexecs_form(tmp_path: Path, rtx: TensorRT) -> None:
    """Every tensor that a layer reads is another's, a constant of its own, or what the engine is given."""
    facts = rtx.build(emitted("fp16"), BuildRequest("fp16", Batch(1, 2, 4)), tmp_path, Silent()).facts
    found = json.loads((tmp_path / "layers.json").read_text())
    layers, bindings = found["Layers"], found["Bindings"]
    assert bindings == ["image", "logits"] and len(layers) == facts["launches"]["total"]
    assert len({layer["Name"] for layer in layers}) == len(layers)
    names = {"Name", "LayerType", "Inputs", "Outputs", "Constants", "TacticName", "StreamId", "Metadata"}
    assert all(layer.keys() - {"Weights"} == names for layer in layers)
    written = {one["Name"] for layer in layers for one in layer["Outputs"]} | {"image"}
    assert {one["Name"] for layer in layers for one in layer["Inputs"]} < written and "logits" in written
    ends = {one["Name"]: one for layer in layers for one in (*layer["Inputs"], *layer["Outputs"])}
    assert ends["image"] == {"Name": "image", "Dimensions": [-1, 3, 8, 8], "Format/Datatype": "Float"}
    assert any(one["Format/Datatype"] == "Half" for one in ends.values())
    assert any("Weights" in layer and layer["Weights"]["Type"] == "Half" for layer in layers)
    assert any(layer["Metadata"].startswith("[ONNX Layer: ") for layer in layers)


def test_layers_of_a_programme() -> None:
    """A view is what it is of, a number on the host is no tensor, and a name that comes twice is told apart."""
    views = tensor("x^deref", '"batch" 2').replace("tensor={ ", 'sub_tensor={ base="x.1" ')
    constant = tensor("w", "2 3").replace("alignment", "const_payload_size=12 alignment")
    number = tensor("n", "1", "int64").replace("mem_prop=0", "mem_prop=100")
    tensors = [tensor("x.1", '"batch" 2'), views, constant, number, tensor("y.1", '"batch" 3', "unheard_of")]
    statement = kernel("__myl_Fc", 'x^deref" "w" "n" "lost', "y.1").replace('layers=""', 'layers="[ONNX Layer: a/b]"')
    programmes = _programme.read(with_kernels(tensors, [statement, statement]))
    x = {"Name": "x", "Dimensions": [-1, 2], "Format/Datatype": "Half"}
    w = {"Name": "w", "Dimensions": [2, 3], "Format/Datatype": "Half"}
    layer = {
        "LayerType": "function",
        "Inputs": [x],
        "Outputs": [{"Name": "y", "Dimensions": [-1, 3], "Format/Datatype": "unheard_of"}],
        "Constants": [w],
        "TacticName": "__myl_Fc",
        "StreamId": 0,
        "Metadata": "[ONNX Layer: a/b]",
        "Weights": {"Type": "Half", "Count": 6},
    }
    named = [{"Name": "__myl_Fc", **layer}, {"Name": "__myl_Fc_2", **layer}]
    assert layer_information(programmes, ["x", "y"]) == {"Layers": named, "Bindings": ["x", "y"]}


def test_each_optimisation_profile_has_launches_and_layers_of_its_own(tmp_path: Path, rtx: TensorRT) -> None:
    single = rtx.build(emitted("fp16"), BuildRequest("fp16", Batch(1, 4, 8)), tmp_path, Silent()).facts
    batch = Batch.of([(1, 1, 1), (1, 4, 8)])
    facts = rtx.build(emitted("fp16"), BuildRequest("fp16", batch), tmp_path, Silent()).facts
    assert facts["batch"] == [1, 4, 8] and facts["profiles"] == [[1, 1, 1], [1, 4, 8]]
    # what an inference at the usual size launches, which the other profile has nothing to do with
    by_profile = facts["launches"].pop("by_profile")
    assert {**facts["launches"], "source_bytes": 0} == {**single["launches"], "source_bytes": 0}
    found = json.loads((tmp_path / "layers.json").read_text())
    assert found["Bindings"] == ["image", "logits", "image [profile 1]", "logits [profile 1]"]
    second = [layer for layer in found["Layers"] if layer["Name"].endswith(" [profile 1]")]
    assert len(second) == facts["launches"]["total"] < len(found["Layers"])
    assert by_profile == {"1:1:1": len(found["Layers"]) - len(second), "1:4:8": len(second)}
    text = launches_text({**facts["launches"], "by_profile": by_profile})
    assert f"for one inference ({by_profile['1:1:1']} at 1:1:1, {len(second)} at 1:4:8): " in text
    assert not any(layer["Name"].count("[profile 1]") > 1 for layer in second)
    writes = [one["Name"] for layer in found["Layers"] for one in layer["Outputs"]]
    reads = {one["Name"] for layer in found["Layers"] for one in layer["Inputs"]}
    assert len(writes) == len(set(writes)) and reads <= {*writes, "image", "image [profile 1]"}
    (image,) = (one for layer in second for one in layer["Inputs"] if one["Name"] == "image [profile 1]")
    assert image["Dimensions"] == [-1, 3, 8, 8]
    assert "logits [profile 1]" in {one["Name"] for layer in second for one in layer["Outputs"]}
    (first,) = (one for layer in found["Layers"] for one in layer["Inputs"] if one["Name"] == "image")
    assert first["Dimensions"] == [1, 3, 8, 8]


def kernel(name: str, reads: str = "x", writes: str = "y") -> str:
    return f'  function={{ name={name} input_args={{ "{reads}" }} output_args={{ "{writes}" }} stream=0 layers="" }}'


def tensor(name: str, dims: str, kind: str = "half", base: str = "") -> str:
    return f'  {base}tensor={{ alignment=128 dims={{ {dims} }} mem_prop=0 name="{name}" offset=0 type={kind} }}'


def with_kernels(tensors: list[str], kernels: list[str]) -> bytes:
    lines = "\n".join(kernels)
    return f"header {{\n  n_streams = 1\n}}\n{chr(10).join(tensors)}\nmain {{\n label bb1: \n{lines}\n}}\n".encode()


def test_kernels_that_only_move_data_are_copies_and_some_transpose() -> None:
    names = ["Resh", "MoveReshTran", "CastReplConc", "AddReshTranMul", "AddMul", "SubSlic"]
    found = launches(with_kernels([], [*(kernel(f"__myl_{name}") for name in names), kernel("_gemm_mha_v2")]))
    assert found is not None and (found.total, found.copies, found.transposes) == (7, 2, 2)
    assert found.pointwise == 4  # a cast rounds


def test_norms_and_pointwise_kernels_are_told_apart() -> None:
    """By the nodes of the file, a norm's in stages too; what reduces and is no norm is neither."""
    of_norms = {
        "CastMeanSubMulMean": "blocks.0.norm1/LayerNormalization", "ReshMeanSubMul": "norm/LayerNormalization/7",
        "Inor": "fnet.norm/InstanceNormalization", "AddReshMulAdd": "norm/LayerNormalization/21",
    }  # fmt: skip
    others = {"AddMulMul": "blocks.0/Add", "AddReshMean": "ReduceMean", "MulMaxrSubExpSumDiv": "attn/Softmax"}
    kernels = [
        kernel(f"__myl_{name}").replace('layers=""', f'layers="[ONNX Layer: head/Add][ONNX Layer: {node}]"')
        for name, node in (of_norms | others).items()
    ]
    found = launches(with_kernels([], [*kernels, kernel("_gemm_mha_v2")]))
    assert found is not None and (found.total, found.copies, found.normalisations, found.pointwise) == (8, 0, 4, 1)


def test_what_may_reduce_is_not_pointwise() -> None:
    """Of a long kernel's operations the name tells the first, and `Etc`."""
    found = launches(with_kernels([], [kernel(f"__myl_{name}") for name in ("Cums", "Topk", "AddMulEtc", "AddMul")]))
    assert found is not None and (found.total, found.pointwise, found.copies) == (4, 1, 0)


def test_what_only_writes_zeros_copies_nothing() -> None:
    """A sum that blocks share begins with such a launch; a size that the CPU computes is nothing that it copies."""
    size = tensor("n", "1", "int64").replace("mem_prop=0", "mem_prop=100")
    zeros = kernel("__myl_Move").replace('"x"', "")
    found = launches(with_kernels([size], [zeros, kernel("__myl_Move", reads="n"), kernel("__myl_Move")]))
    assert found is not None and (found.total, found.copies, found.where) == (3, 1, {"copies": {ITSELF: 1}})


def test_copies_and_transposes_are_told_by_module() -> None:
    nodes = {
        "Resh": "blocks.0.fc1/MatMul/rows0", "ReshTran": "blocks.11.fc1/MatMul_2",
        "TranAdd": "n1 | blocks.3.tokens/Call (segments)", "Slic": "Cast", "Conc": "Add_1/rows1", "Add": "blocks.0/Add",
    }  # fmt: skip
    kernels = [
        kernel(f"__myl_{name}").replace('layers=""', f'layers="[ONNX Layer: {node}][ONNX Layer: head/Gemm]"')
        for name, node in nodes.items()
    ]
    found = launches(with_kernels([], kernels))
    assert found is not None and found.where == {
        "copies": {"blocks.*.fc1": 2, "head": 2},
        "transposes": {"blocks.*.fc1": 1, "blocks.*.tokens": 1},
    }
    alone = launches(with_kernels([], [kernel("__myl_Resh")]))
    assert alone is not None and alone.where == {"copies": {ITSELF: 1}}
    assert moving_facts(asdict(found)) == {
        "that only copy": "blocks.*.fc1 2, head 2", "that transpose": "blocks.*.fc1 1, blocks.*.tokens 1",
    }  # fmt: skip
    assert moving_facts({"total": 3}) == {}


def test_bytes_are_those_of_what_each_launch_reads_and_writes() -> None:
    tensors = [tensor("x", "8 4 2"), tensor("y", "8 8", "float"), tensor("x^deref", "8 2", base="sub_")]
    product = '  fully_connected={ name="p" output={"y" } input={"x" "x^deref" } stream=0 layers="" }'
    found = launches(with_kernels(tensors, [kernel("__myl_Add"), product]))
    x, y, part = 8 * 4 * 2 * 2, 8 * 8 * 4, 8 * 2 * 2
    assert found is not None and found.bytes_moved == (x + y) + (x + part + y)


@pytest.mark.parametrize("x", [tensor("x", '"batch" 4'), tensor("x", "8", "unheard_of"), tensor("z", "8")])
def test_bytes_that_depend_on_the_batch_or_are_not_told_are_none(x: str) -> None:
    found = launches(with_kernels([x, tensor("y", "8")], [kernel("__myl_Add")]))
    assert found is not None and found.bytes_moved is None
