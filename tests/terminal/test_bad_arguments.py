"""Arguments that cannot be meant: one line, or one JSON document, and exit code 2."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.terminal.test_cli import in_process

BAD: dict[str, tuple[list[str], str]] = {
    "unknown command": (["buidl"], "No such command 'buidl'"),
    "unknown option": (["build", "vip_s", "--precison", "fp16"], "--precision"),
    "missing name": (["build"], "Missing argument"),
    "unknown name": (["build", "vip_s8"], "did you mean vip_s"),
    "unknown precision": (["build", "vip_s", "--precision", "fp4"], "choose one of fp32, tf32, fp16, bf16"),
    "unknown io": (["build", "vip_s", "--io", "int8"], "choose one of fp32, fp16, bf16"),
    "unknown backend": (["build", "vip_s", "--backend", "tensorrt-rtz"], "did you mean tensorrt-rtx"),
    "batch 0": (["build", "vip_s", "--batch", "0"], "smallest batch is 1"),
    "batch of one zero": (["build", "vip_s", "--batch", "0:1:2"], "smallest batch is 1"),
    "MIN > OPT": (["build", "vip_s", "--batch", "4:2:8"], "MIN <= OPT <= MAX"),
    "profiles with a gap": (["build", "vip_s", "--batch", "1,3:8:9"], "no profile holds 2"),
    "a profile twice": (["build", "vip_s", "--batch", "1:1:1,1"], "give each optimisation profile once"),
    "too many profiles": (["build", "vip_s", "--batch", ",".join(map(str, range(1, 18)))], "16 optimisation profiles"),
    "profiles of a CPU engine": (
        ["build", "vip_s", "--batch", "1,1:8:64", "--backend", "openvino"],
        "backend openvino has no optimisation profiles, which are TensorRT's: give one MIN:OPT:MAX",
    ),
    "OPT > MAX": (["build", "vip_s", "--batch", "1:9:8"], "MIN <= OPT <= MAX"),
    "batch of words": (["build", "vip_s", "--batch", "1:two:3"], "MIN:OPT:MAX"),
    "batch of two": (["build", "vip_s", "--batch", "1:2"], "MIN:OPT:MAX"),
    "negative batch": (["build", "vip_s", "--batch=-1"], "MIN:OPT:MAX"),
    "image size 0": (["build", "vip_s", "--image-size", "0"], "at least 1"),
    "classes 0": (["build", "vip_s", "--num-classes", "0"], "at least 1"),
    "negative seed": (["build", "vip_s", "--seed=-1"], "seed -1: give a whole number from 0 to"),
    "seed beyond 63 bits": (["build", "vip_s", "--seed", "9" * 40], "give a whole number from 0 to"),
    "digits of another script": (["build", "vip_s", "--batch", "\uff19"], "MIN:OPT:MAX"),
    "shape in digits of another script": (["build", "a:b", "--input-shape", "3,1\u0666"], "such as 3,224,224"),
    "a name that no folder can have": (["build", f"{'a' * 300}:b"], "no folder can be called so"),
    "calibration that is not there": (
        ["build", "vip_s", "--precision", "int8", "--backend", "openvino", "--calibration", "none"],
        "--calibration none: there is no such file; give a folder of images",
    ),
    "data that is not there": (["verify", "vip_s", "--data", "none.npz"], "--data none.npz: there is no such file"),
    "a folder without an image": (["verify", "vip_s", "--data", "."], "no image below"),
    "threads in parts": (["bench", "vip_s", "--threads", "1.5"], "see `mlpdeploy bench --help`"),
    "data to regress on": (["regress", "vip_s", "--baseline", "x", "--data", "none"], "there is no such file"),
    "no time": (["regress", "vip_s", "--baseline", "x", "--time", "nan"], "give seconds above 0"),
    "endless time": (
        ["bench", "vip_s", "--precision", "fp32", "--backend", "openvino", "--time", "inf"],
        "give seconds above 0",
    ),
    "seed of words": (["build", "vip_s", "--seed", "x"], "'--seed'"),
    "GPU": (["build", "vip_s", "--gpu", "sm86,rtx"], "'rtx'"),
    "level": (["build", "vip_s", "--level", "9"], "0 to 5"),
    "level of a CPU engine": (
        ["build", "vip_s", "--level", "3", "--backend", "openvino"],
        "has no optimisation levels",
    ),
    "GPU twice": (["build", "vip_s", "--gpu", "sm86,sm86"], "--gpu: 'sm86' stands there twice"),
    "a batch too large": (["build", "vip_s", "--batch", "1:8:1000000000"], "up to 999999"),
    "a size too large": (["build", "a:b", "--input-shape", "3,16,99999999999"], "up to 9999999"),
    "means in another script": (
        ["build", "a:b", "--mean", "\u0660,0,0", "--std", "1,1,1"],
        "give one number a channel",
    ),
    "a share in another script": (
        ["regress", "vip_s", "--baseline", "x", "--max-slowdown", "\u0663%"],
        "no percentage",
    ),
    "one file for two": (
        ["report", "vip_s", "--html", "same", "--markdown", "./same"],
        "two results are to be written",
    ),
    "shape of words": (["build", "a:b", "--input-shape", "3,x"], "such as 3,224,224"),
    "shape of a recipe": (["build", "vip_s", "--input-shape", "3,8,8"], "--image-size"),
    "checkpoint missing": (["build", "vip_s", "--checkpoint", "none.pth"], "none.pth"),
    "both weights": (["build", "mixer_b16", "--checkpoint", "x", "--pretrained"], "exclude each other"),
    "nothing built": (["verify", "vip_s"], "mlpdeploy build"),
    "nothing to inspect": (["inspect", "vip_s"], "mlpdeploy build"),
    "input of no shape": (["build", "a:b", "--input", "ids"], "give NAME:SHAPE[:DTYPE[:LOW..HIGH]]"),
    "input of another dtype": (["build", "a:b", "--input", "x:3:float8"], "give NAME:SHAPE[:DTYPE[:LOW..HIGH]]"),
    "ids without a range": (["build", "a:b", "--input", "ids:16:int64"], "say which whole numbers it may hold"),
    "a range of nothing": (["build", "a:b", "--input", "ids:16:int64:3..1"], "3..1 holds nothing"),
    "two inputs of one name": (["build", "a:b", "--input", "x:3", "--input", "x:4"], "'x' stands there twice"),
    "inputs of a recipe": (["build", "vip_s", "--input", "x:3,8,8"], "--input-names renames them"),
    "inputs and a shape": (["build", "a:b", "--input", "x:3", "--input-shape", "3"], "drop --input-shape"),
    "one name for both": (["build", "a:b", "--input-names", "x", "--output-names", "x"], "a name of its own"),
    "a name with a slash": (["build", "a:b", "--output-names", "a/b"], "give letters, digits, and . _ -"),
    "a path of nothing": (["build", "vip_s", "--out", ""], "--out: an argument is empty"),
    "a path set to nothing": (["build", "vip_s", "--checkpoint="], "--checkpoint: an argument is empty"),
    "a name of nothing": (["inspect", ""], "inspect: an argument is empty"),
    "inspect unknown": (["inspect", "vip_t"], "did you mean"),
    "inspect a path as precision": (["inspect", "vip_s", "--precision", "/etc"], "choose one of fp32, tf32"),
    "inspect a path as backend": (["inspect", "vip_s", "--backend", "../.."], "choose one of tensorrt"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_line_and_exit_code_2(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments, message = BAD[what]
    assert in_process(*arguments) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and message in errors[0] and printed.out == ""

    assert in_process(*arguments, "--json") == 2
    document = json.loads(capsys.readouterr().out)
    assert message in document["error"]["message"] and document["error"]["exit_code"] == 2


IMPOSSIBLE = {
    "vip takes one size": (("vip_s14", "--image-size", "256"), "vip_s14 cannot be built with image size 256"),
    "patches do not divide": (("vip_s7", "--image-size", "225"), "vip_s7 cannot be built with image size 225"),
    "timm's network is of 224": (("timm:mixer_s32_224", "--input-shape", "3,256,256"), "(256) doesn't match"),
    "channels": (("timm:mixer_s32_224", "--input-shape", "4,224,224"), "to have 3 channels"),
    "smaller than a patch": (("timm:mixer_s32_224", "--image-size", "16"), "with image size 16"),
}


@pytest.mark.parametrize("what", IMPOSSIBLE)
def test_sizes_that_the_network_cannot_take(what: str, fails: Any, tmp_path: Path) -> None:
    arguments, message = IMPOSSIBLE[what]
    assert message in fails("build", *arguments, "--backend", "onnxruntime", "--out", tmp_path)
    assert not list(tmp_path.rglob("manifest.json"))
