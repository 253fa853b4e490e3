"""What `predict` and `evaluate` share: how an artifact's images are prepared, its classes, and its scores of images."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.runner import Runner
from mlpdeploy.engine.signature import numpy_dtype
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.images import Preprocess
from mlpdeploy.evidence.proof.runs import Run, in_batches
from mlpdeploy.selection import Selection
from mlpdeploy.zoo.recipe import done_within

ONLY = "this is for networks that classify images"
UNNAMED = float(np.finfo(np.float32).min)
"""The score of a class that an engine of the largest scores does not name."""


def preparation(artifact: Artifact, asked: Selection) -> Preprocess:
    """How images become what the engine takes: as asked, else as the artifact says."""
    (port, *others), known = artifact.manifest["inputs"], artifact.manifest["recipe"].get("images")
    _, *shape = port["shape"]
    if others or len(shape) != 3:
        raise InputError(f"{asked.name} takes no single image: {ONLY}")
    given = {"crop": asked.crop, "interpolation": asked.resize, "mean": asked.mean, "std": asked.std}
    if "images" not in artifact.manifest["recipe"]:
        raise InputError(f"{artifact.folder} is of a version that did not say how images are prepared: build it again")
    facts = dict(known or {})
    within = done_within(facts.get("pixels", ""))
    facts |= {name: value for name, value in given.items() if value is not None and name not in within}
    if "mean" not in facts:
        raise InputError(
            f"how the images of {asked.name} are prepared is not known: give --mean and --std, one number a channel"
        )
    if facts.get("pixels", "").startswith("hwc"):
        shape = [shape[2], *shape[:2]]
    if shape[0] != len(facts["mean"]):
        raise InputError(f"{asked.name} takes {shape[0]} channels, there are {len(facts['mean'])} means")
    facts |= {name: tuple(facts[name]) for name in ("mean", "std")}
    return Preprocess((shape[1], shape[2]), **facts)


def classes(artifact: Artifact) -> int:
    """How many classes the network tells apart."""
    recipe = artifact.manifest["recipe"]
    if "classes" not in recipe:
        raise InputError(f"{artifact.folder} is of a version that did not say what it classifies: build it again")
    if recipe["classes"] is None:
        raise InputError(f"{recipe['name']} gives no single row of scores for an image, one for each class: {ONLY}")
    return int(recipe["classes"])


def taking(engine: Runner, artifact: Artifact) -> Run:
    """An engine that takes images as they were read, whatever its input's own dtype is, and gives a row for each image.

    Of classes that it does not name the scores are UNNAMED.
    """
    (port,), outputs = artifact.manifest["inputs"], artifact.manifest["outputs"]
    dtype, count = numpy_dtype(port["dtype"]), classes(artifact)

    def run(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = engine({name: values.astype(dtype, copy=False) for name, values in arrays.items()})
        given, *named = (found[output["name"]] for output in outputs)
        if not named:
            return {"scores": given}
        whole = np.full((len(given), count), UNNAMED, np.float32)
        np.put_along_axis(whole, named[0], given.astype(np.float32), axis=1)
        return {"scores": whole}

    return run


def scores(run: Run, artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """The row of scores (n, classes) for each image (n, *shape), by the engine or a form of it."""
    (port,), batch = artifact.manifest["inputs"], Batch(**artifact.manifest["batch"])
    (found,) = in_batches(run, {port["name"]: images}, batch).values()
    return found
