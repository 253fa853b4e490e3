"""`mlpdeploy.compile`: from a network in hand in Python to its engine, through `pipeline.build`."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy import files, pipeline
from mlpdeploy.api import Engine
from mlpdeploy.recipe import GIVEN
from mlpdeploy.selection import BATCH, Selection

if TYPE_CHECKING:
    from torch import nn

    from mlpdeploy.progress import Listener
    from mlpdeploy.source import Source


def compile(
    network: nn.Module,
    example_input: Any,
    *,
    precision: str = "fp16",
    backend: str = "auto",
    batch: str | int = BATCH,
    name: str | None = None,
    value_range: tuple[float, float] | None = None,
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
    plugin: str = "auto",
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
    call the network. The other options are those of `mlpdeploy build`.

    Raises InputError or NetworkError where the network, the example or an option cannot be used, BuildError where the
    backend refuses the network, MachineLacks where this machine cannot build with it.
    """
    from mlpdeploy.given import source_of_network

    called = name or type(network).__name__
    with files.for_a_while():
        folder = Path(out) if out is not None else Path(tempfile.mkdtemp(prefix="mlpdeploy-"))
    try:
        source = source_of_network(network, example_input, called, value_range)
        selection = Selection(
            GIVEN + called, precision, backend, str(batch), gpus=tuple(gpus), out=folder, seed=seed, io=io, level=level,
            disabled_rules=tuple(sorted(disabled_rules)), enabled_rules=tuple(sorted(enabled_rules)), plugin=plugin,
            calibration=_calibration(calibration, labels, source, folder), calibrator=calibrator,
            max_drop=max_drop, min_sqnr=min_sqnr,
        )  # fmt: skip
        engine = Engine(pipeline.build(selection, source=source, progress=progress), source)
    except BaseException:
        if out is None:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    if out is None:
        weakref.finalize(engine, _remove, folder, os.getpid())
    return engine


def _remove(folder: Path, process: int) -> None:
    """The temporary folder of an engine goes with it, in the process that made it."""
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)


def _calibration(data: Any, labels: Any, source: Source, folder: Path) -> str | None:
    """What `--calibration` would be; arrays are written into the folder of the engine."""
    import numpy as np

    from mlpdeploy.evidence.samples import LABELS, RANDOM
    from mlpdeploy.given import labelled_rows, require_prepared

    if data is None or isinstance(data, str | Path):
        if data is not None and str(data) != RANDOM:
            require_prepared(data)
        return None if data is None else str(data)
    arrays, known = labelled_rows(data, labels, [spec.name for spec in source.recipe.inputs])
    path, temporary = folder / "calibration.npz", folder / ".calibration.npz"
    with files.writing(path, everything=True):
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(temporary, **(arrays if known is None else {**arrays, LABELS: known}))
        return str(temporary.replace(path))
