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
from mlpdeploy.artifact.lookup import meant, reopened
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.classifying import classes, preparation, scores, taking
from mlpdeploy.errors import InputError, MlpdeployError
from mlpdeploy.evidence.proof.images import Preprocess, Skipped, image_files, read_image, readable, unreadable
from mlpdeploy.network.labels import IMAGENET, imagenet, read_labels
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import at_least
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
    at_least("--top", top, 1)
    if not paths:
        raise InputError("give an image, or a folder of them")
    stages = Stages(progress)
    selection, backend, place = meant(selection, artifact)
    with store.locked(place, stages.say, optional=True):
        with stages("open"):
            if artifact is None:
                artifact = reopened(selection, place, None)
            else:
                store.require_same(artifact)
            trust.require(artifact, backend, trusted)
            prepared, count = preparation(artifact, selection), classes(artifact)
            named = _labels(artifact, count, labels)
            served = Selection.from_json(artifact.manifest["selection"])
            if served.topk is not None and not served.softmax:
                raise InputError(f"{artifact.folder} gives the {served.topk} largest scores and no probabilities: "
                                 "build it with --softmax")  # fmt: skip
            top = min(top, served.topk or top)
        read, skipped = list[Prediction](), list[Skipped]()
        with stages("predict"), backend.load(artifact.engine, artifact.manifest["facts"]) as engine:
            run = taking(engine, artifact)
            images = _readable(paths, prepared, skipped)
            while some := [*islice(images, artifact.manifest["batch"]["opt"])]:
                files, rows = zip(*some, strict=True)
                probable = _probabilities(scores(run, artifact, np.stack(rows)), files, given=served.softmax)
                read += map(lambda file, row: _prediction(file, row, named, top), files, probable)
                stages.step("images", len(read), len(read))
    if not read and not skipped:
        raise InputError(f"no image below {', '.join(map(str, paths))}")
    if not read:
        raise unreadable(skipped)
    weights, made = artifact.manifest["weights"]["text"], f"{selection.precision} with {backend.name}"
    return Predictions(selection.name, weights, made, tuple(read), tuple(skipped))


def _labels(artifact: Artifact, classes: int, given: Path | None) -> Sequence[str] | None:
    if given is not None:
        return read_labels(given, classes)
    if (own := artifact.manifest["recipe"].get("labels")) is not None:
        return list(own)
    known = kind(artifact.manifest["selection"]["name"]) in ("recipe", "timm")
    return imagenet() if known and classes == IMAGENET else None


def _readable(paths: Sequence[Path], prepared: Preprocess, skipped: list[Skipped]) -> Iterator[tuple[Path, np.ndarray]]:
    """Files that could be read with their images; `skipped` takes those of folders that could not."""
    for path in paths:
        if path.is_dir():
            yield from readable(sorted(image_files(path)), prepared, skipped)
        else:
            yield path, read_image(path, prepared)


def _probabilities(rows: np.ndarray, files: Sequence[Path], *, given: bool = False) -> np.ndarray:
    """Softmax of each row, in float64; rows that are probabilities already, or known to be `given` as such, stay."""
    wide = rows.astype(np.float64)
    for file, row in zip(files, wide, strict=True):
        if not np.isfinite(row).all():
            raise MlpdeployError(f"the engine's outputs for {file} are not all finite: run verify")
    if given or ((wide >= 0).all() and (np.abs(wide.sum(axis=1) - 1) <= ROUNDING).all()):
        return wide
    raised = np.exp(wide - wide.max(axis=1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=1, keepdims=True))


def _prediction(file: Path, row: np.ndarray, labels: Sequence[str] | None, top: int) -> Prediction:
    best = np.argsort(-row, kind="stable")[:top]
    return Prediction(file, tuple(Guess(int(i), None if labels is None else labels[i], float(row[i])) for i in best))
