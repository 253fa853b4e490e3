"""The plain flavour, through a stand-in `tensorrt` in a process of its own, and one flavour a process.

The stand-in is TensorRT-RTX under the other name, with the version and the members of the TensorRT that it plays.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from types import SimpleNamespace

import onnx
import pytest

from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import strongly_typed_flag
from mlpdeploy.engine.backends.tensorrt._configuration import set_tf32
from mlpdeploy.errors import BuildError
from tests.conftest import REPOSITORY
from tests.engine.small_networks import emitted
from tests.warm import Warm

STAND_IN = """
import tensorrt_rtx as _real
__version__ = {version!r}
{flags}
def __getattr__(name):
    return getattr(_real, name)
"""

BUILD = """
import json, pathlib
from types import SimpleNamespace
import onnx
from mlpdeploy.engine.backend import BuildRequest, pick
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine import nvidia
from mlpdeploy.engine.onnx.emit import Emitted
from mlpdeploy.errors import MlpdeployError
nvidia.probe = lambda: nvidia.Gpu("Stand-in 80", "sm80", "13.0")
class Silent:
    def step(self, phase, done, total): pass
said = []
def attempt(name, *, precision="fp16", gpus=()):
    try:
        folder = pathlib.Path({folder!r})
        given = Emitted(onnx.load(folder / f"{{precision}}.onnx"), SimpleNamespace(inputs=(), outputs=()))
        built = pick(name).build(given, BuildRequest(precision, Batch(1, 2, 4), gpus, level=2), folder, Silent())
        said.append([built.facts["executed"], built.facts["gpus"], built.facts["gpu"]])
    except MlpdeployError as error:
        said.append([type(error).__name__, str(error).splitlines()[0]])
{attempts}
print(json.dumps(said))
"""


def run(warm: Warm, tmp_path: Path, version: str, attempts: str) -> list[list]:
    reason = backends()["tensorrt-rtx"].available()
    if reason is not None:
        pytest.skip(reason)
    flags = "" if version < "11" else "class NetworkDefinitionCreationFlag: __members__ = {}"
    (tmp_path / "tensorrt.py").write_text(STAND_IN.format(version=version, flags=flags))
    for precision in ("fp16", "tf32"):
        onnx.save(emitted(precision).model, tmp_path / f"{precision}.onnx")
    code = BUILD.format(folder=str(tmp_path), attempts=attempts)
    environment = {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}", "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = warm.run(["-c", code], tmp_path, **environment)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("version", ["10.13.0", "11.2.1"])
def test_the_plain_flavour_builds_across_versions(warm: Warm, tmp_path: Path, version: str) -> None:
    attempts = "\n".join(
        [
            "attempt('tensorrt')",
            "attempt('tensorrt', precision='tf32', gpus=('sm80',))",
            "attempt('tensorrt', gpus=('sm86',))",
            "attempt('tensorrt-rtx')",
        ]
    )
    half, tf32, elsewhere, rtx = run(warm, tmp_path, version, attempts)
    assert half == ["HALF", ["sm80"], "Stand-in 80"] and tf32 == ["FLOAT with TF32", ["sm80"], "Stand-in 80"]
    assert elsewhere[0] == "InputError" and "(sm80), not for sm86" in elsewhere[1]
    assert rtx[0] == "InputError" and "already uses tensorrt and can use one flavour only" in rtx[1]
    caches = list((tmp_path / "cache" / "mlpdeploy").iterdir())
    (name,) = (cache.name for cache in caches)
    assert re.fullmatch(r"timing-tensorrt-none-kernel-[0-9a-f]{12}-sm80-stand-in-80\.cache", name)
    assert caches[0].stat().st_size > 0


@pytest.mark.slow
def test_a_cache_folder_that_cannot_be_written_fails_no_build(warm: Warm, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert run(warm, tmp_path, "10.13.0", "attempt('tensorrt')") == [["HALF", ["sm80"], "Stand-in 80"]]


@pytest.mark.slow
def test_another_backend_may_have_imported_polygraphy_first(warm: Warm, tmp_path: Path) -> None:
    said = run(
        warm, tmp_path, "10.13.0", "import polygraphy.backend.onnxrt, polygraphy.datatype\nattempt('tensorrt-rtx')"
    )
    assert said == [["HALF", [], None]]


def trt(name: str = "tensorrt", version: str = "10.13.0", typed: bool = True, tf32: bool = True) -> SimpleNamespace:
    flags = SimpleNamespace(STRONGLY_TYPED=1) if typed else SimpleNamespace()
    builder = SimpleNamespace(TF32="TF32") if tf32 else SimpleNamespace()
    return SimpleNamespace(__name__=name, __version__=version, NetworkDefinitionCreationFlag=flags, BuilderFlag=builder)


def test_the_strongly_typed_flag_is_asked_for_where_it_exists() -> None:
    assert strongly_typed_flag(trt())
    assert not strongly_typed_flag(trt(version="11.0.0", typed=False))
    assert not strongly_typed_flag(trt("tensorrt_rtx", "2.0.0", typed=False))
    with pytest.raises(BuildError, match=r"10\.9\.0 has no strongly typed networks"):
        strongly_typed_flag(trt(version="10.9.0", typed=False))


class Config:
    def __init__(self) -> None:
        self.flags = {"TF32"}

    def set_flag(self, flag: str) -> None:
        self.flags.add(flag)

    def clear_flag(self, flag: str) -> None:
        self.flags.discard(flag)


def test_tf32_is_on_only_where_it_was_asked_for() -> None:
    config = Config()
    set_tf32(trt(), config, False)
    assert config.flags == set()
    set_tf32(trt(), config, True)
    assert config.flags == {"TF32"}
    set_tf32(trt(tf32=False), config, False)
    with pytest.raises(BuildError, match="no TF32 builder flag"):
        set_tf32(trt(tf32=False), config, True)


@pytest.mark.parametrize(
    ("version", "old"), [("10.12.0.36", True), ("10.13.0.35", False), ("11.0.0", False), ("8.6.1", True)]
)
def test_an_old_library_is_named_with_the_one_to_install(
    monkeypatch: pytest.MonkeyPatch, version: str, old: bool
) -> None:
    from mlpdeploy.engine.backends import tensorrt

    monkeypatch.setattr(tensorrt, "missing", lambda module, install: None)
    monkeypatch.setattr(tensorrt, "installed_version", lambda package: version)
    monkeypatch.setattr(tensorrt.nvidia, "probe", lambda: tensorrt.nvidia.Gpu("Stand-in", "sm80", "13.0"))
    reason = tensorrt.TensorRT("tensorrt").available()
    too_old = f"tensorrt {version} is too old; install 10.13 or later: pip install -U tensorrt"
    assert reason == (too_old if old else None)
