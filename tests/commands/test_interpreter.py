"""`regress --baseline-env`: which interpreters are refused and how, what is built with one, and in what it differs."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from rich.console import Console

from mlpdeploy import pipeline
from mlpdeploy.artifact import store
from mlpdeploy.commands import gating, gating_latency, interpreter, unlike
from mlpdeploy.commands.baseline import Baseline
from mlpdeploy.commands.interpreter import Interpreter
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.evidence.documents import outcome, regress
from mlpdeploy.selection import Selection
from mlpdeploy.terminal.measurements import print_regress
from tests.commands.test_regress_command import refused
from tests.conftest import REPOSITORY
from tests.listening import Listener
from tests.standin_interpreter import PACKAGE, package, script
from tests.standin_interpreter import interpreter as standin
from tests.system.test_processes import alive, until
from tests.terminal.test_cli import in_process

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="stand-ins are programs of a POSIX shell"),
]
COMMAND = ("regress", "mixer_s32", "--precision", "fp32", "--backend", "onnxruntime")
OLD = {
    "option": "print('No such option: --io; see help', file=sys.stderr); sys.exit(2)",
    "folder": "print('{\"cached\": false}')",
    "rubbish": "print('built!')",
    "list": "print('[1]')",
    "network": 'print(\'{"error": {"message": "no network is called mixer_s32\\\\nmore"}}\'); sys.exit(2)',
    "library": 'print(\'{"error": {"message": "no openvino: pip install openvino"}}\'); sys.exit(3)',
    "killed": "import os; os.kill(os.getpid(), 9)",
    "schema": "out = sys.argv[sys.argv.index('--out') + 1]; import json, pathlib; "
    "pathlib.Path(out, 'a').mkdir(parents=True); "
    "pathlib.Path(out, 'a', 'manifest.json').write_text('{\"schema\": 1, \"files\": {}}'); "
    "print(json.dumps({'folder': out + '/a'}))",
}
"""What the command line of a mlpdeploy does that cannot be built with."""


def with_main(folder: Path, main: str) -> Path:
    """A stand-in whose command line is that."""
    return standin(folder / "python", package(folder / "other", PACKAGE | {"__main__.py": f"import sys\n{main}\n"}))


@pytest.fixture
def held(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The one line with which a run ends that is held against an interpreter; `{}` stands for a temporary folder."""
    monkeypatch.chdir(tmp_path)

    def run(code: int, python: str | Path, *more: str) -> str:
        assert in_process(*COMMAND, "--baseline-env", str(python), *more) == code
        *progress, said = capsys.readouterr().err.splitlines()
        assert all(line.startswith("  baseline environment ") for line in progress), progress
        assert not (tmp_path / "artifacts").exists()  # before anything is built here
        return said.removeprefix("error: ").replace(str(tmp_path), "{}")

    return run


def test_one_baseline_is_asked_for(held: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    said = held(2, sys.executable, "--baseline", "git:main")
    assert said == "--baseline and --baseline-env exclude each other: give one of the two"
    assert refused(capsys, 2, *COMMAND).startswith("--baseline and --baseline-env are both missing: give what to hold")


def test_what_is_no_interpreter_is_refused(held: Callable[..., str], tmp_path: Path) -> None:
    nothing = "there is no such program; give an interpreter, such as .venv/bin/python"
    assert held(2, "/nowhere/python") == f"--baseline-env /nowhere/python: {nothing}"
    (tmp_path / "text").write_text("print()")
    assert held(2, tmp_path / "text") == f"--baseline-env {{}}/text: {nothing}"
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    script(tmp_path / "venv" / "bin" / "python", "exit 1")
    assert held(2, "venv") == "--baseline-env venv: it is a folder; give an interpreter, such as venv/bin/python"
    assert held(2, "venv/bin/python") == "--baseline-env {}/venv/bin/python: its process ended with exit code 1"
    (tmp_path / "broken").write_bytes(b"\x7fELF\0\1")
    (tmp_path / "broken").chmod(0o755)
    assert "{}/broken: cannot be started (Exec format error): give a Python" in held(2, tmp_path / "broken")
    script(tmp_path / "yes", "exec yes rubbish")
    assert held(2, "./yes").endswith("{}/yes: its process printed something else than answers (rubbish)")


def test_one_that_hangs_is_given_up(held: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interpreter, "PATIENCE", 0.5)
    script(tmp_path / "slow", "exec sleep 600")
    assert held(2, "./slow") == "--baseline-env {}/slow: its process did not answer within 0.5 s"


def test_an_interruption_leaves_no_process_behind(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    python = script(tmp_path / "slow", f"echo $$ >{marker}.part; mv {marker}.part {marker}; exec sleep 600")
    command = [sys.executable, "-m", "mlpdeploy", *COMMAND, "--baseline-env", str(python)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as process:
        until(marker.exists)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130 and said.startswith("error: interrupted") and len(said.splitlines()) == 1
    until(lambda: not alive(int(marker.read_text())))


def test_one_without_mlpdeploy_says_what_to_type(held: Callable[..., str], tmp_path: Path) -> None:
    standin(tmp_path / "bare", "", "-I", "-S")
    install = "{}/bare -m pip install mlpdeploy"
    said = f"--baseline-env {{}}/bare: Python {sys.version.split()[0]} there has no mlpdeploy: {install}"
    assert held(3, "./bare") == said
    standin(tmp_path / "half", package(tmp_path / "other", {"__init__.py": "import typer_is_not_here"}))
    assert "has no typer_is_not_here, which its mlpdeploy needs" in held(3, "./half")
    standin(tmp_path / "old", package(tmp_path / "older", {"__init__.py": "__version__ = '0.0.1'"}))
    said = (
        "mlpdeploy 0.0.1 there has no mlpdeploy.engine, by which engines are loaded: {}/old -m pip install --upgrade "
    )
    assert held(3, "./old") == f"--baseline-env {{}}/old: {said}mlpdeploy"
    standin(tmp_path / "broken", package(tmp_path / "third", {"__init__.py": "1 / 0"}))
    assert held(2, "./broken") == "--baseline-env {}/broken: ZeroDivisionError: division by zero"


@pytest.mark.parametrize(
    ("how", "code", "said"),
    [
        ("option", 2, "cannot be built there: No such option: --io; see help: leave it out, or {}/python -m pip "
         "install --upgrade mlpdeploy, which is 0.0.7 there"),
        ("folder", 3, "`build --json` there does not say in which folder it built"),
        ("rubbish", 3, "`build --json` there does not say in which folder it built"),
        ("list", 3, "`build --json` there does not say in which folder it built"),
        ("network", 2, "cannot be built there: no network is called mixer_s32"),
        ("library", 3, "cannot be built there: no openvino: {}/python -m pip install openvino"),
        ("killed", 2, "cannot be built there: it ended with exit code -9"),
    ],
)  # fmt: skip
def test_one_that_cannot_build_says_why(
    how: str, code: int, said: str, held: Callable[..., str], tmp_path: Path
) -> None:
    with_main(tmp_path, OLD[how])
    assert held(code, "./python", "--io", "fp16") == f"--baseline-env {{}}/python: {said}"


def test_artifacts_of_another_schema_are_refused(held: Callable[..., str], tmp_path: Path) -> None:
    with_main(tmp_path, OLD["schema"])
    said = held(3, "./python")
    assert said.startswith("--baseline-env {}/python: this mlpdeploy 0.") and "has schema 1, this mlpdeploy" in said
    assert "{}/python -m pip install mlpdeploy==" in said


def test_another_interpreter_imports_its_own_mlpdeploy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the one of this path, nor that of the folder that one is in."""
    (tmp_path / "own").mkdir()
    monkeypatch.chdir(package(tmp_path / "here"))
    path = [str(package(tmp_path / "other")), str(tmp_path / "own"), ""]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    found = interpreter._variables()
    assert found["PYTHONPATH"] == str(tmp_path / "own") and "PYTHONHOME" not in found and found["PYTHONSAFEPATH"] == "1"
    python = standin(tmp_path / "bare", "", "-S")
    with pytest.raises(MachineLacks, match="has no mlpdeploy"):
        interpreter.interpreter(str(python))
    link = tmp_path / "link"
    link.symlink_to(standin(tmp_path / "python", package(tmp_path / "fourth")))
    assert interpreter.interpreter(str(link)) == Interpreter(str(link), "0.0.7")  # a link makes a virtual environment


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Selection:
    """A small network that is built and verified."""
    out = tmp_path_factory.mktemp("artifacts")
    selection = Selection("tests.test_api:Net", "fp32", "onnxruntime", "1:2:4", input_shape=(3, 16, 16), out=out)
    pipeline.build(selection)
    pipeline.verify(selection)
    return selection


BUILT = """
import json, pathlib, shutil
command, out = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
folder = out / "net" / "fp32" / "onnxruntime"
if command == "build":
    shutil.copytree({artifact!r}, folder)
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["versions"] |= {{"onnxruntime": "1.0.0", "mlpdeploy": "0.0.7"}}
    path.write_text(json.dumps(manifest))
pathlib.Path({log!r}).open("a").write(" ".join(sys.argv[1:]) + "\\n")
print(json.dumps({{"folder": str(folder)}}))
"""


def test_a_network_is_held_against_what_another_mlpdeploy_builds(
    plain: Selection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = pipeline.build(plain)
    python = with_main(tmp_path, BUILT.format(artifact=str(built.folder), log=str(tmp_path / "log")))
    apart = dict[str, Any]()

    def kept(baseline: Any, candidate: Any, terms: Any, stages: Any) -> Any:
        apart.update(sides=(baseline, candidate), terms=terms)
        return (), ()

    monkeypatch.setattr(gating_latency, "interleaved", kept)
    listener = Listener()
    found = gating.regress(plain, baseline_env=str(python), threads=1, progress=listener)
    document = json.loads(json.dumps(found.to_json()))
    assert found.passed and [one.hand_over is not None for one in apart["sides"]] == [True, True]
    gates = {gate["name"]: gate["verdict"] for gate in document["gates"]}
    assert set(gates.values()) == {"passed"} and set(gates) == {*regress.GATES} - {regress.LATENCY, *regress.LAUNCHED}

    build, verify = (tmp_path / "log").read_text().splitlines()
    assert build.startswith("build tests.test_api:Net --precision fp32 --backend onnxruntime --batch 1:2:4 ")
    assert verify.startswith("verify tests.test_api:Net ") and build.endswith(" --json")
    ours = built.manifest["versions"]["onnxruntime"]
    first, second = document["baseline"]["differs"]
    assert first == f"onnxruntime: the baseline has 1.0.0, the candidate {ours}"
    assert second.startswith("mlpdeploy: the baseline has 0.0.7, the candidate ")
    assert f"not alike: {first}" in listener.lines

    assert document["baseline"]["kind"] == "environment"
    assert outcome.described(document["baseline"]) == f"{python} (onnxruntime 1.0.0, mlpdeploy 0.0.7)"
    console = Console(width=80, record=True, file=io.StringIO())
    print_regress(console, document)
    head = console.export_text().splitlines()[:3]
    assert head[0].endswith("(onnxruntime 1.0.0, mlpdeploy 0.0.7)") and head[1] == f"  not alike: {first}"
    suite = ElementTree.fromstring(outcome.junit(document))[0]
    assert [(one.get("name"), one.get("value")) for one in suite[0]][1] == ("not alike", first)
    lines = outcome.markdown(document).splitlines()
    assert first.partition(" ")[0] in lines[4] and lines[2].startswith("Held against ")


def test_a_batch_that_the_baseline_has_not_is_refused_by_its_name(plain: Selection, tmp_path: Path) -> None:
    artifact = pipeline.build(plain)
    other = Baseline("python", {}, artifact=artifact, interpreter=Interpreter("/old/python", "0.0.7"))
    with pytest.raises(InputError, match=r"^--baseline-env /old/python: was built for batch 1 to 4, not 8"):
        gating_latency.latency(other, artifact, plain, gating_latency.Terms((8,), 1, 1.0, 0.03, 0), gating.Stages())


def test_rules_that_fired_otherwise_and_what_is_executed_are_told(plain: Selection) -> None:
    artifact = store.open_artifact(pipeline.build(plain).folder)
    theirs = json.loads(json.dumps(artifact.manifest))
    theirs["facts"]["executed"] = "bf16"
    theirs["versions"]["python"] = "3.10.0"
    rules = [one for one in theirs["rules"] if one["fired"]]
    rules[0]["fired"] += 1
    theirs["rules"] = [*rules, {"name": "new_rule", "fired": 2}]
    other = Baseline("python", {}, artifact=replace(artifact, manifest=theirs), interpreter=Interpreter("python", "0"))
    python, executed, fired = unlike.differences(other, artifact, 1)
    assert python.startswith("python: the baseline has 3.10.0, the candidate 3.")
    assert executed.startswith("precision that is executed: the baseline has bf16, the candidate ")
    name, times = rules[0]["name"], rules[0]["fired"]
    assert f"the baseline has {name} {times} times, new_rule 2 times, the candidate {name} {times - 1} times" in fired
