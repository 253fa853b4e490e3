"""What lies in files of weights: safetensors, NumPy's .npz, torch's own format, and checkpoints in several files.

Nothing that a file holds is run. Of a checkpoint in several files an index, `*.index.json`, says which has which tensor
(the Hugging Face Hub's form); of a folder, the index or the one file in it is meant.
"""

from __future__ import annotations

import argparse
import os
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import CheckpointError
from mlpdeploy.system import files

if TYPE_CHECKING:
    from torch import Tensor

COMMAND_LINES = (argparse.Namespace, (OrderedDict, "yacs.config.CfgNode"))
"""What training programs keep beside the weights, and runs nothing: timm's and DeiT's arguments, and Swin's
configuration, which is read as the mapping that it is."""
INDEX = ".index.json"
HELD = ("model.safetensors", "pytorch_model.bin")
"""What a folder may hold, each whole or with an index."""


def files_of(path: Path) -> tuple[Path, ...]:
    """The files that a checkpoint lies in: regular ones. Raises CheckpointError where there are none."""
    if os.path.isdir(path):
        names = [name + suffix for name in HELD for suffix in (INDEX, "")]
        found = next((path / name for name in names if os.path.isfile(path / name)), None)
        if found is None:
            raise CheckpointError(
                f"{path}: is a folder without {' or '.join(HELD)}: give the path of a checkpoint file"
            )
        return files_of(found)
    if not os.path.isfile(path):
        what = "is no regular file" if os.path.lexists(path) else "does not exist"
        raise CheckpointError(f"{str(path)[:300]}: {what}: give the path of a checkpoint file")
    return _indexed(path) if path.name.endswith(INDEX) else (path,)


def content(path: Path) -> Any:
    """What a checkpoint holds, the parts of several files as one mapping. Raises CheckpointError."""
    parts = [_read(file) for file in files_of(path)]
    if len(parts) == 1:
        return parts[0]
    joined: dict[str, Tensor] = {}
    for part in parts:
        joined |= part if isinstance(part, Mapping) else {}
    return joined


def _indexed(path: Path) -> tuple[Path, ...]:
    try:
        named = files.read_json(path)["weight_map"].values()
        names = sorted({str(name) for name in named})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: is no index of a checkpoint's files ({type(error).__name__}): download it again"
        ) from error
    if outside := [name for name in names if Path(name).name != name or name.endswith(INDEX)]:
        raise CheckpointError(f"{path}: names {outside[0]!r}, which is no file beside it")
    return tuple(one for name in names for one in files_of(path.parent / name))


def _read(path: Path) -> Any:
    import numpy as np
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: is empty: download it again")
    with path.open("rb") as file:
        start = file.read(64).lstrip()
    for first, what in DISGUISES.items():
        if start.lower().startswith(first):
            raise CheckpointError(f"{path}: {what}")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix == ".npz":
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        with torch.serialization.safe_globals([*COMMAND_LINES]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: refused, nothing of it was run: {_blocked(error)}") from error
    except OSError as error:
        reason = error.strerror or error  # "Invalid argument" is what torch gets from a file that was cut short
        raise CheckpointError(f"{path}: cannot be read ({reason}); if it is truncated, download it again") from error
    except (Exception, SafetensorError) as error:  # a broken file can break its reader anywhere
        if "locating file data.pkl" in str(error):
            raise CheckpointError(
                f"{path}: is an archive without a state dict, as torch.export's are: {SAVE}"
            ) from error
        if "TorchScript" in str(error):
            raise CheckpointError(f"{path}: is a TorchScript archive, which is code: {SAVE}") from error
        lines = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: broken or not a checkpoint ({lines[0][:120]}): download it again") from error


DISGUISES = {
    b"version https://git-lfs": "is a pointer of Git LFS, not the file that it stands for: run git lfs pull",
    b"<!doctype html": "is a web page, not a checkpoint: download it again",
    b"<html": "is a web page, not a checkpoint: download it again",
    b"\x93numpy": "is one array of NumPy, not weights by name: save them as .npz or safetensors",
}
"""How files begin that are often taken for a checkpoint."""

SAVE = "save the state dict alone, as safetensors"


def _blocked(error: pickle.UnpicklingError) -> str:
    text = str(error)
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted is not None:
        return f"it wants to run {wanted[1]}; {SAVE}"
    if any(word in text for word in ("truncated", "invalid load key", "ran out of input", "invalid magic")):
        return "it is no checkpoint of torch or safetensors, or it is truncated: download it again"
    found = re.search(r"Unsupported (?:operand|class|type|persistent id)[^.\n]*|Can only [^.\n]*", text)
    return f"it is no checkpoint of torch, or holds more than weights ({found[0] if found else 'a pickle'}); {SAVE}"
