"""A network in hand becomes a `Source`: what it takes is read from an example of its input.

Examples and real data come as a tensor, an array, a sequence of them in the order of the network's arguments, or a
mapping from the names of these arguments; the first axis of each is the batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import nn

from mlpdeploy.errors import InputError, NetworkError
from mlpdeploy.network.sound import in_float32
from mlpdeploy.network.source import Source
from mlpdeploy.network.whole_numbers import require_no_wrapping
from mlpdeploy.system.guest import bare, copied, guest, in_eval, one_line, require_usable
from mlpdeploy.zoo.recipe import GIVEN, IMAGE, Input, given

TRIED_ROWS = 2
"""Rows of the example that the network is run on before it is traced: an error then is the network's own."""


def source_of_network(
    network: nn.Module, example: Any, name: str, value_range: tuple[float, float] | None = None
) -> Source:
    """A copy of the network, in float32 and eval mode on the CPU, and a recipe that says what it takes.

    Integer inputs may hold what the example holds, from its smallest to its largest value; others anything in
    `value_range`. Raises InputError where the network or the example cannot be used, NetworkError where the network
    does not take the example.
    """
    _require_module(network)
    arrays = named_arrays(example, argument_names(network, _count(example)))
    inputs = tuple(_input(name, array, value_range) for name, array in arrays.items())
    ours, notes = _copied(network)
    try:
        _try(ours, arrays)
    except NetworkError as error:
        if (dtype := _own_dtype(network, arrays)) is None:
            raise
        raise NetworkError(
            f"{type(network).__name__} converts its numbers to {dtype} by its own code, for weights that an engine has "
            "in float32: take that conversion out, or give a network all of whose weights are float32"
        ) from error
    return Source(given(f"{GIVEN}{name}", inputs), ours, notes)


def source_like(network: nn.Module, ports: Sequence[Mapping[str, Any]], name: str) -> Source:
    """The same for a network of which an artifact says what it takes (the manifest's inputs)."""
    inputs = tuple(
        Input(port["name"], tuple(port["shape"][1:]), _kind(port["dtype"]), port.get("low"), port.get("high"))
        for port in ports
    )
    _require_module(network)
    return Source(given(name, inputs), *_copied(network))


def argument_names(network: nn.Module, count: int) -> list[str]:
    """Names of the first `count` arguments of a network; of a single one the name that images have everywhere."""
    if count == 1:
        return [IMAGE]
    parameters = inspect.signature(network.forward).parameters.values()
    names = [one.name for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
    if len(names) < count and not any(one.kind is one.VAR_POSITIONAL for one in parameters):
        raise InputError(f"{type(network).__name__} takes {len(names)} inputs, the example has {count}")
    return [*names, *(f"{IMAGE}_{index}" for index in range(len(names), count))][:count]


def in_order(values: Any, names: Sequence[str]) -> list[Any]:
    """The values for these names, of a sequence, a mapping, or one value alone. Raises InputError for others."""
    if isinstance(values, tuple | list):
        found = list(values)
    elif isinstance(values, Mapping):
        if len(names) > 1 and set(values) != set(names):
            raise InputError(f"the inputs are called {', '.join(names)}; given were {', '.join(map(str, values))}")
        found = [values[name] for name in names] if len(names) > 1 else list(values.values())
    else:
        found = [values]
    if len(found) != len(names):
        raise InputError(f"{len(names)} inputs are taken ({', '.join(names)}), {len(found)} were given")
    return found


def named_arrays(values: Any, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Tensors or arrays by input name, all with the same number of rows. Raises InputError where they are not."""
    arrays = {name: _array(name, value) for name, value in zip(names, in_order(values, names), strict=True)}
    rows = {name: len(array) for name, array in arrays.items()}
    if len(set(rows.values())) > 1:
        raise InputError(f"all inputs must have the same number of rows, they have {rows}")
    return arrays


def plain(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """The numbers of a tensor called `name`, and nothing else that PyTorch knows of it.

    Raises InputError where it does not hold its numbers one by one, or none at all.
    """
    for is_so, what, remedy in (
        (tensor.is_meta, "has a shape and no numbers", "give one with numbers"),
        (tensor.is_nested, "is nested", "give rows of one shape"),
        (tensor.is_quantized, "is quantised", "give tensor.dequantize()"),
        (tensor.layout != torch.strided, f"is {str(tensor.layout).removeprefix('torch.')}", "give tensor.to_dense()"),
    ):
        if is_so:
            raise InputError(f"{name!r} {what}: {remedy}")
    return tensor.detach().resolve_conj().resolve_neg()


def to_array(name: str, tensor: torch.Tensor) -> np.ndarray:
    """The same as an array, wherever and however the tensor lies; NumPy knows bfloat16 through ml_dtypes."""
    try:
        found = plain(name, tensor).cpu()
        return (
            found.view(torch.int16).numpy().view(ml_dtypes.bfloat16) if found.dtype == torch.bfloat16 else found.numpy()
        )
    except (RuntimeError, TypeError) as error:  # NumPy has no such numbers, or the tensor only stands for some
        raise InputError(f"{name!r} ({tensor.dtype}) has no numbers for NumPy: {one_line(error)}") from error


def rows_of(data: Any, labels: Any, names: Sequence[str]) -> tuple[dict[str, Any], Any]:
    """Rows by input name, and the class (n,) of each where they are known."""
    arrays = named_arrays(data, names)
    count = len(next(iter(arrays.values())))
    known = None if labels is None else np.asarray(labels).astype(np.int64)
    if known is not None and known.shape != (count,):
        raise InputError(f"{known.shape} labels do not fit {count} rows")
    return arrays, known


def _require_module(network: object) -> None:
    if not isinstance(network, nn.Module):
        kind = f"the class {network.__name__}" if isinstance(network, type) else f"a {type(network).__name__}"
        raise InputError(f"the network must be a torch.nn.Module, it is {kind}")


def _copied(network: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """A copy in float32, and notes on what that changed. Raises NetworkError where its weights cannot be used."""
    network = bare(network)
    require_usable(network)
    ours = in_eval(copied(network).cpu())
    notes = in_float32(ours)
    return ours.requires_grad_(False), notes


def _own_dtype(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> str | None:
    """The dtype of weights with which a network takes the example as it is; None where it does not, or has float32."""
    others = {one.dtype for one in network.parameters() if one.is_floating_point()} - {torch.float32}
    if not others:
        return None
    try:
        _try(in_eval(copied(bare(network)).cpu()), arrays)
    except (NetworkError, InputError):
        return None
    return str(others.pop()).removeprefix("torch.")


def _count(example: Any) -> int:
    return len(example) if isinstance(example, tuple | list | Mapping) else 1


def _array(name: str, value: Any) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        value = to_array(name, value)
    if not isinstance(value, np.ndarray):
        raise InputError(f"{name!r} is a {type(value).__name__}: give a torch tensor or a NumPy array, batch first")
    if isinstance(value, np.ma.MaskedArray):
        raise InputError(f"{name!r} is a masked array: fill in what is masked (array.filled)")
    require_rows(name, value)
    return value


def require_rows(name: str, value: np.ndarray | torch.Tensor) -> None:
    """Raise InputError where an array or a tensor called `name` is no batch of numbers that a network takes."""
    if value.ndim == 0 or 0 in value.shape:
        shape = tuple(value.shape)
        raise InputError(f"{name!r} has shape {shape}: its first axis must be a batch of one row or more")
    _kind(str(value.dtype).removeprefix("torch."))


def _kind(dtype: str) -> Any:
    """float32 or int64, as which an input of this dtype is traced."""
    if dtype in ("float16", "float32", "float64", "bfloat16"):
        return "float32"
    if dtype in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32"):
        return "int64"
    raise InputError(f"inputs of dtype {dtype} are not supported: give floating-point numbers or integers")


def _input(name: str, array: np.ndarray, value_range: tuple[float, float] | None) -> Input:
    shape, dtype = tuple(array.shape[1:]), _kind(str(array.dtype))
    if dtype == "int64":
        return Input(name, shape, dtype, int(array.min()), int(array.max()) + 1)
    if value_range is None:
        return Input(name, shape, dtype)
    low, high = map(float, value_range)
    if not low < high:
        raise InputError(f"value range {value_range}: give the smallest and the largest value")
    return Input(name, shape, dtype, low, high)


def _try(network: nn.Module, arrays: Mapping[str, np.ndarray]) -> None:
    """Raises NetworkError where the network takes neither the first rows of its own example nor all of it."""
    count = len(next(iter(arrays.values())))
    shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in arrays.items())
    what = f"{type(network).__name__} does not take the example ({shapes})"

    def run(rows: int) -> None:
        given = (np.array(array[:rows], dtype=_kind(str(array.dtype))) for array in arrays.values())
        network(*map(torch.from_numpy, given))

    with guest(lambda error: NetworkError(f"{what}: {one_line(error)}")), torch.inference_mode():
        try:
            run(TRIED_ROWS)
        except Exception:
            if count <= TRIED_ROWS:
                raise
            run(count)
    require_no_wrapping(network, {name: array[:TRIED_ROWS] for name, array in arrays.items()})
