"""The table of backends, and what `auto` picks."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mlpdeploy.engine import backend as table
from mlpdeploy.engine.backend import AUTO, backends, pick
from mlpdeploy.errors import InputError, MachineLacks


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


def test_auto_takes_the_first_that_uses_this_machines_gpu_and_else_says_why_none_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Lacking(Stub):
        def supports(self, precision: str, gpus: tuple[str, ...] = ()) -> str | None:
            if gpus:
                raise MachineLacks(f"{self.name} does not serve it")
            return None

    class Cpu(Stub):
        def supports(self, precision: str, gpus: tuple[str, ...] = ()) -> str | None:
            return "drop --gpu" if gpus else None

    none = Stub("tensorrt", "not installed"), Lacking("tensorrt-rtx"), Cpu("openvino")
    use(monkeypatch, *none, Stub("inductor"))
    assert pick("auto", "fp16", ("current",)).name == "inductor" and pick("auto", "fp16").name == "tensorrt-rtx"
    use(monkeypatch, *none, Lacking("inductor"))
    with pytest.raises(MachineLacks, match=r"^tensorrt-rtx does not serve it$"):
        pick("auto", "fp16", ("current",))


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
