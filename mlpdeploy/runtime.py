"""Engines without PyTorch: an artifact is opened, held against its manifest, and called on NumPy arrays.

    engine = mlpdeploy.runtime.open("artifacts/vip_s14/fp32/openvino")
    outputs = engine({"image": images})

Only NumPy (with ml_dtypes, which names its BF16) and the engine's own library are imported, so a server needs neither
PyTorch nor what builds engines. An engine of `inductor` is PyTorch's, and loads it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import store, trust
from mlpdeploy.engine.held import Held, Holding
from mlpdeploy.engine.signature import Port, Signature

if TYPE_CHECKING:
    import numpy as np

    from mlpdeploy.engine.runner import Arrays


class Engine(Holding):
    """An artifact's engine: loaded by the first call, until `close` (it is a context manager too).

    `inputs` and `outputs` say what it takes and gives. Several threads may call it at once.
    """

    def __init__(self, artifact: store.Artifact, *, trusted: bool = False) -> None:
        self.manifest: dict[str, Any] = artifact.manifest
        signature = Signature.from_facts(artifact.manifest["facts"])
        self.inputs: tuple[Port, ...] = signature.inputs
        self.outputs: tuple[Port, ...] = signature.outputs
        self._held = Held(
            artifact.manifest["backend"], artifact.engine, artifact.manifest["facts"],
            lambda backend: trust.require(artifact, backend, trusted),
        )  # fmt: skip

    def __call__(self, inputs: Arrays) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, batch first, all in the dtypes of the engine's ports.

        Raises MachineLacks where this machine cannot run the engine, InputError where the inputs do not fit it, and
        ArtifactError where it is another library's or GPU's, or somebody else's and holds code (see `open`).
        """
        return self._held(inputs)


def open(path: str | Path, *, trusted: bool = False) -> Engine:
    """The engine of an artifact, every file of which is held against the manifest.

    `trusted` runs the code in an engine that somebody else built, as in `mlpdeploy.load`. Raises ArtifactError where
    there is no artifact, where a file is missing or altered, or where another version wrote it.
    """
    return Engine(store.open_artifact(Path(path)), trusted=trusted)
