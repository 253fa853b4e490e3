"""What TensorRT parsed, held against the precision plan: a network that does not follow it is not built."""

from __future__ import annotations

from collections.abc import Collection

from mlpdeploy.engine.backends.tensorrt.parsed import PRODUCTS, ParsedNetwork
from mlpdeploy.errors import BuildError

DTYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16", "int8": "HALF"}
"""What layers compute in; of INT8, what its products accumulate to and all else has (see `Backend.beside_int8`)."""

_NAMED = 4  # layers that one message names


def check(parsed: ParsedNetwork, precision: str, kept: Collection[str] = (), quantised: Collection[str] = ()) -> None:
    """Raise BuildError where a layer that computes has another dtype than asked for.

    `kept` are the ONNX nodes that the precision plan keeps in FP32, and `quantised` those whose products must take both
    operands as INT8 codes, where that is asked for.
    """
    _check_dtypes(parsed, precision, kept)
    if precision == "int8":
        _check_int8(parsed, quantised)


def executed(parsed: ParsedNetwork, precision: str) -> str:
    """What an engine of this network computes in, in words."""
    if precision == "int8":
        products = sum(layer.type in PRODUCTS for layer in parsed.computing)
        return f"{DTYPES[precision]}, {sum(layer.int8 for layer in parsed.computing)} of {products} products in INT8"
    return DTYPES[precision] + (" with TF32" if precision == "tf32" else "")


def _check_dtypes(parsed: ParsedNetwork, precision: str, kept: Collection[str]) -> None:
    wanted = DTYPES[precision]
    wrong = [
        layer
        for layer in parsed.computing
        if layer.dtype != wanted and not (layer.dtype == "FLOAT" and set(kept) & {layer.layer, *layer.nodes})
    ]
    if wrong:
        names = ", ".join(f"{layer.layer} ({layer.type}) in {layer.dtype}" for layer in wrong[:_NAMED])
        more = f", and {len(wrong) - _NAMED} more" if len(wrong) > _NAMED else ""
        raise BuildError(
            f"{len(wrong)} of {len(parsed.computing)} layers would not compute in {precision} ({wanted}): "
            f"{names}{more}; the ONNX file does not follow the precision plan"
        )


def _check_int8(parsed: ParsedNetwork, wanted: Collection[str]) -> None:
    products = [layer for layer in parsed.computing if layer.type in PRODUCTS]
    asked = [layer for layer in products if set(wanted) & {layer.layer, *layer.nodes}]
    wrong = [layer for layer in asked if not layer.int8]
    if wrong or not asked:
        names = ", ".join(f"{layer.layer} ({layer.type})" for layer in wrong[:_NAMED]) or "no product at all"
        raise BuildError(
            f"{len(wrong)} of {len(asked)} products would not compute with INT8 codes, though the plan says so: {names}"
        )
