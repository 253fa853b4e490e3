"""Cache keys: equal exactly where two builds are the same."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact import cache
from mlpdeploy.artifact.lookup import key_of
from mlpdeploy.engine import host, nvidia
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import ArtifactError, CheckpointError
from mlpdeploy.network.finding import find
from mlpdeploy.selection import Selection

VERSIONS = {"onnxruntime": "1.0"}


@pytest.mark.parametrize(
    "other",
    [
        {"precision": "bf16"}, {"batch": "1:2:3"}, {"seed": 1}, {"num_classes": 10}, {"image_size": 64},
        {"gpus": ("sm86",)}, {"disabled_rules": ("fold_affine",)}, {"pretrained": True}, {"io": "fp16"}, {"level": 5},
        {"name": "mixer_s16"}, {"backend": "openvino"},
    ],
)  # fmt: skip
def test_the_key_depends_on_every_choice(other: dict[str, Any]) -> None:
    given: dict[str, Any] = {"name": "mixer_s32", "backend": "onnxruntime"}
    assert cache.key(Selection(**given), VERSIONS) != cache.key(Selection(**(given | other)), VERSIONS)


def test_the_key_depends_on_nothing_else(tmp_path: Path) -> None:
    first = cache.key(Selection("vip_s", batch="8"), VERSIONS)
    assert first == cache.key(Selection("vip_s7", batch="8:8:8", out=tmp_path), VERSIONS)
    assert first != cache.key(Selection("vip_s", batch="8"), {"onnxruntime": "1.1"})


def test_the_key_depends_on_a_checkpoints_content_not_on_its_place(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).write_bytes(content)
    a, b, c = (cache.key(Selection("vip_s", checkpoint=tmp_path / name), VERSIONS) for name in "abc")
    assert a == b != c
    with pytest.raises(CheckpointError, match="does not exist"):
        cache.key(Selection("vip_s", checkpoint=tmp_path / "d"), VERSIONS)


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (cache, "sources", lambda: "changed"),
        (cache, "versions", lambda: {"onnx-ir": "0"}),
        (cache.store, "SCHEMA", -1),
        (platform, "python_version", lambda: "3.99"),
        (platform, "machine", lambda: "riscv64"),
    ],
)
def test_the_key_depends_on_what_wrote_it(owner: Any, name: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.key(Selection("vip_s"), VERSIONS)
    monkeypatch.setattr(owner, name, value)
    assert cache.key(Selection("vip_s"), VERSIONS) != first


def test_every_entry_of_the_key_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[dict[str, Any]] = []
    monkeypatch.setattr(cache.json, "dumps", lambda content, **_: kept.append(content) or "")
    cache.key(Selection("vip_s"), VERSIONS)
    told = re.findall(r"(?m)^    (\w+) {2,}\w", cache.__doc__ or "")
    assert told == ["entry", *kept[0]]


def test_the_key_depends_on_the_driver_of_the_gpu_that_is_built_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def with_driver(driver: str, **choices: Any) -> str:
        monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("H100", "sm90", driver))
        selection = Selection("vip_s", **choices)
        return str(key_of(selection, backends()[selection.backend]))

    here = {"backend": "inductor", "gpus": ("current",)}
    assert with_driver("12.8", **here) != with_driver("13.0", **here)
    assert with_driver("12.8", backend="openvino") == with_driver("13.0", backend="openvino")


def test_the_key_depends_on_global_settings_of_pytorch() -> None:
    import torch

    first = cache.key(Selection("vip_s"), VERSIONS)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        assert cache.key(Selection("vip_s"), VERSIONS) != first
    finally:
        torch.set_float32_matmul_precision(before)
    assert cache.key(Selection("vip_s"), VERSIONS) == first


@pytest.mark.parametrize("calibration", ["digits", "photos"])
def test_the_key_depends_on_what_reads_calibration_data(
    calibration: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(b"1")
    given = str(tmp_path) if calibration == "photos" else calibration
    first = cache.calibration_sha256(given)
    monkeypatch.setattr(cache, "installed_version", lambda library: "0")
    assert cache.calibration_sha256(given) != first


def test_the_key_of_a_users_network_depends_on_how_its_images_are_prepared() -> None:
    from dataclasses import replace

    known = find("mixer_s32")
    keys = {
        cache.key(Selection("m:f"), VERSIONS, "fingerprint", known=one)
        for one in (known, replace(known, crop=0.5), replace(known, mean=(0.1, 0.2, 0.3)))
    }
    assert len(keys) == 3


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("inductor", "cpu"), ("inductor", "compiler"), ("inductor", "TORCHINDUCTOR_FREEZING"), ("inductor", "threads"),
        ("openvino", "cpu"), ("openvino", "OV_CPU_DEBUG"),
    ],
)  # fmt: skip
def test_the_key_depends_on_the_machine_that_an_engine_is_compiled_for(
    name: str, changed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    backend, selection = backends()[name], Selection("vip_s", backend=name)
    first = key_of(selection, backend)
    assert key_of(selection, backend) == first
    if changed == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    elif changed.isupper():
        monkeypatch.setenv(changed, "1")
    else:
        monkeypatch.setattr(host, changed, lambda: "another")
    assert key_of(selection, backend) != first


def test_a_portable_file_has_one_key_on_every_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, selection = backends()["onnxruntime"], Selection("vip_s", backend="onnxruntime")
    first = key_of(selection, backend)
    monkeypatch.setattr(host, "cpu", lambda: "another")
    assert key_of(selection, backend) == first


def test_a_users_network_is_known_by_its_graph_and_weights() -> None:
    import torch
    from torch import nn

    from mlpdeploy.graph.tracing.trace import TensorSpec, trace

    def fingerprint(network: nn.Module) -> str:
        return cache.fingerprint(trace(network, [TensorSpec("input", (4,), torch.float32)]))

    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3))
    first = fingerprint(network)
    assert fingerprint(network) == first
    assert fingerprint(nn.Sequential(network[0], nn.ReLU())) != first
    with torch.no_grad():
        network[0].bias[1] += 1e-6
    assert fingerprint(network) != first


def test_every_number_that_a_users_network_reads_is_in_its_fingerprint_and_hash() -> None:
    """Also those that its state dict lacks: a buffer that is not kept, plain attributes, constants of its forward."""
    import torch
    from torch import Tensor, nn

    from mlpdeploy.graph.tracing.trace import TensorSpec, trace

    class Net(nn.Module):
        def __init__(self, changed: str = "") -> None:
            super().__init__()
            self.constant = 3.0 if changed == "constant" else 2.0
            self.register_buffer("buffer", self.numbers(changed == "buffer"), persistent=False)
            self.plain = self.numbers(changed == "plain")
            self.several = {"a": [self.numbers(False), self.numbers(changed == "several")]}
            self.flipped = torch.complex(self.plain, self.plain).conj() if changed == "conjugate" else None

        @staticmethod
        def numbers(changed: bool) -> Tensor:
            return torch.arange(4.0) + (1e-6 if changed else 0)

        def forward(self, x: Tensor) -> Tensor:
            return (x + self.buffer * self.plain + self.several["a"][1]) * torch.tensor([self.constant])

    def fingerprint(changed: str) -> str:
        return cache.fingerprint(trace(Net(changed), [TensorSpec("input", (4,), torch.float32)]))

    kinds = ("", "constant", "buffer", "plain", "several")
    assert len({fingerprint(changed) for changed in kinds}) == len(kinds)
    assert fingerprint("") == fingerprint("")
    held = ("", "buffer", "plain", "several", "conjugate")
    assert len({cache.weights_sha256(Net(changed)) for changed in held}) == len(held)
    assert cache.weights_sha256(Net()) == cache.weights_sha256(Net("constant"))


def test_what_a_users_network_takes_is_in_its_fingerprint() -> None:
    import torch
    from torch import nn

    from mlpdeploy.graph.tracing.trace import TensorSpec, trace

    bounds = ((None, None), (0.0, 1.0), (0.0, 2.0))
    found = {
        cache.fingerprint(trace(nn.Identity(), [TensorSpec("input", (4,), torch.float32, *bound)])) for bound in bounds
    }
    assert len(found) == len(bounds)


def test_a_verification_meets_the_network_that_was_built(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from mlpdeploy.artifact.lookup import check_traced
    from mlpdeploy.artifact.store import Artifact
    from mlpdeploy.graph.tracing.trace import TensorSpec, trace

    traced = trace(nn.Identity(), [TensorSpec("input", (4,), torch.float32)])
    check_traced(Artifact(tmp_path, {"network": cache.fingerprint(traced)}), traced)
    check_traced(Artifact(tmp_path, {"network": None}), traced)
    with pytest.raises(ArtifactError, match="built from another form of this network"):
        check_traced(Artifact(tmp_path, {"network": "another"}), traced)
