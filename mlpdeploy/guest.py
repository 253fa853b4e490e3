"""Code of the user's runs inside ours: whatever it raises, or asks of the process, becomes one line about it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from mlpdeploy.errors import InputError, MlpdeployError, NetworkError


@contextmanager
def guest(refused: Callable[[BaseException], MlpdeployError]) -> Iterator[None]:
    """Turn whatever the body raises into the error that `refused` makes of it: `sys.exit` too, which else would end
    the command as if all were well. Only an interruption from the keyboard passes."""
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise refused(error) from error


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


def require_numbers(network: nn.Module) -> None:
    """Raises InputError where a parameter or buffer lies on the meta device, which holds no numbers."""
    tensors = (*network.named_parameters(), *network.named_buffers())
    empty = next((name for name, tensor in tensors if tensor.is_meta), None)
    if empty is not None:
        raise InputError(f"{type(network).__name__}: {empty} is on the meta device and holds no numbers; load it first")
