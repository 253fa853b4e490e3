"""When two builds are the same: a key over everything that an artifact's content depends on.

    entry         what of it decides an engine
    schema        the form of manifests
    selection     all that was asked for, but the folders that files and the artifact lie in
    checkpoint    the content of the file
    labels        the content of the file
    calibration   the content of what it names, and the libraries that read it
    recipe        of a network that a name does not tell (`zoo.recipe.changes`): what it takes, in which ranges, and how
                  its images are prepared
    network       of the same: every operation of the traced graph, and every number that it reads, wherever the
                  network keeps it
    versions      of mlpdeploy, Python, and the libraries that decide what is emitted
    backend       the versions of the libraries that an engine needs
    host          what of this machine a backend compiles for and with: CPU, compiler, threads, environment variables
    platform      system and processor architecture
    gpu           name, compute capability and driver, where the engine is built for this machine's GPU
    settings      PyTorch's global ones, where they are not the usual ones
    sources       mlpdeploy's own code, rules, plugins and recipes

What is not in it decides nothing: budgets and measurements describe an engine and do not change it. A library whose
installed files were edited by hand is not noticed: `--force`.

The key of a recipe or a timm model is had without importing torch, which is what makes a second build a matter of a
second (but for `inductor`, whose engines depend on PyTorch's threads). A user's network is code that may depend on
anything, so its key needs the traced graph and its weights.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import kernels
from mlpdeploy._version import __version__
from mlpdeploy.artifact import store
from mlpdeploy.engine.base import installed_version
from mlpdeploy.errors import CheckpointError, InputError
from mlpdeploy.network.weight_files import files_of
from mlpdeploy.selection import FILES, Selection
from mlpdeploy.system.files import sha256
from mlpdeploy.zoo import recipe
from mlpdeploy.zoo.recipe import Recipe

if TYPE_CHECKING:
    from torch import Tensor, nn

    from mlpdeploy.engine.nvidia import Gpu
    from mlpdeploy.graph.rewrite import Rewritten
    from mlpdeploy.graph.tracing.trace import Traced

LIBRARIES = ("torch", "timm", "numpy", "onnx", "onnxscript", "onnx-ir", "safetensors")


def key(
    selection: Selection,
    backend_versions: Mapping[str, str],
    fingerprint: str | None = None,
    *,
    known: Recipe | None = None,
    host: Mapping[str, Any] | None = None,
    gpu: Gpu | None = None,
) -> str:
    """The key of a selection whose backend is decided, `host` being what of this machine that backend depends on.

    `gpu` is the one that the engine is made for alone, if it is.

    `fingerprint` and the completed recipe (`known`) are needed for a user's network.
    """
    content: dict[str, Any] = {
        "schema": store.SCHEMA,
        "selection": selection.to_json() | dict.fromkeys(FILES),
        "checkpoint": None if selection.checkpoint is None else checkpoint_sha256(selection.checkpoint),
        "labels": None if selection.labels is None else labels_sha256(selection.labels),
        "calibration": None if selection.calibration is None else calibration_sha256(selection.calibration),
        "recipe": None if known is None else asdict(known),
        "network": fingerprint,
        "versions": versions() | {"python": platform.python_version()},
        "backend": dict(backend_versions),
        "host": dict(host or {}),
        "platform": f"{platform.system()} {platform.machine()}",
        "gpu": None if gpu is None else f"{gpu.name} {gpu.capability}, driver for CUDA {gpu.driver}",
        "settings": settings(),
        "sources": sources(),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def settings() -> dict[str, str]:
    """PyTorch's global settings that change what a network's code makes or computes, where they are not the usual ones.

    Without PyTorch imported they are.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    usual = {"dtype": "torch.float32", "device": "cpu", "matmul": "highest", "exact": "False"}
    found = {
        "dtype": str(torch.get_default_dtype()),
        "device": str(torch.get_default_device()),
        "matmul": torch.get_float32_matmul_precision(),
        "exact": str(torch.are_deterministic_algorithms_enabled()),
    }
    return {name: value for name, value in found.items() if value != usual[name]}


def versions() -> dict[str, str]:
    """The versions of mlpdeploy and of the libraries that decide what it emits; only those that are installed."""
    here = {library: installed_version(library) for library in LIBRARIES}
    return {"mlpdeploy": __version__} | {library: version for library, version in here.items() if version is not None}


@cache
def sources() -> str:
    """The hash of mlpdeploy's own code, plugins and recipes, so that a changed rule is never served an old engine."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for root, pattern in ((package, "*.py"), (kernels.folder(), "*.py"), (recipe.folder(), "*.toml")):
        for path in sorted(root.rglob(pattern)):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def checkpoint_sha256(path: Path) -> str:
    """The hash of a checkpoint, of all files that it lies in. Raises CheckpointError where it cannot be read."""
    try:
        hashes = {file.name: sha256(file) for file in files_of(path)}
    except OSError as error:
        reason = error.strerror or str(error)
        raise CheckpointError(f"{path}: cannot be read ({reason}): give the path of a checkpoint file") from error
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(json.dumps(hashes, sort_keys=True).encode()).hexdigest()


def labels_sha256(path: Path) -> str:
    """The hash of a file of labels. Raises InputError where it cannot be read."""
    try:
        return sha256(path)
    except OSError as error:
        raise InputError(f"--labels {path}: cannot be read ({error.strerror or error})") from error


def calibration_sha256(given: str) -> str:
    """The hash of what `--calibration` names, and of what reads it. Raises InputError where it cannot be read."""
    if given == "digits":
        return f"{given} of scikit-learn {installed_version('scikit-learn')}"
    if given == "random":
        return given
    path, digest = Path(given), hashlib.sha256(f"pillow {installed_version('pillow')}".encode())
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
