"""Artifacts and documents that are damaged, or made to do harm: one line and an exit code, whatever reads them."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest

import mlpdeploy
from mlpdeploy import commands
from mlpdeploy.artifact import store
from mlpdeploy.commands import baseline
from mlpdeploy.errors import ArtifactError, InputError, MlpdeployError
from mlpdeploy.evidence.documents import bench
from mlpdeploy.evidence.documents.engine_facts import facts_of
from mlpdeploy.evidence.report import reporting
from mlpdeploy.system import files
from mlpdeploy.system.documents import Number, wrong
from tests.conftest import REPOSITORY
from tests.evidence.examples import bench as measured
from tests.evidence.examples import evaluation
from tests.terminal.test_cli import in_process
from tests.test_api import Net, images

NOTHING = object()
WRONG: dict[str, Any] = {
    "missing": NOTHING, "null": None, "negative": -1, "text": "?", "empty": [], "another object": {"?": None},
    "large": 2**62,
}  # fmt: skip


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact with everything that can be attached to one."""
    folder = tmp_path_factory.mktemp("whole") / "artifact"
    engine = mlpdeploy.compile(Net(), images(1), precision="fp32", backend="onnxruntime", batch="1:2:4")
    engine.verify()
    engine.save(folder)
    manifest = json.loads((folder / store.MANIFEST).read_text())
    (folder / store.BENCH).write_text(json.dumps(measured(manifest)))
    (folder / store.EVALUATION).write_text(json.dumps(evaluation(manifest)))
    mlpdeploy.load(folder).report()
    return folder


@pytest.fixture
def folder(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(whole, tmp_path / "artifact"))


def changed(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
    document = json.loads((folder / name).read_text())
    change(document)
    (folder / name).write_text(json.dumps(document))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a document; of a list only its first item."""
    if path:
        yield path
    inside = value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    for key, one in inside:
        yield from places(one, (*path, key))


def put(document: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        document = document[key]
    if value is NOTHING:
        del document[path[-1]]
    else:
        document[path[-1]] = value


def use(folder: Path) -> None:
    """What commands do with an artifact, without the network: each is one line where it cannot be done."""
    from mlpdeploy.terminal.artifacts import print_artifact
    from mlpdeploy.terminal.screen import Terminal

    steps: list[Callable[[], Any]] = [
        lambda: print_artifact(Terminal(quiet=True), commands.inspect(str(folder))),
        lambda: reporting.report(store.open_artifact(folder), html=folder.parent / "a.html"),
        lambda: reporting.report(store.open_artifact(folder), markdown=folder.parent / "a.md"),
        lambda: repr(mlpdeploy.load(folder)),
        lambda: facts_of(store.open_artifact(folder), 1),
        lambda: baseline._kept("given", folder, Path(os.fspath(folder.parent / "kept"))),
    ]
    for step in steps:
        shutil.rmtree(folder.parent / "kept", ignore_errors=True)
        try:
            step()
        except MlpdeployError as error:
            assert len(str(error).splitlines()) == 1


READ: dict[str, Callable[[Path], Any]] = {
    store.MANIFEST: store.read_manifest,
    store.VERIFICATION: lambda folder: store.attached(_unchecked(folder), store.VERIFICATION),
    store.EVALUATION: lambda folder: store.attached(_unchecked(folder), store.EVALUATION),
    store.BENCH: lambda folder: reporting._evidence(_unchecked(folder)),
}


def _unchecked(folder: Path) -> store.Artifact:
    return store.Artifact(folder, store.read_manifest(folder))


@pytest.mark.slow
@pytest.mark.parametrize("name", READ)
@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_whatever_stands_in_a_document_is_used_or_named(folder: Path, name: str, value: Any) -> None:
    document = json.loads((folder / name).read_text())
    allowed = copy.deepcopy(document)
    for place in reversed(list(places(document))):
        spoiled = copy.deepcopy(document)
        put(spoiled, place, value)
        (folder / name).write_text(json.dumps(spoiled))
        try:
            READ[name](folder)
        except ArtifactError as error:
            assert len(str(error).splitlines()) == 1
        else:
            put(allowed, place, value)
    # What the reader lets pass, all of it at once, every command can use, or say why not.
    (folder / name).write_text(json.dumps(allowed))
    use(folder)


def replaced(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """A damage: something else in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def without(name: str, **instead: Any) -> Callable[[Path], Any]:
    """A damage: a field of the manifest that is missing, or holds something else."""

    def change(manifest: dict[str, Any]) -> None:
        manifest.pop(name)
        manifest.update(instead)

    return lambda folder: changed(folder, store.MANIFEST, change)


DAMAGED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no batch": (without("batch"), "batch is missing"),
    "a batch that is text": (without("batch", batch="1"), "batch is text"),
    "no recipe": (without("recipe"), "recipe is missing"),
    "facts that are a list": (without("facts", facts=[]), "facts is a list"),
    "deep": (lambda f: (f / store.MANIFEST).write_text("[" * 10**5), "nested too deeply"),
    "deep in its depth": (lambda f: (f / store.MANIFEST).write_text("[" * 99 + "]" * 99), "nested too deeply"),
    "infinite": (lambda f: (f / store.MANIFEST).write_text('{"schema": 1e999}'), "a number that is too large"),
    "no text": (lambda f: (f / store.MANIFEST).write_text('{"schema": "\\ud800"}'), "no Unicode"),
    "a folder": (replaced(store.MANIFEST, Path.mkdir), "no regular file"),
    "a pipe": (replaced(store.MANIFEST, os.mkfifo), "no regular file"),
    "a verification that is a pipe": (replaced(store.VERIFICATION, os.mkfifo), "no regular file"),
    "a link out": (replaced(store.VERIFICATION, lambda p: p.symlink_to("/etc/hostname")), "leads out of the artifact"),
    "a manifest elsewhere": (replaced(store.MANIFEST, lambda p: p.symlink_to("/etc/hostname")), "leads out of the"),
    "a link to nothing": (replaced(store.VERIFICATION, lambda p: p.symlink_to("none")), "link to nothing"),
    "an engine that is a pipe": (replaced("engine.onnx", os.mkfifo), "engine.onnx is missing"),
}


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
@pytest.mark.parametrize("how", DAMAGED)
def test_what_is_wrong_is_named_by_the_command(folder: Path, how: str, capsys: pytest.CaptureFixture[str]) -> None:
    damage, said = DAMAGED[how]
    damage(folder)
    assert in_process("inspect", str(folder)) == 2
    found = capsys.readouterr().err
    assert said in found and found.count("\n") == 1


def rehashed(folder: Path, name: str) -> None:
    """Make the manifest name a file as it is now."""
    path = folder / name
    facts = {"bytes": path.stat().st_size, "sha256": files.sha256(path)}
    changed(folder, store.MANIFEST, lambda manifest: manifest["files"].update({name: facts}))


def test_a_model_reads_numbers_from_no_other_file(folder: Path) -> None:
    model = onnx.load(folder / store.MODEL)
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    (folder / store.MODEL).write_bytes(model.SerializeToString())
    rehashed(folder, store.MODEL)
    with pytest.raises(ArtifactError, match="keeps numbers in other files"):
        mlpdeploy.load(folder).verify(Net())
    with pytest.raises(ArtifactError, match="keeps numbers in other files"):
        facts_of(store.open_artifact(folder))


def test_a_model_that_is_no_model_is_named(folder: Path) -> None:
    (folder / store.MODEL).write_bytes(b"no model")
    rehashed(folder, store.MODEL)
    with pytest.raises(ArtifactError, match="cannot be read as ONNX"):
        facts_of(store.open_artifact(folder))


def test_an_unknown_backend_is_one_line(folder: Path) -> None:
    def another(manifest: dict[str, Any]) -> None:
        for one in (manifest, manifest["selection"], manifest["facts"]):
            one["backend"] = "of-tomorrow"

    changed(folder, store.MANIFEST, another)
    engine = mlpdeploy.load(folder)
    assert "of-tomorrow" in str(engine.cannot_run)
    with pytest.raises(MlpdeployError, match="of-tomorrow"):
        engine(images(1))
    with pytest.raises(MlpdeployError, match="of-tomorrow"):
        engine.verify(Net())


SAVED = json.loads((REPOSITORY / "tests" / "data" / "bench.json").read_text())
USED = (("facts",), ("measurements",), ("network", "name"), ("machine",), ("settings", "sittings"), ("selection",))


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_a_saved_result_has_what_is_used_of_it(tmp_path: Path, value: Any) -> None:
    path = tmp_path / "run.json"
    for place in USED:
        if (place[-1], value) in (("name", "?"), ("sittings", 2**62)):  # which they may be
            continue
        spoiled = copy.deepcopy(SAVED)
        put(spoiled, place, value)
        path.write_text(json.dumps(spoiled))
        with pytest.raises(InputError, match=place[-1]) as caught:
            bench.read(path)
        assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        ({"a": 1}, {"a": Number(whole=True, least=1), "b?": str}, None),
        ({"a": 0}, {"a": Number(whole=True, least=1)}, "a is 0, it must be at least 1"),
        ({"a": True}, {"a": Number()}, "a is true or false, it must be a number"),
        ({}, {"a": str}, "a is missing"),
        ({"a": {"b": [1, "x"]}}, {"a": {"b": [Number()]}}, "a.b[1] is text, it must be a number"),
        ([], [str, ...], "it is empty"),
        ({"a": {"b": 1}}, {"a": (None, {"b": str})}, "a.b is a number, it must be text"),
        ({"any": "x"}, {str: Number()}, "any is text, it must be a number"),
        (None, (None, str), None),
    ],
)
def test_kinds(value: Any, kind: Any, said: str | None) -> None:
    assert wrong(value, kind) == said
