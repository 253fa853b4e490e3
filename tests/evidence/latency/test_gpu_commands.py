"""The row of the command line on a GPU: whatever a command does, the row says it, and the others go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import commands
from benchmarks.gpu.commands import Case
from mlpdeploy.terminal.cli import app

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

CASE = Case("mixer_s32", ("--precision", "fp16", "--backend", "inductor", "--gpu", "current"), 8, "eager,compile", 5)
MANIFEST = {"manifest": {"facts": {"engine_bytes": 7, "build_seconds": 1.5, "other": 1}}}
RATIO = {"baseline": "eager", "value": 0.5, "low": 0.4, "high": 0.6, "verdict": "faster"}
ENGINE = {"name": "engine", "ratios": [RATIO]}
SAID: dict[str, Any] = {
    "build": MANIFEST,
    "verify": {"verdict": "passed", "first_failed": None},
    "bench": {"measurements": [{"contenders": [ENGINE, {"name": "eager", "ratios": []}]}]},
    "regress": {"verdict": "undecided"},
    "report": {"files": [__file__]},
}
PROGRAM = """
import json, os, signal, sys, time
command = sys.argv[2]
print("begun\\n  the last line \\n", file=sys.stderr, flush=True)
{how}
print(json.dumps(json.loads({said!r})[command]))
"""
FAILS = """
if command == "regress": sys.exit(2)
if command == "verify":
    print(json.dumps({"verdict": "passed", "first_failed": None}))
    sys.exit(1)
"""


def told(how: str = "", limit: float = 60.0) -> dict[str, Any]:
    """What the row has of each command, at its end."""
    program = (sys.executable, "-c", PROGRAM.format(how=how, said=json.dumps(SAID)), "mlpdeploy")
    rows = [json.loads(json.dumps(row)) for row in commands.measure({}, CASE, program, limit)]
    assert [len(row["left"]) for row in rows] == [4, 3, 2, 1, 0]
    found: dict[str, Any] = rows[-1]["commands"]
    assert [*found] == [*SAID]
    return found


def test_each_command_says_what_it_found() -> None:
    found = told()
    assert all(one.pop("seconds") >= 0 and one.pop("exit") == 0 for one in found.values())
    ratio = {key: RATIO[key] for key in ("value", "low", "high", "verdict")}
    assert found == {
        "build": {"engine_bytes": 7, "build_seconds": 1.5},
        "verify": {"verdict": "passed", "first_failed": None},
        "bench": {"ratios": {"eager": ratio}},
        "regress": {"verdict": "undecided"},
        "report": {"bytes": {".py": Path(__file__).stat().st_size}},
    }


def test_a_command_that_dies_costs_no_other() -> None:
    found = told("if command == 'bench': os.kill(os.getpid(), signal.SIGSEGV)")
    assert found["bench"]["exit"] == -11 and found["bench"]["failed"] == "SIGSEGV: the last line"
    assert [name for name, one in found.items() if "failed" in one] == ["bench"]


def test_a_command_that_fails_says_its_last_line_and_what_its_document_has() -> None:
    found = told(FAILS)
    assert found["verify"]["verdict"] == "passed" and found["verify"]["failed"] == "exit code 1: the last line"
    assert found["regress"] == found["regress"] | {"exit": 2, "failed": "exit code 2: the last line"}


def test_a_command_that_hangs_is_ended() -> None:
    found = told("if command == 'verify': time.sleep(60)", limit=1.5)
    assert found["verify"]["exit"] is None
    assert found["verify"]["failed"] == "took longer than 2 s: the last line"
    assert found["report"]["exit"] == 0


def test_without_a_build_the_others_are_not_run() -> None:
    found = told("sys.exit(3)")
    assert found.pop("build")["failed"] == "exit code 3: the last line"
    assert found == dict.fromkeys(("verify", "bench", "regress", "report"), commands.NOT_RUN)


@pytest.mark.parametrize(("printed", "why"), [("no JSON", "JSONDecodeError"), ("{}", "KeyError: 'manifest'")])
def test_a_document_that_lacks_what_it_should_have_is_a_failure(printed: str, why: str) -> None:
    found = told(f"if command == 'build': print({printed!r}) or sys.exit(0)")
    assert found["build"]["exit"] == 0 and found["build"]["failed"].startswith(f"its document: {why}")


@pytest.mark.parametrize("command", commands.FOUND)
def test_the_command_line_takes_what_is_typed(command: str, tmp_path: Path) -> None:
    import typer

    line = [CASE.name, *commands.arguments(command, CASE, tmp_path), "--json"]
    group: Any = typer.main.get_command(app)
    with group.commands[command].make_context(command, line) as context:
        assert context.params["as_json"] is True


def test_what_a_command_measures_beside_others_is_nobodys_choice(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    kept = tmp_path / "mlpdeploy" / "kernels-h100-1.jsonl"
    kept.parent.mkdir()
    kept.write_text("before\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    how = f"""
from pathlib import Path
path = Path(os.environ["XDG_CACHE_HOME"], "mlpdeploy", {kept.name!r})
assert path.read_text().startswith("before")
path.write_text("before, and another")
"""
    assert not any("failed" in one for one in told(how).values())
    assert kept.read_text() == "before\n"
