"""An inference request of OpenVINO as a context: what it computes from and into are the caller's arrays."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
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
    """A context: an inference request, which reads and writes the caller's arrays.

    To bind an array takes microseconds. What is small is copied instead, from and into arrays that stay bound for as
    long as calls have the same batch size.
    """

    def __init__(self, openvino: Any, compiled: Any, signature: Signature) -> None:
        self._openvino, self._request = openvino, compiled.create_infer_request()
        inputs, outputs = places(compiled.inputs), places(compiled.outputs)
        set_input, set_output = self._request.set_input_tensor, self._request.set_output_tensor
        ports = [
            *((port, partial(set_input, inputs[port.name])) for port in signature.inputs if port.name in inputs),
            *((port, partial(set_output, outputs[port.name])) for port in signature.outputs),
        ]
        self._small = [(port, bind) for port, bind in ports if signature.is_small(port)]
        self._large = [(port.name, bind) for port, bind in ports if not signature.is_small(port)]
        self._read, self._made = (
            [port.name for port, _ in self._small if port in side] for side in (signature.inputs, signature.outputs)
        )
        self._rows, self._kept = 0, dict[str, "np.ndarray"]()

    def __call__(self, inputs: Arrays, outputs: Arrays) -> None:
        if (rows := len(next(iter(inputs.values())))) != self._rows:
            self._keep(rows)
        for name in self._read:
            self._kept[name][...] = inputs[name]
        given = [
            (bind, shared(self._openvino, (inputs if name in inputs else outputs)[name])) for name, bind in self._large
        ]
        for bind, tensor in given:
            bind(tensor)
        self._request.infer(share_outputs=True)
        for name in self._made:
            outputs[name][...] = self._kept[name]

    def _keep(self, rows: int) -> None:
        """Bind arrays of this request's own for what is small."""
        import numpy as np

        for port, bind in self._small:
            self._kept[port.name] = np.empty((rows, *port.shape), numpy_dtype(port.dtype))
            bind(shared(self._openvino, self._kept[port.name]))
        self._rows = rows
