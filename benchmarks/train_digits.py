"""Trains the two small networks of `tests/fixtures` on scikit-learn's digits: python -m benchmarks.train_digits

Deterministic on one machine: one core, fixed seeds, PyTorch's deterministic algorithms. Under three minutes each.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.digits import FIXTURES, accuracy, make_network, split

SPLIT_SEED = 0
CONFIGS: dict[str, dict[str, Any]] = {
    "vip_digits": {
        "layers": (1, 1), "dims": (40, 40), "segments": (8, 8), "transitions": (False, False),
        "patch_size": 1, "image_size": 8, "in_chans": 1, "num_classes": 10,
    },
    "mixer_digits": {
        "img_size": 8, "patch_size": 2, "in_chans": 1, "num_classes": 10, "embed_dim": 48, "num_blocks": 4,
        "mlp_ratio": (0.5, 3.0),
    },
}  # fmt: skip

EPOCHS = {"vip_digits": 200, "mixer_digits": 100}


def augment(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image turned by up to 12 degrees, scaled by up to 10 % and moved by up to one pixel; (n, 1, 8, 8)."""
    n = images.shape[0]
    angle, scale, dx, dy = (torch.rand(4, n, generator=generator) * 2 - 1).unbind()
    angle, scale = angle * 0.21, 1 + 0.1 * scale
    # Grid coordinates run from -1 to 1 over 8 pixels: one pixel is 0.25.
    theta = torch.stack(
        [scale * angle.cos(), -scale * angle.sin(), 0.25 * dx, scale * angle.sin(), scale * angle.cos(), 0.25 * dy], 1
    ).reshape(n, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    # Digits are drawn on a background of -1, and padding is 0: shift, sample, shift back.
    return F.grid_sample(images + 1, grid, align_corners=False) - 1


def train(name: str, epochs: int, seed: int) -> tuple[nn.Module, float, float]:
    """A trained network in eval mode, its accuracy on the test images, and the seconds it took."""
    began = time.monotonic()
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels, test, test_labels = split(SPLIT_SEED)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    network = make_network(name, CONFIGS[name]).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=0.05)
    steps = -(-len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=epochs * steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            loss = F.cross_entropy(network(augment(x[rows], generator)), y[rows], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()
    return network, accuracy(network, test, np.asarray(test_labels)), time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(CONFIGS), help="networks to train (default: both)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=FIXTURES)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    arguments.out.mkdir(parents=True, exist_ok=True)
    for name in arguments.names:
        network, top1, seconds = train(name, EPOCHS[name], arguments.seed)
        file = arguments.out / f"{name}.safetensors"
        metadata = {
            "network": name,
            "config": json.dumps(CONFIGS[name]),
            "data": "scikit-learn digits, 1197 to train, 600 to test",
            "split_seed": str(SPLIT_SEED),
            "train_seed": str(arguments.seed),
            "epochs": str(EPOCHS[name]),
            "test_top1": f"{top1:.4f}",
        }
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, file, metadata)
        print(f"{name}: top-1 {100 * top1:.2f} % in {seconds:.0f} s, {file.stat().st_size / 1000:.0f} kB, {file}")


if __name__ == "__main__":
    main()
