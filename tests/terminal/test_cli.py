"""The command line as a user meets it: what is printed where, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mlpdeploy
from mlpdeploy import commands
from mlpdeploy.errors import ArtifactError, BuildError, GateFailed, InputError, MachineLacks, MlpdeployError
from mlpdeploy.selection import Selection
from mlpdeploy.selection.parse import parse_batch, parse_shape
from mlpdeploy.system.text import megabytes
from mlpdeploy.terminal import cli as command_line
from tests.conftest import REPOSITORY, Cli

NETS = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.tokens, self.channels = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)
    def forward(self, x):
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + nn.functional.gelu(self.channels(x))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 16, 4, 4), Block(), nn.Linear(16, 5)
    def forward(self, x):
        return self.head(self.block(self.stem(x).flatten(2).transpose(1, 2)).mean(1))
"""


def in_process(*arguments: str) -> int:
    with pytest.raises(SystemExit) as left:
        command_line.main(arguments)
    assert isinstance(left.value.code, int)
    return left.value.code


@pytest.mark.parametrize("arguments", [["--help"], ["list"], ["list", "--json"], ["build", "vip_x"], ["doctor"]])
def test_nothing_heavy_is_imported_by_light_commands(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        "from mlpdeploy.terminal.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'onnx', 'onnxruntime', 'openvino', 'tensorrt_rtx', 'polygraphy', 'numpy', 'PIL'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert found.stdout.endswith("HEAVY []\n"), found.stdout + found.stderr


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (GateFailed("slower"), 1), (InputError("bad"), 2), (ArtifactError("altered"), 2), (BuildError("refused"), 2),
        (MachineLacks("no GPU"), 3), (KeyboardInterrupt(), 130), (RuntimeError("two\nlines"), 70),
    ],
)  # fmt: skip
def test_exit_codes(
    error: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(commands, "doctor", fail)
    assert in_process("doctor") == code
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    if isinstance(error, MlpdeployError):
        assert printed.err == f"error: {error}\n"
    if code == 70:
        assert "unexpected RuntimeError: two lines" in printed.err and "--debug" in printed.err


@pytest.mark.parametrize("way", ["option", "environment"])
def test_debug_shows_where(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("defect")

    monkeypatch.setattr(commands, "doctor", fail)
    if way == "environment":
        monkeypatch.setenv("MLPDEPLOY_DEBUG", "1")
    with pytest.raises(RuntimeError, match="defect"):
        command_line.main(["doctor", "--debug"] if way == "option" else ["doctor"])


@pytest.mark.parametrize(("arguments", "said"), [([], "Usage: mlpdeploy"), (["--version"], mlpdeploy.__version__)])
def test_help_and_version(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(*arguments) == 0
    printed = capsys.readouterr()
    assert said in printed.out and printed.err == ""


@pytest.mark.parametrize(
    "arguments",
    [["--device", "1", "doctor", "--json"], ["doctor", "--device", "1", "--json"], ["doctor", "--json", "--device=1"]],
)
def test_a_gpu_is_chosen_wherever_the_option_stands(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    assert in_process(*arguments) == 0 and json.loads(capsys.readouterr().out)["machine"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert in_process("doctor", "--device", "many") == 2
    assert capsys.readouterr().err == "error: --device many: give a GPU's number, or its UUID, which begins with GPU-\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--device"],
        ["--device"],
        ["doctor", "--device", "0", "--device=1"],
        ["--device=0", "doctor", "--device"],
    ],
)
def test_one_gpu_is_chosen(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(*arguments) == 2
    said = "error: --device: give one GPU's number, or its UUID, which begins with GPU-\n"
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize("option", ["--search", "--tactics", "--device"])
def test_an_empty_value_is_told_by_its_option(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process("build", "mixer_s32", option, "") == 2
    said = f"error: {option}: an argument is empty; is a variable of the shell unset?\n"
    assert capsys.readouterr() == ("", said)


def test_a_shell_completes_commands_recipes_and_precisions() -> None:
    typed = {"mlpdeploy ver": "verify", "mlpdeploy build vip_": "vip_s14", "mlpdeploy build x --precision f": "fp16"}
    for words, offered in typed.items():
        asked = {"_MLPDEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
        command = [sys.executable, "-m", "mlpdeploy"]
        path = os.environ | {"PYTHONPATH": str(REPOSITORY)} | asked
        found = subprocess.run(command, env=path, capture_output=True, text=True, timeout=60, check=False)
        assert (found.returncode, found.stderr) == (0, "") and offered in found.stdout.split()


@pytest.mark.parametrize("command", ["build", "verify", "bench", "regress", "inspect", "list", "doctor", ""])
def test_the_help_shows_values_of_options_that_take_one_only(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert in_process(*filter(None, [command]), "--help") == 0
    printed = capsys.readouterr().out
    assert "--help" in printed and "bool" not in printed


@pytest.mark.parametrize("command", [["build", "--help"], ["list"], ["list", "--json"]])
def test_who_reads_stdout_may_leave(command: list[str]) -> None:
    program = f"{sys.executable} -m mlpdeploy {' '.join(command)} | true"
    path = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    found = subprocess.run(program, shell=True, env=path, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in found.stderr and "ended the process" not in found.stderr, found.stderr


@pytest.mark.parametrize(
    ("size", "shown"),
    [(0, "0.0"), (5, "0.000005"), (1_000, "0.0010"), (6_936, "0.0069"), (99_999, "0.100"), (123_456, "0.1")],
)
def test_small_files_show_two_digits(size: int, shown: str) -> None:
    assert megabytes(size) == shown


@pytest.mark.parametrize(
    ("text", "sizes"), [("8", (8,)), ("1:8:32", (1, 8, 32)), ("2:2:4", (2, 4)), ("1,1:8:64", (1, 8, 64))]
)
def test_batches(text: str, sizes: tuple[int, ...]) -> None:
    assert parse_batch(text).sizes() == sizes


@pytest.mark.parametrize(("text", "shape"), [("3,224,224", (3, 224, 224)), ("3x8x16", (3, 8, 16)), ("64", (64,))])
def test_shapes(text: str, shape: tuple[int, ...]) -> None:
    assert parse_shape(text) == shape


def test_a_selection_names_its_folder_and_its_weights(tmp_path: Path) -> None:
    assert Selection("vip_s").name == "vip_s7"
    assert Selection("timm:resnet18.a1_in1k").folder_name == "timm-resnet18.a1_in1k"
    assert Selection("vip_s", seed=4).weights() == "random weights from seed 4; no checkpoint was given"
    assert Selection("vip_s", checkpoint=tmp_path / "a.pth").weights() == f"weights from {tmp_path / 'a.pth'}"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's network, built for ONNX Runtime."""
    folder = tmp_path_factory.mktemp("user")
    (folder / "my_nets.py").write_text(NETS)
    return folder


OWN = ("my_nets:Net", "--input-shape", "3,16,16", "--backend", "onnxruntime", "--batch", "1:2:4")


@pytest.fixture
def own(built: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run a command on it; what it printed as JSON."""

    def run(command: str, *arguments: str, code: int = 0) -> Any:
        selection = OWN if command in ("build", "verify") else ()
        paths = ("--out", str(built / "artifacts"), "--json")
        printed = cli(command, *selection, *arguments, *paths, code=code, PYTHONPATH=f"{REPOSITORY}:{built}")
        return json.loads(printed.stdout)

    return run


@pytest.mark.slow
def test_a_users_network_is_built_found_again_verified_and_inspected(own: Any, built: Path) -> None:
    first = own("build")
    folder = built / "artifacts" / "my_nets-Net" / "fp16" / "onnxruntime"
    assert not first["cached"] and Path(first["folder"]) == folder
    manifest = first["manifest"]
    assert manifest == json.loads((folder / "manifest.json").read_text())
    assert manifest["weights"]["text"].startswith("weights as my_nets:Net made them (seed 0)")
    assert manifest["batch"] == {"min": 1, "opt": 2, "max": 4}
    assert manifest["inputs"] == [{"name": "input", "shape": ["batch", 3, 16, 16], "dtype": "float32"}]
    assert manifest["versions"].keys() >= {"mlpdeploy", "torch", "onnxruntime", "python"}
    assert manifest["ops"]["before"]["aten::transpose"] == 3
    assert manifest["ops"]["after"].get("aten::transpose", 0) == 0
    assert "Not verified yet" in (folder / "report.md").read_text()

    again = own("build")
    assert again["cached"] and again["manifest"] == manifest
    assert not own("build", "--force")["cached"]

    found = own("verify")
    assert found["passed"] and found["sizes"] == [1, 2, 4] and found["name"] == "my_nets:Net"
    written = json.loads((folder / "verification.json").read_text())
    assert written["passed"] and written["files"].keys() >= {"model.onnx"}
    assert "emitted ONNX" in (folder / "report.md").read_text()

    inspected = own("inspect", str(folder))
    assert inspected["verification"] == written and inspected["manifest"]["backend"] == "onnxruntime"
    assert own("inspect", "my_nets:Net")["folder"] == str(folder)

    message = own("verify", "--seed", "1", code=2)["error"]["message"]
    assert "holds another engine than was asked for: seed 1 (built with 0)" in message

    engine = folder / inspected["manifest"]["engine"]
    engine.write_bytes(engine.read_bytes()[:-1] + b"\0\0")
    for command, arguments in (("verify", ()), ("inspect", (str(folder),))):
        assert f"{engine} was altered" in own(command, *arguments, code=2)["error"]["message"]
    assert not own("build")["cached"]  # a build mends it


@pytest.mark.slow
def test_tables_say_that_the_weights_are_random(cli: Cli) -> None:
    selection = ("mint_wqk", "--backend", "onnxruntime", "--batch", "1:1:2", "--seed", "7")
    printed = {}
    for command in (("build", *selection), ("build", *selection), ("verify", *selection), ("inspect", "mint_wqk")):
        printed[command[0]] = cli(*command).stdout
        assert "random weights from seed 7; no checkpoint was given" in printed[command[0]]
        assert all(len(line) <= 80 for line in printed[command[0]].splitlines())
    assert "already built (cache hit)" in printed["build"]
    assert "rewritten graph, float64" in printed["verify"] and "passed" in printed["verify"]
