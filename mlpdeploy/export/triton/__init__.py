"""A Triton model repository: an artifact becomes a version of a model in it, in one step, and nothing is overwritten.

    <repository>/<model>/config.pbtxt  labels.txt  1/model.plan  2/model.plan

`plan` is a TensorRT engine as it is. `onnx` is the file that an engine was made of, for Triton's ONNX Runtime: of one
of TensorRT-RTX, whose plans Triton does not load, and of one of OpenVINO, since Triton's OpenVINO lets nobody ask for
FP32, and where a CPU has BF16 computes in that. `python` is the very engine, by `mlpdeploy.runtime` in the server's own
Python.
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy._version import __version__
from mlpdeploy.artifact import store, trust
from mlpdeploy.artifact.copying import copy, copy_file
from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.features import HARDWARE, STRIPPED, VERSION
from mlpdeploy.engine.signature import Signature
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.export.packages import needed
from mlpdeploy.export.triton import _config, _containers, _repository
from mlpdeploy.network.labels import read_labels
from mlpdeploy.precisions import WEIGHT_ONLY
from mlpdeploy.selection import Selection

KINDS = {"tensorrt": "plan", "tensorrt-rtx": "onnx", "openvino": "onnx", "onnxruntime": "onnx"}
"""What `auto` is, by backend; of others `python`."""
TEMPLATE = Path(__file__).parent / "template" / "model.py"
"""In a folder that is no package: it imports what only the server has."""


@dataclass(frozen=True)
class Wanted:
    """How an artifact is to be served: every option of `--to triton` but the repository itself."""

    name: str | None = None
    labels: Path | None = None
    kind: str = "auto"
    instances: int = 1
    container: str | None = None
    tensorrt: str | None = None


def add(artifact: Artifact, repository: Path, wanted: Wanted | None = None, *, trusted: bool = False) -> dict[str, Any]:
    """Add an artifact to a repository, which is made where there is none: what was written and what to type, as JSON.

    Raises InputError where Triton could not serve it so, where the model that is there serves something else, or where
    nothing can be written; ArtifactError where somebody else's engine holds code and is not `trusted`.
    """
    wanted = wanted or Wanted()
    kind, notes = _kind(artifact, wanted.kind), list[str]()
    if wanted.instances < 1:
        raise InputError(f"--instances {wanted.instances}: give 1 or more")
    if kind != "onnx":
        trust.require(artifact, backend_of(artifact), trusted)
    packages = needed(artifact) if kind == "python" else {}
    plans = _plans(artifact, wanted, trusted, notes) if kind == "plan" else {}
    words = _labels(artifact, wanted.labels, notes)
    served = _served(artifact, kind, wanted, plans, words, notes)

    def write(version: Path) -> None:
        if kind == "plan":
            for one, file in plans.values():
                copy_file(one, str(one.manifest["engine"]), version / file)
        elif kind == "onnx":
            copy_file(artifact, store.MODEL, version / _config.FILES[kind])
        else:
            shutil.copyfile(TEMPLATE, version / _config.FILES[kind])
            store.lock_of(copy(artifact, version / "artifact").folder).unlink(missing_ok=True)

    version = _repository.added(repository, served, words, write)
    if version > 1:
        notes.append(
            "the model's configuration stays as it was; Triton serves the newest version, unless that says more"
        )
    if kind == "python":
        told = ", ".join(f"{name} {version}".rstrip() for name, version in packages.items())
        notes.append(f"the server's Python needs mlpdeploy {__version__} by itself, {told}")
    folder = repository / served.name
    new = [folder / _config.CONFIG, *([folder / _config.LABELS] if words else [])] if version == 1 else []
    files = [*new, *sorted(path for path in (folder / str(version)).rglob("*") if path.is_file())]
    return {
        "folder": str(folder), "format": "triton", "model": served.name, "version": version, "kind": kind,
        "files": [path.relative_to(folder).as_posix() for path in files],
        "commands": [_command(artifact, repository, served, wanted.container)], "notes": notes,
    }  # fmt: skip


def _kind(artifact: Artifact, asked: str) -> str:
    """What the model is to be. Raises InputError where Triton cannot serve the artifact as that."""
    manifest, folder = artifact.manifest, artifact.folder
    backend, facts = manifest["backend"], manifest["facts"]
    kind = KINDS.get(backend, "python") if asked == "auto" else asked
    if kind not in _config.FILES:
        raise InputError(f"--kind {asked}: choose one of: auto, {', '.join(_config.FILES)}")
    halves = [port["name"] for port in (*manifest["inputs"], *manifest["outputs"]) if port["dtype"] == "bfloat16"]
    if halves and kind != "plan":
        raise InputError(
            f"--kind {kind}: Triton has no BF16 there, and {halves[0]} of {folder} is: build with --io fp32"
        )
    if kind == "plan":
        if backend != "tensorrt":
            raise InputError(f"--kind plan: {folder} is an engine of {backend}, and Triton loads TensorRT's alone")
        if STRIPPED in facts.get("features", ()):
            raise InputError(
                f"--kind plan: {folder} is stripped, and Triton gives an engine no weights: build it whole"
            )
        if facts.get("plugin", {}).get("used"):
            raise InputError(f"--kind plan: {folder} calls our plugin, which Triton has not: build with --plugin off")
    elif kind == "onnx" and (reason := _not_onnx(artifact)) is not None:
        raise InputError(f"--kind onnx: {reason}; give --kind python")
    return kind


def _not_onnx(artifact: Artifact) -> str | None:
    """Why Triton's ONNX Runtime cannot compute what the engine does; None where it can."""
    from mlpdeploy.engine.backends.onnxruntime import refusal

    precision = artifact.manifest["precision"]
    if precision in WEIGHT_ONLY:
        return f"beside {precision.upper()} weights Triton's ONNX Runtime would make codes of activations, too"
    refused = refusal(artifact.model)
    return None if refused is None else f"ONNX Runtime refuses {artifact.model} ({refused})"


def _served(
    artifact: Artifact,
    kind: str,
    wanted: Wanted,
    plans: dict[str, tuple[Artifact, str]],
    words: str | None,
    notes: list[str],
) -> _config.Served:
    facts = artifact.manifest["facts"]
    signature, batch = Signature.from_facts(facts), Batch.from_facts(facts)
    asked = wanted.name or Selection.from_json(artifact.manifest["selection"]).folder_name
    name = re.sub(r"^[^A-Za-z0-9_]+|[^A-Za-z0-9_.-]", "_", asked)
    if wanted.name is not None and name != asked:
        raise InputError(f"--model-name {asked!r}: give letters, digits, and _ . -, the first of them no . or -")
    if name != asked:
        notes.append(f"the model is called {name}: in {asked!r} are characters that no address of Triton's takes")
    if batch.min > 1:
        taken = batch.min if batch.min == batch.max else f"{batch.min} to {batch.max}"
        notes.append(f"the engine takes {taken} rows: Triton batches no requests for it, and each must have so many")
    labelled = None if words is None else artifact.manifest["outputs"][0]["name"]
    several = {key: file for key, (_, file) in plans.items()} if len(plans) > 1 else None
    return _config.Served(
        name, kind, signature, batch, backend_of(artifact).device(facts) == "cuda", wanted.instances, labelled,
        facts["versions"]["tensorrt"] if kind == "plan" else None, several,
    )  # fmt: skip


def _plans(artifact: Artifact, wanted: Wanted, trusted: bool, notes: list[str]) -> dict[str, tuple[Artifact, str]]:
    """The plans to write, with their files, by compute capability: the artifact's own, and those for other GPUs.

    TensorRT builds for one GPU, and artifacts for several lie beside each other.
    """
    facts = artifact.manifest["facts"]
    found = {_capability(artifact): (artifact, _config.FILES["plan"])}
    _containers.require(facts["versions"]["tensorrt"], facts.get("features", []), wanted.container, wanted.tensorrt)
    if HARDWARE in facts.get("features", ()):
        return found
    for folder in sorted(artifact.folder.parent.glob("tensorrt@*")):
        if folder.resolve() == artifact.folder.resolve():
            continue
        try:
            other = store.open_artifact(folder)
            trust.require(other, backend_of(other), trusted)
        except ArtifactError as error:
            notes.append(f"left out: {error}")
            continue
        if (key := _capability(other)) in found or _engine(other) != _engine(artifact):
            why = f"of compute capability {key} there is one" if key in found else "it was built otherwise"
            notes.append(f"left out: {folder} ({why})")
        else:
            found[key] = (other, f"model_{other.manifest['facts']['gpus'][0]}.plan")
    return found


def _capability(artifact: Artifact) -> str:
    """sm86 as Triton says it: 8.6. Raises ArtifactError where a manifest does not say it, or by what it was built."""
    facts = artifact.manifest["facts"]
    told = re.fullmatch(r"sm(\d+)(\d)", " ".join(facts.get("gpus", ())))
    if told is None or "tensorrt" not in facts["versions"]:
        raise ArtifactError(f"{artifact.folder} does not say for which GPU it was built, and by which TensorRT")
    return ".".join(told.groups())


def _engine(artifact: Artifact) -> Any:
    """What engines for several GPUs have in common."""
    manifest, facts = artifact.manifest, artifact.manifest["facts"]
    selection = {name: value for name, value in manifest["selection"].items() if name not in ("gpus", "level")}
    return selection, manifest["weights"], facts["versions"], facts.get("plugin", {}).get("used")


def _labels(artifact: Artifact, path: Path | None, notes: list[str]) -> str | None:
    """The text of the labels' file, a line for each class: those of a file, or those that the artifact has."""
    recipe, labels = artifact.manifest["recipe"], artifact.manifest["recipe"].get("labels")
    if path is not None:
        if recipe.get("classes") is None:
            raise InputError(f"--labels {path}: the network gives no single row of scores, one for each class")
        labels = read_labels(path, recipe["classes"])
    if labels is not None and len(artifact.manifest["outputs"]) > 1:
        notes.append("Triton labels the places of an output, not the classes that it names: the labels are left out")
        return None
    return None if labels is None else "".join(f"{' '.join(label.split())}\n" for label in labels)


def _command(artifact: Artifact, repository: Path, served: _config.Served, container: str | None) -> str:
    """The line that starts a server of the repository."""
    features = artifact.manifest["facts"].get("features", [])
    image = _containers.image(served.tensorrt, features, container)
    compatible = (
        ["--backend-config=tensorrt,version-compatible=true"] if served.kind == "plan" and VERSION in features else []
    )
    return shlex.join([
        "docker", "run", "--rm", *(["--gpus", "all"] if served.on_gpu else []), "-p", "8000:8000", "-p", "8001:8001",
        "-v", f"{repository.absolute()}:/models", image, "tritonserver", "--model-repository=/models", *compatible,
    ])  # fmt: skip
