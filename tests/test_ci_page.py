"""docs/ci.md: its pipelines are YAML and Groovy in form, and each command in them is one that mlpdeploy takes."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from tests.acting import ACTION, accepted
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs" / "ci.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.M | re.S)
PIPELINES = [yaml.safe_load(text) for language, text in BLOCKS if language == "yaml"]
(GROOVY,) = (text for language, text in BLOCKS if language == "groovy")


def texts(value: Any) -> Iterator[str]:
    """Every text in a YAML document."""
    if isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from texts(one)
    else:
        yield str(value)


def commands() -> list[list[str]]:
    """The words behind each `mlpdeploy` of the page's pipelines."""
    lines = [*texts(PIPELINES), *re.findall(r"'([^'\n]*)'", GROOVY)]
    parts = [shlex.split(part) for line in lines if "mlpdeploy " in line for part in line.split("&&")]
    return [words[1:] for words in parts if words[0].endswith("mlpdeploy")]


def test_every_pipeline_is_read_and_every_command_in_it_is_taken() -> None:
    assert [language for language, _ in BLOCKS] == ["yaml", "yaml", "yaml", "groovy"]
    found = commands()
    assert [words[0] for words in found] == ["bench", "regress", "regress"]
    assert len(re.findall(r"mlpdeploy (?:build|verify|regress|bench) \S", "".join(text for _, text in BLOCKS))) == 3
    for words in found:
        accepted(words)
    with pytest.raises(Exception, match="No such option"):
        accepted([*found[0], "--junit", "x"])


def test_the_action_is_given_what_it_takes() -> None:
    steps = [step for one in PIPELINES[:2] for job in one["jobs"].values() for step in job["steps"]]
    (given,) = (step["with"] for step in steps if step.get("uses", "").startswith("OWNER/mlpdeploy@"))
    assert given.keys() <= ACTION["inputs"].keys() and all(isinstance(value, str) for value in given.values())
    words = shlex.split(given["arguments"])
    accepted(["build", *words, "--", given["name"]])
    accepted(["regress", *words, *shlex.split(given["regress-arguments"]), "--baseline", "x", "--", given["name"]])
    table = PAGE[PAGE.index("| input |") : PAGE.index("`arguments`, `regress-arguments` and")]
    named = [
        name
        for row in table.splitlines()[2:]
        for name in re.findall(r"`([\w-]+)`", row.split("|")[1:2][0] if row else "")
    ]
    assert sorted(named) == sorted(ACTION["inputs"])
    told = PAGE[PAGE.index("The outputs are") : PAGE.index("With\n`continue-on-error")]
    assert all(f"`{name}`" in told for name in ACTION["outputs"])
    defaults = {name: ACTION["inputs"][name]["default"] for name in ("out", "results")}
    assert all(f"(`{value}`)" in table for value in defaults.values())


def test_gitlab_and_jenkins_read_the_test_report_and_tell_a_machine_that_lacks_something() -> None:
    job = PIPELINES[2]["engine"]
    assert job["allow_failure"] == {"exit_codes": 3} and job["artifacts"]["when"] == "always"
    gitlab, jenkins = commands()[1:]
    assert gitlab[gitlab.index("--junit") + 1] == job["artifacts"]["reports"]["junit"]
    assert jenkins[jenkins.index("--junit") + 1] == re.findall(r"testResults: '([^']+)'", GROOVY)[0]
    assert "returnStatus: true" in GROOVY and "code == 3" in GROOVY
    bare = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "", GROOVY)
    assert not set("'\"") & set(bare)
    for opening, closing in ("{}", "()"):
        depth = [bare[: place + 1].count(opening) - bare[: place + 1].count(closing) for place in range(len(bare))]
        assert min(depth) >= 0 and depth[-1] == 0
