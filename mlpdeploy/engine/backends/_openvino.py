"""An inference request of OpenVINO as a context: it reads the caller's arrays, and its outputs are copied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlpdeploy.engine.signature import Signature, numpy_dtype

if TYPE_CHECKING:
    import numpy as np

    from mlpdeploy.engine.runner import Arrays


BF16 = "bfloat16"


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

    Small inputs are copied into the request's own memory, which takes less time than to tell it where they lie.
    Outputs are not bound: engines that are let go of and loaded anew while requests have bound outputs end the process
    at times, by a segmentation fault.
    """

    def __init__(self, openvino: Any, compiled: Any, signature: Signature) -> None:
        self._openvino, self._request = openvino, compiled.create_infer_request()
        inputs, outputs = places(compiled.inputs), places(compiled.outputs)
        read = [(inputs[port.name], port) for port in signature.inputs if port.name in inputs]
        self._copied = [(place, port) for place, port in read if port.dtype != BF16 and signature.is_small(port)]
        self._shared = [(place, port.name) for place, port in read if (place, port) not in self._copied]
        self._made = [(outputs[port.name], port.name, numpy_dtype(port.dtype)) for port in signature.outputs]
        self._rows, self._own = 0, dict[str, "np.ndarray"]()

    def __call__(self, inputs: Arrays, outputs: Arrays) -> None:
        if self._copied:
            self._copy(inputs)
        given = {place: shared(self._openvino, inputs[name]) for place, name in self._shared}
        results = self._request.infer(given, share_outputs=True).to_tuple()
        for place, name, dtype in self._made:
            outputs[name][...] = results[place].view(dtype) if dtype.kind == "V" else results[place]

    def _copy(self, inputs: Arrays) -> None:
        rows = len(inputs[self._copied[0][1].name])
        if rows != self._rows:
            for place, port in self._copied:
                tensor = self._request.get_input_tensor(place)
                tensor.shape = (rows, *port.shape)
                self._own[port.name] = tensor.data
            self._rows = rows
        for name, own in self._own.items():
            own[...] = inputs[name]
