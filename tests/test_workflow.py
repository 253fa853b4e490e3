"""The workflows: what actionlint says of them, and that the gate gives the action what it takes."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig

import pytest
import yaml

from mlpdeploy.engine.backend import backends
from mlpdeploy.network.finding import find
from tests.acting import ACTION
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


JOBS = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))["jobs"]


def test_its_gates_are_the_action_which_takes_what_it_is_given() -> None:
    steps = [step["with"] for job in JOBS.values() for step in job["steps"] if step.get("uses") == "./"]
    assert len(steps) == len(JOBS) == 2
    for given in steps:
        assert given.keys() <= ACTION["inputs"].keys() and all(isinstance(value, str) for value in given.values())
        assert given["name"] == "${{ matrix.recipe }}" and given["baseline"] == "${{ env.BASELINE }}"


def test_its_recipes_and_backends_are_ones_that_there_are() -> None:
    matrices = [job["strategy"]["matrix"] for job in JOBS.values()]
    names = [name for matrix in matrices for name in matrix["recipe"]]
    assert len(names) == 5 and all(find(name).name == name for name in names)
    named = [*matrices[0]["backend"], JOBS["gpu"]["steps"][2]["with"]["backend"]]
    assert set(named) <= set(backends()) and "tensorrt" in named
    assert {one["backend"]: one["precision"] for one in matrices[0]["include"]}.keys() == set(matrices[0]["backend"])
