"""Networks and weights from the Hugging Face Hub: what is said, and how it ends where nothing or nonsense answers.

Nothing here leaves this machine: a server on it stands in the place of the Hub.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save

from mlpdeploy import pipeline, reference
from mlpdeploy.artifact.lookup import find_artifact
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks
from mlpdeploy.network import hub
from mlpdeploy.network.finding import find
from mlpdeploy.selection import Selection
from mlpdeploy.zoo.recipe import canonical, changes, kind
from tests.conftest import REPOSITORY
from tests.listening import Listener
from tests.network.hub_stub import COMMIT, answering

NAME = "hf-hub:someone/tiny"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a Hub that is nowhere."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        use(monkeypatch, f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "SECONDS", 0.5)
    return tmp_path / "hub"


def use(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", address)
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


@pytest.fixture(scope="module")
def files() -> dict[str, bytes]:
    """A small model of timm's as its authors put it on the Hub."""
    taken = {"input_size": [3, 160, 160], "fixed_input_size": True, "classifier": "head"}
    config = {"architecture": "test_vit", "num_classes": 1000, "pretrained_cfg": taken}
    return {
        "config.json": json.dumps(config).encode(),
        "model.safetensors": save(reference("timm:test_vit", seed=3).state_dict()),
    }


@pytest.fixture
def silent() -> Iterator[str]:
    """Something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("name", [NAME, "hf_hub:someone/tiny", "timm:hf-hub:someone/tiny", "timm:hf_hub:someone/tiny"])
def test_one_network_has_one_name(name: str) -> None:
    assert canonical(name) == NAME and kind(NAME) == "timm" and changes(NAME)
    assert Selection(name).folder_name == "hf-hub-someone-tiny"


@pytest.mark.parametrize("name", ["hf-hub:", "hf-hub:tiny", "hf-hub:a/b/c", "hf-hub:a/b@", "hf-hub:a/b c"])
def test_a_name_that_the_hub_cannot_have(name: str) -> None:
    with pytest.raises(InputError, match="hf-hub:owner/model"):
        canonical(name)


def test_describing_a_network_asks_nobody() -> None:
    code = f"import sys; from mlpdeploy.network.finding import find; find({NAME!r}); print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert not {"torch", "timm", "huggingface_hub"} & set(ran.stdout.split())
    assert find(NAME).source == "Hugging Face Hub"


def test_what_is_fetched_is_said() -> None:
    assert hub.fetching(Selection("timm:test_vit")) is None
    assert str(hub.fetching(Selection("mixer_b16", pretrained=True))).startswith("weights of mixer_b16: from the")
    assert str(hub.fetching(Selection(NAME))).startswith(f"configuration of {NAME}: ")
    assert str(hub.fetching(Selection(NAME, pretrained=True))).startswith(f"configuration and weights of {NAME}: ")


@pytest.mark.parametrize(("name", "pretrained"), [(NAME, False), (NAME, True), ("timm:test_vit", True)])
def test_a_hub_that_is_not_there(name: str, pretrained: bool) -> None:
    with pytest.raises(MachineLacks, match=r"could not be fetched .*ConnectError.*--checkpoint FILE") as caught:
        reference(name, pretrained=pretrained)
    assert "\n" not in str(caught.value)


def test_a_hub_that_is_silent(silent: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, silent)
    with pytest.raises(MachineLacks, match=r"could not be fetched .*Timeout"):
        reference(NAME, pretrained=True)


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_model_that_is_not_for_everybody(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(status) as (address, asked):
        use(monkeypatch, address)
        with pytest.raises(InputError, match=rf"no someone/tiny that you may read \({status}\)"):
            reference(NAME)
    assert asked == ["/someone/tiny/resolve/main/config.json"]


@pytest.mark.parametrize("status", [200, 500, 503])
def test_a_server_that_is_not_the_hub_is_asked_once(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(status) as (address, asked):
        use(monkeypatch, address)
        with pytest.raises(MachineLacks, match="could not be fetched"):
            reference(NAME)
    assert [path for path in asked if NAME.partition(":")[2] in path] == ["/someone/tiny/resolve/main/config.json"]


def test_a_repository_of_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(files={}) as (address, _):
        use(monkeypatch, address)
        with pytest.raises(InputError, match=r"no model of timm's: it has no config\.json"):
            reference(NAME)


@pytest.mark.parametrize("content", [b"", b"<html>", b"[]", b"{}", b'{"architecture": "no_such_net"}'])
def test_a_configuration_that_means_nothing(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(files={"config.json": content}) as (address, _):
        use(monkeypatch, address)
        with pytest.raises(InputError, match=f"{NAME} cannot be built: ") as caught:
            reference(NAME)
    assert "\n" not in str(caught.value)


def test_what_was_fetched_once_needs_no_network(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    trained = reference("timm:test_vit", seed=3).state_dict()
    nowhere = constants.ENDPOINT
    level = logging.getLogger("huggingface_hub").level
    with answering(files=files) as (address, _):
        use(monkeypatch, address)
        first = reference(f"timm:{NAME}", pretrained=True, seed=4).state_dict()
    use(monkeypatch, nowhere)
    again = reference(NAME, pretrained=True, seed=5).state_dict()
    assert not constants.HF_HUB_OFFLINE
    assert [k for k in trained if not torch.equal(first[k], trained[k])] == []
    assert all(torch.equal(again[key], tensor) for key, tensor in trained.items())
    assert not torch.equal(reference(NAME, seed=5).state_dict()["head.weight"], trained["head.weight"])
    assert hub.commit("someone/tiny") == COMMIT
    assert logging.getLogger("huggingface_hub").level == level and capfd.readouterr() == ("", "")
    with pytest.raises(MachineLacks, match="someone/tiny@v2"):
        reference(f"{NAME}@v2")


def test_a_head_of_other_classes_is_not_made_up(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    with answering(files=files) as (address, _):
        use(monkeypatch, address)
        with pytest.raises(InputError, match="have 1000 classes, not 7"):
            reference(NAME, pretrained=True, num_classes=7)
        assert reference(NAME, num_classes=7)(torch.zeros(1, 3, 160, 160)).shape == (1, 7)


@pytest.mark.slow
def test_an_engine_is_found_again_by_its_numbers(
    files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    selection = Selection(NAME, pretrained=True, precision="fp32", backend="onnxruntime", batch="1", out=tmp_path)
    listener = Listener()
    with answering(files=files) as (address, _):
        use(monkeypatch, address)
        built = pipeline.build(selection, progress=listener)
    again = pipeline.build(selection)
    assert listener.lines[0] == hub.fetching(selection)
    assert not built.cached and again.cached and find_artifact(NAME, out=tmp_path).folder == built.folder
    weights = built.manifest["weights"]
    assert (weights["repository"], weights["commit"]) == ("someone/tiny", COMMIT)
    other = files | {"model.safetensors": save(reference("timm:test_vit", seed=4).state_dict())}
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "later"))
    with answering(files=other) as (address, _):
        use(monkeypatch, address)
        with pytest.raises(ArtifactError, match="built from another form of this network"):
            pipeline.verify(selection)
        assert not pipeline.build(selection).cached


def test_offline_mode_asks_nobody(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with answering(files=files) as (address, asked):
        use(monkeypatch, address)
        with pytest.raises(MachineLacks, match="HF_HUB_OFFLINE is set"):
            reference(NAME)
    assert asked == [] and constants.HF_HUB_OFFLINE


@pytest.mark.slow
def test_the_command_says_so_and_ends(silent: str, tmp_path: Path) -> None:
    patient = "from mlpdeploy.network import hub; from mlpdeploy.terminal.cli import main; hub.SECONDS = 1; main()"
    command = [sys.executable, "-c", patient, "build", NAME, "--pretrained", "--precision", "fp32"]
    command += ["--backend", "openvino", "--out", str(tmp_path)]
    environment = os.environ | {"HF_ENDPOINT": silent, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "0"}
    ran = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=90)
    lines = [line for line in ran.stderr.splitlines() if not line.strip().startswith("load ")]
    assert (ran.returncode, ran.stdout) == (3, "")
    assert [line.split(":")[0].strip() for line in lines] == ["configuration and weights of hf-hub", "error"], lines
