"""Documents, names and messages of others: they are shown as what they are, and make nothing else happen."""

from __future__ import annotations

import io
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt  # what Rich reads Markdown with
from rich.console import Console
from rich.table import Table

from mlpdeploy.evidence.documents import history, outcome
from mlpdeploy.evidence.report.markdown import code
from mlpdeploy.evidence.report.summary import report
from mlpdeploy.terminal import artifacts, catalogue, live, measurements, sensitivity
from mlpdeploy.terminal.cli_evaluate import print_evaluation
from mlpdeploy.terminal.screen import Terminal, escape
from tests.conftest import REPOSITORY
from tests.evidence.examples import evaluation
from tests.evidence.report.test_summary import MANIFEST, VERIFICATION
from tests.terminal.test_cli import in_process

WORDS = {
    "status", "verdict", "kind", "dtype", "inputs", "precision", "rule", "baseline", "bound", "unit", "when",
    "schema", "architecture", "created",
}  # fmt: skip
"""Keys whose values are looked up."""
NAMED = ("versions", "left_out", "dtypes", "files", "seconds", "HALF", "MATMUL", "MATRIX_MULTIPLY", "float16")
"""Keys whose own keys are names."""
BENCH = json.loads((REPOSITORY / "tests" / "data" / "bench.json").read_text())
PARSED = {
    "total": {"layers": 9},
    "outside": {"transposes": 1},
    "bodies": [],
    "dtypes": {"MATRIX_MULTIPLY": {"HALF": 9}},
}
BUILT = MANIFEST | {"facts": {"parsed": PARSED}}
CONTROL = "\x1b[2J\x1b]0;owned\x07\x1b]8;;http://x\x1b\\\x9b31m\u202eexe\u2066\u200f\r\b\x00\n[red]forged[/]"
SHOWN = "[red]forged[/]"


def poisoned(value: Any, poison: str, key: str = "") -> Any:
    """The document with hostile text in and before everything that could have been named by somebody."""
    if isinstance(value, dict):
        named = key in NAMED or (key in ("before", "after") and all(isinstance(one, int) for one in value.values()))
        return {
            f"{name}{poison}" if named and name != "all" else name: poisoned(one, poison, name)
            for name, one in value.items()
        }
    if isinstance(value, list | tuple):
        return [poisoned(one, poison, key) for one in value]
    return f"{poison}{value}{poison}" if isinstance(value, str) and key not in WORDS else value


GATE = {
    "name": "latency", "label": "latency, batch 1", "verdict": "regressed", "unit": "ms", "baseline": 1.0,
    "candidate": 2.0, "change": 1.0, "limit": 0.03, "low": 0.9, "high": 1.1, "batch": 1, "reason": "it is slower",
}  # fmt: skip
REGRESS = BENCH | {
    "kind": "regress", "verdict": "regressed", "gates": [GATE, GATE | {"verdict": "not measured"}],
    "baseline": {"reference": "git:main", "commit": None, "created": "now", "differs": ["the precision"]},
    "settings": BENCH["settings"] | {"undecided": "fail"},
}  # fmt: skip
EVALUATION = evaluation(MANIFEST)
VERIFIED = VERIFICATION | {"stages": [stage | {"checks": []} for stage in VERIFICATION["stages"]]}
SITE = {"module": "blocks.0", "node": "linear", "sqnr_db": 20.0, "top1": None, "macs": 1}
ENTRY = {
    "name": "net", "family": "family", "source": "paper", "precisions": ["fp32"], "inputs": [], "rules": {"rule": 1},
    "input_shape": [3, 8, 8], "aliases": ["other"], "top1": None, "parameters": 1, "gmacs": 1.0,
    "launches": {"total": [2, 1], "copies": [1, 0], "transposes": [1, 0]}, "moves": {"copies": {"blocks.*.[b]fc": 1}},
}  # fmt: skip
VERDICT = {"topic": "Speed", "status": "good", "line": "It is fast", "because": "It was measured"}
REPORT = {"verdicts": [VERDICT], "files": ["a.html"], "lacks": ["no drawing"]}


def printed(show: Callable[[Console], None]) -> str:
    """What reaches a terminal."""
    terminal = Terminal(file=io.StringIO(), width=200, force_terminal=True, color_system=None)
    show(terminal)
    return str(terminal.file.getvalue())  # type: ignore[attr-defined]


def _history(poison: str) -> history.History:
    entry = poisoned(history.entry(BENCH, "revision"), poison)
    return history.History(f"net{poison}", Path("x"), history._series([entry, entry]), (f"line 3{poison}",))


PRINTERS: dict[str, Callable[[Console, str], None]] = {
    "build": lambda to, evil: artifacts.print_build(to, f"out{evil}", poisoned(BUILT, evil), False),
    "verify": lambda to, evil: artifacts.print_verification(to, f"net{evil}", evil, poisoned(VERIFIED, evil)),
    "inspect": lambda to, evil: artifacts.print_artifact(
        to,
        {
            "folder": evil, "manifest": poisoned(BUILT, evil), "verification": {"created": evil, "verdict": evil},
            "evaluation": poisoned(EVALUATION, evil),
        },
    ),
    "evaluate": lambda to, evil: print_evaluation(to, evil, poisoned(EVALUATION | {"weights": "random"}, evil)),
    "report": lambda to, evil: artifacts.print_report(to, poisoned(REPORT, evil)),
    "bench": lambda to, evil: measurements.print_bench(to, poisoned(BENCH, evil)),
    "regress": lambda to, evil: measurements.print_regress(to, poisoned(REGRESS, evil)),
    "history": lambda to, evil: measurements.print_history(to, _history(evil)),
    "list": lambda to, evil: catalogue.print_catalogue(to, poisoned([ENTRY], evil), True),
    "sensitivity": lambda to, evil: sensitivity.print_sensitivity(
        to,
        poisoned(
            {
                "name": "net", "weights": "random", "precision": "int8",
                "calibration": {"data": "noise", "warning": "it is noise"},
                "whole_sqnr_db": 9.0, "sites": [SITE],
            },
            evil,
        ),
        evil,
    ),
    "progress": lambda to, evil: live.Live(to).say(evil),
    "stages": lambda to, evil: live.Live(to).end(evil, 1.0, False),
}  # fmt: skip


@pytest.mark.parametrize("command", PRINTERS)
def test_a_terminal_shows_names_and_obeys_none(command: str) -> None:
    found = printed(lambda to: PRINTERS[command](to, CONTROL))
    assert all(character.isprintable() or character == "\n" for character in found)
    assert SHOWN in found.replace("\n", "")


def test_errors_are_cleaned_and_their_details_are_told_from_the_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("inspect", f"./no{CONTROL}\nerror: another one") == 2
    said = capsys.readouterr().err
    assert all(character.isprintable() or character == "\n" for character in said)
    assert [line for line in said.splitlines() if not line.startswith("  ")] == [said.splitlines()[0]]


def test_what_git_says_is_cleaned(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["git", "init", "-q", "."], check=True)
    reference = "git:\x1b[31mno\u202e"
    assert (
        in_process("regress", "mixer_s32", "--precision", "fp32", "--backend", "onnxruntime", "--baseline", reference)
        == 2
    )
    said = capsys.readouterr().err
    assert "error: " in said and all(character.isprintable() or character == "\n" for character in said)


MARKDOWN = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "![x](http://example.org/x.png)",
    "[x](http://example.org)", "\n# heading\n", "\n\n<div>\n\n", "\n===\n", "\n| a | b |\n", "|", "```\n", "~~~\n",
    "`", "``", "<!--", "**", "_x_", "~~x~~", "&lt;b&gt;", "\\", "http://example.org/", "<http://example.org>", "[^1]",
    "\n> quote\n", "\n- item\n", "\n1. item\n", "\n    code\n", "\n---\n", "[x]: http://example.org\n",
    "x@example.org", "$x$", "\u202e",
]  # fmt: skip


def parts(text: str) -> list[str]:
    """What Markdown makes of a text, without the words: its blocks, and what stands in their lines."""
    parser = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    found = []
    for token in parser.parse(text):
        found += [token.type, *(child.type for child in token.children or () if child.type != "text")]
    return found


@pytest.mark.parametrize("poison", MARKDOWN)
def test_markdown_shows_names_and_takes_no_markup_from_them(poison: str) -> None:
    spoiled = [poisoned(document, poison) for document in (MANIFEST, VERIFICATION, EVALUATION)]
    spoiled.insert(2, None)
    spoiled[0]["weights"]["random"], spoiled[0]["selection"]["name"] = True, MANIFEST["selection"]["name"]
    assert parts(report(*spoiled)) == parts(report(*poisoned_with_a_word()))
    found = outcome.markdown(poisoned(REGRESS, poison))
    assert parts(found) == parts(outcome.markdown(REGRESS))
    assert "<" not in found.replace("`", "") and "://" not in found.replace("\\:", "")


def poisoned_with_a_word() -> list[Any]:
    """The documents as they are, but that no name is empty."""
    spoiled = [poisoned(document, "x") for document in (MANIFEST, VERIFICATION, EVALUATION)]
    spoiled.insert(2, None)
    spoiled[0]["selection"]["name"] = MANIFEST["selection"]["name"]
    return spoiled


@pytest.mark.parametrize("value", ["", " ", "`", "``", "`a", "a`b``c", "\n```\n"])
def test_code_stays_within_its_line(value: str) -> None:
    shown = parts(f"a {code(value)} b")
    assert shown == ["paragraph_open", "inline", *(["code_inline"] if value.strip() else []), "paragraph_close"]


def test_junit_can_be_read_whatever_stands_in_it() -> None:
    from xml.etree import ElementTree

    read = ElementTree.fromstring(outcome.junit(poisoned(REGRESS, CONTROL)))
    assert "[red]forged[/]" in str(read[0].get("name"))


def test_pictures_are_xml_whatever_stands_in_them() -> None:
    from xml.etree import ElementTree

    ElementTree.fromstring(history.svg(_history(f"{CONTROL}<script>")))


def test_numbers_between_colons_are_no_pictures() -> None:
    """Rich takes `:100:` for an emoji unless it is told not to, and a batch of 1:100:200 has that in it."""
    table = Table("batch 1:100:200")
    table.add_row(escape("1:100:200"))
    shown = printed(lambda to: [to.print(one) for one in (f"error: {escape('1:100:200')}", table)][-1])
    assert shown.count("1:100:200") == 3
