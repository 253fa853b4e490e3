"""What the user asks for, checked: one frozen value that names an artifact and everything that goes into it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import KW_ONLY, Field, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from mlpdeploy.errors import InputError
from mlpdeploy.selection.choice import CalibrationChoice, EngineChoice, NetworkChoice
from mlpdeploy.selection.option import option
from mlpdeploy.selection.service import ServiceChoice
from mlpdeploy.selection.types import fit

OUT = Path("artifacts")
LOCATIONS = ("out", "timing_cache")
"""Fields that say where something lies, which decides no content."""
FILES = ("checkpoint", "labels")
"""Fields that name a file, whose content counts and not its place."""


@dataclass(frozen=True)
class Selection(CalibrationChoice, ServiceChoice, EngineChoice, NetworkChoice):
    """A network, its weights, and the engine to build from it: all four choices, and the folder of artifacts (`out`).

    Raises InputError, on creation, where a value cannot be used, or where two exclude each other.
    """

    _: KW_ONLY
    out: Path = option(OUT, "Where artifacts lie.", metavar="DIR")

    @classmethod
    def fields(cls) -> list[Field[Any]]:
        """Its fields, those that name an engine first: name, precision, backend, batch."""
        return sorted(fields(cls), key=lambda field: bool(field.kw_only))

    def __post_init__(self) -> None:
        fit(self)
        for part in (NetworkChoice, EngineChoice, ServiceChoice, CalibrationChoice):
            part.__post_init__(self)
        if (said := self.said()) and not self.quantised:
            raise InputError(f"--{said[0]} is for --precision int8, fp8 and nvfp4, not for {self.precision}")

    def with_backend(self, backend: str) -> Selection:
        """The same selection with `auto` decided."""
        return replace(self, backend=backend)

    def to_json(self) -> dict[str, Any]:
        """What decides the content of an artifact, as JSON values: all but where it and times of kernels are kept."""
        values = {name: value for name, value in asdict(self).items() if name not in LOCATIONS}
        values["batch"] = self.profile.text
        values |= {name: str(values[name]) for name in FILES if values[name] is not None}
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Selection:
        """What `to_json` wrote. Raises InputError where another version wrote it."""
        try:
            given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
            given |= {name: Path(given[name]) for name in FILES if given.get(name) is not None}
            return cls(**given)
        except (KeyError, TypeError) as error:
            raise InputError(
                f"a selection of another version of mlpdeploy ({error}): build the artifact again"
            ) from error
