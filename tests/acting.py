"""The action as a runner runs it: its steps in bash, one after another, with stand-ins for mlpdeploy, gh and pip."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer.main
import yaml

from mlpdeploy.terminal.argv import with_seconds
from mlpdeploy.terminal.cli import app
from tests.conftest import REPOSITORY

ACTION = yaml.safe_load((REPOSITORY / "action.yml").read_text(encoding="utf-8"))
STEPS = ACTION["runs"]["steps"]
SHELL = ("bash", "--noprofile", "--norc", "-e", "-o", "pipefail", "-c")
"""What a runner makes of `shell: bash`, but for the file that it writes the text to."""
BUILT = {"cached": False, "folder": "artifacts/net/fp32/openvino", "manifest": {"key": "0123456789abcdef0123"}}
PULL_REQUEST = {"number": 7, "base": {"sha": "HEAD"}, "head": {"sha": "fedcba9876543210"}}

RECORD = 'printf "%s\\x1f" "${0##*/}" "$@" >> "$CALLS"; printf "\\x1e" >> "$CALLS"\n'
MLPDEPLOY = r"""
if [ "$1" = --version ]; then echo "mlpdeploy 9.8.7"; exit "$(cat "$STAND_IN/version.code" 2> /dev/null || echo 0)"; fi
code=$(cat "$STAND_IN/$1.code" 2> /dev/null || echo 0)
if [ "$code" -ge 2 ]; then echo "error: $1 <b>cannot</b> be done" >&2; exit "$code"; fi
if [ "$1" = build ]; then cat "$STAND_IN/built.json"; fi
while [ "$#" -gt 0 ]; do
  case $1 in
    --markdown) printf '### a table of gates\n' >> "$2" ;;
    --save) cat "$STAND_IN/saved.json" > "$2" ;;
  esac
  shift
done
exit "$code"
"""
GH = r"""
if [ -e "$STAND_IN/refused" ]; then echo "gh: Resource not accessible by integration (HTTP 403)" >&2; exit 1; fi
case $* in
  *--input*) cat >> "$STAND_IN/sent" ;;
  *) cat "$STAND_IN/found" 2> /dev/null || true ;;
esac
"""
PIP = "import os, sys\nopen(os.environ['CALLS'], 'a').write('\\x1f'.join(['pip', *sys.argv[1:], '\\x1e']))\n"


@dataclass
class Ran:
    """What came of a run: the action's outputs, the log, the exit code of the step that failed, and what it did."""

    outputs: dict[str, str]
    log: str
    code: int
    calls: list[list[str]]
    used: dict[str, dict[str, str]]
    sent: list[dict[str, Any]]
    summary: str

    def words(self, command: str) -> list[str]:
        """The words of the one call of `mlpdeploy COMMAND`."""
        (found,) = (call[1:] for call in self.calls if call[:2] == ["mlpdeploy", command])
        return found


@dataclass
class Runner:
    """A workspace, and the stand-ins on its path."""

    root: Path
    names: tuple[str, ...] = ("mlpdeploy", "gh", "python")
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.here, self.workspace = self.root / "stand in", self.root / "work space"
        for folder in (self.here, self.workspace, self.root / "temp"):
            folder.mkdir()
        texts = {"mlpdeploy": RECORD + MLPDEPLOY, "gh": RECORD + GH, "python": f'exec "{sys.executable}" -S "$@"\n'}
        for name in self.names:
            self.put(name, f"#!/bin/bash\n{texts[name]}").chmod(0o755)
        for name in ("bash", "cat", "git"):
            (self.here / name).symlink_to(str(shutil.which(name)))
        self.put("pip.py", PIP)
        self.put("built.json", json.dumps(BUILT))
        self.put("saved.json", json.dumps({"verdict": "passed"}))
        self.environment = {
            "PATH": str(self.here),
            "PYTHONPATH": str(self.here),
            "STAND_IN": str(self.here),
            "CALLS": str(self.here / "calls"),
            "GITHUB_ACTION_PATH": str(REPOSITORY),
            "GITHUB_REPOSITORY": "owner/repository",
            "GITHUB_SERVER_URL": "https://github.com",
            "GITHUB_RUN_ID": "42",
            "GITHUB_JOB": "job",
            "GITHUB_WORKFLOW": "work flow",
            "GITHUB_STEP_SUMMARY": str(self.root / "summary.md"),
            "RUNNER_OS": "Linux",
            "RUNNER_ARCH": "X64",
        }

    def put(self, name: str, text: str) -> Path:
        """A file beside the stand-ins, which they read."""
        (self.here / name).write_text(text, encoding="utf-8")
        return self.here / name

    def run(self, *, event: Mapping[str, Any] | None = None, restored: str = "", **inputs: str) -> Ran:
        """Run the action with these inputs (`regress_arguments` is `regress-arguments`)."""
        given = {name: str(one.get("default", "")) for name, one in ACTION["inputs"].items()}
        given |= {"token": "secret", "python-version": "none", "install": "none"}
        given |= {name.replace("_", "-"): value for name, value in inputs.items()}
        assert given.keys() == ACTION["inputs"].keys()
        steps: dict[str, Any] = {}
        known = {"inputs": given, "steps": steps, "github": {"event": {"pull_request": event or {}}}}
        used, log, code = {}, "", 0
        for number, step in enumerate(STEPS):
            if "if" in step and not value(step["if"], known):
                continue
            outputs = self.root / f"outputs {number}"
            outputs.touch()
            if "uses" in step:
                used[step["name"]] = {name: filled(text, known) for name, text in step["with"].items()}
                outputs.write_text(f"cache-matched-key={restored}\n" if restored and step["id"] == "restore" else "")
            else:
                environment = {name: filled(text, known) for name, text in step["env"].items()}
                found = subprocess.run(
                    [*SHELL, step["run"]],
                    cwd=self.workspace,
                    env=self.environment | environment | {"GITHUB_OUTPUT": str(outputs)},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
                log += found.stdout
                code = 0 if step.get("continue-on-error") else found.returncode
            lines = (line.split("=", 1) for line in outputs.read_text(encoding="utf-8").splitlines())
            steps[step.get("id", number)] = {"outputs": dict(lines)}
            if code:
                break
        outputs_of_all = {name: filled(one["value"], known) for name, one in ACTION["outputs"].items()}
        calls = [call.split("\x1f")[:-1] for call in self.text("calls").split("\x1e")[:-1]]
        sent = [json.loads(line) for line in self.text("sent").replace("}{", "}\n{").splitlines()]
        summary = self.root / "summary.md"
        told = summary.read_text(encoding="utf-8") if summary.exists() else ""
        return Ran(outputs_of_all, log, code, calls, used, sent, told)

    def text(self, name: str) -> str:
        """What a stand-in wrote, "" where nothing."""
        path = self.here / name
        return path.read_text(encoding="utf-8") if path.exists() else ""


def accepted(words: list[str]) -> None:
    """Raise where the real command line does not take these words, a command and its arguments; nothing is run."""
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    command.make_context(words[0], with_seconds(words[1:]))


def filled(text: str, known: Mapping[str, Any]) -> str:
    """Text with its expressions evaluated."""
    return re.sub(r"\$\{\{(.*?)\}\}", lambda match: value(match[1], known), str(text))


def value(expression: str, known: Mapping[str, Any]) -> str:
    """An expression of the action: names with dots, texts, == and !=, && and ||; "" is false."""
    expression = expression.strip()
    if " || " in expression:
        return next((found for part in expression.split(" || ") if (found := value(part, known))), "")
    if " && " in expression:
        return "true" if all(value(part, known) for part in expression.split(" && ")) else ""
    for sign in (" == ", " != "):
        if sign in expression:
            left, right = (value(part, known) for part in expression.split(sign))
            return "true" if (left == right) == (sign == " == ") else ""
    if text := re.fullmatch(r"'([^']*)'", expression):
        return text[1]
    assert re.fullmatch(r"[\w.-]+", expression), expression
    found: Any = known
    for name in expression.split("."):
        found = found.get(name, {})
    return "" if found == {} else str(found)
