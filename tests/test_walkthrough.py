"""docs/walkthrough.md is run from its first block to its last, as a reader would."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY, Cli

TEXT = (REPOSITORY / "docs" / "walkthrough.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) ?([\w.=]*)\n(.*?)^```", TEXT, re.M | re.S)


def walk(
    folder: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli, *, timing: bool = True
) -> tuple[dict[str, Any], list[str]]:
    """Run the blocks in a folder, those that time or not: what they define, and the language of each."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    names: dict[str, Any] = {"__name__": "walkthrough"}
    ran = []
    for language, mark, code in BLOCKS:
        if mark == "bench" and not timing:
            continue
        if mark.startswith("file="):
            (folder / mark.removeprefix("file=")).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, f"walkthrough, block {len(ran) + 1}", "exec"), names)
        else:
            assert language == "sh", language
            for line in code.replace("\\\n", "").splitlines():
                program, *words = shlex.split(line)
                cli(*words) if program == "mlpdeploy" else subprocess.run([program, *words], check=True)
        ran.append(language)
    return names, ran


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli) -> None:
    _, ran = walk(tmp_path, monkeypatch, cli)
    assert ran.count("python") >= 10 and "sh" in ran
    assert (tmp_path / "artifacts" / "digits_net-DigitMixer" / "fp32" / "openvino" / "report.html").exists()


def test_the_page_says_only_what_is_run() -> None:
    """Every fenced block but the installation has a language, and so is run."""
    assert len(re.findall(r"^```\w", TEXT, re.M)) == len(BLOCKS)
    assert len(re.findall(r"^```$", TEXT, re.M)) == len(BLOCKS) + 2
