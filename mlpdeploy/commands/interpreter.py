"""Another interpreter, with a mlpdeploy and engines' libraries of its own: found, asked what it has, and built with."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mlpdeploy._version import __version__
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands.abroad import Abroad
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks
from mlpdeploy.selection import Selection

if TYPE_CHECKING:
    from mlpdeploy.evidence.latency.elsewhere import Place

PATIENCE = 120.0
"""Seconds in which an interpreter says which mlpdeploy it has."""
_OF_THIS_ONE = ("PYTHONHOME", "PYTHONEXECUTABLE", "__PYVENV_LAUNCHER__")
"""Environment variables that would make another interpreter this one."""


@dataclass(frozen=True)
class Interpreter:
    """An interpreter by its path, and the version of the mlpdeploy that it has."""

    python: str
    version: str

    @property
    def called(self) -> str:
        """As it was asked for."""
        return f"--baseline-env {self.python}"

    @property
    def place(self) -> Place:
        """Where its engine is timed."""
        from mlpdeploy.evidence.latency.elsewhere import Place

        return Place(self.python, _variables(), self.called)

    def built(self, selection: Selection, out: Path, verify: Sequence[str] | None) -> Artifact:
        """The artifact of a selection, built in `out` by its mlpdeploy. Raises MachineLacks or InputError."""
        install = f"{self.python} -m pip install"
        try:
            return Abroad(self.python, Path.cwd(), _variables(), self.called).built(selection, out, verify)
        except ArtifactError as error:
            raise MachineLacks(
                f"{self.called}: this mlpdeploy {__version__} cannot read what mlpdeploy {self.version} builds there "
                f"({str(error).partition(': build it again')[0]}): {install} mlpdeploy=={__version__}"
            ) from error
        except (InputError, MachineLacks) as error:
            text = str(error).replace("pip install", install)
            if "No such option" in text:
                text += f": leave it out, or {install} --upgrade mlpdeploy, which is {self.version} there"
            raise type(error)(text) from error


def interpreter(python: str) -> Interpreter:
    """The interpreter that was asked for, by its path or its name. Raises InputError where it is none that answers, and
    MachineLacks where it has no mlpdeploy."""
    from mlpdeploy.evidence.latency.elsewhere import Place

    path = _path(python)
    called = f"--baseline-env {path}"
    with Place(path, _variables(), called).started() as server:
        found = server.ask("describe", PATIENCE)
    version, lacking, install = found["mlpdeploy"], found["lacking"], f"{path} -m pip install"
    if lacking is None:
        return Interpreter(path, version)
    if version is None:
        what = "mlpdeploy" if lacking == "mlpdeploy" else f"{lacking}, which its mlpdeploy needs"
        raise MachineLacks(f"{called}: Python {found['python']} there has no {what}: {install} mlpdeploy")
    raise MachineLacks(
        f"{called}: mlpdeploy {version} there has no {lacking}, by which engines are loaded: "
        f"{install} --upgrade mlpdeploy"
    )


def own() -> Place:
    """This interpreter, with what it imports from."""
    from mlpdeploy.evidence.latency.elsewhere import Place

    entries = [entry or os.getcwd() for entry in sys.path]
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(entries), "PYTHONSAFEPATH": "1"}
    return Place(sys.executable, variables, "the candidate")


def _path(python: str) -> str:
    """The absolute path, its links kept: a virtual environment is known by that of its interpreter."""
    found = shutil.which(python)
    if found is None:
        known = (Path(python) / name for name in ("bin/python", "Scripts/python.exe"))
        inside = next((path for path in known if path.exists()), None)
        what = "it is a folder" if os.path.isdir(python) else "there is no such program"
        such = inside or ".venv/bin/python"
        raise InputError(f"--baseline-env {python}: {what}; give an interpreter, such as {such}")
    return os.path.abspath(found)


def _variables() -> dict[str, str]:
    """This process's environment, without what would take the place of that interpreter's own mlpdeploy."""
    found = {name: value for name, value in os.environ.items() if name not in _OF_THIS_ONE}
    entries = found.pop("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if entry and not os.path.exists(os.path.join(entry, "mlpdeploy", "__init__.py"))]
    path = {"PYTHONPATH": os.pathsep.join(kept)} if kept else {}
    return found | path | {"PYTHONSAFEPATH": "1"}
