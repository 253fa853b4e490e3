"""What can go wrong on the way from a command to an artifact: one line, the right exit code, and nothing is lost."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from mlpdeploy import pipeline
from mlpdeploy.artifact import store
from mlpdeploy.artifact.lookup import folder_of
from mlpdeploy.engine import nvidia
from mlpdeploy.engine.backend import backends
from mlpdeploy.graph.rewrite import all_rules
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.selection import Selection
from mlpdeploy.terminal import cli as command_line
from tests.conftest import REPOSITORY
from tests.terminal.test_cli import NETS
from tests.warm import Warm

OWN = ("my_nets:Net", "--input-shape", "3,16,16", "--backend", "onnxruntime", "--batch", "2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a user's network, built for ONNX Runtime; the tests run there."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "my_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        pipeline.build(Selection("my_nets:Net", "fp16", "onnxruntime", "2", input_shape=(3, 16, 16)))
        yield folder
    sys.modules.pop("my_nets", None)


@pytest.fixture
def artifact(home: Path) -> Iterator[Path]:
    """Its artifact, which whatever happens in the test must leave as it was."""
    folder = home / "artifacts" / "my_nets-Net" / "fp16" / "onnxruntime"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    yield folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert {path.name for path in folder.parent.glob("*onnxruntime*")} == {"onnxruntime", ".onnxruntime.lock"}


def state(change: Any = None) -> dict[str, torch.Tensor]:
    """The weights of the user's network, changed."""
    import my_nets  # type: ignore[import-not-found]

    found = my_nets.Net().state_dict()
    return found if change is None else change(found)


class Hostile:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.target}",)


def test_a_hostile_checkpoint_runs_nothing(artifact: Path, fails: Any, tmp_path: Path) -> None:
    for name, save in (("a.pth", torch.save), ("b.pkl", lambda content, path: path.write_bytes(pickle.dumps(content)))):
        save({"state_dict": Hostile(tmp_path / "owned")}, tmp_path / name)
        assert "refused, nothing of it was run" in fails("build", *OWN, "--checkpoint", tmp_path / name)
        assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {key: w[key] for key in list(w)[1:]}, "is the checkpoint of another network"),
        (lambda w: w | {"extra": torch.zeros(1)}, "is the checkpoint of another network"),
        (lambda w: w | {"stem.weight": torch.zeros(16, 1, 4, 4)}, "is the checkpoint of another network"),
        (lambda w: w | {"head.weight": torch.zeros(9, 16), "head.bias": torch.zeros(9)}, "pass --num-classes 9"),
        (lambda w: w | {"head.bias": torch.full((5,), torch.nan)}, "head.bias holds NaN or infinite values"),
    ],
    ids=["missing", "unknown", "shape", "classes", "NaN"],
)
def test_checkpoints_that_do_not_fit(artifact: Path, fails: Any, tmp_path: Path, change: Any, message: str) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(state(change), path)
    assert message in fails("build", *OWN, "--checkpoint", path)


def test_broken_checkpoints(artifact: Path, fails: Any, tmp_path: Path) -> None:
    save_file(state(), tmp_path / "weights.safetensors")
    torch.save(state(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        path = tmp_path / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        said = fails("build", *OWN, "--checkpoint", path)
        assert str(path) in said and "download it again" in said
    assert "none.pth" in fails("verify", *OWN, "--checkpoint", tmp_path / "none.pth")


PREPARED = ("--mean", "0.5,0.5,0.5", "--std", "0.5,0.5,0.5")
"""What `--data` needs to know of a network of one's own."""


def test_data_without_a_readable_image(artifact: Path, fails: Any, tmp_path: Path) -> None:
    assert "give a folder of images, an .npz file" in fails("verify", *OWN, "--data", tmp_path / "none")
    assert "no image below" in fails("verify", *OWN, "--data", tmp_path)
    (tmp_path / "a.png").write_bytes(b"\x89PNG no")
    assert "how the images of my_nets:Net are prepared is not known" in fails("verify", *OWN, "--data", tmp_path)
    assert "none of the 1 images" in fails("verify", *OWN, *PREPARED, "--data", tmp_path)


def test_broken_images_among_others_are_named_and_the_rest_is_used(
    home: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    for index in range(4):
        pixels = rng.integers(0, 255, (20, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{index}.png")
    for index in range(7):
        (tmp_path / f"broken{index}.jpg").write_bytes(b"\xff\xd8\xff")
    with pytest.raises(SystemExit) as left:
        command_line.main(["verify", *OWN, *PREPARED, "--data", str(tmp_path), "--json"])
    printed = capsys.readouterr()
    assert left.value.code == 0 and json.loads(printed.out)["inputs"] == "images"
    said = printed.err
    assert said.count("skipped /") == 5 and "skipped 2 more that cannot be read" in said
    assert f"4 images below {tmp_path}, of 11, without labels" in said


def test_rules_and_gpus_that_do_not_exist(artifact: Path, fails: Any) -> None:
    for option in ("--disable-rule", "--enable-rule"):
        assert "did you mean fold_affine" in fails("build", *OWN, option, "fold_afine")
        assert "the rules are" in fails("build", *OWN, option, "zzz") and LAYOUT in fails("build", *OWN, option, "zzz")
    both = ("--disable-rule", "fold_affine", "--enable-rule", "fold_affine")
    said = "error: fold_affine stands in --disable-rule and in --enable-rule: choose one of them"
    assert fails("build", *OWN, *both) == fails("build", *OWN, *both, "--search", "3") == said
    gpu = fails("build", "my_nets:Net", "--input-shape", "3,16,16", "--gpu", "sm10")
    assert "cannot build for sm10" in gpu and "sm89" in gpu


def test_rules_are_called_as_their_files() -> None:
    for name in (*all_rules(), LAYOUT):
        assert Selection("vip_s", disabled_rules=(name,)).disabled_rules == (name,)


def test_a_file_in_the_place_of_the_output_folder(artifact: Path, fails: Any, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "cannot be written" in fails("build", *OWN, "--out", tmp_path / "taken")


def command(*arguments: str, before: str = "") -> list[str]:
    """`mlpdeploy` as a program of its own that runs `before` first."""
    return [sys.executable, "-c", f"{before}\nfrom mlpdeploy.terminal.cli import main\nmain({list(arguments)!r})"]


def start(home: Path, program: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": f"{REPOSITORY}:{home}", "COLUMNS": "80", "NO_COLOR": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(program, cwd=home, env=environment, text=True, **pipes)  # type: ignore[call-overload,no-any-return]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="no file size limits here")
def test_a_full_disk_loses_nothing(artifact: Path, home: Path, warm: Warm) -> None:
    full = "import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))"
    found = warm.run(command("build", *OWN, "--force", before=full)[1:], home, PYTHONPATH=f"{REPOSITORY}:{home}")
    assert found.returncode == 2 and found.stdout == "", found.stderr
    errors = [line for line in found.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "no space is left" in errors[0] and "--out DIR" in errors[0]
    assert "Trace" not in found.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_killed_in_the_middle_of_writing(artifact: Path, home: Path) -> None:
    hang = (
        "import time\nfrom mlpdeploy.artifact import store\n"
        "store.sync = lambda path: (print('writing', flush=True), time.sleep(600))"
    )
    process = start(home, command("build", *OWN, "--force", "--seed", "5", before=hang))
    assert process.stderr is not None and "writing\n" in process.stderr
    assert len(list(artifact.parent.glob(".onnxruntime.draft-*"))) == 1
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert store.open_artifact(artifact).manifest["selection"]["seed"] == 0
    found = pipeline.build(Selection("my_nets:Net", "fp16", "onnxruntime", "2", input_shape=(3, 16, 16)))
    assert found.cached  # and the draft of the dead is gone, as the fixture checks


@pytest.mark.slow
def test_an_interruption_loses_nothing(artifact: Path, fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "sync", interrupted)
    assert "the last good artifact is untouched" in fails("build", *OWN, "--force", code=130)


@pytest.mark.slow
def test_two_builds_of_one_artifact_at_once(home: Path) -> None:
    out = home / "both"
    folder = folder_of(Selection("my_nets:Net", out=out), backends()["onnxruntime"])
    with store.locked(folder):
        builds = [start(home, command("build", *OWN, "--out", str(out), "--json")) for _ in range(2)]
        for build in builds:
            assert build.stderr is not None
            assert build.stderr.readline() == f"  waiting: another process is working on {folder}\n"
    answers = [json.loads(build.communicate(timeout=120)[0]) for build in builds]
    assert [build.returncode for build in builds] == [0, 0]
    assert sorted(answer["cached"] for answer in answers) == [False, True]


@pytest.mark.parametrize("file", ["model.onnx", "engine"])
@pytest.mark.parametrize("change", ["altered", "missing"])
def test_an_altered_artifact_is_refused(home: Path, fails: Any, tmp_path: Path, file: str, change: str) -> None:
    copied = copy_of(home, tmp_path)
    engine = json.loads((copied / "manifest.json").read_text())["engine"]
    path = copied / (engine if file == "engine" else file)
    if change == "missing":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    for arguments in (("verify", *OWN, "--out", tmp_path), ("inspect", copied)):
        said = fails(*arguments)
        assert f"{path.name} " in said and ("was altered" if change == "altered" else "is missing") in said
        assert "--force" in said


def copy_of(home: Path, out: Path) -> Path:
    """A copy of the artifact below another output folder."""
    relative = Path("my_nets-Net", "fp16", "onnxruntime")
    shutil.copytree(home / "artifacts" / relative, out / relative)
    return out / relative


def test_a_manifest_of_another_version(home: Path, fails: Any, tmp_path: Path) -> None:
    path = copy_of(home, tmp_path) / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 99}))
    said = fails("verify", *OWN, "--out", tmp_path)
    assert "has schema 99, this mlpdeploy reads 3" in said and "--force" in said


def test_an_engine_of_another_version(home: Path, fails: Any, tmp_path: Path) -> None:
    path = copy_of(home, tmp_path) / "manifest.json"
    manifest = json.loads(path.read_text())
    here = manifest["facts"]["versions"]["onnxruntime"]
    manifest["facts"]["versions"]["onnxruntime"] = "0.9"
    path.write_text(json.dumps(manifest))
    said = fails("verify", *OWN, "--out", tmp_path)
    assert "0.9" in said and here in said


def test_an_engine_for_another_gpu(home: Path, fails: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    selection = Selection("my_nets:Net", "fp16", "tensorrt-rtx", "2", input_shape=(3, 16, 16), out=tmp_path)
    pipeline.build(replace(selection, gpus=("sm86",)))
    gpu = nvidia.Gpu("NVIDIA Example", "sm89", "13.0")
    monkeypatch.setattr(nvidia, "probe", lambda: gpu)
    rtx = [*OWN, "--backend", "tensorrt-rtx", "--out", tmp_path]
    said = fails("verify", *rtx)
    assert "was built for sm86" in said and "NVIDIA Example is sm89" in said and "--gpu sm89" in said


@pytest.mark.slow
def test_an_engine_for_named_gpus_is_found_without_naming_them_and_kept_beside_others(
    home: Path, fails: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rtx = [*OWN, "--backend", "tensorrt-rtx", "--out", str(tmp_path)]
    network = tmp_path / "my_nets-Net" / "fp16"
    for gpu in ("sm86", "sm89"):
        with pytest.raises(SystemExit) as ended:
            command_line.main(["build", *map(str, rtx), "--gpu", gpu])
        assert ended.value.code == 0 and "replaces" not in capsys.readouterr().err
        assert (network / f"tensorrt-rtx@{gpu}" / "manifest.json").exists()
    assert "tensorrt-rtx@sm86" in (said := fails("verify", *rtx)) and "tensorrt-rtx@sm89" in said


def test_another_selection_than_was_built(artifact: Path, fails: Any) -> None:
    assert "batch 4:4:4 (built with 2:2:2)" in fails("verify", *OWN[:-1], "4")
    assert "io fp16 (built with fp32)" in fails("verify", *OWN, "--io", "fp16")
    assert "there is no artifact at" in fails("verify", *OWN, "--precision", "bf16")
