"""Swin Transformer's checkpoints in the authors' keys, Liu et al. 2021, arXiv 2103.14030; the network itself is timm's.

timm has every variant but the one whose heads are those of Swin-MLP-T/C24, which is made here from timm's class.
"""

from __future__ import annotations

import re
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from torch import Tensor

CACHES = ("relative_position_index", "attn_mask")
"""Constants that the authors' networks keep as buffers: which bias two tokens have, and which are kept apart."""


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """timm's keys from the authors', without the cached constants; timm's stay as they are."""
    state = {key: tensor for key, tensor in state.items() if not key.endswith(CACHES)}
    if "layers.0.downsample.reduction.weight" in state:
        state = {_renamed(key): tensor for key, tensor in state.items()}
    return state, {}


def _renamed(key: str) -> str:
    """In timm the merging of patches begins a stage, the authors' ends one; timm's head is `head.fc`."""
    moved = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) + 1}.downsample.", key)
    return re.sub(r"^head\.(?=weight|bias)", "head.fc.", moved)


def swin_t_c24(num_classes: int = 1000, image_size: int = 256) -> SwinTransformer:
    """Swin-T with heads of 24 channels and windows of 8x8: 28.3 M parameters, the counterpart of Swin-MLP-T/C24."""
    return SwinTransformer(
        img_size=image_size,
        embed_dim=96,
        depths=(2, 2, 6, 2),
        num_heads=(4, 8, 16, 32),
        window_size=8,
        num_classes=num_classes,
    )
