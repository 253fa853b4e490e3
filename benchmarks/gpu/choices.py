"""Which configuration of our kernels is fastest on this GPU for each shape of the networks, put beside the kernels.

`plugins/common/measured.json` comes with the code: a build on a GPU of that name measures only what is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch

from benchmarks.gpu import networks
from mlpdeploy import kernels

RULES: tuple[tuple[str, ...], ...] = (
    (),
    ("activate_projections",),
    ("fuse_token_mlps", "activate_projections"),
    ("reorder_channels",),
    ("reorder_channels", "fuse_epilogues", "activate_projections"),
)
"""Sets of rules with which a network has other shapes of our operations."""


def jobs(names: Sequence[str], batches: Sequence[int], device: str) -> Iterator[tuple[str, str, float, Any]]:
    """A row for each network and batch, the largest batch of all first."""
    for batch in batches:
        for name in names:
            yield (
                "choices",
                f"choices {name.rpartition(':')[2]} batch {batch}",
                60,
                partial(measure, name, batch, device),
            )


def measure(name: str, batch: int, device: str) -> dict[str, Any]:
    """Measures what is not known yet; where it is written, and how many shapes of this GPU are known now."""
    for rules in RULES:
        network = networks.load(name, device, rules)
        if all(network.rules[rule] for rule in rules):
            networks.tune(network, batch, device)
    if device != "cuda":
        return {"nothing": "there is no GPU"}
    tuning: Any = kernels.load("common.tuning")
    sm: int = kernels.load("common.launching").compute_capability(torch.device(device))
    path = tuning.ship(sm)
    return {"file": path.name, "known": len(tuning.shipped(sm, path))}
