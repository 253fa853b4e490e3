"""What a run of `mlpdeploy regress` is held against: a saved result, an artifact, or what is built for it.

    results.json                        a document of `mlpdeploy bench` or `mlpdeploy regress`
    artifacts/vip_s7/fp32/openvino      an artifact
    git:main                            the network as it is at that revision, built in a worktree of the repository
    another interpreter                 the network as its mlpdeploy and its engine's library make it

At a git revision, code comes from there: the folders of the repository that Python imports from (the current one, and
those on its path, such as `src`) are replaced by the worktree's. So a network of one's own is that of the revision, and
in mlpdeploy's own repository the rules and recipes are. The build runs in a process of its own.

An interpreter is asked which mlpdeploy it has before anything is built, and builds and verifies by that one's own
command line; its engine is timed in a process of it (see `evidence.latency.elsewhere`).
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import store
from mlpdeploy.artifact.copying import copied_from
from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.abroad import Abroad
from mlpdeploy.commands.interpreter import Interpreter, interpreter
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.system.leftovers import PREFIX, is_dead, workplace
from mlpdeploy.system.processes import run

GIT = "git:"
BUILT = ("git", "environment")
"""Kinds that are built in the session that measures them."""


@dataclass(frozen=True)
class Baseline:
    """Either a saved document or an artifact; `described` is what a result says of it.

    `interpreter` is what built the artifact, and runs it, where that is another one.
    """

    reference: str
    described: dict[str, Any]
    document: dict[str, Any] | None = None
    artifact: Artifact | None = None
    interpreter: Interpreter | None = None

    @property
    def called(self) -> str:
        """As it was asked for: `--baseline git:main`."""
        return f"--baseline {self.reference}" if self.interpreter is None else self.interpreter.called


@contextmanager
def opened(
    reference: str | None, python: str | None, selection: Selection, verify: Sequence[str] | None, stages: Stages
) -> Iterator[Baseline]:
    """The baseline of a selection whose backend is decided; what was built for it goes away afterwards.

    It is what `reference` says, or what the interpreter `python` builds. What is built is verified too where `verify`
    is not None, with those options. Raises InputError where neither or both are given, where it cannot be used, or is
    of another network.
    """
    if (reference is None) == (python is None):
        both = "exclude each other: give one of the two" if python else "are both missing: give what to hold it against"
        raise InputError(f"--baseline and --baseline-env {both}")
    with workplace() as folder:
        if reference is None:
            found = _at_interpreter(interpreter(str(python)), selection, verify, folder, stages)
        elif reference.startswith(GIT):
            found = _at_revision(reference, selection, verify, folder, stages)
        elif _is_artifact(path := Path(reference)):
            found = _kept(reference, path, folder)
        else:
            found = _saved(reference, path)
        built = (found.document or {}).get("network") if found.artifact is None else found.artifact.manifest["recipe"]
        if not built or built["name"] != selection.name:
            raise InputError(
                f"{found.called}: is of {(built or {}).get('name')}, not of {selection.name}: "
                "a network is held against an earlier one of its own"
            )
        yield found


def _is_artifact(path: Path) -> bool:
    return os.path.isdir(path) or (path.name == store.MANIFEST and os.path.lexists(path))


def _saved(reference: str, path: Path) -> Baseline:
    from mlpdeploy.evidence.documents.bench import read

    if not os.path.lexists(path):
        raise InputError(
            f"--baseline {reference}: there is no such file or folder; give a saved result, an artifact's folder, or "
            "git:REVISION"
        )
    document = read(path)
    said = {"kind": document["kind"], "created": document["created"]}
    return Baseline(reference, {"reference": reference, **said}, document=document)


def _kept(reference: str, path: Path, folder: Path) -> Baseline:
    """A copy of the artifact, since building the candidate may replace the very folder."""
    artifact = copied_from(path, folder / "artifact")
    said = {"kind": "artifact", "created": artifact.manifest["created"]}
    return Baseline(reference, {"reference": reference, **said}, artifact=artifact)


def _at_revision(
    reference: str, selection: Selection, verify: Sequence[str] | None, folder: Path, stages: Stages
) -> Baseline:
    root = Path(_git(Path.cwd(), reference, "rev-parse", "--show-toplevel"))
    revision = reference.removeprefix(GIT)
    commit = _git(root, reference, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    tree, out = folder / "tree", folder / "out"
    with stages(f"baseline {commit[:10]}"), _worktree(root, reference, tree, commit):
        here = Path.cwd()
        where = tree / here.relative_to(root) if here.is_relative_to(root) else tree
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(_path(root, tree))}
        there = Abroad(sys.executable, where if where.is_dir() else tree, environment, f"--baseline {reference}")
        artifact = there.built(selection, out, verify)
    said = {"kind": "git", "commit": commit, "created": artifact.manifest["created"]}
    return Baseline(reference, {"reference": reference, **said}, artifact=artifact)


def _at_interpreter(
    found: Interpreter, selection: Selection, verify: Sequence[str] | None, folder: Path, stages: Stages
) -> Baseline:
    with stages("baseline environment"):
        artifact = found.built(selection, folder / "out", verify)
    versions = artifact.manifest["versions"]
    engine = [f"{name} {versions[name]}" for name in backend_of(artifact).packages if name in versions]
    said = {
        "kind": "environment",
        "created": artifact.manifest["created"],
        "engine": ", ".join([*engine, f"mlpdeploy {found.version}"]),
        "versions": versions,
    }
    return Baseline(found.python, {"reference": found.python, **said}, artifact=artifact, interpreter=found)


@contextmanager
def _worktree(root: Path, reference: str, tree: Path, commit: str) -> Iterator[None]:
    """A worktree of the repository at `tree` while the body runs; those of runs that were killed go first."""
    for line in _git(root, reference, "worktree", "list", "--porcelain").splitlines():
        left = Path(line.removeprefix("worktree "))
        if line.startswith("worktree ") and left.parent.name.startswith(PREFIX) and is_dead(left.parent):
            _unregister(root, left)
    try:
        _git(root, reference, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        yield
    finally:
        _unregister(root, tree)


def _unregister(root: Path, tree: Path) -> None:
    """Remove a worktree, also where it was left half made or its folder is gone; nothing where there is none."""
    shutil.rmtree(tree, ignore_errors=True)
    run(["git", "worktree", "remove", "--force", "--force", str(tree)], root)


def _git(folder: Path, reference: str, *arguments: str) -> str:
    """What git answers. Raises InputError, one line, where it refuses."""
    try:
        found = run(["git", *arguments], folder)
    except FileNotFoundError as error:
        raise MachineLacks(f"--baseline {reference}: git is not installed") from error
    if found.returncode:
        said = found.stderr.strip().splitlines()[-1:] or ["there is no such revision"]
        raise InputError(f"--baseline {reference}: {said[0].removeprefix('fatal: ')}")
    return found.stdout.strip()


def _path(root: Path, tree: Path) -> list[str]:
    """This process's path with the repository's folders replaced by the worktree's, and mlpdeploy's own at the end."""
    entries = [Path(entry).resolve() if entry else Path.cwd() for entry in sys.path]
    ours = [tree / entry.relative_to(root.resolve()) for entry in entries if entry.is_relative_to(root.resolve())]
    package = Path(__file__).resolve().parents[2]
    others = [] if package.is_relative_to(root.resolve()) else [package]
    return [str(entry) for entry in dict.fromkeys([*ours, *others])]
