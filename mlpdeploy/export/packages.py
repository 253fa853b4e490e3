"""The packages that an engine runs with where it goes, beside mlpdeploy's own code."""

from __future__ import annotations

import re

from mlpdeploy.artifact.lookup import backend_of
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.base import installed_version
from mlpdeploy.errors import ArtifactError

POLYGRAPHY = ("tensorrt", "tensorrt-rtx", "onnxruntime")
"""Backends whose engines Polygraphy runs."""


CUDA_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")
"""CUDA's runtime library of 13 and of 12, with which Polygraphy copies to a GPU where there is no PyTorch."""


def needed(artifact: Artifact) -> dict[str, str]:
    """Versions by package: the engine's own and NumPy's as the manifest has them, those of the others as they are here.

    Others that are not installed here have none (""). Raises ArtifactError where those of a manifest are none.
    """
    manifest, facts = artifact.manifest, artifact.manifest["facts"]
    others = ["ml_dtypes", *(["polygraphy"] if manifest["backend"] in POLYGRAPHY else [])]
    if backend_of(artifact).device(facts) == "cuda":
        runtime = next((name for name in CUDA_RUNTIMES if installed_version(name)), CUDA_RUNTIMES[0])
        others += ["cuda-bindings", runtime]  # the former ask the driver for the GPU
    told: dict[str, str] = {"numpy": manifest["versions"].get("numpy", ""), **facts["versions"]}
    for name, version in told.items():
        if not re.fullmatch(r"[A-Za-z][\w.-]*", name) or not re.fullmatch(r"\d[\w.+]*", version):
            raise ArtifactError(f"{artifact.folder} needs {name}, and no version of it is known: build it again")
    return {name: installed_version(name) or "" for name in others} | told
