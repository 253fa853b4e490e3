"""TensorRT's plans in a Triton repository: one for each GPU, by the TensorRT of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError
from mlpdeploy.export import triton
from mlpdeploy.export.triton import Wanted, _config
from tests.export.made_up import made_up, read, tree


def test_a_plan_has_graphs_for_the_sizes_that_it_is_tuned_for(artifact: Artifact, tmp_path: Path) -> None:
    several = {"batch": [1, 4, 8], "profiles": [[1, 1, 1], [1, 4, 8]]}
    one = made_up(artifact, tmp_path / "tensorrt@nvidia-l4", **several)
    found = triton.add(one, tmp_path / "models", Wanted("net", instances=2))
    assert found["kind"] == "plan" and found["files"] == ["config.pbtxt", "1/model.plan"] and not found["notes"]
    assert "--gpus all" in found["commands"][0] and "tritonserver:25.09-py3" in found["commands"][0]
    assert (tmp_path / "models" / "net" / "1" / "model.plan").read_bytes() == one.engine.read_bytes()
    config = read(tmp_path / "models" / "net" / "config.pbtxt")
    assert config.platform == "tensorrt_plan" and not config.cc_model_filenames
    assert {entry.key: entry.value.string_value for entry in config.parameters} == {"tensorrt_version": "10.13.3.9"}
    assert config.optimization.cuda.graphs
    graphs = [
        (graph.batch_size, graph.input[0].key, [*graph.input[0].value.dim])
        for graph in config.optimization.cuda.graph_spec
    ]
    assert graphs == [(size, "input", [3, 16, 16]) for size in (1, 4, 8)]
    (group,) = config.instance_group
    assert (group.count, _config._ENUMS["Kind"][group.kind], [*group.profile]) == (2, "KIND_GPU", ["0", "1"])


def test_plans_for_several_gpus_are_one_version(artifact: Artifact, tmp_path: Path) -> None:
    built = tmp_path / "built"
    l4 = made_up(artifact, built / "tensorrt@nvidia-l4")
    h100 = made_up(artifact, built / "tensorrt@nvidia-h100", gpus=["sm90"])
    made_up(artifact, built / "tensorrt@nvidia-rtx-4090")
    made_up(artifact, built / "tensorrt@nvidia-t4", gpus=["sm75"], versions={"tensorrt": "10.13.2.6"})
    made_up(artifact, built / "tensorrt@nvidia-b200", gpus=["sm100"])
    (built / "tensorrt@nvidia-b200" / "engine.plan").write_bytes(b"altered")
    made_up(artifact, built / "tensorrt@nvidia-a10", gpus=["sm86"], own=False)
    rtx = made_up(artifact, built / "tensorrt@nvidia-rtx-5090", gpus=["sm120"])
    found = triton.add(l4, tmp_path / "models", Wanted("net"))
    assert found["files"] == ["config.pbtxt", "1/model.plan", "1/model_sm120.plan", "1/model_sm90.plan"]
    config = read(tmp_path / "models" / "net" / "config.pbtxt")
    assert {entry.key: entry.value for entry in config.cc_model_filenames} == {
        "8.9": "model.plan", "9.0": "model_sm90.plan", "12.0": "model_sm120.plan",
    }  # fmt: skip
    files = tree(tmp_path / "models" / "net" / "1")
    assert files == {
        "model.plan": l4.engine.read_bytes(), "model_sm90.plan": h100.engine.read_bytes(),
        "model_sm120.plan": rtx.engine.read_bytes(),
    }  # fmt: skip
    assert all(line.startswith("left out: ") for line in found["notes"])
    for line, part in zip(
        found["notes"], ("was not built here by you", "was altered", "8.9 there is one", "otherwise"), strict=True
    ):
        assert part in line
    with pytest.raises(InputError, match=r"has plans .*8\.9.*, and this engine none: give another --model-name"):
        triton.add(made_up(artifact, tmp_path / "alone" / "tensorrt@x"), tmp_path / "models", Wanted("net"))


def test_an_engine_for_every_gpu_needs_no_other(artifact: Artifact, tmp_path: Path) -> None:
    made_up(artifact, tmp_path / "tensorrt@nvidia-h100", gpus=["sm90"])
    one = made_up(artifact, tmp_path / "tensorrt@nvidia-l4", features=["hardware-compatible", "version-compatible"])
    found = triton.add(one, tmp_path / "models", Wanted("net", container="25.09"))
    assert found["files"] == ["config.pbtxt", "1/model.plan"]
    assert "--backend-config=tensorrt,version-compatible=true" in found["commands"][0]


@pytest.mark.parametrize(
    ("built", "features", "asked", "line"),
    [
        ("10.13.3.9", [], {"container": "25.09"}, None),
        ("10.13.3.9.post1", [], {"container": "25.09"}, None),
        ("10.13.3.9", [], {"tensorrt": "10.13"}, None),
        ("10.13.3.9", [], {"container": "26.01", "tensorrt": "10.13.3.9"}, None),
        ("10.13.2.6", ["version-compatible"], {"container": "25.09"}, None),
        ("10.13.3.9", [], {"container": "25.08"}, "--container 25.08: it has TensorRT 10.13.2.6, and the plan"),
        ("10.13.3.9", [], {"container": "25.08"}, "by 10.13.3.9; --container 25.09 fits, or build it again"),
        ("10.13.2.6", [], {"tensorrt": "10.14"}, "--tensorrt 10.14, and the plan .*; --container 25.08 fits"),
        ("10.16.0.1", [], {"container": "25.09"}, "a server with TensorRT 10.16.0.1 fits, or build it again"),
        ("10.13.3.9", ["version-compatible"], {"container": "25.08"}, "it has TensorRT 10.13.2.6"),
        ("11.0.0.1", ["version-compatible"], {"tensorrt": "10.14"}, "--tensorrt 10.14, and"),
        ("10.13.3.9", [], {"container": "20.01"}, "its TensorRT is not known here .*; say it by --tensorrt"),
        ("10.13.3.9", [], {"tensorrt": "latest"}, "--tensorrt latest, and"),
    ],
)  # fmt: skip
def test_the_servers_tensorrt_must_load_the_plan(
    artifact: Artifact, tmp_path: Path, built: str, features: list[str], asked: dict[str, Any], line: str | None
) -> None:
    one = made_up(artifact, tmp_path / "tensorrt@nvidia-l4", versions={"tensorrt": built}, features=features)
    if line is None:
        found = triton.add(one, tmp_path / "models", Wanted("net", **asked))
        assert f"tritonserver:{asked.get('container', '25.09')}-py3" in found["commands"][0]
        return
    with pytest.raises(InputError, match=line):
        triton.add(one, tmp_path / "models", Wanted("net", **asked))
    assert not (tmp_path / "models").exists()
    assert "tritonserver:" in triton.add(one, tmp_path / "models", Wanted("net"))["commands"][0]
