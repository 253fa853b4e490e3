"""What the ladder compares with: rows of input, and what the network itself makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Arrays
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.compare import usual
from mlpdeploy.evidence.proof.edges import Edges
from mlpdeploy.evidence.proof.runs import SINGLE, Outputs, Run, in_batches, module_run
from mlpdeploy.graph.tracing.trace import TensorSpec

DISTINCT_ROWS = 8


@dataclass(frozen=True)
class Reference:
    """Distinct rows and extreme ones with the network's outputs; `images` and `labels` are those of `--data`."""

    rows: Arrays
    outputs: Outputs
    edges: Edges
    images: Arrays = field(default_factory=dict)
    image_outputs: Outputs = field(default_factory=dict)
    labels: np.ndarray | None = None

    def usual(self, name: str) -> float:
        """The size of a row of one output (see `compare.usual`)."""
        return usual(self.outputs, name)

    @property
    def count(self) -> int:
        """How many distinct rows there are."""
        return len(next(iter(self.rows.values())))


def in_float32(
    network: nn.Module,
    inputs: Sequence[TensorSpec],
    names: Sequence[str],
    samples: Arrays | None,
    labels: np.ndarray | None,
    batch: Batch,
    seed: int,
    real: Arrays | None,
    edges: Edges,
) -> Reference:
    """The distinct rows, the extreme ones and the images with the float32 network's outputs for them.

    The distinct rows are some of the `real` ones, or else random; the extreme ones are those of `edges`.
    """
    run = module_run(network, inputs, names, torch.float32)
    rows = distinct_rows(inputs, real, min(DISTINCT_ROWS, batch.max), seed)
    # One row at a time: the reference itself must not depend on who else is in the batch.
    outputs = in_batches(run, rows, SINGLE)
    images = {} if samples is None else {spec.name: samples[spec.name] for spec in inputs}
    image_outputs = in_batches(run, images, batch) if images else {}
    require_finite(outputs)
    require_finite(image_outputs)
    return Reference(rows, outputs, edges.made_by(run), images, image_outputs, labels)


def require_finite(outputs: Outputs) -> None:
    """Raise InputError where the network itself gives NaN or infinity."""
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise InputError(
                f"the network's own output {name!r} holds NaN or infinity, so nothing can be verified against it: "
                "check the checkpoint and the inputs"
            )


def as_made_by(run: Run, of: Reference, batch: Batch) -> Reference:
    """The same rows and images with the outputs of `run`, one row at a time like the network's."""
    rows, images = in_batches(run, of.rows, SINGLE), in_batches(run, of.images, batch) if of.images else {}
    return replace(of, outputs=rows, image_outputs=images, edges=of.edges.made_by(run))


def distinct_rows(inputs: Sequence[TensorSpec], samples: Arrays | None, count: int, seed: int) -> Arrays:
    """`count` rows of every input: real ones, evenly spread, as far as there are, else random ones."""
    rng = np.random.default_rng(seed)
    rows = {}
    for spec in inputs:
        real = None
        if samples is not None:
            if spec.name not in samples or samples[spec.name].shape[1:] != spec.shape or not len(samples[spec.name]):
                got = {name: values.shape for name, values in samples.items()}
                raise InputError(f"input {spec.name!r} takes rows of shape {spec.shape}, the samples given are {got}")
            taken = min(count, len(samples[spec.name]))
            real = samples[spec.name][np.arange(taken) * len(samples[spec.name]) // taken]
        missing = count - (0 if real is None else len(real))
        parts = [*([] if real is None else [real]), *([spec.draw(missing, rng)] if missing else [])]
        rows[spec.name] = np.concatenate(parts)
    return rows
