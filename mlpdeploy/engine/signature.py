"""What an engine takes and gives: its ports, read back from the facts of its build, and inputs held against them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import ArtifactError, InputError

if TYPE_CHECKING:
    import numpy as np

SMALL = 1 << 16
"""Bytes."""


@dataclass(frozen=True)
class Port:
    """An input or output of an engine: `shape` is without the batch axis, `dtype` is NumPy's name of it."""

    name: str
    shape: tuple[int, ...]
    dtype: str

    def describe(self) -> str:
        """The port as a reader writes it: `image: float32 [batch, 3, 224, 224]`."""
        return f"{self.name}: {self.dtype} [{', '.join(['batch', *map(str, self.shape)])}]"


@dataclass(frozen=True)
class Signature:
    """What an engine takes and gives, and the batch sizes that it accepts."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    smallest: int
    largest: int
    _fitting: dict[Any, int] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> Signature:
        """Read it back from the facts of a build; raises ArtifactError where they are not whole."""
        try:
            ports = {
                side: tuple(Port(str(p["name"]), tuple(map(int, p["shape"])), str(p["dtype"])) for p in facts[side])
                for side in ("inputs", "outputs")
            }
            smallest, _, largest = facts["batch"]
            return cls(ports["inputs"], ports["outputs"], int(smallest), int(largest))
        except (KeyError, TypeError, ValueError) as error:
            raise ArtifactError(
                f"the manifest does not say what the engine takes and gives ({type(error).__name__}: {error}); "
                "build the artifact again with --force"
            ) from error

    def is_small(self, port: Port) -> bool:
        """Whether a port's numbers are copied, at every batch size, in less time than an engine is told where to write.

        That takes a few microseconds.
        """
        return self.largest * math.prod(port.shape) * numpy_dtype(port.dtype).itemsize <= SMALL

    def check(self, inputs: Mapping[str, Any]) -> int:
        """The batch size of arrays or tensors. Raises InputError where the engine takes others: names, dtypes, shapes.

        What was found to fit once is not looked at again.
        """
        try:
            described = tuple([(name, one.dtype, one.shape) for name, one in inputs.items()])
            return self._fitting[described]
        except (AttributeError, KeyError, TypeError):
            self._require(inputs)
        rows = int(described[0][2][0])
        self._fitting[described] = rows
        return rows

    def _require(self, inputs: Mapping[str, Any]) -> None:
        expected = ", ".join(port.describe() for port in self.inputs)
        if set(inputs) != {port.name for port in self.inputs}:
            raise InputError(f"the engine takes {expected}; it was given {', '.join(sorted(inputs)) or 'nothing'}")
        batches = set()
        for port in self.inputs:
            array = inputs[port.name]
            dtype = str(getattr(array, "dtype", type(array).__name__)).removeprefix("torch.")
            shape = tuple(getattr(array, "shape", ()))
            if dtype != port.dtype or shape[1:] != port.shape or not shape:
                raise InputError(f"the engine takes {port.describe()}; it was given {dtype} {list(shape)}")
            batches.add(shape[0])
        if len(batches) > 1:
            raise InputError(f"all inputs must have one batch size; they have {sorted(batches)}")
        for batch in batches:
            if not self.smallest <= batch <= self.largest:
                upwards = "" if self.smallest == self.largest else f" to {self.largest}"
                raise InputError(
                    f"the engine was built for batch {self.smallest}{upwards}; it was given {batch}; "
                    "build it with another --batch"
                )


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The dtype of a port by its name; NumPy knows bfloat16 through ml_dtypes."""
    import ml_dtypes
    import numpy as np

    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
