"""`mlpdeploy predict`, top to bottom: an artifact, images in batches, the most probable classes of each.

artifact -> how its images are prepared, what its classes are called -> engine -> probabilities
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from mlpdeploy.artifact import store, trust
from mlpdeploy.artifact.lookup import built_folder, reopened
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.engine.backend import Runner, pick
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.programs import numpy_dtype
from mlpdeploy.errors import InputError, MlpdeployError
from mlpdeploy.evidence.proof.images import Preprocess, Skipped, image_files, read_image, readable
from mlpdeploy.evidence.proof.runs import in_batches
from mlpdeploy.network.labels import IMAGENET, imagenet, read_labels
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.system.turns import in_turn
from mlpdeploy.zoo.recipe import kind

TOP = 5
ROUNDING = 1e-2
"""How far a row of probabilities may be from a sum of 1: a thousand of them may be rounded to BF16."""


@dataclass(frozen=True)
class Guess:
    """A class by its number and, where it has one, its label, and how probable it is."""

    index: int
    label: str | None
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of an image, the first one first."""

    file: Path
    guesses: tuple[Guess, ...]


@dataclass(frozen=True)
class Predictions:
    """Those of all images that could be read, what was left out, and of which engine they are."""

    network: str
    weights: str
    engine: str
    images: tuple[Prediction, ...]
    skipped: tuple[Skipped, ...]

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        images = [{"file": str(one.file), "classes": [asdict(guess) for guess in one.guesses]} for one in self.images]
        skipped = [{"file": str(one.file), "reason": one.reason} for one in self.skipped]
        said = {"network": self.network, "weights": self.weights, "engine": self.engine}
        return {**said, "images": images, "skipped": skipped}


@in_turn
def predict(
    selection: Selection,
    paths: Sequence[Path],
    *,
    artifact: Artifact | None = None,
    labels: Path | None = None,
    top: int = TOP,
    trusted: bool = False,
    progress: Listener | None = None,
) -> Predictions:
    """The most probable classes of images: files, and folders of them in any layout.

    `artifact` is the one that is meant where it was opened before; `labels` names the classes (see `read_labels`), and
    without it ImageNet's words do where there are a thousand. Raises InputError where a file is no image, nothing in a
    folder is one, or the network classifies no images, ArtifactError where nothing of that selection is built, and
    MachineLacks where its engine cannot run here.
    """
    if top < 1:
        raise InputError(f"--top {top}: give 1 or more")
    stages = Stages(progress)
    backend = pick(selection.backend, selection.precision, selection.gpus)
    selection = selection.with_backend(backend.name)
    place = built_folder(selection, backend) if artifact is None else artifact.folder
    with store.locked(place, stages.say, optional=True):
        with stages("open"):
            artifact = reopened(selection, place, artifact)
            trust.require(artifact, backend, trusted)
            prepared, classes = _preparation(artifact, selection), _classes(artifact)
            named = _labels(artifact, classes, labels)
        read, skipped = list[Prediction](), list[Skipped]()
        with stages("predict"), backend.load(artifact.engine, artifact.manifest["facts"]) as engine:
            batch = Batch(**artifact.manifest["batch"])
            for files, images in _batches(paths, prepared, batch.opt, skipped):
                probable = _probabilities(_run(engine, artifact, batch, images), files)
                read += map(lambda file, row: _prediction(file, row, named, top), files, probable)
                stages.step("images", len(read), len(read))
    if not read and not skipped:
        raise InputError(f"no image below {', '.join(map(str, paths))}")
    if not read:
        raise InputError(f"none of the {len(skipped)} images can be read; the first: {skipped[0].file} "
                         f"{skipped[0].reason}")  # fmt: skip
    weights, made = artifact.manifest["weights"]["text"], f"{selection.precision} with {backend.name}"
    return Predictions(selection.name, weights, made, tuple(read), tuple(skipped))


def _preparation(artifact: Artifact, asked: Selection) -> Preprocess:
    """How images become what the engine takes: as asked, else as the artifact says."""
    (port, *others), known = artifact.manifest["inputs"], artifact.manifest["recipe"].get("images")
    _, *shape = port["shape"]
    if others or len(shape) != 3:
        raise InputError(f"{asked.name} takes no single image: predict is for networks that classify images")
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


def _classes(artifact: Artifact) -> int:
    """How many classes the network tells apart."""
    shapes = [port["shape"] for port in artifact.manifest["outputs"]]
    whole = any("int" in port["dtype"] or port["dtype"] == "bool" for port in artifact.manifest["outputs"])
    if len(shapes) != 1 or len(shapes[0]) != 2 or shapes[0][1] < 2 or whole:
        raise InputError(
            f"{artifact.manifest['recipe']['name']} gives no single row of scores for an image, one for each class: "
            "predict is for networks that classify images"
        )
    return int(shapes[0][1])


def _labels(artifact: Artifact, classes: int, given: Path | None) -> Sequence[str] | None:
    if given is not None:
        return read_labels(given, classes)
    known = kind(artifact.manifest["selection"]["name"]) in ("recipe", "timm")
    return imagenet() if known and classes == IMAGENET else None


def _batches(
    paths: Sequence[Path], prepared: Preprocess, size: int, skipped: list[Skipped]
) -> Iterator[tuple[list[Path], np.ndarray]]:
    """Files that could be read with their images, so many at once; `skipped` takes those of folders that could not."""

    def each() -> Iterator[tuple[Path, np.ndarray]]:
        for path in paths:
            if path.is_dir():
                yield from readable(sorted(image_files(path)), prepared, skipped)
            else:
                yield path, read_image(path, prepared)

    read = each()
    while some := [*islice(read, size)]:
        files, images = zip(*some, strict=True)
        yield [*files], np.stack(images)


def _run(engine: Runner, artifact: Artifact, batch: Batch, images: np.ndarray) -> np.ndarray:
    """The engine's row for each image."""
    (port,), (output,) = artifact.manifest["inputs"], artifact.manifest["outputs"]
    return in_batches(engine, {port["name"]: images.astype(numpy_dtype(port["dtype"]))}, batch)[output["name"]]


def _probabilities(rows: np.ndarray, files: Sequence[Path]) -> np.ndarray:
    """Softmax of each row, in float64; rows that are probabilities already stay."""
    wide = rows.astype(np.float64)
    for file, row in zip(files, wide, strict=True):
        if not np.isfinite(row).all():
            raise MlpdeployError(f"the engine's outputs for {file} are not all finite: run verify")
    if (wide >= 0).all() and (np.abs(wide.sum(axis=1) - 1) <= ROUNDING).all():
        return wide
    raised = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _prediction(file: Path, row: np.ndarray, labels: Sequence[str] | None, top: int) -> Prediction:
    best = np.argsort(-row, kind="stable")[:top]
    return Prediction(file, tuple(Guess(int(i), None if labels is None else labels[i], float(row[i])) for i in best))
