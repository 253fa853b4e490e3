"""The precisions that a network can be built in."""

from __future__ import annotations

PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "int8", "fp8", "nvfp4", "int4")

EIGHT_BIT = ("int8", "fp8")
"""Those whose products read codes of 8 bits."""

QUANTISED = (*EIGHT_BIT, "nvfp4")
"""Those whose products read codes of both operands, ranges of which a calibration finds; all else of such a network has
another precision, which its engine decides."""

WEIGHT_ONLY = ("int4",)
"""Those whose products read weights of codes and activations in that other precision: of engines that must be small."""

CODED = (*QUANTISED, *WEIGHT_ONLY)
"""Those in which products read codes of one kind or the other."""
