"""Code of the user's runs inside ours: whatever it raises, or asks of the process, becomes one line about it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlpdeploy.errors import InputError, MlpdeployError, NetworkError
from mlpdeploy.processes import Terminated


@contextmanager
def guest(refused: Callable[[BaseException], MlpdeployError]) -> Iterator[None]:
    """Turn whatever the body raises into the error that `refused` makes of it: `sys.exit` too, which else would end
    the command as if all were well. Only what ends this process from outside passes: the keyboard, a signal."""
    try:
        yield
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        raise refused(error) from error


def one_line(error: BaseException) -> str:
    """The type and the first line of an exception's message, for a message of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def settings_kept() -> Iterator[None]:
    """Put torch's default dtype and device back as they were: a network that sets them sets them for itself."""
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)


def bare(network: nn.Module) -> nn.Module:
    """The network itself: without what torch.compile, DataParallel or DistributedDataParallel wrapped around it.

    Raises NetworkError for a TorchScript module, of which no network is left.
    """
    while isinstance(inner := getattr(network, _WRAPPED.get(type(network).__name__, ""), None), nn.Module):
        network = inner
    if isinstance(network, torch.jit.ScriptModule):
        raise NetworkError("a TorchScript module cannot be traced by torch.export: give the nn.Module it was made of")
    return network


_WRAPPED = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module"}
"""The attribute in which a wrapper holds what it wraps, by the wrapper's name."""


def require_usable(network: nn.Module) -> None:
    """Raises InputError, in one line, for a network whose modules cannot be walked or whose weights hold no numbers."""
    name = type(network).__name__
    if (circle := _circle(network)) is not None:
        raise InputError(f"{name}: {circle} is a module inside of which it lies; keep such a link out of the modules")
    try:
        tensors = [*network.named_parameters(), *network.named_buffers()]
    except RecursionError:
        raise InputError(f"{name} nests modules deeper than Python follows ({sys.getrecursionlimit()} calls)") from None
    for path, tensor in tensors:
        if is_lazy(tensor):
            raise InputError(f"{name}: {path} is lazy and has no shape yet; call the network once, or give its size")
        if tensor.is_meta:
            raise InputError(f"{name}: {path} is on the meta device and holds no numbers; load it first")


def _circle(network: nn.Module) -> str | None:
    """The path of a module that holds, somewhere in it, itself again."""
    around: set[int] = set()
    seen: set[int] = set()
    left: list[tuple[nn.Module, str, bool]] = [(network, "", True)]
    while left:
        module, path, entering = left.pop()
        if not entering:
            around.discard(id(module))
            continue
        if id(module) in around:
            return path
        if id(module) in seen:
            continue
        seen.add(id(module))
        around.add(id(module))
        left.append((module, path, False))
        inner = ((one, f"{path}.{name}".lstrip("."), True) for name, one in module._modules.items() if one is not None)
        left += inner
    return None


def copied(network: nn.Module) -> nn.Module:
    """A deep copy, in which tensors that were computed and kept as attributes hold their numbers alone.

    Old parametrisations (`nn.utils.weight_norm`) keep the weight that they computed last. Raises InputError where the
    network refuses to be copied.
    """
    attributes = [value for module in network.modules() for value in vars(module).values()]
    computed = [value for value in attributes if isinstance(value, torch.Tensor) and not value.is_leaf]
    try:
        return copy.deepcopy(network, {id(value): value.detach().clone() for value in computed})
    except Exception as error:  # a module may hold anything, and refuse to be copied in any way
        raise InputError(f"{type(network).__name__} cannot be copied: {one_line(error)}") from error
