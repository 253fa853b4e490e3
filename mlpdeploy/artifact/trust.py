"""Whose artifact it is: what this user built on this machine is sealed, and only that runs without being asked for.

Some engines hold code that runs as soon as they are loaded. Hashes show that a file is the one that the manifest names,
and say nothing about who wrote both. So a build puts a seal into the manifest, a keyed hash of all that it says: the
key lies in this user's own folder and never leaves it. An artifact without this user's seal is somebody else's (or
comes from another machine), and what it holds is run only where that was asked for.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import ArtifactError
from mlpdeploy.system import files

if TYPE_CHECKING:
    from mlpdeploy.artifact.store import Artifact
    from mlpdeploy.engine.backend import Backend

SEAL = "seal"
BYTES = 32


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with this user's seal."""
    return {**manifest, SEAL: _seal(manifest)}


def is_own(manifest: Mapping[str, Any]) -> bool:
    """Whether this user built what a manifest describes, on this machine."""
    return hmac.compare_digest(str(manifest.get(SEAL)).encode(), _seal(manifest).encode())


def require(artifact: Artifact, backend: Backend, trusted: bool) -> None:
    """Raises ArtifactError where running an engine here could run somebody else's code, and nobody asked for that."""
    if trusted or backend.code is None or is_own(artifact.manifest):
        return
    raise ArtifactError(
        f"{artifact.folder} was not built here by you, and its engine holds {backend.code}, which can do anything once "
        "it runs: say --trust, or mlpdeploy.load(path, trusted=True), if you trust who made it, or build it yourself"
    )


def require_named(artifact: Artifact, name: str, trusted: bool) -> None:
    """Raises ArtifactError where code would be imported only because somebody else's artifact names it."""
    if not (trusted or is_own(artifact.manifest)):
        raise ArtifactError(
            f"{artifact.folder} was not built here by you, and that it names {name} is no reason to import it: pass "
            "the network, or say --trust, or mlpdeploy.load(path, trusted=True), if you trust who made it"
        )


def _seal(manifest: Mapping[str, Any]) -> str:
    said = json.dumps({name: value for name, value in manifest.items() if name != SEAL}, sort_keys=True)
    return hmac.new(_key(), said.encode(), hashlib.sha256).hexdigest()


def _key() -> bytes:
    """This user's key; where none can be kept, one for this process alone."""
    try:
        return _key_in(_folder())
    except (OSError, RuntimeError):  # the latter where this user has no home
        return _of_this_process()


@functools.cache
def _key_in(folder: Path) -> bytes:
    """The key in a folder, which is made where there is none: in one step, so that nobody reads half of it."""
    path = folder / "key"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=folder) as draft:  # which only this user may read
            draft.write(secrets.token_bytes(BYTES))
            draft.flush()
            with contextlib.suppress(FileExistsError):
                os.link(draft.name, path)
    with files.opened(path) as file:
        found = file.read(BYTES)
    return found if len(found) == BYTES else _of_this_process()


@functools.cache
def _of_this_process() -> bytes:
    return secrets.token_bytes(BYTES)


def _folder() -> Path:
    """Where programs keep what is this user's own on this machine."""
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "mlpdeploy"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "mlpdeploy"
