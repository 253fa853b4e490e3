"""`mlpdeploy evaluate`, top to bottom: an artifact and a folder of classes; how often its engine is right, and PyTorch.

artifact, network -> engine, typed graph, PyTorch -> images in batches -> places of the right class -> test
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from mlpdeploy.artifact import cache, manifest, store, trust
from mlpdeploy.artifact.lookup import check_traced, meant, reopened
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.calibration import Calibration
from mlpdeploy.commands.classifying import classes, preparation, scores, taking
from mlpdeploy.commands.tally import Kept, Tally
from mlpdeploy.engine import host
from mlpdeploy.engine.backend import Backend
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.evidence.documents.evaluation import ENGINE, PYTORCH, TYPED, Evaluation
from mlpdeploy.evidence.proof.accuracy import TOP, places
from mlpdeploy.evidence.proof.class_folder import ClassFolder, class_folder
from mlpdeploy.evidence.proof.images import Preprocess, Skipped, readable, require_images, unreadable
from mlpdeploy.evidence.proof.runs import Run, module_run, typed_run
from mlpdeploy.evidence.report import reporting
from mlpdeploy.network.labels import read_class_map
from mlpdeploy.progress import Listener, Stages
from mlpdeploy.selection import Selection
from mlpdeploy.selection.checks import at_least, distinct, one_of
from mlpdeploy.stages import compiled_again, load, trace_network
from mlpdeploy.system.turns import in_turn

if TYPE_CHECKING:
    from mlpdeploy.network.source import Source

CONTENDERS = {"engine": ENGINE, "typed": TYPED, "pytorch": PYTORCH}
"""What can be evaluated, as it is asked for and as it is called."""
EVERY = 5.0
"""Seconds after which what was counted is kept on the disk."""
MOST_WORKERS = 8


@in_turn
def evaluate(
    selection: Selection,
    data: Path,
    *,
    source: Source | None = None,
    artifact: Artifact | None = None,
    only: Sequence[str] = tuple(CONTENDERS),
    class_map: Path | None = None,
    limit: int | None = None,
    workers: int | None = None,
    restart: bool = False,
    trusted: bool = False,
    progress: Listener | None = None,
) -> Evaluation:
    """How often the engine, the typed graph and PyTorch are right on a folder of classes, or those that `only` names.

    The images below `data`, or `limit` of them, are read by so many `workers` (0: by this process; None: by half as
    many as there are cores) and forgotten: a byte for each image and contender is kept, on the disk too, so that the
    same call goes on where another one was interrupted, unless it is to `restart`. `class_map` is a file with the names
    of sub-folders (see `read_class_map`). What was found is written beside the engine, as evaluation.json.

    `source` is the network itself where it is in hand, `artifact` the engine where it was opened before. Raises
    InputError where the folder does not tell the classes, nothing in it can be read, or the network classifies no
    images, ArtifactError where nothing of that selection is built, and MachineLacks where its engine cannot run here.
    """
    for option, value, least in (("--limit", limit, 1), ("--workers", workers, 0)):
        at_least(option, value, least)
    if not only:
        raise InputError(f"--only: name one of {', '.join(CONTENDERS)} at least")
    for name in only:
        one_of("--only", name, tuple(CONTENDERS))
    distinct("--only", only)
    require_images(data)
    stages, names = Stages(progress), [CONTENDERS[name] for name in CONTENDERS if name in only]
    selection, backend, folder = meant(selection, artifact)
    with store.locked(folder, stages.say, optional=True), ExitStack() as stack:
        with stages("open"):
            artifact = reopened(selection, folder, artifact, source)
            if ENGINE in names:
                _require_runs(artifact, backend, trusted)
                _require_top(artifact)
            prepared, count = preparation(artifact, selection), classes(artifact)
        with stages("list images"):
            named = None if class_map is None else read_class_map(class_map, count)
            images = class_folder(data, count, named, limit)
        for line in (told := [*_told(images), f"images {prepared}"]):
            stages.say(line)
        runs = dict(_networks(artifact, selection, backend, source, names, stages))
        if ENGINE in names:
            engine = stack.enter_context(backend.load(artifact.engine, artifact.manifest["facts"]))
            runs[ENGINE] = taking(engine, artifact)
        kept = Kept(folder, _about(artifact, images, prepared, names), stages)
        empty = Tally.empty(names, len(images.files))
        tally = empty if restart else kept.read(empty)
        with stages("evaluate"):
            ordered = {name: runs[name] for name in names}
            _count(tally, kept, ordered, artifact, images, prepared, _workers(workers), stages)
        found = tally.evaluation(told)
        try:
            store.attach(artifact, store.EVALUATION, store.dump(manifest.evidence(artifact.manifest, found)))
            store.attach(artifact, store.REPORT, reporting.in_markdown(artifact))
            kept.forget()
        except InputError as error:
            stages.warn(f"what was found is not kept beside the engine: {error}")
    return found


def _require_runs(artifact: Artifact, backend: Backend, trusted: bool) -> None:
    """Raise MachineLacks, or ArtifactError, where the engine cannot run here: before a network is loaded."""
    if (reason := backend.executable()) is not None:
        raise MachineLacks(f"{reason}; --only typed,pytorch evaluates without the engine")
    trust.require(artifact, backend, trusted)


def _require_top(artifact: Artifact) -> None:
    """Raise InputError where an engine names fewer classes than are looked at."""
    count, topk = min(TOP, classes(artifact)), Selection.from_json(artifact.manifest["selection"]).topk
    if topk is not None and topk < count:
        raise InputError(f"{artifact.folder} names {topk} classes, and top-{TOP} takes {count}: build it with more")


def _told(images: ClassFolder) -> Iterator[str]:
    """What is evaluated on, in words."""
    sample = "" if len(images.files) == images.found else f", spread evenly over {images.found}"
    yield f"{len(images.files)} images of {images.classes} classes below {images.folder}{sample}"


def _networks(
    artifact: Artifact,
    selection: Selection,
    backend: Backend,
    source: Source | None,
    names: Sequence[str],
    stages: Stages,
) -> Iterator[tuple[str, Run]]:
    """The network that the engine was built from, in float32, and its typed graph: those of them that are named."""
    if not {TYPED, PYTORCH} & {*names}:
        return
    source = (source or load(selection, stages)).with_images(Selection.from_json(artifact.manifest["selection"]))
    traced = trace_network(source, stages, selection.profile)
    check_traced(artifact, traced)
    outputs = [spec.name for spec in traced.outputs]
    if PYTORCH in names:
        import torch

        yield PYTORCH, module_run(source.network, traced.inputs, outputs, torch.float32)
    if TYPED in names:
        calibration = Calibration.load(artifact.folder) if selection.quantised else None
        typed = compiled_again(artifact, traced, selection, backend, calibration, stages).typed
        yield TYPED, typed_run(typed.module, typed.inputs, outputs)


def _about(artifact: Artifact, images: ClassFolder, prepared: Preprocess, names: Sequence[str]) -> dict[str, object]:
    """What a tally depends on, by its name."""
    return {
        "engine": {name: facts["sha256"] for name, facts in artifact.manifest["files"].items()},
        "images": images.digest,
        "preparation": asdict(prepared),
        "contenders": list(names),
        "versions": cache.versions(),
    }


def _count(
    tally: Tally,
    kept: Kept,
    runs: Mapping[str, Run],
    artifact: Artifact,
    images: ClassFolder,
    prepared: Preprocess,
    workers: int,
    stages: Stages,
) -> None:
    """Count the images that are left, a batch of the engine at a time, and keep what was counted now and then."""
    total, first, skipped = len(images.files), tally.done, list[Skipped]()

    def finish(count: int) -> None:
        tally.skipped |= {os.fsencode(one.file).decode(errors="replace"): one.reason for one in skipped}
        skipped.clear()
        tally.done = count
        stages.step("images", count, total)

    place = {file: first + index for index, file in enumerate(images.files[first:])}
    at_once, saved = artifact.manifest["batch"]["opt"], time.monotonic()
    try:
        with closing(readable(images.files[first:], prepared, skipped, workers)) as read:
            while some := [*islice(read, at_once)]:
                files, rows = zip(*some, strict=True)
                at = [place[file] for file in files]
                tally.marks[:, at] = _marks(runs, artifact, np.stack(rows), images.labels[at])
                finish(at[-1] + 1)
                if time.monotonic() - saved > EVERY:
                    kept.write(tally)
                    saved = time.monotonic()
        finish(total)
    finally:
        if tally.left and tally.done > first:
            kept.write(tally)
    if tally.unread == total:
        raise unreadable([Skipped(Path(file), reason) for file, reason in tally.skipped.items()], total)


def _marks(runs: Mapping[str, Run], artifact: Artifact, images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The place of the right class in each contender's scores, and whether engine and PyTorch agree on the first."""
    found = [scores(run, artifact, images).astype(np.float32) for run in runs.values()]
    first, last = found[0], found[-1]  # the engine and PyTorch, where both are among them
    return np.stack([*(places(rows, labels) for rows in found), first.argmax(axis=1) == last.argmax(axis=1)])


def _workers(asked: int | None) -> int:
    return min(host.cores() // 2, MOST_WORKERS) if asked is None else asked
