"""Cache keys: equal exactly where two builds are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mlpdeploy import cache
from mlpdeploy.errors import ArtifactError, CheckpointError
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


def test_every_number_that_a_users_network_reads_is_in_its_fingerprint_and_hash() -> None:
    """Also those that its state dict lacks: a buffer that is not kept, plain attributes, constants of its forward."""
    import torch
    from torch import Tensor, nn

    from mlpdeploy.graph.trace import TensorSpec, trace

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

    from mlpdeploy.graph.trace import TensorSpec, trace

    bounds = ((None, None), (0.0, 1.0), (0.0, 2.0))
    found = {
        cache.fingerprint(trace(nn.Identity(), [TensorSpec("input", (4,), torch.float32, *bound)])) for bound in bounds
    }
    assert len(found) == len(bounds)


def test_a_verification_meets_the_network_that_was_built(tmp_path: Path) -> None:
    import torch
    from torch import nn

    from mlpdeploy.graph.trace import TensorSpec, trace
    from mlpdeploy.lookup import check_traced
    from mlpdeploy.store import Artifact

    traced = trace(nn.Identity(), [TensorSpec("input", (4,), torch.float32)])
    check_traced(Artifact(tmp_path, {"network": cache.fingerprint(traced)}), traced)
    check_traced(Artifact(tmp_path, {"network": None}), traced)
    with pytest.raises(ArtifactError, match="built from another form of this network"):
        check_traced(Artifact(tmp_path, {"network": "another"}), traced)
