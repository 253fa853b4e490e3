"""Weights from a checkpoint: what training programs put around a state dict is recognised, and all of it must fit.

Every key and every shape fits, after the network's own load hooks, and every number is finite. Averaged weights (EMA)
come first, as timm has it.
"""

from __future__ import annotations

import copy
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mlpdeploy.errors import CheckpointError
from mlpdeploy.network import weight_files
from mlpdeploy.system.text import plain as one_line

AVERAGED = (
    *("state_dict_ema", "ema_state_dict", "model_ema", "ema_model", "model_ema_state_dict", "ema_model_state_dict"),
    *("averaged_model", "swa_model", "swa_state_dict", "ema", "params_ema", "shadow", "teacher"),
)
PLAIN = ("state_dict", "model_state_dict", "model", "network", "net", "params", "student")
"""What training programs call the state dict, its moving average first."""
INSERTED = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP and activation checkpointing put into the keys, wherever they wrap a module."""
PARALLEL, COUNTED = "module.", "n_averaged"
"""What DataParallel puts in front of all keys, and torch's AveragedModel beside that."""
LISTED = 10
SHARE = 0.4
"""Of the keys, which a part of a state dict must hold to be tried by itself."""


class Weights(NamedTuple):
    """A state dict in the authors' keys, and what to tell the reader of it."""

    state: dict[str, Tensor]
    notes: tuple[str, ...] = ()


Read = tuple[dict[str, Tensor], dict[str, Any]]
"""A state dict in the network's own keys, and the arguments of its factory that it needs."""
Reader = Callable[[dict[str, Tensor]], Read]


def read(path: Path, ema: bool | None = None) -> Weights:
    """The state dict in `path`: the averaged weights with `ema`, those that were trained without, where there are both.

    None takes the averaged ones, and tells so. Raises CheckpointError, also where there are none of those asked for.
    """
    return _unwrapped(weight_files.content(path), path, ema)


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
    state = _hooked(network, state)
    _check_fits(ours, state, path)
    for key, tensor in state.items():
        if (reason := _changed(tensor, ours[key])) is not None:
            raise CheckpointError(f"{path}: {key} holds {reason}")
    network.load_state_dict(state, strict=True)


def _hooked(network: nn.Module, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict as the network's own load hooks complete it; as it is where that does not make it fit.

    They know older names (`weight_g` of a parametrised weight) and what older versions did not count. A weight that two
    modules share is there when one of its names is.
    """
    if fits(network.state_dict(), state):
        return state
    try:
        twin = copy.deepcopy(network)
        found = twin.load_state_dict(dict(state), strict=False)
    except Exception:  # whatever a copy or a hook of the network's raises: it does not fit
        return state
    after = twin.state_dict()
    there = {after[key].data_ptr() for key in after if key not in found.missing_keys}
    if found.unexpected_keys or any(after[key].data_ptr() not in there for key in found.missing_keys):
        return state
    return {key: state.get(key, value) for key, value in after.items()}


def _changed(tensor: Tensor, ours: Tensor) -> str | None:
    """Why a weight cannot become one of the network's as it is; None where it can.

    A constant of the network may be infinite, as masks of attention are, where the network made it so itself.
    """
    if ours.is_floating_point() and not (tensor.is_floating_point() or tensor.is_complex()):
        kind = str(tensor.dtype).removeprefix("torch.")
        return f"{kind}, which are codes and no weights without their scales: save the weights in floating point"
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


def _unwrapped(content: Any, path: Path, ema: bool | None) -> Weights:
    held = content if isinstance(content, Mapping) else {}
    averaged = next((name for name in AVERAGED if _has_tensors(held.get(name))), None)
    plain = next((name for name in PLAIN if isinstance(held.get(name), Mapping)), None) or _only_state(held)
    if ema and averaged is None:
        raise CheckpointError(f"{path}: holds no averaged weights: drop --ema")
    if ema is False and plain is None and averaged is not None:
        raise CheckpointError(f"{path}: holds averaged weights alone, as {averaged!r}: drop --no-ema")
    taken = averaged if averaged is not None and ema is not False else plain
    notes = []
    if averaged is not None and plain is not None:
        other = f"{plain!r}: --no-ema takes those" if taken == averaged else f"{averaged!r}: --ema takes those"
        notes.append(f"weights of {taken!r} in {path.name}, not of {other}")
    while taken is not None:
        content = content[taken]
        inside = (w for w in (*AVERAGED, *PLAIN, "module") if isinstance(content.get(w), Mapping))
        taken = None if any(isinstance(value, Tensor) for value in content.values()) else next(inside, None)
    return Weights(_plain(_state(content, path)), tuple(notes))


def _only_state(held: Mapping[Any, Any]) -> str | None:
    """The name of the one state dict among what a checkpoint holds, whatever it is called; None where it is itself one.

    What optimisers keep lies deeper, and schedulers keep no tensors.
    """
    found = [
        name for name, value in held.items() if isinstance(name, str) and name not in AVERAGED and _is_state(value)
    ]
    return found[0] if len(found) == 1 and not _is_state(held) else None


def _is_state(value: Any) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    if any(isinstance(value.get(name), Mapping) for name in PLAIN):
        return True
    return all(isinstance(key, str) and isinstance(one, Tensor) for key, one in value.items())


def _has_tensors(content: Any) -> bool:
    """Whether a state dict lies there, perhaps within what a wrapper adds."""
    if not isinstance(content, Mapping):
        return False
    return any(isinstance(value, Tensor) or _has_tensors(value) for value in content.values())


def _state(content: Any, path: Path) -> dict[str, Tensor]:
    """The tensors that lie there, each as numbers one by one."""
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path}: holds no state dict but a {type(content).__name__}: save model.state_dict()")
    others = [str(key) for key, value in content.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if others:
        raise CheckpointError(f"{path}: holds more than weights: {_some(others)}; save model.state_dict() alone")
    try:
        return {key: _dense(value) for key, value in content.items()}
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {str(error).splitlines()[0]}") from error


def _dense(tensor: Tensor) -> Tensor:
    """The same numbers in a format that all of PyTorch computes with. Raises RuntimeError where there are none."""
    if tensor.is_meta:
        raise RuntimeError("holds tensors of the meta device, which are no numbers: save the weights themselves")
    if tensor.is_nested:
        raise RuntimeError("holds nested tensors, which are no weights of a layer")
    if tensor.is_quantized:
        return tensor.dequantize()
    if tensor.layout != torch.strided:
        return tensor.to_dense()
    return tensor.float() if tensor.is_floating_point() and tensor.dtype.itemsize == 1 else tensor


def _plain(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without what wrappers of modules put into the keys."""
    state = {".".join(part for part in key.split(".") if part not in INSERTED): one for key, one in state.items()}
    if COUNTED in state and all(key.startswith(PARALLEL) for key in state if key != COUNTED):
        del state[COUNTED]
    while state and all(key.startswith(PARALLEL) for key in state):
        state = {key.removeprefix(PARALLEL): value for key, value in state.items()}
    return state


def unprefixed(state: dict[str, Tensor], ema: bool | None = None) -> Iterator[Weights]:
    """The state dict, and what it is without the names that all of its keys begin with: one less each time.

    Then those of its parts that hold a good share of it, without what stands beside them: a loss, metrics, averages.
    """
    yield Weights(state)
    while all("." in key for key in state) and len({key.partition(".")[0] for key in state}) == 1:
        state = {key.partition(".")[2]: value for key, value in state.items()}
        yield Weights(state)
    counts = Counter(key.partition(".")[0] for key in state if "." in key)
    parts = [name for name, count in counts.most_common() if count >= SHARE * len(state)]
    for name in sorted(parts, key=lambda name: (name in AVERAGED) == (ema is False)):
        inner = _plain({key.partition(".")[2]: one for key, one in state.items() if key.startswith(f"{name}.")})
        others = _some(key for key in state if not key.startswith(f"{name}."))
        yield Weights(inner, (f"weights of {name!r} in the checkpoint; left out: {others}",))


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
    names = [one_line(name)[:200] for name in names]
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more


def _size(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
