"""Ours against ours whose products take in what follows them, by rules that are off by default."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from benchmarks.gpu import timer
from benchmarks.gpu.networks import (
    CHECKED,
    TINY,
    Network,
    Row,
    captured,
    compiler,
    deviation,
    exact,
    first,
    load,
    low,
    throughput,
    tune,
)  # fmt: skip

EPILOGUES = ("vip_s7", "vip_s14", "raft_mlp_s")
"""Networks whose segment-grouped projections have something behind them that the kernel can compute."""

MLPS = ("mixer_b16", "mixer_s32", "resmlp_24", "gmlp_s16", "gmixer_24")
"""Networks of products over tokens and over channels."""

_EPILOGUES = {"epilogues": ("fuse_epilogues", "hoist_reweighting")}
_MLPS = {
    "activated": ("activate_projections",),
    "token MLPs": ("fuse_token_mlps",),
    "token MLPs, activated": ("fuse_token_mlps", "activate_projections"),
}
TINY_MIXER = "benchmarks.gpu.fused:tiny_mixer"


def tiny_mixer() -> nn.Module:
    """A Mixer of two blocks, for dry runs."""
    from timm.models.mlp_mixer import MlpMixer

    network = MlpMixer(img_size=16, patch_size=4, num_blocks=2, embed_dim=12, num_classes=10).eval()
    network.head = nn.Linear(12, 10)  # timm's own is 0 until it has learned
    return network


def contenders(name: str, device: str) -> dict[str, Network]:
    """The network as it is by default, and by each set of rules that all fire in it: none where they leave it alone."""
    found = {"ours": load(name, device)}
    for label, rules in (_EPILOGUES if name in (*EPILOGUES, TINY) else _MLPS).items():
        network = load(name, device, rules)
        if all(network.rules[rule] for rule in rules):
            found[label] = network
    return found


def prepare(name: str, batch: int, device: str, dry: bool, seconds: float) -> Callable[[], Row]:
    """Compiles a network with and without the rules, and captures each as a CUDA graph; what measures them."""
    found = contenders(name, device)
    if len(found) == 1:
        return lambda: {"nothing": "none of the rules fires"}
    ours, compiled = found["ours"], compiler(dry)
    images = ours.images(max(batch, CHECKED), device).to(low(device))
    for network in found.values():
        tune(network, batch, device)
    with torch.inference_mode():
        wanted = exact(ours.plain, images[:CHECKED].float())
        runs = {label: captured(compiled(network.ours), images[:batch]) for label, network in found.items()}
        errors = {label: deviation(first(run()), wanted) for label, run in runs.items()}

    def measure() -> Row:
        with torch.inference_mode():
            taken = timer.measure(runs, seconds=seconds)
        speed = throughput(taken, batch)
        return {"times": timer.row(taken, "ours"), "errors": errors, "images_per_second": speed}

    return measure
