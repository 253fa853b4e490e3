"""What an engine takes and gives: its ports, read back from the facts of its build, and inputs held against them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlpdeploy.errors import ArtifactError, InputError

if TYPE_CHECKING:
    from mlpdeploy.engine.backend import Arrays


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

    def check(self, inputs: Arrays) -> None:
        """Raise InputError where `inputs` are not what the engine takes: names, dtypes, shapes, batch."""
        expected = ", ".join(port.describe() for port in self.inputs)
        if set(inputs) != {port.name for port in self.inputs}:
            raise InputError(f"the engine takes {expected}; it was given {', '.join(sorted(inputs)) or 'nothing'}")
        batches = set()
        for port in self.inputs:
            array = inputs[port.name]
            dtype, shape = str(getattr(array, "dtype", type(array).__name__)), tuple(getattr(array, "shape", ()))
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
