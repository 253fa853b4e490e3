"""What `predict` and `evaluate` share: how an artifact's images are prepared, its classes, and its scores of images."""

from __future__ import annotations

import numpy as np

from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.backend import Runner
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.programs import numpy_dtype
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.images import Preprocess
from mlpdeploy.evidence.proof.runs import Run, in_batches
from mlpdeploy.network.labels import classes_of
from mlpdeploy.selection import Selection

ONLY = "this is for networks that classify images"


def preparation(artifact: Artifact, asked: Selection) -> Preprocess:
    """How images become what the engine takes: as asked, else as the artifact says."""
    (port, *others), known = artifact.manifest["inputs"], artifact.manifest["recipe"].get("images")
    _, *shape = port["shape"]
    if others or len(shape) != 3:
        raise InputError(f"{asked.name} takes no single image: {ONLY}")
    given = {"crop": asked.crop, "interpolation": asked.resize, "mean": asked.mean, "std": asked.std}
    if "images" not in artifact.manifest["recipe"]:
        raise InputError(f"{artifact.folder} is of a version that did not say how images are prepared: build it again")
    facts = {**(known or {}), **{name: value for name, value in given.items() if value is not None}}
    if "mean" not in facts:
        raise InputError(
            f"how the images of {asked.name} are prepared is not known: give --mean and --std, one number a channel"
        )
    if shape[0] != len(facts["mean"]):
        raise InputError(f"{asked.name} takes {shape[0]} channels, there are {len(facts['mean'])} means")
    facts |= {name: tuple(facts[name]) for name in ("mean", "std")}
    return Preprocess((shape[1], shape[2]), **facts)


def classes(artifact: Artifact) -> int:
    """How many classes the network tells apart."""
    if (found := classes_of(artifact.manifest["outputs"])) is None:
        raise InputError(
            f"{artifact.manifest['recipe']['name']} gives no single row of scores for an image, one for each class: "
            f"{ONLY}"
        )
    return found


def taking(engine: Runner, artifact: Artifact) -> Run:
    """An engine that takes images in float32, whatever its input's own dtype is."""
    (port,) = artifact.manifest["inputs"]
    dtype = numpy_dtype(port["dtype"])
    return lambda arrays: engine({name: values.astype(dtype) for name, values in arrays.items()})


def scores(run: Run, artifact: Artifact, images: np.ndarray) -> np.ndarray:
    """The row of scores (n, classes) for each image (n, channels, height, width), by the engine or a form of it."""
    (port,), (output,) = artifact.manifest["inputs"], artifact.manifest["outputs"]
    return in_batches(run, {port["name"]: images}, Batch(**artifact.manifest["batch"]))[output["name"]]
