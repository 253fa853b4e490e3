"""What measuring commands share: batch sizes and threads, copies to measure, and whether anything can be timed here."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlpdeploy import pipeline
from mlpdeploy.artifact import store
from mlpdeploy.artifact.copying import TRIES, copy
from mlpdeploy.artifact.lookup import backend_of, folder_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine import host
from mlpdeploy.engine.backend import Backend, backends
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection


def require_executable(backend: Backend, precision: str) -> None:
    """Raise MachineLacks where this machine cannot run the backend's engines, naming the backends that it can time."""
    reason = backend.executable()
    if reason is None:
        return
    here = [one for one in backends().values() if one.available() is None and one.executable() is None]
    fitting = [one.name for one in here if one.supports(precision) is None]
    other = f"--backend {fitting[0]}" if fitting else "--precision fp32"
    names = ", ".join(fitting or [one.name for one in here]) or "none"
    raise MachineLacks(
        f"a {backend.name} engine cannot be timed on this machine: {reason}; "
        f"what can be measured here: {names}" + (f" ({other})" if names != "none" else "")
    )


def covering(selection: Selection, sizes: Sequence[int]) -> Selection:
    """The selection with batch sizes that hold `sizes`: those of the artifact that is there, else wide enough ones."""
    if any(size < 1 for size in sizes):
        raise InputError(f"batch {min(sizes)}: the smallest batch is 1")
    folder, profiles = folder_of(selection, backends()[selection.backend]), [selection.profile]
    if (folder / store.MANIFEST).exists():
        try:
            built = store.read_manifest(folder)["batch"]
            profiles.insert(0, type(selection.profile)(**built))
        except ArtifactError:  # the build that follows says so, and replaces it
            pass
    for one in profiles:
        if all(one.min <= size <= one.max for size in sizes):
            return replace(selection, batch=one.text)
    low, high = min(sizes), max(sizes)
    return replace(selection, batch=f"{low}:{min(max(selection.profile.opt, low), high)}:{high}")


def describe(artifact: Artifact) -> dict[str, Any]:
    """The network of an artifact in a bench or regress document."""
    manifest = artifact.manifest
    recipe = {key: manifest["recipe"][key] for key in ("name", "family", "source", "parameters")}
    engine = {"backend": manifest["backend"], "precision": manifest["precision"], "created": manifest["created"]}
    engine["device"] = backend_of(artifact).device(manifest["facts"])
    return {
        **recipe,
        "weights": manifest["weights"]["text"],
        "weights_sha256": manifest["weights"].get("sha256"),
        **engine,
        "model_sha256": manifest["files"][store.MODEL]["sha256"],
    }


def built_copy(
    selection: Selection, folder: Path, progress: Listener | None, **options: Any
) -> tuple[Artifact, Artifact]:
    """Build a selection or find it built, and copy it to `folder`: the artifact, and the copy that nobody replaces.

    Raises ArtifactError where another process replaces it again and again.
    """
    for _ in range(TRIES):
        artifact = pipeline.build(selection, progress=progress, **options)
        copied = copy_of(artifact, folder)
        if copied is not None:
            return artifact, copied
    raise ArtifactError(f"{artifact.folder} was built again by another process each time it was read: try again")


def copy_of(artifact: Artifact, folder: Path) -> Artifact | None:
    """The artifact and what was attached to it, in a folder of this run; None where it was replaced meanwhile."""
    try:
        return copy(artifact, folder)
    except ArtifactError:
        return None


def attach_to(artifact: Artifact, name: str, text: str, stages: Stages) -> None:
    """Write a document beside an artifact of which a copy was measured, if it still is that one; say why not."""
    try:
        if store.read_manifest(artifact.folder) != artifact.manifest:
            raise ArtifactError(f"{artifact.folder} was built again meanwhile")
        store.attach(artifact, name, text)
    except InputError as error:
        stages.warn(f"{name} is not kept beside the engine: {error}")


def thread_count(asked: int | None, leave: int = 0) -> int:
    """How many threads: as asked, or all that this process may use but those to `leave`, and one at least.

    Raises InputError for more than there are.
    """
    cores = host.cores()
    if asked is not None and not 1 <= asked <= cores:
        raise InputError(f"--threads {asked}: this process may use 1 to {cores}")
    return asked or max(1, cores - leave)


@contextmanager
def held_to(threads: int) -> Iterator[None]:
    """This process and PyTorch held to so many cores."""
    import torch

    from mlpdeploy.evidence.latency.timing import pinned

    before = torch.get_num_threads()
    with pinned(threads):
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
