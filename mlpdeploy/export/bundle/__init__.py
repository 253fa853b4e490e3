"""A bundle: an artifact, what of mlpdeploy runs it, and a Dockerfile whose image holds these and what they import.

    <folder>/artifact/  mlpdeploy/  run.py  requirements.txt  Dockerfile  README.md

Neither PyTorch nor what builds engines is among them.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from mlpdeploy._version import __version__
from mlpdeploy.artifact import store, trust
from mlpdeploy.artifact.copying import copy
from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import ArtifactError, InputError
from mlpdeploy.export.bundle._imports import closure, modules
from mlpdeploy.export.folders import in_one_step, require_new
from mlpdeploy.export.packages import needed
from mlpdeploy.selection import Selection
from mlpdeploy.shipped import shipped

PACKAGE = Path(__file__).parents[2]
TEMPLATE = Path(__file__).parent / "template" / "run.py"
"""In a folder that is no package: it runs beside an artifact."""
DOCKERFILE = """\
FROM python:{python}-slim
WORKDIR /engine
COPY requirements.txt .
RUN pip install --no-cache-dir -r requirements.txt
{libraries}COPY mlpdeploy mlpdeploy
COPY run.py .
COPY artifact artifact
ENTRYPOINT ["python", "/engine/run.py"]
"""
CUDA = "ENV LD_LIBRARY_PATH=/usr/local/lib/python{python}/site-packages/nvidia/cu13/lib\n"
"""Where the wheel of CUDA 13 puts its runtime library, and Polygraphy does not look; that of 12 it finds."""
README = """\
# {name}: {precision}, {backend}, batch {low} to {high}

Made by mlpdeploy {version}. `run.py` holds the files of `artifact/` against its manifest, and calls the engine;
`mlpdeploy/` is the part of mlpdeploy (Apache-2.0, its text lies there) that does this, and `requirements.txt` all that
it imports.

{lines}

Inputs: {inputs}. Outputs: {outputs}. Shapes are those of a row: in the files, the batch comes first.
"""


def write(artifact: Artifact, folder: Path, *, trusted: bool = False) -> dict[str, Any]:
    """Write a bundle to a new folder, in one step: what was written and what to type there, as JSON values.

    Raises InputError where the engine cannot run without PyTorch, or where `folder` holds something or cannot be
    written; ArtifactError where somebody else's engine holds code and is not `trusted`, or names no versions.
    """
    require_new(folder)
    manifest = artifact.manifest
    backend = backend_of(artifact)
    trust.require(artifact, backend, trusted)
    versions = needed(artifact)
    if "torch" in versions:
        raise InputError(f"--to bundle: {artifact.folder} is an engine of {backend.name}, which PyTorch runs")
    if manifest["facts"].get("plugin", {}).get("used"):
        raise InputError(
            f"--to bundle: {artifact.folder} calls our plugin, which PyTorch runs: build with --plugin off"
        )
    lines = _lines(artifact)
    with in_one_step(folder) as draft:
        store.lock_of(copy(artifact, draft / "artifact").folder).unlink(missing_ok=True)
        _copy_package(type(backend).__module__, draft / "mlpdeploy")
        shutil.copyfile(TEMPLATE, draft / "run.py")
        texts = {
            "requirements.txt": "".join(
                f"{name}=={version}".removesuffix("==") + "\n" for name, version in versions.items()
            ),
            "Dockerfile": _dockerfile(manifest, on_gpu=backend.device(manifest["facts"]) == "cuda"),
            "README.md": _readme(artifact, lines),
        }
        for name, text in texts.items():
            (draft / name).write_text(text, encoding="utf-8")
        files = sorted(f"{path.name}/" if path.is_dir() else path.name for path in draft.iterdir())
    return {"folder": str(folder), "format": "bundle", "files": files, "commands": lines}


def _copy_package(backend: str, folder: Path) -> None:
    """What `mlpdeploy.runtime` imports, with one backend: the others are not there, so nobody looks for theirs.

    The licence lies beside it, as it asks of whoever passes the code on.
    """
    known = modules(PACKAGE)
    for name in closure(["mlpdeploy.runtime", backend], known):
        target = folder / known[name].relative_to(PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(known[name], target)
    says = f'"""What of mlpdeploy {__version__} opens an artifact and calls its engine: `mlpdeploy.runtime`."""\n'
    (folder / "__init__.py").write_text(says, encoding="utf-8")
    shutil.copyfile(shipped("LICENSE"), folder / "LICENSE")


def _dockerfile(manifest: dict[str, Any], *, on_gpu: bool) -> str:
    """With the Python that built the engine, by its minor version. Raises ArtifactError where it is not told."""
    told = re.match(r"(\d+\.\d+)\.", manifest["versions"].get("python", ""))
    if told is None:
        raise ArtifactError("the artifact does not say by which Python it was built: build it again")
    return DOCKERFILE.format(python=told[1], libraries=CUDA.format(python=told[1]) if on_gpu else "")


def _lines(artifact: Artifact) -> list[str]:
    """What to type in the folder: build the image, and call the engine in it."""
    name = Selection.from_json(artifact.manifest["selection"]).folder_name
    tag = re.sub(r"[^a-z0-9]+", "-", f"{name}-{artifact.manifest['precision']}".lower()).strip("-") or "engine"
    gpus = "--gpus all " if backend_of(artifact).device(artifact.manifest["facts"]) == "cuda" else ""
    run = f'docker run --rm {gpus}-v "$PWD:/data" {tag}'
    return [f"docker build -t {tag} .", f"docker run --rm {gpus}{tag}", f"{run} /data/inputs.npz /data/outputs.npz"]


def _readme(artifact: Artifact, lines: list[str]) -> str:
    manifest = artifact.manifest
    ports = {
        which: ", ".join(
            f"`{port['name']}` {port['dtype']} {[*port['shape']]}" for port in manifest["facts"][which]
        )
        for which in ("inputs", "outputs")
    }  # fmt: skip
    return README.format(
        name=Selection.from_json(manifest["selection"]).folder_name, precision=manifest["precision"],
        backend=manifest["backend"], low=manifest["batch"]["min"], high=manifest["batch"]["max"],
        version=__version__, lines="\n".join(f"    {line}" for line in lines), **ports,
    )  # fmt: skip
