"""Checkpoints that Google published for its JAX code: `.npz` files whose keys are paths in Flax's tree of modules.

Modules without a name are counted over all kinds in the published files, by kind in later ones: both are read.

Flax keeps a kernel with its inputs in front of its outputs: (in, out) of a dense layer, (h, w, in, out) of a
convolution. Its GELU is the tanh approximation, which the weights were trained with: timm's networks get it here.

Source of the keys: google-research/vision_transformer, `vit_jax/models_mixer.py` and `vit_jax/models_vit.py`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

OPTIONS = {"gelu": "tanh"}
NAMES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
MIXER = {
    r"^MixerBlock_(\d+)\.LayerNorm_0": r"blocks.\1.norm1",
    r"^MixerBlock_(\d+)\.LayerNorm_1": r"blocks.\1.norm2",
    r"^MixerBlock_(\d+)\.token_mixing\.Dense_": r"blocks.\1.mlp_tokens.fc",
    r"^MixerBlock_(\d+)\.channel_mixing\.Dense_": r"blocks.\1.mlp_channels.fc",
    r"^pre_head_layer_norm": "norm",
    r"^stem": "stem.proj",
}
VIT = {
    r"^embedding": "patch_embed.proj",
    r"^Transformer\.encoder_norm": "norm",
    r"^Transformer\.encoderblock_(\d+)\.LayerNorm_0": r"blocks.\1.norm1",
    r"^Transformer\.encoderblock_(\d+)\.LayerNorm_[12]": r"blocks.\1.norm2",
    r"^Transformer\.encoderblock_(\d+)\.MlpBlock_[03]\.Dense_": r"blocks.\1.mlp.fc",
    r"^Transformer\.encoderblock_(\d+)\.MultiHeadDotProductAttention_[01]\.out": r"blocks.\1.attn.proj",
}
HEADS = r"MultiHeadDotProductAttention_[01]/(query|key|value)/(kernel|bias)"
ATTENTION = re.compile(rf"^Transformer/encoderblock_(\d+)/{HEADS}$")

Read = tuple[dict[str, Tensor], dict[str, Any]]


def read_mixer(state: dict[str, Tensor]) -> Read:
    """timm's keys and layouts of an MLP-Mixer from Flax's; timm's stay as they are, with timm's exact GELU."""
    return (_renamed(state, MIXER), OPTIONS) if is_flax(state) else (state, {})


def read_vit(state: dict[str, Tensor]) -> Read:
    """timm's keys and layouts of a Vision Transformer from Flax's; timm's stay as they are, with timm's exact GELU."""
    if not is_flax(state):
        return state, {}
    single = {"cls": "cls_token", "Transformer/posembed_input/pos_embedding": "pos_embed"}
    kept = {ours: state[theirs] for theirs, ours in single.items() if theirs in state}
    rest = {key: tensor for key, tensor in state.items() if key not in single and not ATTENTION.match(key)}
    return {**kept, **_attention(state), **_renamed(rest, VIT)}, OPTIONS


def is_flax(state: Mapping[str, Tensor]) -> bool:
    """Whether keys are paths in a tree of Flax."""
    return any("/" in key for key in state)


def layout(path: str, tensor: Tensor) -> Tensor:
    """A parameter of Flax as PyTorch's layers have it: outputs first, then inputs, then the window.

    A transposed convolution has (in, out, h, w), turned around in h and w: PyTorch's is the gradient of a convolution,
    Flax's a convolution of the spread-out input.
    """
    if not path.endswith("kernel"):
        return tensor
    if tensor.ndim == 4 and "ConvTranspose" in path:
        return tensor.flip(0, 1).permute(2, 3, 0, 1).contiguous()
    orders = {2: (1, 0), 4: (3, 2, 0, 1)}
    return tensor.permute(orders[tensor.ndim]).contiguous() if tensor.ndim in orders else tensor


def _renamed(state: Mapping[str, Tensor], patterns: Mapping[str, str]) -> dict[str, Tensor]:
    """Flax's paths as timm's keys. `fc_0` and `fc_1` of a dense pair count from 1 there."""
    renamed = {}
    for path, tensor in state.items():
        module, _, leaf = path.replace("/", ".").rpartition(".")
        for pattern, replacement in patterns.items():
            module = re.sub(pattern, replacement, module)
        module = re.sub(r"fc([01])$", lambda match: f"fc{int(match[1]) + 1}", module)
        if module.endswith("attn.proj") and leaf == "kernel":
            tensor = tensor.flatten(0, -2)  # (heads, of one head, out)
        renamed[f"{module}.{NAMES.get(leaf, leaf)}"] = layout(path, tensor)
    return renamed


def _attention(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one projection: kernels (in, heads, of one head), biases (heads, of one head)."""
    found: dict[str, dict[str, Tensor]] = {}
    for path, tensor in state.items():
        if match := ATTENTION.match(path):
            ours = f"blocks.{match[1]}.attn.qkv.{NAMES[match[3]]}"
            found.setdefault(ours, {})[match[2]] = tensor.flatten(1).T if match[3] == "kernel" else tensor.flatten()
    order = ("query", "key", "value")
    return {ours: torch.cat([parts[name] for name in order if name in parts]) for ours, parts in found.items()}
