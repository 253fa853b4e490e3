"""What a run of `mlpdeploy regress` is held against: a saved result, an artifact, or a git revision that is built here.

    results.json                        a document of `mlpdeploy bench` or `mlpdeploy regress`
    artifacts/vip_s7/fp32/openvino      an artifact
    git:main                            the network as it is at that revision, built in a worktree of the repository

At a git revision, code comes from there: the folders of the repository that Python imports from (the current one, and
those on its path, such as `src`) are replaced by the worktree's. So a network of one's own is that of the revision, and
in mlpdeploy's own repository the rules and recipes are. The build runs in a process of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import decisions, store
from mlpdeploy.artifact.copying import copied_from
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.arguments import arguments
from mlpdeploy.system.leftovers import PREFIX, is_dead, workplace
from mlpdeploy.system.processes import run

GIT = "git:"


@dataclass(frozen=True)
class Baseline:
    """Either a saved document or an artifact; `described` is what a result says of it."""

    reference: str
    described: dict[str, Any]
    document: dict[str, Any] | None = None
    artifact: Artifact | None = None


@contextmanager
def opened(reference: str, selection: Selection, verify: Sequence[str] | None, stages: Stages) -> Iterator[Baseline]:
    """The baseline of a selection whose backend is decided; what was built for it goes away afterwards.

    At a git revision the engine is verified too where `verify` is not None, with those options. Raises InputError where
    the reference cannot be used, or is of another network.
    """
    with workplace() as folder:
        if reference.startswith(GIT):
            found = _at_revision(reference, selection, verify, folder, stages)
        elif _is_artifact(path := Path(reference)):
            found = _kept(reference, path, folder)
        else:
            found = _saved(reference, path)
        built = (found.document or {}).get("network") if found.artifact is None else found.artifact.manifest["recipe"]
        if not built or built["name"] != selection.name:
            raise InputError(
                f"--baseline {reference}: is of {(built or {}).get('name')}, not of {selection.name}: "
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
        given = _abroad(selection, out)
        decisions.copy(selection.out, out)
        plain = ["--no-worth"] if selection.quantised else []  # what only a report of the baseline would say
        built = _command(reference, root, tree, ["build", *arguments("build", given), *plain])
        if verify is not None:
            _command(reference, root, tree, ["verify", *arguments("verify", given), *verify], allowed=(0, 1))
    artifact = store.open_artifact(out / Path(built["folder"]).relative_to(out))
    said = {"kind": "git", "commit": commit, "created": artifact.manifest["created"]}
    return Baseline(reference, {"reference": reference, **said}, artifact=artifact)


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


def _command(
    reference: str, root: Path, tree: Path, arguments: Sequence[str], allowed: Sequence[int] = (0,)
) -> dict[str, Any]:
    """Run mlpdeploy in the worktree. Raises MachineLacks or InputError with what it said where it fails."""
    here = Path.cwd()
    where = tree / here.relative_to(root) if here.is_relative_to(root) else tree
    command = [sys.executable, "-m", "mlpdeploy", *arguments, "--json"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(_path(root, tree))}
    cwd = where if where.is_dir() else tree
    found = run(command, cwd, environment)
    try:
        document = json.loads(found.stdout)
    except ValueError:
        document = {}
    if found.returncode not in allowed:
        error = document.get("error", {}).get("message") or (found.stderr.strip().splitlines() or ["it failed"])[-1]
        kind = MachineLacks if found.returncode == MachineLacks.exit_code else InputError
        raise kind(f"--baseline {reference}: cannot be built there: {error.splitlines()[0]}")
    return dict(document)


def _path(root: Path, tree: Path) -> list[str]:
    """This process's path with the repository's folders replaced by the worktree's, and mlpdeploy's own at the end."""
    entries = [Path(entry).resolve() if entry else Path.cwd() for entry in sys.path]
    ours = [tree / entry.relative_to(root.resolve()) for entry in entries if entry.is_relative_to(root.resolve())]
    package = Path(__file__).resolve().parents[2]
    others = [] if package.is_relative_to(root.resolve()) else [package]
    return [str(entry) for entry in dict.fromkeys([*ours, *others])]


def _abroad(selection: Selection, out: Path) -> dict[str, Any]:
    """The selection for a process in another folder, whose artifacts lie in `out`."""
    given, checkpoint = selection.calibration, selection.checkpoint
    return selection.to_json() | {
        "out": str(out),
        "checkpoint": None if checkpoint is None else str(checkpoint.resolve()),
        "calibration": None if given is None else absolute(given),
    }


def absolute(data: str) -> str:
    """What `--calibration` or `--data` names, for a process in another folder; the words that name no file stay."""
    from mlpdeploy.evidence.proof.samples import DIGITS, RANDOM

    return data if data in (DIGITS, RANDOM) else str(Path(data).resolve())
