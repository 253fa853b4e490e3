"""Code of the user's runs inside ours: whatever it raises, or asks of the process, becomes one line about it."""

from __future__ import annotations

import copy
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from mlpdeploy.errors import InputError, MlpdeployError, NetworkError
from mlpdeploy.system import streams
from mlpdeploy.system.processes import Terminated

LONGEST = 500
"""Characters of somebody else's message that are shown."""


@contextmanager
def guest(refused: Callable[[BaseException], MlpdeployError]) -> Iterator[None]:
    """Turn whatever the body raises into the error that `refused` makes of it: `sys.exit` too, which else would end
    the command as if all were well. Only what ends this process from outside passes: the keyboard, a signal. The folder
    that one is in, the depth of calls, and streams that it closed are as they were."""
    try:
        with streams.kept_open(), _as_deep(), _in_this_folder():
            yield
    except (KeyboardInterrupt, Terminated):
        raise
    except BaseException as error:
        raise refused(error) from error


@contextmanager
def _as_deep() -> Iterator[None]:
    """Calls may nest as deep as before, or deeper."""
    limit = sys.getrecursionlimit()
    try:
        yield
    finally:
        if sys.getrecursionlimit() < limit:
            sys.setrecursionlimit(limit)


@contextmanager
def _in_this_folder() -> Iterator[None]:
    try:
        folder = os.getcwd()
    except OSError:  # which somebody removed
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            os.chdir(folder)


def text_of(error: BaseException) -> str:
    """An exception's message; nothing where its class, which may be the user's, fails to say it."""
    try:
        return str(error)
    except Exception:
        return ""


def one_line(error: BaseException) -> str:
    """The type and the first line of an exception's message, for a message of ours: cut where it is long."""
    lines = text_of(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


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
    """The network itself: without what torch.compile, DataParallel, AveragedModel or their like wrapped around it.

    Raises NetworkError for a TorchScript module, of which no network is left.
    """
    while isinstance(inner := getattr(network, _WRAPPED.get(type(network).__name__, ""), None), nn.Module):
        network = inner
    if isinstance(network, torch.jit.ScriptModule):
        raise NetworkError(SCRIPTED)
    return network


def in_eval(network: nn.Module) -> nn.Module:
    """The network in eval mode; what torch.export made has no other mode, and says so by an error."""
    with suppress(NotImplementedError):
        network.eval()
    return network


_WRAPPED = {
    "OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module",
    "AveragedModel": "module",
}  # fmt: skip
"""The attribute in which a wrapper holds what it wraps, by the wrapper's name."""


def require_usable(network: nn.Module) -> None:
    """Raises InputError, in one line, for a network whose modules cannot be walked or whose weights hold no numbers.

    NetworkError where a part of it is TorchScript or quantised, of which no network is left.
    """
    name = type(network).__name__
    if (circle := _circle(network)) is not None:
        raise InputError(f"{name}: {circle} is a module inside of which it lies; keep such a link out of the modules")
    try:
        tensors = [*network.named_parameters(), *network.named_buffers()]
        lost = next((why for path, one in network.named_modules() if (why := _lost(one, path or name))), None)
    except RecursionError:
        raise InputError(f"{name} nests modules deeper than Python follows ({sys.getrecursionlimit()} calls)") from None
    if lost is not None:
        raise NetworkError(f"{name}: {lost}")
    for path, tensor in tensors:
        if is_lazy(tensor):
            raise InputError(f"{name}: {path} is lazy and has no shape yet; call the network once, or give its size")
        if tensor.is_meta:
            raise InputError(f"{name}: {path} is on the meta device and holds no numbers; load it first")


SCRIPTED = "a TorchScript module cannot be traced by torch.export: give the nn.Module it was made of"


def _lost(module: nn.Module, path: str) -> str | None:
    """Why no network can be had of a part of one; None where it can."""
    if isinstance(module, torch.jit.ScriptModule):
        return f"{path} is TorchScript, which torch.export cannot trace: give the nn.Module it was made of"
    if re.match(r"torch\.(ao\.)?nn\.(intrinsic\.)?quantized", type(module).__module__):
        return f"{path} is quantised already ({type(module).__name__}): give the network in float, and build it in int8"
    return None


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
