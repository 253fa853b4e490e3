"""When two builds are the same: a key over everything that an artifact's content depends on.

The key of a recipe or a timm model is had without importing torch, which is what makes a second build a matter of a
second. A user's network is code that may depend on anything, so its key needs the traced graph and its weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import kernels, recipe, store
from mlpdeploy.engine.backends import _nvidia
from mlpdeploy.errors import CheckpointError, InputError
from mlpdeploy.files import sha256
from mlpdeploy.selection import Selection

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlpdeploy.graph.rewrite import Rewritten
    from mlpdeploy.graph.trace import Traced

LIBRARIES = ("torch", "timm", "numpy", "onnx", "onnxscript", "safetensors")


def key(selection: Selection, backend_versions: Mapping[str, str], fingerprint: str | None = None) -> str:
    """The key of a selection whose backend is decided; `fingerprint` is needed for a user's network."""
    content: dict[str, Any] = {
        "schema": store.SCHEMA,
        "selection": selection.to_json() | {"checkpoint": None},
        "checkpoint": None if selection.checkpoint is None else checkpoint_sha256(selection.checkpoint),
        "calibration": None if selection.calibration is None else calibration_sha256(selection.calibration),
        "network": fingerprint,
        "versions": versions(),
        "backend": dict(backend_versions),
        "gpu": _gpu(selection),
        "sources": sources(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _gpu(selection: Selection) -> str | None:
    """This machine's GPU where the engine is built for it: always with TensorRT, else where it was asked for."""
    here = selection.backend in ("tensorrt", "torch-tensorrt") or "current" in selection.gpus
    found = _nvidia.probe() if here else ""
    return None if isinstance(found, str) else f"{found.name} {found.capability}"


def versions() -> dict[str, str]:
    """The versions of mlpdeploy and of the libraries that decide what it emits; only those that are installed."""
    from mlpdeploy import __version__

    found = {"mlpdeploy": __version__}
    for library in LIBRARIES:
        try:
            found[library] = metadata.version(library)
        except metadata.PackageNotFoundError:
            continue
    return found


@cache
def sources() -> str:
    """The hash of mlpdeploy's own code, plugins and recipes, so that a changed rule is never served an old engine."""
    digest = hashlib.sha256()
    package = Path(__file__).parent
    for root, pattern in ((package, "*.py"), (kernels.folder(), "*.py"), (recipe.folder(), "*.toml")):
        for path in sorted(root.rglob(pattern)):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def checkpoint_sha256(path: Path) -> str:
    """The hash of a checkpoint. Raises CheckpointError where it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path}: cannot be read ({reason}): give the path of a checkpoint file") from error


def calibration_sha256(given: str) -> str:
    """The hash of what `--calibration` names. Raises InputError where it cannot be read."""
    if given in ("digits", "random"):
        return given
    path, digest = Path(given), hashlib.sha256()
    for file in sorted(one for one in path.rglob("*") if one.is_file()) if path.is_dir() else [path]:
        try:
            digest.update(f"{file.relative_to(path)}\0{sha256(file)}\0".encode())
        except OSError as error:
            reason = error.strerror or str(error)
            raise InputError(
                f"--calibration {given}: {file} cannot be read ({reason}); give a folder of images, an .npz file, "
                "digits or random"
            ) from error
    return digest.hexdigest()


def fingerprint(traced: Traced | Rewritten) -> str:
    """The hash of a traced or rewritten network: what it takes, its operations, and every number that they read.

    The tensors are those of the graph, wherever the network keeps or makes them: buffers that no state dict has, plain
    attributes, constants of its forward.
    """
    from mlpdeploy.graph.editor import weight

    digest = hashlib.sha256(f"{traced.inputs}\0{traced.module.graph}".encode())
    for node in traced.module.graph.nodes:
        if (tensor := weight(traced.module, node)) is not None:
            _add(digest, str(node.target), tensor)
    return digest.hexdigest()


def weights_sha256(network: nn.Module) -> str:
    """The hash of every tensor that a network holds, by name: parameters, all buffers, plain attributes."""
    import torch
    from torch.utils import _pytree as pytree

    digest = hashlib.sha256()
    for path, module in network.named_modules():
        leaves, _ = pytree.tree_flatten_with_path(vars(module))
        held = {pytree.keystr(place): leaf for place, leaf in leaves if isinstance(leaf, torch.Tensor)}
        for place, tensor in sorted(held.items()):
            _add(digest, f"{path} {place}", tensor)
    return digest.hexdigest()


def _add(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    import torch

    digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\0".encode())
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    digest.update(plain.flatten().view(torch.uint8).numpy().tobytes())
