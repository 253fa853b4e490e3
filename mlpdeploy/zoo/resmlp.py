"""ResMLP's checkpoints in the authors' keys; the network itself is timm's (Touvron et al. 2021, arXiv 2105.03404)."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor

RENAMED = {
    r"^patch_embed\.": "stem.",
    r"(^blocks\.\d+)\.attn\.": r"\1.linear_tokens.",
    r"(^blocks\.\d+)\.mlp\.": r"\1.mlp_channels.",
    r"(^blocks\.\d+)\.gamma_": r"\1.ls",
}


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """timm's keys and shapes from the authors'; timm's stay as they are."""
    if "patch_embed.proj.weight" not in state:
        return state, {}
    renamed = {}
    for key, tensor in state.items():
        for pattern, replacement in RENAMED.items():
            key = re.sub(pattern, replacement, key)
        renamed[key] = tensor.reshape(1, 1, -1) if key.endswith((".alpha", ".beta")) else tensor
    return renamed, {}
