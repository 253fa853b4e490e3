"""Cache keys: equal exactly where two builds are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlpdeploy import cache
from mlpdeploy.errors import CheckpointError
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
    with pytest.raises(CheckpointError, match="cannot be read"):
        cache.key(Selection("vip_s", checkpoint=tmp_path / "d"), VERSIONS)


def test_the_key_depends_on_the_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    first = cache.key(Selection("vip_s"), VERSIONS)
    monkeypatch.setattr(cache, "sources", lambda: "changed")
    assert cache.key(Selection("vip_s"), VERSIONS) != first


def test_a_users_network_is_known_by_its_graph_and_weights() -> None:
    import torch
    from torch import nn

    from mlpdeploy.graph.trace import TensorSpec, trace

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
