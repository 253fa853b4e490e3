"""The time of each layer in the form of `trtexec --exportProfile`, which NVIDIA's report tools read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from statistics import mean

from mlpdeploy.engine.backend import LayerTime


def text(layers: Sequence[LayerTime]) -> str:
    """How often each was measured, then a record a layer: milliseconds in all, by mean and median, percent of all."""
    whole = sum(sum(layer.times) for layer in layers) or 1.0
    records = [
        {
            "name": layer.name,
            "timeMs": 1e3 * sum(layer.times),
            "averageMs": 1e3 * mean(layer.times),
            "medianMs": 1e3 * layer.seconds,
            "percentage": 100 * sum(layer.times) / whole,
        }
        for layer in layers
    ]
    count = max((len(layer.times) for layer in layers), default=0)
    return json.dumps([{"count": count}, *records], indent=1, allow_nan=False) + "\n"
