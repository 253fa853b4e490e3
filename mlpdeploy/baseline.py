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
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlpdeploy import files, store
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection
from mlpdeploy.store import Artifact

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
    with files.temporary_folder("mlpdeploy-baseline-") as folder:
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
    return os.path.isdir(path) or (path.name == store.MANIFEST and os.path.exists(path))


def _saved(reference: str, path: Path) -> Baseline:
    from mlpdeploy.evidence.bench import read

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
    artifact = store.copy_files(store.open_whole(path), folder / "artifact")
    said = {"kind": "artifact", "created": artifact.manifest["created"]}
    return Baseline(reference, {"reference": reference, **said}, artifact=artifact)


def _at_revision(
    reference: str, selection: Selection, verify: Sequence[str] | None, folder: Path, stages: Stages
) -> Baseline:
    root = Path(_git(Path.cwd(), reference, "rev-parse", "--show-toplevel"))
    revision = reference.removeprefix(GIT)
    commit = _git(root, reference, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    tree, out = folder / "tree", folder / "out"
    with stages(f"baseline {commit[:10]}"):
        _git(root, reference, "worktree", "add", "--detach", "--quiet", str(tree), commit)
        try:
            built = _command(reference, root, tree, ["build", *_options(selection, out)])
            if verify is not None:
                _command(reference, root, tree, ["verify", *_options(selection, out), *verify], allowed=(0, 1))
        finally:
            _git(root, reference, "worktree", "remove", "--force", str(tree))
    artifact = store.open_whole(out / Path(built["folder"]).relative_to(out))
    said = {"kind": "git", "commit": commit, "created": artifact.manifest["created"]}
    return Baseline(reference, {"reference": reference, **said}, artifact=artifact)


def _git(folder: Path, reference: str, *arguments: str) -> str:
    """What git answers. Raises InputError, one line, where it refuses."""
    try:
        found = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=False)
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
    found = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
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
    package = Path(__file__).resolve().parent.parent
    others = [] if package.is_relative_to(root.resolve()) else [package]
    return [str(entry) for entry in dict.fromkeys([*ours, *others])]


def _options(selection: Selection, out: Path) -> list[str]:
    """The selection as command-line options: only those that are not the defaults, which an older version may lack."""
    words, usual = [selection.name, "--backend", selection.backend, "--out", str(out)], Selection(selection.name)
    names = ("precision", "batch", "image_size", "num_classes", "seed", "io", "level")
    for name in (*names, "calibrator", "max_drop", "min_sqnr"):
        if getattr(selection, name) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(selection, name))]
    if selection.checkpoint is not None:
        words += ["--checkpoint", str(selection.checkpoint.resolve())]
    if selection.calibration is not None:
        given = Path(selection.calibration)
        words += ["--calibration", str(given.resolve()) if given.exists() else selection.calibration]
    if selection.input_shape is not None:
        words += ["--input-shape", ",".join(map(str, selection.input_shape))]
    if selection.gpus:
        words += ["--gpu", ",".join(selection.gpus)]
    for option, rules in (("--disable-rule", selection.disabled_rules), ("--enable-rule", selection.enabled_rules)):
        for rule in rules:
            words += [option, rule]
    return [*words, "--pretrained"] if selection.pretrained else words
