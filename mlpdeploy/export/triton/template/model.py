"""A model for Triton's Python backend: the engine whose artifact lies beside this file. mlpdeploy's export copies it.

The server's Python needs mlpdeploy, NumPy and the engine's own library, and no PyTorch (see `mlpdeploy.runtime`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

from mlpdeploy import runtime
from mlpdeploy.engine import nvidia
from mlpdeploy.errors import MlpdeployError


class TritonPythonModel:
    """What the backend makes of each instance, and calls."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artifact of this version, on this instance's GPU where it has one.

        Who runs this file trusts the engine that was written with it.
        """
        if args["model_instance_kind"] == "GPU":
            nvidia.see(args["model_instance_device_id"])
        folder = Path(args["model_repository"]) / args["model_version"]
        self.engine = runtime.open(folder / "artifact", trusted=True)
        self.batched = json.loads(args["model_config"])["max_batch_size"] > 0

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request: those that the server batched are one call of the engine."""
        together = [requests] if self.batched else [[request] for request in requests]
        return [response for some in together for response in self._answered(some)]

    def finalize(self) -> None:
        """Let go of the engine."""
        self.engine.close()

    def _answered(self, requests: Sequence[Any]) -> list[Any]:
        given = {port.name: [_array(request, port.name) for request in requests] for port in self.engine.inputs}
        counts = [len(array) for array in next(iter(given.values()))]
        try:
            outputs = self.engine({name: np.concatenate(arrays) for name, arrays in given.items()})
        except MlpdeployError as error:
            return [triton.InferenceResponse(error=triton.TritonError(str(error))) for _ in requests]
        ends = np.cumsum(counts)[:-1]
        parts = {name: np.split(array, ends) for name, array in outputs.items()}
        return [
            triton.InferenceResponse([triton.Tensor(name, each[place]) for name, each in parts.items()])
            for place in range(len(requests))
        ]


def _array(request: Any, name: str) -> np.ndarray:
    return np.asarray(triton.get_input_tensor_by_name(request, name).as_numpy())
