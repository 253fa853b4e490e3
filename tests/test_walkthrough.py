"""docs/walkthrough.md is run from its first block to its last, as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY

TEXT = (REPOSITORY / "docs" / "walkthrough.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+) ?([\w.=]*)\n(.*?)^```", TEXT, re.M | re.S)


@pytest.mark.slow
def test_every_block_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    command = tmp_path / "bin" / "mlpdeploy"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m mlpdeploy "$@"\n')
    command.chmod(0o755)
    path = {"PYTHONPATH": str(REPOSITORY), "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}"}
    names: dict[str, Any] = {"__name__": "walkthrough"}
    ran = []
    for language, mark, code in BLOCKS:
        if mark.startswith("file="):
            (tmp_path / mark.removeprefix("file=")).write_text(code, encoding="utf-8")
        elif language == "python":
            exec(compile(code, f"walkthrough, block {len(ran) + 1}", "exec"), names)
        else:
            assert language == "sh", language
            shell = ["sh", "-e", "-c", code]
            found = subprocess.run(shell, env=os.environ | path, capture_output=True, text=True, timeout=600)
            assert found.returncode == 0, found.stdout + found.stderr
        ran.append(language)
    assert ran.count("python") >= 10 and "sh" in ran
    assert (tmp_path / "artifacts" / "digits_net-DigitMixer" / "fp32" / "openvino" / "report.html").exists()


def test_the_page_says_only_what_is_run() -> None:
    """Every fenced block but the installation has a language, and so is run."""
    assert len(re.findall(r"^```\w", TEXT, re.M)) == len(BLOCKS)
    assert len(re.findall(r"^```$", TEXT, re.M)) == len(BLOCKS) + 2
