"""Artifacts that no machine of the tests can build: a small one of ONNX Runtime says that it is another's."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from google.protobuf import text_format

from mlpdeploy.artifact import store, trust
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.export.triton import _config
from mlpdeploy.system.files import sha256

PORTS = {
    "inputs": [{"name": "input", "shape": [3, 16, 16], "dtype": "float32"}],
    "outputs": [{"name": "output", "shape": [5], "dtype": "float32"}],
}


def made_up(
    artifact: Artifact,
    folder: Path,
    backend: str = "tensorrt",
    own: bool = True,
    model: bytes = b"",
    precision: str = "fp32",
    **facts: Any,
) -> Artifact:
    """A sealed artifact at a folder, like another one but for its backend and some facts of its build."""
    folder.mkdir(parents=True)
    manifest = copy.deepcopy(artifact.manifest)
    engine = "engine.plan" if backend.startswith("tensorrt") else "engine.onnx"
    (folder / engine).write_bytes(f"an engine of {folder.name}".encode())
    (folder / store.MODEL).write_bytes(model or artifact.model.read_bytes())
    described = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": sha256(folder / name)}
        for name in (engine, store.MODEL)
    }
    manifest |= {"precision": precision, "backend": backend, "engine": engine, "files": described}
    manifest["facts"] |= {
        "backend": backend,
        "versions": {backend.replace("-", "_"): "10.13.3.9"},
        "gpus": ["sm89"],
    } | facts
    manifest["inputs"], manifest["outputs"] = (
        [port | {"shape": ["batch", *port["shape"]]} for port in manifest["facts"][side]]
        for side in ("inputs", "outputs")
    )
    sealed = trust.sealed(manifest)
    (folder / store.MANIFEST).write_text(store.dump(sealed if own else sealed | {"seal": "another's"}))
    return store.open_artifact(folder)


def read(path: Path) -> Any:
    """A configuration, every field of which must be known."""
    return text_format.Parse(path.read_text(encoding="utf-8"), _config._message("ModelConfig")())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
