"""mlpdeploy's own command line in another process: of another revision, or of another interpreter."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlpdeploy.artifact import decisions, store
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.selection import Selection
from mlpdeploy.selection.arguments import arguments
from mlpdeploy.system.processes import run


class Abroad:
    """A command line: `python -m mlpdeploy` in a folder, with environment variables; `called` begins its errors."""

    def __init__(self, python: str, folder: Path, environment: Mapping[str, str], called: str) -> None:
        self._python, self._folder, self._environment, self._called = python, folder, environment, called

    def built(self, selection: Selection, out: Path, verify: Sequence[str] | None) -> Artifact:
        """Build a selection in `out`, with what searches decided here; verify it too, with the options of `verify`.

        It is not verified where these are None. Raises MachineLacks or InputError with what that mlpdeploy said where
        it fails.
        """
        given = _given(selection, out)
        decisions.copy(selection.out, out)
        plain = ["--no-worth"] if selection.quantised else []  # what only a report of the baseline would say
        built = self._run(["build", *arguments("build", given), *plain])
        folder = built.get("folder")
        if not isinstance(folder, str) or not Path(folder).is_relative_to(out):
            raise MachineLacks(f"{self._called}: `build --json` there does not say in which folder it built")
        if verify is not None:
            self._run(["verify", *arguments("verify", given), *verify], allowed=(0, 1))
        return store.open_artifact(Path(folder))

    def _run(self, words: Sequence[str], allowed: Sequence[int] = (0,)) -> dict[str, Any]:
        command = [self._python, "-m", "mlpdeploy", *words, "--json"]
        found = run(command, self._folder, self._environment)
        try:
            document = json.loads(found.stdout)
        except ValueError:
            document = None
        document = document if isinstance(document, dict) else {}
        if found.returncode in allowed:
            return document
        told = document.get("error")
        said = str(told.get("message", "")) if isinstance(told, dict) else found.stderr
        lines = [line for line in said.splitlines() if line.strip()] or [f"it ended with exit code {found.returncode}"]
        kind = MachineLacks if found.returncode == MachineLacks.exit_code else InputError
        raise kind(f"{self._called}: cannot be built there: {lines[0] if isinstance(told, dict) else lines[-1]}")


def _given(selection: Selection, out: Path) -> dict[str, Any]:
    """The selection for a process in another folder, whose artifacts lie in `out`."""
    given, checkpoint = selection.calibration, selection.checkpoint
    return selection.to_json() | {
        "out": str(out),
        "checkpoint": None if checkpoint is None else str(checkpoint.resolve()),
        "calibration": None if given is None else absolute(given),
    }


def absolute(data: str) -> str:
    """What `--calibration` or `--data` names, for a process in another folder; the words that name no file stay."""
    from mlpdeploy.evidence.proof.samples import DIGITS, RANDOM

    return data if data in (DIGITS, RANDOM) else str(Path(data).resolve())
