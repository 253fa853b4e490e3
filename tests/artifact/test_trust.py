"""Artifacts of others: looked at without running anything of theirs, and run where that was asked for."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import mlpdeploy
from mlpdeploy import commands
from mlpdeploy.artifact import store, trust
from mlpdeploy.commands import baseline
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import ArtifactError
from mlpdeploy.evidence.documents.engine_facts import facts_of
from mlpdeploy.evidence.report import reporting
from mlpdeploy.selection import Selection
from mlpdeploy.system import files
from tests.conftest import Cli
from tests.evidence.examples import FACTS, whole
from tests.terminal.test_cli import NETS, in_process
from tests.test_api import Net, images

EVIL = """
from pathlib import Path
Path(__file__).with_name("ran").touch()
import torch
def factory():
    return torch.nn.Linear(8, 8)
"""


@pytest.fixture
def forged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An artifact as somebody else may write one, every hash right: it holds a library, and names code to import."""
    import onnx

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "evil_code.py").write_text(EVIL)
    folder = tmp_path / "artifacts" / "evil_code-factory" / "fp32" / "inductor"
    engine = {"precision": "fp32", "backend": "inductor"}
    with store.locked(folder), store.draft(folder) as draft:
        port = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 8]) for name in "xy"]
        graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "same", port[:1], port[1:])
        onnx.save(onnx.helper.make_model(graph), draft.folder / store.MODEL)
        (draft.folder / "engine.pt2").write_bytes(b"a library")
        (draft.folder / store.GRAPH).write_text('{"before": [], "after": []}')
        selection = Selection("evil_code:factory", batch="1:2:4", input_shape=(8,), **engine).to_json()
        ops = {"before": {"aten::linear": 2}, "after": {"aten::linear": 1}}
        recipe = {"name": "evil_code:factory", "family": "user", "source": "", "parameters": 1}
        facts = FACTS | engine | {"engine_sha256": files.sha256(draft.folder / "engine.pt2")}
        facts["versions"] = backends()["inductor"].versions()
        draft.commit(
            whole(engine="engine.pt2", selection=selection, recipe=recipe, facts=facts, ops=ops, **engine), str
        )
    unsealed(folder)
    return folder


def unsealed(folder: Path, seal: str | None = None) -> None:
    """The artifact as of another user, or with a seal that was made up."""
    manifest = json.loads((folder / store.MANIFEST).read_text())
    del manifest[trust.SEAL]
    (folder / store.MANIFEST).write_text(json.dumps(manifest | ({} if seal is None else {trust.SEAL: seal})))


@pytest.fixture
def ran(forged: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What of the forged artifact was run."""
    found: list[str] = []

    def load(path: str) -> SimpleNamespace:
        found.append(path)
        return SimpleNamespace(loader=SimpleNamespace(run=None))

    monkeypatch.setattr("torch._inductor.aoti_load_package", load)
    monkeypatch.delitem(sys.modules, "evil_code", raising=False)
    return found


def imported(folder: Path) -> bool:
    return (folder.parents[3] / "ran").exists()


def test_looking_runs_nothing(forged: Path, ran: list[str], tmp_path: Path) -> None:
    assert in_process("inspect", str(forged)) == 0 and in_process("inspect", str(forged), "--json") == 0
    assert in_process("report", str(forged), "--markdown", "a.md") == 0
    reporting.report(store.open_artifact(forged))
    engine = mlpdeploy.load(forged)
    assert "evil_code" in repr(engine)
    engine.save(tmp_path / "saved")
    facts_of(store.open_artifact(forged), 1)
    baseline._kept("given", forged, tmp_path / "kept")
    engine.close()
    assert not imported(forged) and ran == []


def test_its_library_is_not_loaded_and_its_name_not_imported(forged: Path, ran: list[str]) -> None:
    for seal in (None, "", "0" * 64):
        if seal is not None:
            unsealed_again(forged, seal)
        engine = mlpdeploy.load(forged)
        with pytest.raises(ArtifactError, match=r"holds a compiled library, .* --trust, or .*trusted=True"):
            engine(torch.zeros(1, 8))
        for use in (engine.verify, engine.bench):
            with pytest.raises(ArtifactError, match="names evil_code:factory is no reason to import it"):
                use()
        with pytest.raises(ArtifactError, match="holds a compiled library"):
            engine.bench(torch.nn.Linear(8, 8))
    assert not imported(forged) and ran == []


def unsealed_again(folder: Path, seal: str) -> None:
    manifest = json.loads((folder / store.MANIFEST).read_text())
    (folder / store.MANIFEST).write_text(json.dumps(manifest | {trust.SEAL: seal}))


def test_it_runs_where_that_is_asked_for(forged: Path, ran: list[str]) -> None:
    engine = mlpdeploy.load(forged, trusted=True)
    engine._held.load()
    assert ran == [str(forged / "engine.pt2")]
    assert not engine.verify().passed and imported(forged)  # the file computes something else, which it took to see


def test_a_baseline_of_others_is_not_run(forged: Path, ran: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("evil_code:factory", "--precision", "fp32", "--backend", "onnxruntime", "--input-shape", "8")
    assert in_process("regress", *arguments, "--baseline", str(forged)) == 2
    assert "holds a compiled library" in capsys.readouterr().err and ran == []


def test_what_is_data_runs_without_asking(tmp_path: Path) -> None:
    engine = mlpdeploy.compile(Net(), images(1), precision="fp32", backend="onnxruntime", batch="1:2:4")
    folder = engine.save(tmp_path / "artifact")
    unsealed(folder)
    again = mlpdeploy.load(folder)
    assert torch.equal(again(images(2)), engine(images(2)))
    assert again.verify(Net()).passed


def test_every_backend_says_whether_its_engines_hold_code() -> None:
    code = {name: backend.code for name, backend in backends().items()}
    assert {name for name, what in code.items() if what is None} == {"onnxruntime", "openvino"}


def test_the_seal_is_this_user_s_and_holds_for_all_that_the_manifest_says(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "mine"))
    manifest = trust.sealed(whole(files={}))
    assert trust.is_own(manifest) and trust.is_own(json.loads(json.dumps(manifest)))
    key = tmp_path / "mine" / "mlpdeploy" / "key"
    assert key.stat().st_mode & 0o777 == 0o600 and len(key.read_bytes()) == trust.BYTES
    assert not trust.is_own(manifest | {"created": "later"}) and not trust.is_own(whole(files={}))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "yours"))
    assert not trust.is_own(manifest)


def test_without_a_place_for_the_key_it_holds_for_this_process(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert trust.is_own(trust.sealed(whole(files={})))


@pytest.mark.slow
def test_one_s_own_runs_as_before_in_other_processes(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "my_nets.py").write_text(NETS)
    selection = ("my_nets:Net", "--input-shape", "3,16,16", "--backend", "onnxruntime", "--batch", "1:2:4")
    cli("build", *selection, PYTHONPATH=f"{Path(__file__).parents[2]}:{tmp_path}")
    manifest = commands.inspect("my_nets:Net", out=tmp_path / "artifacts")["manifest"]
    assert trust.is_own(manifest)
