"""The workflows: what actionlint says of them, and that the gate's commands are ones that mlpdeploy has."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
import typer.main

from mlpdeploy.engine.backend import backends
from mlpdeploy.network.finding import find
from mlpdeploy.terminal.cli import app
from tests.conftest import REPOSITORY

WORKFLOW = REPOSITORY / ".github" / "workflows" / "regress.yml"
ACTIONLINT = shutil.which("actionlint") or shutil.which("actionlint", path=sysconfig.get_path("scripts"))


@pytest.mark.skipif(ACTIONLINT is None, reason="actionlint is not installed: pip install '.[workflows]'")
@pytest.mark.parametrize("name", ["regress.yml", "tests.yml"])
def test_actionlint_has_nothing_to_say(name: str) -> None:
    found = subprocess.run(
        [str(ACTIONLINT), str(WORKFLOW.with_name(name))], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert found.returncode == 0, found.stdout + found.stderr


def commands() -> list[list[str]]:
    """The words of every `mlpdeploy regress` of the workflow."""
    text = WORKFLOW.read_text(encoding="utf-8").replace("\\\n", " ")
    return [shlex.split(line.split("mlpdeploy ", 1)[1]) for line in text.splitlines() if "-m mlpdeploy " in line]


def test_its_commands_are_options_that_there_are() -> None:
    known = {option for one in typer.main.get_command(app).commands["regress"].params for option in one.opts}  # type: ignore[attr-defined]
    assert len(commands()) == 2
    for words in commands():
        assert words[0] == "regress" and words[1] == "$RECIPE"
        assert {word for word in words if word.startswith("--")} <= known


def test_its_recipes_and_backends_are_ones_that_there_are() -> None:
    text = Path(WORKFLOW).read_text(encoding="utf-8")
    names = [name.strip() for match in re.findall(r"^ +recipe: \[(.+)\]$", text, re.M) for name in match.split(",")]
    assert len(names) == 5 and all(find(name).name == name for name in names)
    named = re.findall(r"backend: \[(.+)\]", text)[0].split(", ") + re.findall(r"--backend ([a-z-]+)", text)
    assert set(named) <= set(backends()) and "tensorrt" in named
