"""`mlpdeploy push`: the model card, and what is uploaded. Nothing leaves this machine."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

import mlpdeploy
from mlpdeploy.artifact import store
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.export import push as pushing
from mlpdeploy.export.push import card, push
from mlpdeploy.terminal import cli as command_line
from tests.network.hub_stub import answering

REPOSITORY = "someone/net"


class Hub:
    """What an upload asks the Hub's client for; it keeps what would have been uploaded."""

    private = False

    def __init__(self) -> None:
        self.made: list[tuple[str, bool]] = []
        self.files: dict[str, bytes] = {}

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        assert exist_ok
        self.made.append((repo_id, private))

    def model_info(self, _: str) -> SimpleNamespace:
        return SimpleNamespace(private=self.private)

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> SimpleNamespace:
        assert repo_id == REPOSITORY
        files = (path for path in folder_path.rglob("*") if path.is_file())
        self.files = {str(path.relative_to(folder_path)): path.read_bytes() for path in files}
        return SimpleNamespace(commit_url="the commit")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub where somebody is logged in."""
    found = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    with answering() as (address, asked):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        yield found
    assert asked == ["/api/whoami-v2"]


def front(text: str) -> dict[str, Any]:
    """What stands between the lines of a card that the Hub reads."""
    lines = text.split("---\n")[1].splitlines()
    return {name: json.loads(value) for name, value in (line.split(": ", 1) for line in lines)}


def edited(artifact: Artifact, **changed: Any) -> Artifact:
    return replace(artifact, manifest=artifact.manifest | changed)


def test_the_card_is_the_report_with_how_to_load(artifact: Artifact) -> None:
    text = card(artifact, REPOSITORY, "apache-2.0")
    assert front(text) == {"library_name": "mlpdeploy", "tags": ["mlpdeploy", "onnxruntime"], "license": "apache-2.0"}
    assert f'mlpdeploy.load(snapshot_download("{REPOSITORY}", local_dir="engine"))' in text
    assert "trust" not in text and "not built by" not in text
    assert text.endswith((artifact.folder / store.REPORT).read_text(encoding="utf-8"))
    assert "license" not in front(card(artifact, REPOSITORY))


def test_the_card_names_what_the_weights_are_of(artifact: Artifact) -> None:
    weights = artifact.manifest["weights"] | {"repository": 'timm/net@v2", "x": "'}
    assert front(card(edited(artifact, weights=weights), REPOSITORY))["base_model"] == "timm/net"


def test_code_asks_for_trust_and_what_others_built_is_told(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pushing, "backend_of", lambda _: SimpleNamespace(code="compiled code"))
    text = card(edited(artifact, seal="somebody's"), REPOSITORY)
    assert 'local_dir="engine"), trusted=True)' in text
    assert "The engine holds compiled code: load it only if you trust" in text
    assert "It was not built by who put it here." in text


@pytest.mark.parametrize("repository", ["", "net", "a/b/c", "../net", "a/b c", "a/"])
def test_a_repository_that_the_hub_cannot_have(artifact: Artifact, repository: str) -> None:
    with pytest.raises(InputError, match="give owner/name"):
        push(artifact, repository, dry_run=True)


def test_a_licence_cannot_write_into_the_card(artifact: Artifact) -> None:
    with pytest.raises(InputError, match="--license"):
        card(artifact, REPOSITORY, "mit\ntags: x")


def test_what_is_uploaded_loads_again(artifact: Artifact, hub: Hub, tmp_path: Path) -> None:
    found = push(artifact, REPOSITORY, private=False)
    assert (found["commit"], hub.made) == ("the commit", [(REPOSITORY, False)])
    assert set(hub.files) == set(found["files"]) and hub.files["README.md"].decode() == found["card"]
    assert not (artifact.folder / "README.md").exists()
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    with mlpdeploy.load(tmp_path) as engine:
        assert engine.manifest == artifact.manifest


def test_what_is_to_be_private_is_not_uploaded_to_a_public_repository(artifact: Artifact, hub: Hub) -> None:
    with pytest.raises(InputError, match="public already"):
        push(artifact, REPOSITORY, private=True)
    assert hub.files == {}


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_token_that_may_not(artifact: Artifact, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    with answering(status) as (address, _):
        monkeypatch.setattr(constants, "ENDPOINT", address)
        with pytest.raises(InputError, match=rf"does not let you write to someone/net \({status}\)") as caught:
            push(artifact, REPOSITORY)
    assert "hf_secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_nobody_is_logged_in(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(InputError, match="nobody is logged in"):
        push(artifact, REPOSITORY)


def test_a_hub_that_says_nothing(artifact: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    monkeypatch.setattr(pushing, "SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        with pytest.raises(MachineLacks, match=r"Timeout.*check the network access"):
            push(artifact, REPOSITORY)


def test_the_command_prints_the_card(artifact: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    def ran(*words: str) -> str:
        with pytest.raises(SystemExit) as left:
            command_line.main(["push", str(artifact.folder), REPOSITORY, "--dry-run", *words])
        assert left.value.code == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        return printed.out

    assert ran() == card(artifact, REPOSITORY)
    document = json.loads(ran("--json", "--license", "mit"))
    assert document["card"] == card(artifact, REPOSITORY, "mit") and document["commit"] is None
    assert document["files"][:2] == ["README.md", "manifest.json"]
