"""Images as a network takes them that normalises by itself."""

from __future__ import annotations

import numpy as np

from mlpdeploy.zoo.recipe import UNIT


def laid_out(image: np.ndarray, pixels: str) -> np.ndarray:
    """An image (..., channels, height, width) as a network takes it (see `Recipe.pixels`): bytes in their layout."""
    if pixels in ("", UNIT):
        return image
    rounded = np.rint(image * 255).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(rounded, -3, -1)) if pixels.startswith("hwc") else rounded
