"""SwinCheX: arXiv 2206.04246, section 3: Swin in the authors' layout, and a small MLP for each of 14 findings."""

from __future__ import annotations

from torch import Tensor

from tests.zoo.definitions import swin
from tests.zoo.definitions.tensors import Keys, relu


def outputs(name: str, keys: Keys, image: Tensor) -> list[Tensor]:
    """Images (b, 3, h, w) to the logits (b, 2) of every finding."""
    seen = swin.features(keys, image)
    levels = [keys / level for level in ("heads", "heads2", "heads3", "heads4") if level in keys]
    results = []
    for finding in range(14):
        x = (levels[0] / finding).linear(seen)
        for level in levels[1:]:
            x = (level / finding).linear(relu(x))
        results.append(x)
    return results
