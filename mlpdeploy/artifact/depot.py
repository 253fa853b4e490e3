"""Where the artifacts of many machines come together: a folder here, or whatever fsspec reaches (S3, GCS, SFTP, ...).

An artifact has a place, `<network>/<precision>/<backend>` below the store. In a folder it lies there as a build leaves
it; elsewhere as one file, `<place>.zip` (see `archive`). Both take its place in one step: who reads finds the one that
was there, or the one that arrives, and of two that arrive at once the last one, whole.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from mlpdeploy.artifact.archive import pack, unpack
from mlpdeploy.artifact.store import locked, open_artifact
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks, MlpdeployError
from mlpdeploy.system.files import sha256
from mlpdeploy.system.leftovers import temporary_folder

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

LOCAL = ("", "file", "local")


class Depot(Protocol):
    """A store of artifacts, each of which comes and goes as one file."""

    def where(self, place: str) -> str:
        """What a user calls the artifact at a place."""

    def take(self, place: str, path: Path) -> bool:
        """Write the artifact at a place to a file; False where there is none that is whole."""

    def put(self, path: Path, place: str) -> None:
        """Put the artifact in a file at a place, in one step. Raises InputError and its kinds; nothing is lost then."""


class Folder:
    """A folder of this machine, as `mlpdeploy build --out` fills it."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, place: str) -> str:
        """See Depot.where."""
        return str(self.root / place)

    def take(self, place: str, path: Path) -> bool:
        """See Depot.take."""
        folder = self.root / place
        if not folder.exists():
            return False
        try:
            with locked(folder, optional=True):
                pack(open_artifact(folder), path)
        except (ArtifactError, OSError):
            return False
        return True

    def put(self, path: Path, place: str) -> None:
        """See Depot.put: every file is held against the manifest before the artifact is there."""
        unpack(path, self.root / place)


class Remote:
    """A store that fsspec reaches by a URL.

    Raises InputError, on creation, for a URL of no known kind, MachineLacks where the library for it is not installed.
    A bucket is not made where there is none.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        with _told(self.url):
            _filesystem(self.url)

    def where(self, place: str) -> str:
        """See Depot.where."""
        return f"{self.url}/{place}.zip"

    def take(self, place: str, path: Path) -> bool:
        """See Depot.take: what was altered there is found where it is unpacked."""
        with _told(self.url):
            files, root = _filesystem(self.url)
            try:
                files.get_file(f"{root}/{place}.zip", str(path))
            except FileNotFoundError:
                return False
        return True

    def put(self, path: Path, place: str) -> None:
        """See Depot.put: it is written beside the place, read back, held against its manifest, and moved there."""
        with temporary_folder() as folder, _told(self.url):
            unpack(path, folder / "sent")
            files, root = _filesystem(self.url)
            target = f"{root}/{place}.zip"
            with self._draft(target) as draft:
                files.put_file(str(path), draft)
                files.get_file(draft, str(folder / "back"))
                if sha256(folder / "back") != sha256(path):
                    raise ArtifactError(f"what arrived at {self.where(place)} is not what was built")
                files.mv(draft, target)

    def require(self) -> None:
        """Write and remove a file: where that fails, it is said before anything was built."""
        with _told(self.url):
            files, root = _filesystem(self.url)
            with self._draft(f"{root}/probe") as draft:
                files.pipe_file(draft, b"mlpdeploy")

    @contextmanager
    def _draft(self, target: str) -> Iterator[str]:
        """The name of a file beside another one, that is gone behind the body."""
        from fsspec.asyn import AsyncFileSystem

        files, _ = _filesystem(self.url)
        if not isinstance(files, AsyncFileSystem):  # buckets have no folders: there, a bucket would be made
            files.makedirs(target.rpartition("/")[0], exist_ok=True)
        draft = f"{target}.draft-{uuid.uuid4().hex}"
        try:
            yield draft
        finally:
            with suppress(Exception):  # it was moved, or its store is out of reach
                files.rm_file(draft)


def depot_at(store: str) -> Depot:
    """The store of a URL or a path. Raises InputError or MachineLacks where nothing can be written there."""
    parts = urlsplit(store)
    if "://" not in store or parts.scheme in LOCAL:
        return Folder(Path(store.partition("://")[2] if "://" in store else store))
    remote = Remote(store)
    remote.require()
    return remote


def _filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    from fsspec.core import url_to_fs

    files, root = url_to_fs(url, use_listings_cache=False)
    return files, root.rstrip("/")


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn what libraries of stores raise, each its own, into one line."""
    try:
        yield
    except MlpdeployError:
        raise
    except ImportError as error:
        raise MachineLacks(f"--store {url} needs a package that is not installed ({error})") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--store {url}: {reason[:300]}") from error
