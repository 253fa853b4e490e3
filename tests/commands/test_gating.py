"""`regress` but for its clock: what the sides are, in what they differ, and what happens to them meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy import pipeline
from mlpdeploy.artifact import store
from mlpdeploy.artifact.decisions import KEPT, LEFT_OUT, NO_BETTER, Decision, Trial
from mlpdeploy.artifact.lookup import folder_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands import gating, measuring, unlike
from mlpdeploy.commands.baseline import Baseline
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.evidence.documents import engine_facts, regress
from mlpdeploy.evidence.latency.sequential_test import PASSED
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from tests.listening import Listener

Timed = Callable[[Baseline, Artifact], None]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """A small network that is built, for batch 1 to 4."""
    out = tmp_path_factory.mktemp("artifacts")
    selection = Selection("tests.test_api:Net", "fp32", "onnxruntime", "1:2:4", input_shape=(3, 16, 16), out=out)
    pipeline.build(selection)
    return selection


def folder(selection: Selection) -> Path:
    return folder_of(selection, backends()[selection.backend])


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Hold a selection against a baseline without timing; `timed` runs where the timing would."""

    def run(selection: Selection, reference: Path, timed: Timed = lambda *_: None, **options: Any) -> Any:
        def latency(other: Baseline, artifact: Artifact, *_: Any) -> Any:
            timed(other, artifact)
            return (), ()

        monkeypatch.setattr(gating, "latency", latency)
        listener = options.setdefault("progress", Listener())
        return gating.regress(selection, str(reference), **options), listener.lines

    return run


def gate_of(found: Any, name: str) -> regress.Gate:
    return next(one for one in found.gates if one.name == name)


@pytest.mark.slow
def test_an_engine_passes_against_itself_where_it_was_built_for_other_batches(
    plain: Selection, held: Any, tmp_path: Path
) -> None:
    wide = replace(plain, batch="1:2:64", out=tmp_path)
    found, lines = held(wide, folder(plain))
    memory = gate_of(found, regress.MEMORY)
    assert (memory.verdict, memory.change, memory.reason) == (PASSED, 0.0, "at batch 4")
    assert found.verdict == PASSED
    assert "not alike: batch: the baseline has 1:2:4, the candidate 1:2:64" in lines
    # So does the narrow one against the wide one's, and against what was saved of it.
    again, _ = held(plain, folder(wide))
    assert gate_of(again, regress.MEMORY) == memory
    document = json.loads(json.dumps(found.to_json()))
    assert document["facts"]["memory_batch"] == 4
    (tmp_path / "run.json").write_text(json.dumps(document))
    saved, _ = held(wide, tmp_path / "run.json")
    assert gate_of(saved, regress.MEMORY) == memory


def test_memory_of_batches_that_the_sides_do_not_share_is_not_compared(
    plain: Selection, held: Any, tmp_path: Path
) -> None:
    found, _ = held(replace(plain, batch="8:8:16", out=tmp_path), folder(plain))
    memory = gate_of(found, regress.MEMORY)
    assert memory.verdict == regress.NOT_MEASURED
    assert memory.reason == "there is no batch that both sides take and whose memory is known"
    document = {"facts": {"memory_bytes": 1}, "selection": {"batch": "1:8:32"}}
    saved = Baseline("run.json", {}, document=document)
    assert gating._common_batch(saved, Artifact(tmp_path, {"batch": {"min": 1, "opt": 2, "max": 64}})) == 32
    assert gating._common_batch(saved, Artifact(tmp_path, {"batch": {"min": 1, "opt": 2, "max": 16}})) is None


@pytest.mark.slow
def test_what_is_not_alike_is_said_before_anything_is_timed_and_kept(
    plain: Selection, held: Any, tmp_path: Path
) -> None:
    other = replace(plain, precision="fp16", seed=3, out=tmp_path, disabled_rules=("hoist_reweighting",))
    listener, before = Listener(), list[str]()
    found, _ = held(other, folder(plain), lambda *_: before.extend(listener.lines), progress=listener)
    differ = found.to_json()["baseline"]["differs"]
    assert differ == [
        "precision: the baseline has fp32, the candidate fp16",
        "seed: the baseline has 0, the candidate 3",
        "disabled rules: the baseline has none, the candidate hoist_reweighting",
        "weights: the baseline has weights as tests.test_api:Net made them (seed 0); no checkpoint was given, "
        "the candidate weights as tests.test_api:Net made them (seed 3); no checkpoint was given",
    ]
    assert [line for line in before if line.startswith("not alike")] == [f"not alike: {line}" for line in differ]
    same, lines = held(plain, folder(plain))
    assert same.baseline["differs"] == [] and not [line for line in lines if line.startswith("not alike")]


TRIALS = (Trial("pick_parts", LEFT_OUT, KEPT), Trial("fold_affine", LEFT_OUT, NO_BETTER))
DECIDED = {"decision": asdict(Decision("mixer_s32", "2026-01-01", "time", 8, 60.0, TRIALS))}


def manifest(**changes: Any) -> dict[str, Any]:
    selection = Selection("mixer_s32", "fp32", "openvino").to_json()
    for name in changes.pop("without", ()):  # which an older version does not know
        del selection[name]
    weights = {"text": "weights from a.pth", "kind": "checkpoint", "sha256": "0" * 64}
    decided = changes.pop("decided", None)
    return {"selection": selection | changes.pop("selection", {}), "weights": weights | changes, "decided": decided}


@pytest.mark.parametrize(
    ("theirs", "ours", "said"),
    [
        (manifest(), manifest(text="weights from elsewhere/a.pth"), []),
        (
            manifest(),
            manifest(sha256="1" * 64),
            [
                "weights: the baseline has weights from a.pth, SHA-256 0000000000, the candidate weights from a.pth, "
                "SHA-256 1111111111"
            ],
        ),
        (
            manifest(selection={"backend": "onnxruntime"}),
            manifest(),
            ["backend: the baseline has onnxruntime, the candidate openvino"],
        ),
        (manifest(selection={"plugin": "off"}), manifest(), ["plugin: the baseline has off, the candidate auto"]),
        (manifest(selection={"checkpoint": "/a/b.pth"}), manifest(), []),
        (manifest(without=("features", "softmax", "plugin")), manifest(), []),
        (
            manifest(without=("softmax",)),
            manifest(selection={"softmax": True}),
            ["softmax: the baseline has False, the candidate True"],
        ),
        (
            manifest(decided=DECIDED),
            manifest(),
            ["decisions of a search: the baseline has pick_parts left out, the candidate none"],
        ),
        (
            manifest(selection={"input_shape": [3, 8, 8]}),
            manifest(),
            ["input shape: the baseline has 3, 8, 8, the candidate none"],
        ),
    ],
)
def test_artifacts_are_compared_by_what_decides_them(
    theirs: dict[str, Any], ours: dict[str, Any], said: list[str], tmp_path: Path
) -> None:
    other = Baseline("x", {}, artifact=Artifact(tmp_path, theirs))
    assert unlike.differences(other, Artifact(tmp_path, ours), 2) == said


def test_saved_results_are_compared_too_with_their_threads(tmp_path: Path) -> None:
    network = {"weights": "weights from b.pth"}
    document = {"selection": manifest()["selection"] | {"seed": 1}, "network": network, "settings": {"threads": 1}}
    assert unlike.differences(Baseline("x", {}, document=document), Artifact(tmp_path, manifest()), 2) == [
        "seed: the baseline has 1, the candidate 0",
        "threads: the baseline has 1, the candidate 2",
        "weights: the baseline has weights from b.pth, the candidate weights from a.pth",
    ]


@pytest.mark.slow
def test_another_process_that_builds_either_side_again_changes_nothing(
    plain: Selection, held: Any, tmp_path: Path
) -> None:
    selection = replace(plain, out=tmp_path)
    first = pipeline.build(selection).manifest

    def timed(other: Baseline, artifact: Artifact) -> None:
        # The seed of a network of one's own is in the key, so this is another engine in the same folder.
        pipeline.build(replace(selection, seed=1), force=True)
        assert store.read_manifest(folder(selection)) != first
        assert other.artifact is not None
        assert [store.open_artifact(one.folder).manifest for one in (other.artifact, artifact)] == [first, first]

    found, _ = held(selection, folder(selection), timed)
    assert found.passed and found.network["model_sha256"] == first["files"]["model.onnx"]["sha256"]


def test_what_the_verification_found_stays_beside_the_artifact(plain: Selection, held: Any, tmp_path: Path) -> None:
    selection = replace(plain, out=tmp_path)
    found, _ = held(selection, folder(plain))
    artifact = store.open_artifact(folder(selection))
    assert engine_facts.facts_of(artifact).accuracy == found.facts.accuracy is not None
    assert "Not verified yet" not in (artifact.folder / store.REPORT).read_text()


@pytest.mark.slow
def test_a_verification_without_the_largest_batch_does_not_count(plain: Selection, held: Any, tmp_path: Path) -> None:
    selection = replace(plain, out=tmp_path)
    pipeline.build(selection)
    pipeline.verify(selection, quick=True)
    artifact = store.open_artifact(folder(selection))
    assert engine_facts.verification_of(artifact) == "not verified at batch 4"
    found, _ = held(selection, folder(selection))
    assert gate_of(found, regress.VERIFICATION).verdict == PASSED and found.facts.failed_stages == 0
    verified = engine_facts.verification_of(store.open_artifact(folder(selection)))
    assert isinstance(verified, dict) and verified["sizes"] == [1, 2, 4]


def test_an_engine_that_fails_its_verification_fails_the_gate(plain: Selection, held: Any, tmp_path: Path) -> None:
    selection = replace(plain, out=tmp_path)
    pipeline.build(selection)
    pipeline.verify(selection)
    path = folder(selection) / store.VERIFICATION
    document = json.loads(path.read_text())
    document["stages"][-1] |= {"status": "failed", "max_relative": None}
    document |= {"passed": False, "verdict": "engine: holds NaN"}
    path.write_text(json.dumps(document))
    found, _ = held(selection, folder(selection))
    assert not found.passed
    assert gate_of(found, regress.VERIFICATION).reason == "engine: holds NaN"


@pytest.mark.slow
def test_an_artifact_that_is_replaced_while_it_is_copied_is_read_again(
    plain: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    selection, copy = replace(plain, out=tmp_path), measuring.copy
    pipeline.build(selection)
    again = [True]

    def replaced(artifact: Artifact, target: Path) -> Artifact:
        if again and again.pop():
            pipeline.build(replace(selection, seed=1), force=True)
        return copy(artifact, target)

    monkeypatch.setattr(measuring, "copy", replaced)
    original, copied = measuring.built_copy(selection, tmp_path / "copy", None)
    assert copied.manifest == original.manifest == store.read_manifest(copied.folder)
    assert copied.manifest["selection"]["seed"] == 0
    again[:] = [True] * measuring.TRIES
    with pytest.raises(ArtifactError, match="was built again by another process each time it was read: try again"):
        measuring.built_copy(selection, tmp_path / "copy", None)


def test_a_document_that_has_no_place_is_said_and_no_error(plain: Selection, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact, listener = store.open_artifact(folder(plain)), Listener()

    def full(*_: Any) -> None:
        raise InputError("no space is left")

    monkeypatch.setattr(store, "attach", full)
    measuring.attach_to(artifact, store.BENCH, "{}", Stages(listener))
    measuring.attach_to(replace(artifact, manifest={}), store.BENCH, "{}", Stages(listener))
    assert listener.lines == [
        "warning: bench.json is not kept beside the engine: no space is left",
        f"warning: bench.json is not kept beside the engine: {artifact.folder} was built again meanwhile",
    ]
    with pytest.warns(UserWarning, match="not kept beside the engine"):
        measuring.attach_to(artifact, store.BENCH, "{}", Stages())


@pytest.mark.parametrize("seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_a_time_that_is_none_is_refused(seconds: float, plain: Selection) -> None:
    with pytest.raises(InputError, match=f"--time {seconds:g}: give seconds above 0"):
        gating.regress(plain, str(folder(plain)), seconds=seconds)
