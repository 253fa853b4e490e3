"""A network's numbers as they are compiled: in float32, and each of them a number."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from mlpdeploy.errors import NetworkError


def in_float32(network: nn.Module) -> tuple[str, ...]:
    """Bring the weights of a network to float32, in place; notes on what that changed.

    Raises NetworkError, naming the weight, where one is NaN, infinite, or more than float32 can hold. A constant may be
    infinite, as masks of attention are: a buffer that no training fills, a parameter that is not trained.
    """
    wide = {name: tensor for name, tensor, _ in _numbers(network) if tensor.dtype == torch.float64}
    network.float()
    notes = []
    for name, tensor, learned in _numbers(network):
        if name in wide and (lost := _lost(wide[name], tensor)) is not None:
            raise NetworkError(f"{name} of {_kind(network)} holds {lost:.3g}, which float32 cannot hold: scale it down")
        if name in wide and bool(((wide[name] != 0) & (tensor == 0)).any()):
            notes.append(f"{name} of the network holds numbers so small that they are 0 in float32")
        if bool(tensor.isnan().any()) or (learned and bool(tensor.isinf().any())):
            raise NetworkError(f"{name} of {_kind(network)} holds NaN or infinite values: these weights cannot be used")
    return tuple(notes)


def _numbers(network: nn.Module) -> Iterator[tuple[str, Tensor, bool]]:
    """Name, tensor and whether training fills it, of all floating-point and complex weights that lie in memory."""
    for path, module in network.named_modules():
        filled = isinstance(module, _NormBase)
        own = [(name, tensor, tensor.requires_grad) for name, tensor in module.named_parameters(recurse=False)]
        own += [(name, tensor, filled) for name, tensor in module.named_buffers(recurse=False)]
        for name, tensor, learned in own:
            if (
                not tensor.is_meta
                and tensor.layout is torch.strided
                and (tensor.is_floating_point() or tensor.is_complex())
            ):
                yield f"{path}.{name}" if path else name, tensor.detach(), learned


def _lost(wide: Tensor, narrow: Tensor) -> float | None:
    """A number of `wide` that is infinite in `narrow`."""
    lost = wide[wide.isfinite() & narrow.isinf()]
    return float(lost[0]) if lost.numel() else None


def _kind(network: nn.Module) -> str:
    return type(network).__name__
