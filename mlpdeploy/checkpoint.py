"""Weights from a file: safetensors, NumPy's .npz, or torch's own format read without running anything that it holds.

A checkpoint loads strictly: every key and every shape fits, and every number is finite. The wrappers that training
programs put around a state dict are recognised, averaged weights (EMA) first, as timm does.
"""

from __future__ import annotations

import argparse
import importlib
import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mlpdeploy.errors import CheckpointError

WRAPPERS = ("state_dict_ema", "model_ema", "ema", "state_dict", "model")
PREFIXES = ("module.", "_orig_mod.")
COMMAND_LINES = (argparse.Namespace, (OrderedDict, "yacs.config.CfgNode"))
"""What training programs keep beside the weights, and runs nothing: timm's and DeiT's arguments, and Swin's
configuration, which is read as the mapping that it is."""
LISTED = 10


Read = tuple[dict[str, Tensor], dict[str, Any]]
"""A state dict in the network's own keys, and the arguments of its factory that it needs."""
Reader = Callable[[dict[str, Tensor]], Read]


def read(path: Path) -> dict[str, Tensor]:
    """The state dict in `path`, in the authors' keys. Raises CheckpointError."""
    return _unwrapped(_read(path), path)


def translate(state: dict[str, Tensor], reader: str | None) -> Read:
    """The authors' state dict for a network whose recipe names `reader` (`package.module:function`) or none.

    A reader renames keys, leaves out caches of constants, and tells from the keys what form the network has: a
    train-time or a deployed one, `gelu` as "tanh" or "erf". Raises CheckpointError.
    """
    if reader is None:
        return state, {}
    module, _, name = reader.partition(":")
    result: Read = getattr(importlib.import_module(module), name)(state)
    return result


def load(network: nn.Module, state: Mapping[str, Tensor], path: str) -> None:
    """Load `state`, read from `path`, in place. Raises CheckpointError, and then leaves the network as it was."""
    ours = network.state_dict()
    _check_fits(ours, state, path)
    for key, tensor in state.items():
        if (reason := _changed(tensor, ours[key])) is not None:
            raise CheckpointError(f"{path}: {key} holds {reason}")
    network.load_state_dict(state, strict=True)


def _changed(tensor: Tensor, ours: Tensor) -> str | None:
    """Why a weight cannot become one of the network's as it is; None where it can.

    A constant of the network may be infinite, as masks of attention are, where the network made it so itself.
    """
    if tensor.is_complex() and not ours.is_complex():
        return "complex numbers, of which the network would keep the real part: give its own checkpoint"
    loaded = tensor.to(ours.dtype)
    if not (ours.is_floating_point() or ours.is_complex()):
        whole = torch.equal(loaded.to(tensor.dtype), tensor)
        return (
            None if whole else f"numbers that are no {str(ours.dtype).removeprefix('torch.')}: give its own checkpoint"
        )
    finite, same = loaded.isfinite(), loaded == ours
    if bool((finite | same).all()):
        return None
    if bool(tensor.to(torch.complex128 if tensor.is_complex() else torch.float64).isfinite().all()):
        return f"numbers beyond {str(ours.dtype).removeprefix('torch.')}'s: scale them down"
    return "NaN or infinite values: this checkpoint cannot be used"


def _read(path: Path) -> Any:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"{path}: {what}: give the path of a checkpoint file")
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: is empty: download it again")
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
        lines = str(error).splitlines() or [type(error).__name__]
        raise CheckpointError(f"{path}: broken or not a checkpoint ({lines[0][:120]}): download it again") from error


def _blocked(error: pickle.UnpicklingError) -> str:
    wanted = re.search(r"GLOBAL (\S+)", str(error))
    if wanted is None:
        return "it is no checkpoint of torch or safetensors, or it is truncated: download it again"
    return f"it wants to run {wanted[1]}; save the state dict alone, as safetensors"


def _unwrapped(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
            break
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no state dict but a {type(content).__name__}: save model.state_dict()")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise CheckpointError(f"{path}: holds more than weights: {_some(others)}; save model.state_dict() alone")
    state = dict(content)
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def fits(ours: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> bool:
    """Whether `state` has every key of `ours`, no other, and every shape."""
    return ours.keys() == state.keys() and all(ours[key].shape == state[key].shape for key in ours)


def other_classes(ours: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> int | None:
    """The number of classes in `state` where nothing but the number of outputs of the last layer differs."""
    if ours.keys() != state.keys():
        return None
    shapes = [key for key in ours if ours[key].shape != state[key].shape]
    layers = {key.rpartition(".")[0] for key in shapes}
    last = list(ours)[-1].rpartition(".")[0]
    if layers != {last} or any(ours[key].shape[1:] != state[key].shape[1:] for key in shapes):
        return None
    sizes = {state[key].shape[0] for key in shapes}
    return sizes.pop() if len(sizes) == 1 else None


def _check_fits(ours: Mapping[str, Tensor], state: Mapping[str, Tensor], path: str) -> None:
    if fits(ours, state):
        return
    classes = other_classes(ours, state)
    if classes is not None:
        raise CheckpointError(f"{path}: its classifier has {classes} classes: pass --num-classes {classes}")
    shapes = [key for key in ours if key in state and ours[key].shape != state[key].shape]
    different = [f"{key} is {_size(state[key])}, not {_size(ours[key])}" for key in shapes]
    missing = [key for key in ours if key not in state]
    unknown = [key for key in state if key not in ours]
    kinds = (("missing", missing), ("unknown", unknown), ("of another shape", different))
    details = [f"  {len(keys)} {what}: {_some(keys)}" for what, keys in kinds if keys]
    raise CheckpointError("\n".join([f"{path}: is the checkpoint of another network; its weights are", *details]))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
