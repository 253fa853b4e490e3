"""The packages that an engine runs with where it goes, beside mlpdeploy's own code."""

from __future__ import annotations

import re

from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.base import installed_version
from mlpdeploy.errors import ArtifactError

POLYGRAPHY = ("tensorrt", "tensorrt-rtx", "onnxruntime")
"""Backends whose engines Polygraphy runs."""


def needed(artifact: Artifact) -> dict[str, str]:
    """Versions by package: the engine's own and NumPy's as the manifest has them, those of the others as they are here.

    Raises ArtifactError where a manifest's are none, or where one of the others is not installed.
    """
    manifest, facts = artifact.manifest, artifact.manifest["facts"]
    others = ["ml_dtypes", *(["polygraphy"] if manifest["backend"] in POLYGRAPHY else [])]
    if backend_of(artifact).device(facts) == "cuda":
        others.append("cuda-bindings")  # which ask the driver for the GPU
    told = {"numpy": manifest["versions"].get("numpy", "")}
    found: dict[str, str] = told | {name: installed_version(name) or "" for name in others} | facts["versions"]
    for name, version in found.items():
        if not re.fullmatch(r"[A-Za-z][\w.-]*", name) or not re.fullmatch(r"\d[\w.+]*", version):
            raise ArtifactError(f"{artifact.folder} needs {name}, and no version of it is known: build it again")
    return found
