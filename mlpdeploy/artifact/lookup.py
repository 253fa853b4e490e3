"""Which artifact is meant: the one that a selection would build again, the one to verify, the one of a name or path."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import cache, decisions, store, trust
from mlpdeploy.artifact.decisions import NONE, Effort
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.backend import Backend, backends, pick
from mlpdeploy.errors import ArtifactError, InputError, MlpdeployError
from mlpdeploy.progress import Stages
from mlpdeploy.selection import FILES, OUT, Selection
from mlpdeploy.selection.choice import IMAGES, NEEDS_CALIBRATION
from mlpdeploy.zoo.recipe import HUB, canonical, changes

if TYPE_CHECKING:
    from mlpdeploy.graph.tracing.trace import Traced
    from mlpdeploy.network.source import Source


LEVELS = (1, 2, 3)
"""How deep below a folder artifacts are looked for: `<out>/<network>/<precision>/<backend>` are three."""


def key_of(
    selection: Selection, backend: Backend, source: Source | None = None, traced: Traced | None = None
) -> str | None:
    """The cache key; None where it needs the traced network and there is none yet."""
    own: dict[str, Any] = {}
    if changes(selection.name):
        if source is None or traced is None:
            return None
        own = {"fingerprint": cache.fingerprint(traced), "known": source.recipe}
    return cache.key(selection, backend.versions(), host=backend.host(), gpu=backend.gpu(selection.gpus), **own)


def folder_of(selection: Selection, backend: Backend) -> Path:
    """Where the artifact of a selection lies: engines for other GPUs lie beside each other, `tensorrt@nvidia-l4`."""
    root, gpu = selection.out / selection.folder_name / selection.precision, backend.gpu(selection.gpus)
    made_for = "-".join(selection.gpus) if gpu is None else gpu.slug()
    return root / (f"{backend.name}@{made_for}" if made_for else backend.name)


def built_folder(selection: Selection, backend: Backend) -> Path:
    """The folder of the artifact that is meant: where no GPU is named, also the only one that was built for some."""
    folder = folder_of(selection, backend)
    if selection.gpus or os.path.lexists(folder / store.MANIFEST):
        return folder
    others = _artifacts(selection, selection.precision, backend.name)
    return others[0] if len(others) == 1 else folder


def meant(selection: Selection, artifact: Artifact | None) -> tuple[Selection, Backend, Path]:
    """A selection with its backend decided, that backend, and the folder of the artifact: of `artifact` where given."""
    backend = pick(selection.backend, selection.precision, selection.gpus)
    selection = selection.with_backend(backend.name)
    return selection, backend, built_folder(selection, backend) if artifact is None else artifact.folder


def cached(
    folder: Path,
    key: str | None,
    force: bool,
    stages: Stages,
    selection: Selection,
    backend: Backend,
    effort: Effort = NONE,
) -> Artifact | None:
    """The artifact at `folder` where it is whole, has this key, and was built by what is decided now.

    What is to be decided with so much `effort` is.
    """
    if force or key is None or not os.path.exists(folder / store.MANIFEST):
        return None
    try:
        artifact = store.open_artifact(folder)
    except ArtifactError as error:
        stages.say(f"building again: {error}")
        return None
    if artifact.manifest.get("key") != key or not decisions.stands(artifact.manifest, selection, backend, effort):
        return None
    return Artifact(folder, artifact.manifest, cached=True)


def check_same(artifact: Artifact, selection: Selection, source: Source | None) -> None:
    """Raises ArtifactError where the artifact was built from another selection or network, naming what differs."""
    built, asked = Selection.from_json(artifact.manifest["selection"]).to_json(), selection.to_json()
    # The same weights may lie elsewhere now; GPUs, level, plugins and build route do not change what is computed.
    # What an engine of 8 bits was calibrated on is in the artifact.
    calibrated = {"calibration", "calibrator", "max_drop", "min_sqnr", "limit"}
    names = asked.keys() - {*FILES, "gpus", "level", "plugin", "route"} - calibrated
    # How images are prepared may be left out, or said only when there are some.
    free = {name for name in IMAGES if None in (asked[name], built.get(name))}
    differ = sorted(name for name in names - free if asked[name] != built.get(name))
    different = [f"{name} {asked[name]} (built with {built.get(name)})" for name in differ]
    weights = None if selection.checkpoint is None else cache.checkpoint_sha256(selection.checkpoint)
    known = artifact.manifest["weights"].get("sha256")
    # Of a network that a name finds, `check_traced` compares all numbers.
    given = artifact.manifest["weights"].get("kind") == "given"
    if source is not None and given and cache.weights_sha256(source.bare.network) != known:
        raise ArtifactError(f"{artifact.folder} was built from a network with other weights than the one given here")
    if source is None and weights != known:
        different.append(f"{selection.weights()} (built with {artifact.manifest['weights']['text']})")
    if different:
        raise ArtifactError(
            f"{artifact.folder} holds another engine than was asked for: {', '.join(different)}; "
            "build that first, or give the options that it was built with"
        )


def check_traced(artifact: Artifact, traced: Traced) -> None:
    """Raises ArtifactError where a network of the user's own is no longer the one that the artifact was built from.

    Its code may read numbers that no weight tells: a plain attribute, a constant of its forward.
    """
    known = artifact.manifest.get("network")
    if known is not None and cache.fingerprint(traced) != known:
        raise ArtifactError(
            f"{artifact.folder} was built from another form of this network: its operations, or numbers that they "
            "read, have changed since; build it again"
        )


def backend_of(artifact: Artifact) -> Backend:
    """The backend of an artifact. Raises ArtifactError where this mlpdeploy has none of that name."""
    name = artifact.manifest["backend"]
    if (found := backends().get(name)) is None:
        raise ArtifactError(f"{artifact.folder} is an engine of {name}, and this mlpdeploy has no backend {name}")
    return found


def open_built(selection: Selection, folder: Path) -> Artifact:
    """The artifact of a selection at its folder. Raises ArtifactError where there is none, naming those that are."""
    if not os.path.lexists(folder / store.MANIFEST) and (others := _artifacts(selection)):
        listed = ", ".join(str(path) for path in others)
        raise ArtifactError(f"there is no artifact at {folder}: run `mlpdeploy build` first; built are {listed}")
    return store.open_artifact(folder)


def reopened(selection: Selection, folder: Path, artifact: Artifact | None, source: Source | None = None) -> Artifact:
    """The artifact of a selection and network, read anew; of one that was opened before, that very one.

    Raises ArtifactError where there is none, or another one.
    """
    if artifact is not None:
        store.require_same(artifact)
    found = open_built(selection, folder)
    check_same(found, selection, source)
    return found


def own(folder: Path) -> Path | None:
    """The folder of an artifact that this user built here; None where there is none, or it is somebody else's."""
    try:
        return folder if trust.is_own(store.read_manifest(folder)) else None
    except ArtifactError:
        return None


def replaced(selection: Selection, folder: Path) -> str | None:
    """What a build is about to put another engine in the place of, in words; None where its selection is the same."""
    try:
        before = Selection.from_json(store.read_manifest(folder)["selection"]).to_json()
    except (ArtifactError, InputError):
        return None
    asked = selection.to_json()
    differ = [f"{name} {before.get(name)}" for name in sorted(asked) if asked[name] != before.get(name)]
    return f"this replaces the engine at {folder}, built with {', '.join(differ)}" if differ else None


def calibrated_before(selection: Selection, folder: Path) -> Artifact:
    """The artifact in 8 bits of a selection that says nothing of calibration: the one that is built.

    Raises InputError where there is none, ArtifactError where it was built from another selection.
    """
    if not os.path.exists(folder / store.MANIFEST):
        raise InputError(
            f"{selection.precision.upper()} {NEEDS_CALIBRATION}; or build the engine first, and it is found"
        )
    artifact = store.open_artifact(folder)
    check_same(artifact, replace(selection, batch=artifact.manifest["selection"]["batch"]), None)
    return artifact


def find_artifact(
    target: str, *, precision: str | None = None, backend: str | None = None, out: Path = OUT
) -> Artifact:
    """The artifact at a path, or the one of a network's name; where several fit, InputError lists them."""
    if is_path(target):
        return at_path(Path(target))
    return store.open_artifact(_only_artifact(Selection(target, out=out), precision, backend))


def at_path(path: Path) -> Artifact:
    """The artifact of a folder, or of a file in it. Raises ArtifactError where there is none, naming those below it."""
    if path.is_dir() and not os.path.lexists(path / store.MANIFEST):
        found = (one for depth in LEVELS for one in path.glob("[!.]*/" * depth + store.MANIFEST))
        if below := sorted(one.parent for one in found):
            raise ArtifactError(f"there is no artifact at {path}; below it are {', '.join(map(str, below))}")
    return store.open_artifact(path)


def is_part(path: Path) -> bool:
    """Whether a file is one that an artifact is made of."""
    path = path.resolve()
    try:
        manifest = store.read_manifest(path.parent)
    except (MlpdeployError, OSError):
        return False
    return path.name in {store.MANIFEST, *manifest["files"]}


def is_path(target: str) -> bool:
    """Whether a target is a file or folder, rather than the name of a network."""
    path = Path(target)
    if target.startswith(HUB):  # whose names have a slash
        return False
    if os.path.isfile(path) or os.path.lexists(path / store.MANIFEST) or len(path.parts) > 1:
        return True
    try:
        canonical(target)
    except InputError:
        return os.path.lexists(path)
    return False


def _only_artifact(selection: Selection, precision: str | None, backend: str | None) -> Path:
    """The one artifact of a network that fits. Raises ArtifactError where there is none, InputError where several."""
    if precision is not None:
        selection = replace(selection, precision=precision)
    if backend is not None and backend not in backends():
        raise InputError(f"backend {backend!r} is not known: choose one of {', '.join(backends())}")
    found = _artifacts(selection, precision or "*", backend or "*")
    if not found:
        root, others = selection.out / selection.folder_name, ", ".join(map(str, _artifacts(selection, "*")))
        asked = " ".join(word for word in (selection.name, precision, backend) if word is not None)
        built = f"; built are {others}" if others else ""
        raise ArtifactError(f"nothing of {asked} is built below {root}: run `mlpdeploy build` first{built}")
    if len(found) > 1:
        raise InputError(f"{selection.name} has {len(found)} artifacts, give one: {', '.join(map(str, found))}")
    return found[0]


def _artifacts(selection: Selection, precision: str = "*", backend: str = "*") -> list[Path]:
    root = selection.out / selection.folder_name
    found = (root.glob(f"{precision}/{engine}/{store.MANIFEST}") for engine in (backend, f"{backend}@*"))
    return sorted({path.parent for paths in found for path in paths})
