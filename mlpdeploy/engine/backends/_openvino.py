"""An inference request of OpenVINO as a context: it reads the caller's arrays, and its outputs are copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine.signature import Signature, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    from mlpdeploy.engine.runner import Arrays


def places(ports: Sequence[Any]) -> dict[str, int]:
    """The places of an engine's inputs, or outputs, by name; inputs that no operation reads are none."""
    return {name: place for place, port in enumerate(ports) for name in port.get_names()}


def shared(openvino: Any, array: np.ndarray) -> Any:
    """A tensor that is the array's memory. It holds the array; a request that it is bound to does not."""
    array = array if array.flags.c_contiguous else array.copy()
    if array.dtype.kind == "V":  # BF16, which NumPy knows through ml_dtypes
        return openvino.Tensor(array.view("uint16"), array.shape, openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


class Request:
    """A context: an inference request, which reads the caller's arrays and whose outputs are copied into the caller's.

    Outputs are not bound: engines that are let go of and loaded anew while requests have bound outputs end the process
    at times, by a segmentation fault.
    """

    def __init__(self, openvino: Any, compiled: Any, signature: Signature) -> None:
        self._openvino, self._request = openvino, compiled.create_infer_request()
        inputs, outputs = places(compiled.inputs), places(compiled.outputs)
        self._read = [(place, name) for name, place in inputs.items() if name in {one.name for one in signature.inputs}]
        self._made = [(outputs[port.name], port.name, numpy_dtype(port.dtype)) for port in signature.outputs]

    def __call__(self, inputs: Arrays, outputs: Arrays) -> None:
        given = {place: shared(self._openvino, inputs[name]) for place, name in self._read}
        results = self._request.infer(given, share_outputs=True)
        for place, name, dtype in self._made:
            outputs[name][...] = results[place].view(dtype) if dtype.kind == "V" else results[place]
