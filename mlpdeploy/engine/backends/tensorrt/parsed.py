"""What TensorRT made of an ONNX file: its own network, read back before anything is built.

The network is walked through the attributes of INetworkDefinition and ILayer alone, so no TensorRT is imported here
and no GPU is needed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

# Layers whose arithmetic decides an engine's precision.
PRODUCTS = ("MATRIX_MULTIPLY", "CONVOLUTION")
COMPUTING = (*PRODUCTS, "NORMALIZATION", "PLUGIN_V3")


@dataclass(frozen=True)
class Counts:
    """Layers; SHUFFLE layers that permute an activation; SHUFFLE layers that only reshape one."""

    layers: int
    transposes: int
    reshapes: int


@dataclass(frozen=True)
class FunctionBody:
    """The layers that one call of an ONNX local function expanded to.

    `node` is the name of the calling node (`node_of_<output>` where it has none), `function` that of the function.
    Constants and their broadcasts carry no node in TensorRT's metadata and are counted outside.
    """

    node: str
    function: str
    counts: Counts


@dataclass(frozen=True)
class Computing:
    """A layer that computes: its type, its name, the ONNX nodes it came from (innermost first), its operands' dtype.

    Where the operands differ, `dtype` lists them, joined by "x": TensorRT would have refused such a matmul. `codes` are
    the types of the codes that a product's two operands are decoded from, which is what makes TensorRT compute with the
    codes; None for one that is not.
    """

    type: str
    layer: str
    nodes: tuple[str, ...]
    dtype: str
    codes: tuple[str | None, str | None] = (None, None)


@dataclass(frozen=True)
class ParsedNetwork:
    """A parsed network in numbers.

    `dtypes` counts output dtypes by layer type; for layers that compute, the dtype of their operands instead.
    `outside` are the counts without the bodies of local functions.
    """

    total: Counts
    outside: Counts
    bodies: tuple[FunctionBody, ...]
    by_type: Mapping[str, int]
    dtypes: Mapping[str, Mapping[str, int]]
    computing: tuple[Computing, ...]

    def facts(self) -> dict[str, Any]:
        """JSON values for a manifest: everything but the list of computing layers."""
        return {
            "total": asdict(self.total),
            "outside": asdict(self.outside),
            "bodies": [asdict(body) for body in self.bodies],
            "by_type": dict(self.by_type),
            "dtypes": {kind: dict(count) for kind, count in self.dtypes.items()},
            "coded": sum(any(layer.codes) for layer in self.computing),
            "products": sum(layer.type in PRODUCTS for layer in self.computing),
        }


@dataclass(frozen=True)
class _Row:
    type: str
    dtype: str
    transposes: bool
    reshapes: bool
    body: tuple[str, str] | None


def read(
    network: Any, downcast: Callable[[Any], Any] = lambda layer: layer, functions: Collection[str] = ()
) -> ParsedNetwork:
    """Walk an INetworkDefinition.

    `downcast` turns an ILayer into its own class, IShuffleLayer, whose attributes the base class hides;
    `functions` are the names of the local functions whose bodies are counted apart.
    """
    static: set[str] = set()
    decoded: dict[str, str] = {}
    rows, computing = [], []
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kind = layer.type.name  # read before the downcast: IActivationLayer's own `type` is the activation's
        inputs = [tensor for tensor in _tensors(layer.get_input, layer.num_inputs) if tensor is not None]
        outputs = [tensor for tensor in _tensors(layer.get_output, layer.num_outputs) if tensor is not None]
        if kind == "SHAPE" or all(tensor.name in static for tensor in inputs):
            static.update(tensor.name for tensor in outputs)  # constants, shapes, and what comes from them alone
        if (made := _decoded(kind, inputs, decoded)) is not None:
            decoded.update(dict.fromkeys((tensor.name for tensor in outputs), made))
        permutes = reshapes = False
        if kind == "SHUFFLE" and inputs[0].name not in static:
            shuffle = downcast(layer)
            permutes = _permutes(shuffle)
            reshapes = not permutes and _reshapes(shuffle)
        dtype = outputs[0].dtype.name if outputs else "NONE"
        if kind in COMPUTING:
            operands = inputs[:2] if kind == "MATRIX_MULTIPLY" else inputs[:1]
            dtype = "x".join(dict.fromkeys(tensor.dtype.name for tensor in operands))
            names = tuple(node for node, _ in _chain(layer.metadata))
            read = [decoded.get(tensor.name) for tensor in inputs[:2]] if kind in PRODUCTS else []
            left, right, *_ = [*read, None, None]
            computing.append(Computing(kind, layer.name, names, dtype, (left, right)))
        rows.append(_Row(kind, dtype, permutes, reshapes, _body(layer.metadata, functions)))
    return _summary(rows, tuple(computing))


def _decoded(kind: str, inputs: list[Any], decoded: Mapping[str, str]) -> str | None:
    """The type of the codes that a layer makes values of, or whose values it only rearranges or converts."""
    if kind == "DEQUANTIZE":
        return str(inputs[0].dtype.name)
    return decoded.get(inputs[0].name) if kind in ("SHUFFLE", "CAST") else None


def _tensors(get: Callable[[int], Any], count: int) -> Iterator[Any]:
    return (get(index) for index in range(count))


def _summary(rows: list[_Row], computing: tuple[Computing, ...]) -> ParsedNetwork:
    dtypes: dict[str, Counter[str]] = {}
    for row in rows:
        dtypes.setdefault(row.type, Counter())[row.dtype] += 1
    bodies = dict.fromkeys(row.body for row in rows if row.body is not None)
    return ParsedNetwork(
        total=_count(rows),
        outside=_count([row for row in rows if row.body is None]),
        bodies=tuple(FunctionBody(*body, _count([row for row in rows if row.body == body])) for body in bodies),
        by_type=dict(Counter(row.type for row in rows).most_common()),
        dtypes=dtypes,
        computing=computing,
    )


def _count(rows: list[_Row]) -> Counts:
    return Counts(len(rows), sum(row.transposes for row in rows), sum(row.reshapes for row in rows))


def _rank(tensor: Any) -> int | None:
    """The rank, or None where it is not known: TensorRT then refuses to say how long the shape is."""
    try:
        return len(tensor.shape)
    except ValueError:
        return None


def _permutes(layer: Any) -> bool:
    """Whether either permutation moves an axis; TensorRT lists eight axes, of which the rank's first ones count."""
    pairs = ((layer.first_transpose, layer.get_input(0)), (layer.second_transpose, layer.get_output(0)))
    for permutation, tensor in pairs:
        axes = list(permutation)[: _rank(tensor)]
        if axes != list(range(len(axes))):
            return True
    return False


def _reshapes(layer: Any) -> bool:
    """Whether the shuffle gives another shape: from a tensor, or from its own list, which is None where unset."""
    dynamic = layer.num_inputs > 1 and layer.get_input(1) is not None
    return dynamic or layer.reshape_dims is not None


_ORIGIN = re.compile(r"\[ONNX Layer: (.*)\]$", re.DOTALL)
_CALL = re.compile(r"(.*) \(([^()]*)\)$", re.DOTALL)


def _chain(metadata: str | None) -> list[tuple[str, str | None]]:
    """The node that a layer came from, and the calls around it, innermost first: (node, function or None).

    TensorRT's ONNX parser writes `[ONNX Layer: node | calling node (function) | ...]`.
    """
    match = _ORIGIN.search(metadata or "")
    if match is None:
        return []
    node, *calls = match.group(1).split(" | ")
    found: list[tuple[str, str | None]] = [(node, None)]
    for call in calls:
        parts = _CALL.match(call)
        found.append((parts.group(1), parts.group(2)) if parts else (call, None))
    return found


def origins(metadata: str | None) -> tuple[str, ...]:
    """The nodes that a layer of a built engine came from, each followed by the calls around it.

    A fused layer's metadata has an entry for each node, with the control character RS between them.
    """
    return tuple(node for entry in (metadata or "").split("\x1e") for node, _ in _chain(entry))


def _body(metadata: str | None, functions: Collection[str]) -> tuple[str, str] | None:
    """The outermost call of one of `functions` that the layer lies in: (calling node, function)."""
    for node, function in reversed(_chain(metadata)):
        if function is not None and function in functions:
            return node, function
    return None
