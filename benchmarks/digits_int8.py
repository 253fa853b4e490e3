"""What INT8 leaves of the accuracy of trained networks on real images, and of one that was made hard for it.

The hard network computes the same as the trained one: some channels of a block's normalised activations are 50 times
larger, and the columns of the next weights that read them 1/50 of what they were. With one scale for a whole
activation, the largest channel then leaves the others few codes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

from mlpdeploy.engine.emit import emit
from mlpdeploy.evidence.runs import onnx_run
from mlpdeploy.graph.calibrate import calibrate
from mlpdeploy.graph.equalise import equalise
from mlpdeploy.graph.precision import apply, plan
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.trace import TensorSpec, trace
from tests.digits import accuracy, load, split

SPREAD = 50.0
ROWS = 256
SPEC = TensorSpec("input", (1, 8, 8), torch.float32)
FOLD = "fold_affine"
"""The rule that would undo the hard network, as its scales lie in a LayerNorm: it is left out there."""


def made_hard(name: str, network: nn.Module) -> nn.Module:
    """The same function with every fourth channel in front of one block's channel MLP made 50 times larger."""
    hard = copy.deepcopy(network)
    block = hard.network[0][1] if name == "vip_digits" else hard.blocks[1]  # type: ignore[index, union-attr]
    first = block.mlp.fc1 if name == "vip_digits" else block.mlp_channels.fc1
    channels = slice(0, None, 4)
    with torch.no_grad():
        for parameter in (block.norm2.weight, block.norm2.bias):
            parameter[channels] *= SPREAD
        first.weight[:, channels] /= SPREAD
    return hard


def top1(
    network: nn.Module, calibrator: str, equalising: bool, disabled: tuple[str, ...] = ()
) -> tuple[float, dict[str, Any]]:
    """Test accuracy of the emitted INT8 file in ONNX Runtime, calibrated on training images; and how it was made."""
    images, _, test, labels = split(0)
    rewritten = rewrite(trace(network, [SPEC]), disabled)
    quantisation = calibrate(rewritten, {"input": images[:ROWS]}, calibrator, equalising=equalising)
    balanced = equalise(rewritten, quantisation.equalised)
    emitted = emit(apply(balanced, plan(balanced, "int8", quantisation=quantisation, beside="fp32")))
    logits = onnx_run(emitted.model, 1)({"input": test})["output"]
    how = {"calibrator": quantisation.calibrator, "sqnr_db": dict(quantisation.sqnr_db)}
    return float((logits.argmax(1) == labels).mean()), how | {"equalised": len(quantisation.equalised)}


def accuracies(name: str, seed: int) -> dict[str, Any]:
    """Top-1 on the 600 test images: FP32, each calibrator, `auto`; and of the hard network, with and without help."""
    network, images, labels = load(name)
    found: dict[str, Any] = {"fp32": accuracy(network, images, labels), "calibrators": {}}
    for calibrator in ("max", "percentile", "entropy", "mse", "auto"):
        value, how = top1(network, calibrator, True)
        found["calibrators"][calibrator] = {"top1": value, **how}
    hard = made_hard(name, network)
    found["hard"] = {"fp32": accuracy(hard, images, labels)}
    for label, calibrator, equalising in (("max", "max", False), ("auto, equalised", "auto", True)):
        value, how = top1(hard, calibrator, equalising, (FOLD,))
        found["hard"][label] = {"top1": value, **how}
    assert np.isclose(found["hard"]["fp32"], found["fp32"], atol=2 / len(labels))
    shown = {"FP32": found["fp32"], "auto": found["calibrators"]["auto"]["top1"]}
    shown |= {f"hard, {label}": found["hard"][label]["top1"] for label in found["hard"] if label != "fp32"}
    print(f"{name}: {', '.join(f'{label} {value:.4f}' for label, value in shown.items())}", flush=True)
    return found
