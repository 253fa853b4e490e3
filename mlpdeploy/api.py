"""Engines as Python objects: compile a network in hand, call its engine, prove it, keep it.

    >>> import torch, mlpdeploy
    >>> network = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    >>> engine = mlpdeploy.compile(network, torch.randn(2, 8), precision="fp32", backend="onnxruntime", batch="1:4:16")
    >>> engine
    <mlpdeploy.Engine python:Sequential fp32 onnxruntime, batch 1:4:16>
    >>> engine(torch.randn(3, 8)).shape
    torch.Size([3, 4])
    >>> engine.verify().verdict()
    'passed'
    >>> folder = engine.save("engines/mine")
    >>> again = mlpdeploy.load("engines/mine")
    >>> x = torch.randn(3, 8)
    >>> bool((again(x) == engine(x)).all())
    True

`compile` goes through `pipeline.build`, as `mlpdeploy build` does, and `Engine.verify` through `pipeline.verify`.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import pipeline
from mlpdeploy.artifact import store
from mlpdeploy.engine.runner import Loading
from mlpdeploy.handle import Engine, floats
from mlpdeploy.selection import Selection
from mlpdeploy.selection.choice import BATCH
from mlpdeploy.selection.types import words
from mlpdeploy.system.files import write
from mlpdeploy.system.leftovers import for_a_while
from mlpdeploy.system.turns import in_turn
from mlpdeploy.zoo.recipe import GIVEN

if TYPE_CHECKING:
    from torch import nn

    from mlpdeploy.network.source import Source
    from mlpdeploy.progress import Listener


@in_turn
def compile(
    network: nn.Module,
    example_input: Any,
    *,
    precision: str = "fp16",
    backend: str = "auto",
    batch: str | int = BATCH,
    name: str | None = None,
    value_range: tuple[float, float] | None = None,
    input_names: Sequence[str] = (),
    output_names: Sequence[str] = (),
    gpus: Sequence[str] = (),
    io: str = "fp32",
    level: int | None = None,
    seed: int = 0,
    disabled_rules: Sequence[str] = (),
    enabled_rules: Sequence[str] = (),
    calibration: Any = None,
    labels: Any = None,
    calibrator: str = "auto",
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    crop: float | None = None,
    resize: str | None = None,
    limit: int | None = None,
    plugin: str = "auto",
    pixels: str | None = None,
    normalize: bool = False,
    softmax: bool = False,
    topk: int | None = None,
    class_labels: str | Path | Sequence[str] | None = None,
    features: Sequence[str] = (),
    timing_cache: str | Path | None = None,
    build_route: str = "",
    search: float | None = None,
    tactics: float | None = None,
    cuda_graphs: bool = True,
    out: str | Path | None = None,
    progress: Listener | None = None,
) -> Engine:
    """Build the engine of a network in hand; the network itself stays as it is.

    `example_input` says what the network takes: a tensor or array with a batch in front, or a tuple or mapping of them
    for several arguments. Its batch size does not matter; `batch` gives those that the engine takes, MIN:OPT:MAX or one
    number. Random rows, for ranges and verification, are standard normal, or uniform in `value_range`; integers stay
    between the example's smallest and largest value.

    The engine lies in a temporary folder that goes with the Engine object, unless `out` names a folder: there it stays,
    as `mlpdeploy build` leaves it, and the same build again is found. `name` (default: the class's) is what reports
    call the network; `input_names` and `output_names` are what the engine calls what it takes and gives, in their order
    (default: the names that the network gives them). Images of a folder need `mean` and `std`, and so do `pixels` and
    `normalize`, with which the engine prepares images itself: the example is still what the network takes, and what
    comes from data is what the engine takes. `class_labels` are the classes' names, or a file of them. `search` are
    seconds in which is found by measurement which rules and forms pay, `tactics` those for TensorRT's build routes;
    what is found is kept in `out`. On a GPU what
    the engine computes is one CUDA graph for each batch size, unless `cuda_graphs` is False. The other options are
    those of `mlpdeploy build`. Threads take turns here; a network that another thread calls meanwhile can be torn by
    torch.export, which changes how modules are called in the whole process.

    Raises InputError or NetworkError where the network, the example or an option cannot be used, BuildError where the
    backend refuses the network, MachineLacks where this machine cannot build with it.
    """
    from mlpdeploy.network.in_hand import source_of_network

    called = name or type(network).__name__
    names = words("input_names", input_names), words("output_names", output_names)
    without, more = (
        sorted(words(*one)) for one in (("disabled_rules", disabled_rules), ("enabled_rules", enabled_rules))
    )
    with for_a_while():
        folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="mlpdeploy-"))
    try:
        source = source_of_network(network, example_input, called, value_range).called(*names)
        selection = Selection(
            GIVEN + called, precision, backend, str(batch), gpus=words("gpus", gpus), out=folder, seed=seed, io=io,
            level=level,
            disabled_rules=tuple(without), enabled_rules=tuple(more), plugin=plugin,
            calibration=_calibration(calibration, labels, source, folder), calibrator=calibrator,
            max_drop=max_drop, min_sqnr=min_sqnr, mean=floats(mean), std=floats(std), crop=crop, resize=resize,
            pixels=pixels, normalize=normalize, softmax=softmax, topk=topk, labels=_label_file(class_labels, folder),
            features=words("features", features), timing_cache=None if timing_cache is None else Path(timing_cache),
            limit=limit, route=build_route, input_names=names[0], output_names=names[1],
        )  # fmt: skip
        artifact = pipeline.build(selection, source=source, search=search, tactics=tactics, progress=progress)
        engine = Engine(artifact, source, loading=Loading(cuda_graphs=cuda_graphs))
    except BaseException:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if out is None:
        engine.temporary = True
        weakref.finalize(engine, _remove, folder, os.getpid())
    return engine


def _remove(folder: Path, process: int) -> None:
    """The temporary folder of an engine goes with it, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def load(path: str | Path, *, trusted: bool = False, cuda_graphs: bool = True) -> Engine:
    """The engine of an artifact: a folder that `Engine.save` or `mlpdeploy build` wrote, or a file in it.

    Loading, reporting and saving run nothing that the artifact holds. Some engines hold code that runs when they are
    called (those of inductor and TensorRT), and an artifact may name code to import (`package.module:factory`). Of one
    that you did not build here yourself, that is refused unless you say `trusted=True`: as with a pickle, do so only if
    you trust who made it. `cuda_graphs` is what `compile` has.

    Raises ArtifactError where there is none, where a file is missing or altered, or where another version wrote it.
    """
    return Engine(store.open_artifact(Path(path)), trusted=trusted, loading=Loading(cuda_graphs=cuda_graphs))


def _label_file(labels: str | Path | Sequence[str] | None, folder: Path) -> Path | None:
    """What `--labels` would be; a sequence is written into the folder of the engine."""
    if labels is None or isinstance(labels, str | Path):
        return None if labels is None else Path(labels)
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / "labels.json", json.dumps(list(labels)))
    return folder / "labels.json"


def _calibration(data: Any, labels: Any, source: Source, folder: Path) -> str | None:
    """What `--calibration` would be; arrays are written into the folder of the engine."""
    import numpy as np

    from mlpdeploy.evidence.proof.samples import LABELS
    from mlpdeploy.network.in_hand import rows_of

    if data is None or isinstance(data, str | Path):
        return None if data is None else str(data)
    arrays, known = rows_of(data, labels, [spec.name for spec in source.recipe.inputs])
    folder.mkdir(parents=True, exist_ok=True)
    path, temporary = folder / "calibration.npz", folder / ".calibration.npz"
    np.savez(temporary, **(arrays if known is None else {**arrays, LABELS: known}))
    return str(temporary.replace(path))
