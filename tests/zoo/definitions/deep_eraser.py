"""DeepEraser: arXiv 2402.19108, section 3: an encoder, then eight steps of a gated recurrent unit on the image."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.zoo.definitions.tensors import Keys, relu, standardised

STEPS = 8


def outputs(name: str, keys: Keys, image: Tensor, mask: Tensor) -> list[Tensor]:
    """Images (b, 3, h, w) and masks (b, 1, h, w) to images without what the masks mark, after each step."""
    features = _encoded(keys / "fnet", torch.cat([image, mask], 1))
    state, context = torch.tanh(features[:, :64]), relu(features[:, 64:])
    update, restored, results = keys / "update_block", image, []
    for _ in range(STEPS):
        seen = relu((update / "encoder" / "convf1").conv(restored, 1, 3))
        seen = torch.cat([relu((update / "encoder" / "convf2").conv(seen, 1, 1)), restored], 1)
        for way, padding in (("1", (0, 2)), ("2", (2, 0))):
            state = _gated(update / "gru", way, padding, state, torch.cat([context, seen], 1))
        head = update / "pre_head"
        change = _leaky((head / "conv2").conv(_leaky((head / "conv1").conv(state, 1, 1)), 1, 1))
        restored = image + change
        results.append(restored)
    return results


def _encoded(at: Keys, x: Tensor) -> Tensor:
    x = relu(_norm((at / "conv1").conv(x, 1, 3)))
    for layer in range(1, 7):
        for block in (at / f"layer{layer}").each():
            z = relu(_norm((block / "conv1").conv(x, 1, 1)))
            z = relu(_norm((block / "conv2").conv(z, 1, 1)))
            if "downsample" in block:
                x = _norm((block / "downsample" / 0).conv(x))
            x = relu(x + z)
    return (at / "conv2").conv(x)


def _norm(x: Tensor) -> Tensor:
    return standardised(x, (2, 3), 1e-5)


def _leaky(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def _gated(at: Keys, way: str, padding: tuple[int, int], state: Tensor, given: Tensor) -> Tensor:
    both = torch.cat([state, given], 1)
    keep = torch.sigmoid((at / f"convz{way}").conv(both, 1, padding))
    reset = torch.sigmoid((at / f"convr{way}").conv(both, 1, padding))
    new = torch.tanh((at / f"convq{way}").conv(torch.cat([reset * state, given], 1), 1, padding))
    return (1 - keep) * state + keep * new
