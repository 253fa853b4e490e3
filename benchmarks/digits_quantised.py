"""What INT8, FP8, NVFP4 leave of the accuracy of trained networks on real images, and of one that was made hard for it.

The hard network computes the same as the trained one: a hidden channel of one block is 50 times larger, and the next
weights that read it are 1/50 of what they were. With one scale for a whole activation, that channel leaves the others
few codes.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import nn

import mlpdeploy
from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import calibrate
from mlpdeploy.graph.quantisation.equalise import equalise
from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import TensorSpec, trace
from mlpdeploy.precisions import EIGHT_BIT
from tests.digits import accuracy, load, split

SPREAD = 50.0
ROWS = 256
SPEC = TensorSpec("input", (1, 8, 8), torch.float32)
FOLD = "fold_affine"
"""The rule that would undo the hard network by itself, since its scale is a constant: it is left out there."""


class Scaled(nn.Module):
    """Channels (last axis) multiplied by constants."""

    def __init__(self, scale: torch.Tensor) -> None:
        super().__init__()
        self.scale: torch.Tensor
        self.register_buffer("scale", scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled: torch.Tensor = x * self.scale
        return scaled


def made_hard(name: str, network: nn.Module, images: np.ndarray) -> nn.Module:
    """The same function; one hidden channel of one block is SPREAD times larger, its next weights 1/SPREAD.

    The channel is that with the largest values on `images`.
    """
    hard = copy.deepcopy(network)
    mlp: Any = hard.network[0][0].mlp if name == "vip_digits" else hard.blocks[1].mlp_tokens  # type: ignore[index, union-attr]
    seen: list[torch.Tensor] = []
    hook = mlp.fc2.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        hard(torch.from_numpy(images))
    hook.remove()
    reach = seen[0].abs().flatten(0, -2).amax(0)
    scale = torch.ones(len(reach))
    scale[int(reach.argmax())] = SPREAD
    mlp.fc2.weight.data /= scale
    mlp.fc2 = nn.Sequential(Scaled(scale), mlp.fc2)
    return hard.eval()


def top1(
    network: nn.Module, precision: str, calibrator: str, equalising: bool, disabled: tuple[str, ...] = ()
) -> tuple[float, dict[str, Any]]:
    """Test accuracy of the emitted file in ONNX Runtime, calibrated on training images; and how it was made."""
    images, _, test, labels = split(0)
    rewritten = rewrite(trace(network, [SPEC]), disabled)
    quantisation = calibrate(rewritten, {"input": images[:ROWS]}, calibrator, precision, equalising=equalising)
    balanced = equalise(rewritten, quantisation.equalised)
    emitted = emit(apply(balanced, plan(balanced, precision, quantisation=quantisation, beside="fp32")))
    logits = onnx_run(emitted.model, 1)({"input": test})["output"]
    how = {"calibrator": quantisation.calibrator, "sqnr_db": dict(quantisation.sqnr_db)}
    return float((logits.argmax(1) == labels).mean()), how | {"equalised": len(quantisation.equalised)}


def compiled(name: str, network: nn.Module, precision: str, disabled: tuple[str, ...] = ()) -> dict[str, Any]:
    """Test accuracy of the engine that `mlpdeploy.compile` makes with its defaults, by a CPU engine that has it."""
    backend = "onnxruntime" if precision == "nvfp4" else "openvino"
    images, _, test, labels = split(0)
    engine = mlpdeploy.compile(
        network, images[:2], precision=precision, backend=backend, batch=f"1:{ROWS}:{len(test)}", name=name,
        calibration=images[:ROWS], disabled_rules=disabled,
    )  # fmt: skip
    chosen = engine.manifest["quantised"]
    share = float((np.asarray(engine(test)).argmax(1) == labels).mean())
    return {"top1": share, "calibrator": chosen["calibrator"], "kept": len(chosen["kept"]), "sites": chosen["sites"]}


def accuracies(name: str, seed: int) -> dict[str, Any]:
    """Top-1 on the 600 test images: of FP32 and by precision, of the trained network and of the hard one."""
    network, images, labels = load(name)
    hard = made_hard(name, network, split(0)[0][:ROWS])
    found: dict[str, Any] = {"fp32": accuracy(network, images, labels), "hard fp32": accuracy(hard, images, labels)}
    assert np.isclose(found["hard fp32"], found["fp32"], atol=2 / len(labels))
    for precision in EIGHT_BIT:
        found[precision] = row = _accuracies(name, network, hard, precision)
        shown = {"compiled": row["compiled"]["top1"], "hard": row["hard"]["compiled"]["top1"]}
        told = ", ".join(f"{label} {value:.4f}" for label, value in shown.items())
        print(f"{name} {precision}: FP32 {found['fp32']:.4f}, {told}", flush=True)
    return found


def accuracies_of_fp4(name: str, seed: int) -> dict[str, Any]:
    """The same of the engine in NVFP4 that is built by default, where channels make blocks of 16."""
    network, images, labels = load(name)
    hard = made_hard(name, network, split(0)[0][:ROWS])
    found = {"fp32": accuracy(network, images, labels), "nvfp4": compiled(name, network, "nvfp4")}
    found |= {"hard fp32": accuracy(hard, images, labels), "hard": compiled(name, hard, "nvfp4", (FOLD,))}
    print(f"{name} NVFP4: {found}", flush=True)
    return found


def _accuracies(name: str, network: nn.Module, hard: nn.Module, precision: str) -> dict[str, Any]:
    """Each calibrator, `auto`, and the engine that is built by default; of the hard network with and without help."""
    found: dict[str, Any] = {"calibrators": {}, "compiled": compiled(name, network, precision), "hard": {}}
    for calibrator in ("max", "percentile", "entropy", "mse", "auto"):
        value, how = top1(network, precision, calibrator, True)
        found["calibrators"][calibrator] = {"top1": value, **how}
    for label, calibrator, equalising in (("max", "max", False), ("auto, equalised", "auto", True)):
        value, how = top1(hard, precision, calibrator, equalising, (FOLD,))
        found["hard"][label] = {"top1": value, **how}
    found["hard"]["compiled"] = compiled(name, hard, precision, (FOLD,))
    return found
