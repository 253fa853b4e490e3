"""A call of an engine in the caller's terms: tensors or arrays in and out, without a copy where none is needed."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch

from mlpdeploy.engine import programs
from mlpdeploy.engine.held import Held
from mlpdeploy.engine.signature import numpy_dtype
from mlpdeploy.errors import InputError
from mlpdeploy.network.in_hand import in_order, named_arrays, plain, require_rows

CPU = torch.device("cpu")
PLAIN = (torch.Tensor, np.ndarray)
Ports = Sequence[Mapping[str, Any]]


class Calling:
    """What the engine of a manifest takes and gives.

    Arrays, and tensors of the host, are passed on as they are where they have the engine's dtypes, are contiguous and
    could be written to; so are tensors on a GPU where the engine is there too.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._inputs: Ports = manifest["inputs"]
        self._outputs: Ports = manifest["outputs"]
        self._input_names, self._output_names = (
            [port["name"] for port in ports] for ports in (self._inputs, self._outputs)
        )
        self._dtypes = [numpy_dtype(port["dtype"]) for port in self._inputs]
        self._mapping = bool(manifest.get("mapping"))

    def __call__(self, engine: Held, inputs: Sequence[Any], out: Any = None) -> Any:
        """What `engine` makes of the caller's inputs; `out`, where it is written into that."""
        alone = len(inputs) == 1 and type(inputs[0]) not in PLAIN
        values = in_order(inputs[0] if alone else inputs, self._input_names)
        first = values[0]
        tensors = isinstance(first, torch.Tensor)
        if tensors and first.is_cuda and engine.on_gpu:
            given, own = self._on_gpu(values, first.device), None
        else:
            given, own = self._arrays(values), first.device if tensors and not first.is_cpu else CPU
        if out is None:
            found = engine(given)
            made = [found[name] for name in self._output_names]
            return self._returned(made if not tensors or own is None else _tensors(made, own))
        targets = self._targets(out, len(given[self._input_names[0]]), first.device if tensors else CPU)
        if own is None or own == CPU:
            arrays = targets if own is None else {name: _numbers(one) for name, one in targets.items()}
            _require_apart(given, arrays)
            engine(given, arrays)
        else:
            for name, one in engine(given).items():
                targets[name].copy_(programs.tensor(one))
        return out

    def _arrays(self, values: Sequence[Any]) -> dict[str, Any]:
        ready = {}
        for name, dtype, value in zip(self._input_names, self._dtypes, values, strict=True):
            if (array := _ready(value, dtype)) is None:
                arrays = named_arrays(values, self._input_names)
                return {port["name"]: _cast(arrays[port["name"]], port) for port in self._inputs}
            ready[name] = array
        return ready

    def _on_gpu(self, values: Sequence[Any], device: torch.device | None) -> dict[str, Any]:
        """Tensors on the GPU in the engine's dtypes; what is on the host is brought to the first."""
        given = {}
        for port, value in zip(self._inputs, values, strict=True):
            name, dtype = port["name"], getattr(torch, port["dtype"])
            if isinstance(value, torch.Tensor) and value.device.type == "cuda":
                require_rows(name, value)
                _require_kind(port, value.dtype.is_floating_point or dtype == torch.uint8 != value.dtype, value.dtype)
                given[name] = plain(name, value).to(dtype).contiguous()
            else:
                given[name] = programs.tensor(_cast(named_arrays(value, [name])[name], port)).to(device)
        return given

    def _returned(self, values: Sequence[Any]) -> Any:
        if self._mapping:
            return dict(zip(self._output_names, values, strict=True))
        return values[0] if len(values) == 1 else tuple(values)

    def _targets(self, out: Any, rows: int, device: torch.device) -> dict[str, Any]:
        """The caller's `out` by name. Raises InputError where the outputs cannot be written into it as they are."""
        names = self._output_names
        if isinstance(out, Mapping):
            targets = dict(out)
        else:
            several = out if isinstance(out, tuple | list) else [out]
            targets = dict(zip(names if len(several) == len(names) else range(len(several)), several, strict=True))
        if set(targets) != set(names):
            raise InputError(f"the outputs are {', '.join(names)}; out has {', '.join(map(str, targets)) or 'nothing'}")
        for port in self._outputs:
            target = targets[port["name"]]
            wanted = f"{port['dtype']} {[rows, *port['shape'][1:]]} on {device}"
            if (found := _described(target)) != wanted:
                raise InputError(f"out for {port['name']!r} must be {wanted}; it is {found}")
            if not _writable(target):
                raise InputError(f"out for {port['name']!r} must be contiguous and writable, and no part of autograd")
        return {name: targets[name] for name in names}


def _tensors(arrays: Sequence[np.ndarray], device: torch.device) -> list[torch.Tensor]:
    """Arrays as tensors: of the host the same memory."""
    found = [torch.from_numpy(one) if one.dtype.kind != "V" else programs.tensor(one) for one in arrays]
    return found if device is CPU else [one.to(device) for one in found]


def _described(value: Any) -> str:
    if not isinstance(value, torch.Tensor | np.ndarray):
        return f"a {type(value).__name__}"
    device = value.device if isinstance(value, torch.Tensor) else CPU
    return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)} on {device}"


def _writable(value: torch.Tensor | np.ndarray) -> bool:
    if isinstance(value, torch.Tensor):
        return value.layout == torch.strided and value.is_contiguous() and not value.requires_grad
    return type(value) is np.ndarray and value.flags.carray


def _require_apart(inputs: Mapping[str, Any], outputs: Mapping[str, Any]) -> None:
    """Raise InputError where an output would be written over an input, or over another output."""
    spans = [(*_span(one), name) for name, one in (*inputs.items(), *outputs.items())]
    for one, other in itertools.combinations(spans, 2):
        if one[0] < other[1] and other[0] < one[1] and other[2] in outputs:
            raise InputError(f"out for {other[2]!r} shares memory with {one[2]!r}")


def _span(value: torch.Tensor | np.ndarray) -> tuple[int, int]:
    """Where the numbers of a contiguous tensor or array begin and end."""
    begin = value.data_ptr() if isinstance(value, torch.Tensor) else value.ctypes.data
    return begin, begin + value.nbytes


def _numbers(value: torch.Tensor | np.ndarray) -> np.ndarray:
    """An array, or a tensor of the host as one that is the same memory."""
    if not isinstance(value, torch.Tensor):
        return value
    if value.dtype == torch.bfloat16:
        return value.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return value.numpy()


def _ready(value: Any, dtype: np.dtype[Any]) -> np.ndarray | None:
    """The value as an array, where the engine takes it as it is; None where it must be looked at more closely."""
    if type(value) is torch.Tensor:
        try:
            value = value.numpy()
        except (RuntimeError, TypeError):
            return None
    if type(value) is np.ndarray and value.dtype == dtype and value.flags.carray and value.ndim and value.size:
        return value
    return None


def _cast(array: np.ndarray, port: Mapping[str, Any]) -> np.ndarray:
    """An input as the engine takes it: numbers are converted, but not floating-point ones to integers."""
    _require_kind(port, not np.issubdtype(array.dtype, np.integer), array.dtype)
    if port["dtype"] == "uint8" and not 0 <= array.min() <= array.max() <= np.iinfo(np.uint8).max:
        raise InputError(f"input {port['name']!r} takes bytes, it was given {array.min()} to {array.max()}")
    return np.require(array, numpy_dtype(port["dtype"]), ("C", "W"))  # a library may refuse what it cannot overwrite


def _require_kind(port: Mapping[str, Any], floating: bool, dtype: object) -> None:
    if floating and np.issubdtype(numpy_dtype(port["dtype"]), np.integer):
        given = str(dtype).removeprefix("torch.")
        raise InputError(f"input {port['name']!r} takes {port['dtype']}, it was given {given}")
