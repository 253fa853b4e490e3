"""Ours against ours whose products take in more of what follows them, or less."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from benchmarks.gpu.networks import (
    CHECKED,
    TINY,
    Network,
    Row,
    captured,
    compiler,
    exact,
    load,
    low,
    timed,
    tune,
)  # fmt: skip

EPILOGUES = ("vip_s7", "vip_s14", "raft_mlp_s")
"""Networks whose segment-grouped projections have something behind them that the kernel can compute."""

MLPS = ("mixer_b16", "mixer_s32", "resmlp_24", "gmlp_s16", "gmixer_24")
"""Networks of products over tokens and over channels."""

Change = tuple[tuple[str, ...], tuple[str, ...]]
"""Rules that are left out, and put in."""
_EPILOGUES: dict[str, Change] = {
    "hoisted": ((), ("hoist_reweighting",)),
    "without epilogues": (("activate_projections",), ()),
}
_MLPS: dict[str, Change] = {
    "without GELU": (("activate_projections",), ()),
    "token MLPs": ((), ("fuse_token_mlps",)),
    "token MLPs, without GELU": (("activate_projections",), ("fuse_token_mlps",)),
}
TINY_MIXER = "benchmarks.gpu.fused:tiny_mixer"


def tiny_mixer() -> nn.Module:
    """A Mixer of two blocks, for dry runs."""
    from timm.models.mlp_mixer import MlpMixer

    network = MlpMixer(img_size=16, patch_size=4, num_blocks=2, embed_dim=12, num_classes=10).eval()
    network.head = nn.Linear(12, 10)  # timm's own is 0 until it has learned
    return network


def contenders(name: str, device: str) -> dict[str, Network]:
    """The network as it is by default, and by each change whose rules fire in it: none where they leave it alone."""
    ours = load(name, device)
    found = {"ours": ours}
    for label, (left_out, put_in) in (_EPILOGUES if name in (*EPILOGUES, TINY) else _MLPS).items():
        network = load(name, device, put_in, left_out)
        if all(network.rules[rule] for rule in put_in) and all(ours.rules[rule] for rule in left_out):
            found[label] = network
    return found


def measure(known: Row, name: str, batch: int, device: str, dry: bool, seconds: float) -> Iterator[Row]:
    """Compiles a network with and without the rules, captures each as a CUDA graph and times them."""
    found = contenders(name, device)
    if len(found) == 1:
        yield {"nothing": "none of the rules fires"}
        return
    ours, compiled = found["ours"], compiler(dry)
    images = ours.images(max(batch, CHECKED), device).to(low(device))
    for network in found.values():
        tune(network, batch, device)
    with torch.inference_mode():
        wanted = exact(ours.plain, images[:CHECKED].float())
        runs = {label: captured(compiled(network.ours), images[:batch]) for label, network in found.items()}
        yield timed(runs, wanted, batch, seconds)
