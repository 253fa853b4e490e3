"""What TensorRT parsed, held against the precision plan: a network that does not follow it is not built."""

from __future__ import annotations

from collections.abc import Collection

from mlpdeploy.engine.backends.tensorrt.parsed import PRODUCTS, Computing, ParsedNetwork
from mlpdeploy.errors import BuildError

CODES = {"int8": ("INT8", "INT8"), "fp8": ("FP8", "FP8"), "nvfp4": ("FP4", "FP4"), "int4": (None, "INT4")}
"""TensorRT's names of what products read by precision: of their activation and their weight."""
DTYPES = {"fp32": "FLOAT", "tf32": "FLOAT", "fp16": "HALF", "bf16": "BF16", **dict.fromkeys(CODES, "HALF")}
"""What layers compute in; of codes, what their products accumulate to and all else has (see `Backend.beside`)."""
_NAMED = 4  # layers that one message names


def check(parsed: ParsedNetwork, precision: str, kept: Collection[str] = (), quantised: Collection[str] = ()) -> None:
    """Raise BuildError where a layer that computes has another dtype than asked for.

    `kept` are the ONNX nodes that the precision plan keeps in FP32, and `quantised` those whose products must take both
    operands as codes, where those are asked for.
    """
    _check_dtypes(parsed, precision, kept)
    if precision in CODES:
        _check_codes(parsed, precision, quantised)


def executed(parsed: ParsedNetwork, precision: str) -> str:
    """What an engine of this network computes in, in words."""
    if (codes := CODES.get(precision)) is not None:
        products = sum(layer.type in PRODUCTS for layer in parsed.computing)
        coded = sum(_reads(layer, codes) for layer in parsed.computing)
        return f"{DTYPES[precision]}, {coded} of {products} products in {precision.upper()}"
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


def _check_codes(parsed: ParsedNetwork, precision: str, wanted: Collection[str]) -> None:
    products = [layer for layer in parsed.computing if layer.type in PRODUCTS]
    asked = [layer for layer in products if set(wanted) & {layer.layer, *layer.nodes}]
    wrong = [layer for layer in asked if not _reads(layer, CODES[precision])]
    if wrong or not asked:
        names = ", ".join(f"{layer.layer} ({layer.type})" for layer in wrong[:_NAMED]) or "no product at all"
        raise BuildError(
            f"{len(wrong)} of {len(asked)} products would not compute with {precision.upper()} codes, "
            f"though the plan says so: {names}"
        )


def _reads(layer: Computing, wanted: tuple[str | None, str | None]) -> bool:
    """Whether a layer's operands are decoded from these types of codes, whichever side the weight lies on."""
    return layer.codes in (wanted, wanted[::-1])
