"""The table of backends, and what `auto` picks."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from mlpdeploy.engine import backend as table
from mlpdeploy.engine.backend import AUTO, backends, pick
from mlpdeploy.errors import InputError, MachineLacks

ROOT = Path(__file__).parents[2]


class Stub:
    """A backend of which only the reasons matter."""

    def __init__(self, name: str, available: str | None = None, refused: str | None = None) -> None:
        self.name, self._available, self._refused = name, available, refused

    def available(self) -> str | None:
        return self._available

    def supports(self, precision: str, gpus: tuple[str, ...] = ()) -> str | None:
        return self._refused


def use(monkeypatch: pytest.MonkeyPatch, *stubs: Stub) -> None:
    monkeypatch.setattr(table, "backends", lambda: {stub.name: stub for stub in stubs})


def test_every_backend_is_found_in_the_order_of_auto() -> None:
    assert tuple(backends())[: len(AUTO)] == AUTO


def test_finding_them_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mlpdeploy.engine.backend import backends; backends();"
        "heavy = ('torch', 'onnx', 'onnxruntime', 'openvino', 'polygraphy', 'tensorrt_rtx', 'numpy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_auto_takes_tensorrt_then_rtx_then_a_cpu_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, *map(Stub, AUTO))
    assert pick("auto").name == "tensorrt"
    use(monkeypatch, Stub("tensorrt", "no GPU"), *map(Stub, AUTO[1:]))
    assert pick("auto").name == "tensorrt-rtx"
    use(monkeypatch, Stub("tensorrt", "no GPU"), Stub("tensorrt-rtx", "not installed"), *map(Stub, AUTO[2:]))
    assert pick("auto").name == "openvino"


def test_auto_passes_over_a_backend_without_the_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Stub("tensorrt-rtx", refused="no fp4"), Stub("onnxruntime"))
    assert pick("auto", "fp4").name == "onnxruntime"


def test_auto_with_nothing_to_pick_lists_every_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Stub("tensorrt", "no GPU"), Stub("openvino", refused="no tf32"))
    with pytest.raises(MachineLacks) as raised:
        pick("auto", "tf32")
    assert "pip install" in str(raised.value).splitlines()[0]
    assert str(raised.value).splitlines()[1:] == ["tensorrt: no GPU", "openvino: no tf32"]


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean tensorrt-rtx"):
        pick("tensorrt_rtx")
    with pytest.raises(InputError, match="choose one of: auto, tensorrt"):
        pick("zzz")


def test_a_named_backend_that_cannot_build_here_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, Stub("tensorrt", "no NVIDIA GPU"))
    with pytest.raises(MachineLacks, match="backend tensorrt cannot build on this machine: no NVIDIA GPU"):
        pick("tensorrt")


def test_tf32_on_a_cpu_engine_is_refused_and_says_what_to_ask_for() -> None:
    with pytest.raises(InputError, match="ask for fp32"):
        pick("onnxruntime", "tf32")


COUNTING = '''
from mlpdeploy.engine.backends._base import EngineBackend
from mlpdeploy.engine.form import Form


class Counting(EngineBackend):
    """An engine that counts the nodes of its file."""

    name, engine_file, code, packages = "counting", "engine.txt", None, ("filelock",)
    forms = (Form("flatten_grids"),)
    off = ("fold_affine",)

    def available(self):
        return None

    def executable(self):
        return "it only counts"

    def _build(self, emitted, request, engine, progress):
        engine.write_text(str(len(emitted.model.graph.node)))
        progress.step("counting", 1, 1)
        return {"executed": "nothing"}

    def _load(self, engine, signature, facts):
        raise NotImplementedError


BACKEND = Counting()
'''
NET = """
from torch import nn

def net():
    return nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 8, 2, 2), nn.Flatten(), nn.Linear(128, 5))
"""


def test_a_new_backend_is_one_file(tmp_path: Path) -> None:
    for folder in ("mlpdeploy", "recipes", "plugins"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "mlpdeploy" / "engine" / "backends" / "counting.py").write_text(COUNTING)
    (tmp_path / "net_to_count.py").write_text(NET)

    def cli(*arguments: str) -> str:
        given = [sys.executable, "-m", "mlpdeploy", *arguments]
        found = subprocess.run(given, capture_output=True, text=True, cwd=tmp_path, check=False)
        assert found.returncode == 0, found.stderr
        return found.stdout

    assert "counting" in cli("build", "--help")
    (known,) = (one for one in json.loads(cli("doctor", "--json"))["backends"] if one["name"] == "counting")
    assert known["cannot_build"] is None and known["cannot_run"] == "it only counts"
    rules = {rule["name"]: rule["engines"] for rule in json.loads(cli("list", "--rules", "--json"))}
    assert "counting" in rules["flatten_grids"] and "counting" in rules["pick_parts"]
    assert "counting" not in rules["fold_affine"]
    chosen = ("net_to_count:net", "--input-shape", "3,8,8", "--backend", "counting", "--precision", "fp32")
    manifest = json.loads(cli("build", *chosen, "--json"))["manifest"]
    assert [one["name"] for one in manifest["forms"]] == ["flatten_grids"]
    assert not [rule for rule in manifest["rules"] if rule["name"] == "fold_affine"]
    (engine,) = (tmp_path / "artifacts").glob("*/fp32/counting/engine.txt")
    assert engine.read_text() == str(len(onnx.load(engine.with_name("model.onnx")).graph.node))
    verified = json.loads(cli("verify", *chosen, "--json"))
    assert verified["passed"] and verified["stages"][-1]["reason"] == "built, not executed: it only counts"
