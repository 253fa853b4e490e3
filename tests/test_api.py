"""What the package offers in Python: networks in hand become engines, and what cannot is one clear line."""

from __future__ import annotations

import doctest
import pkgutil
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy import Engine, api
from mlpdeploy.errors import ArtifactError, InputError, MlpdeployError, NetworkError
from tests.conftest import REPOSITORY
from tests.digits import accuracy, load


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.tokens, self.channels = nn.LayerNorm(16), nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)
        return x + nn.functional.gelu(self.channels(x))


class Net(nn.Module):
    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.blocks, self.head = nn.Conv2d(3, 16, 4, 4), nn.Sequential(Block(), Block()), nn.Linear(16, 5)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(image).flatten(2).transpose(1, 2)).mean(1))


class Two(nn.Module):
    """Two inputs of two kinds, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, scale: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(ids).mean(1) * scale
        return self.linear(x), x


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def images(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


@pytest.mark.slow
def test_real_rows_gate_the_classes_that_they_are_given() -> None:
    network, rows, labels = load("mixer_digits")
    engine = mlpdeploy.compile(network, rows[:1], precision="fp16", backend="onnxruntime", batch=64, name="digits")
    found = engine.verify(data=rows[:200], labels=labels[:200])
    assert found.inputs == "images" and found.stages[-1].images is not None
    assert found.stages[-1].images.accuracy == pytest.approx(accuracy(network, rows[:200], labels[:200]), abs=0.005)
    with pytest.raises(InputError, match=r"\(9,\) labels do not fit 200 rows"):
        engine.verify(data=rows[:200], labels=labels[:9])
    with pytest.raises(InputError, match="labels need the rows"):
        engine.verify(labels=labels)
    with pytest.raises(InputError, match="--data photos: there is no such file; give a folder"):
        engine.verify(data="photos")


@pytest.mark.slow
def test_int8_is_calibrated_on_rows_in_hand(tmp_path: Path) -> None:
    network, rows, labels = load("mixer_digits")
    engine = mlpdeploy.compile(
        network, rows[:2], precision="int8", backend="onnxruntime", batch="1:2:4", out=tmp_path,
        calibration=rows[:200], labels=labels[:200], calibrator="max", max_drop=0.5,
    )  # fmt: skip
    int8 = engine.manifest["quantised"]
    assert int8["calibrator"] == "max" and int8["rows"] == 200 and not int8["random"]
    assert int8["curve"][-1]["top1"] >= int8["curve"][0]["top1"]
    with np.load(tmp_path / "calibration.npz") as kept:
        assert np.array_equal(kept["input"], rows[:200]) and np.array_equal(kept["labels"], labels[:200])
    assert engine.verify(data=rows[200:264], labels=labels[200:264]).passed


@pytest.mark.parametrize(
    ("calibration", "labels", "message"),
    [
        (None, None, "INT8 needs --calibration"),
        ("photos", None, "--calibration photos: there is no such file"),
        (images(4), np.zeros(3), "labels do not fit 4 rows"),
        ([images(4), images(4)], None, "1 inputs are taken"),
    ],
)
def test_int8_without_usable_rows(calibration: Any, labels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        mlpdeploy.compile(
            Net(), images(2), precision="int8", backend="onnxruntime", calibration=calibration, labels=labels,
            out=tmp_path,
        )  # fmt: skip


def test_the_network_stays_as_it_is_and_may_change_later() -> None:
    network = Net().train().half()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    engine = mlpdeploy.compile(network, images(1), precision="fp32", backend="onnxruntime", batch=1)
    assert network.training and all(p.requires_grad and p.dtype == torch.float16 for p in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    with torch.no_grad():
        network.head.weight.zero_()
    assert engine.verify().passed


@pytest.mark.slow
@pytest.mark.parametrize("io", ["fp32", "fp16", "bf16"])
def test_other_dtypes_at_the_ends(io: str) -> None:
    engine = mlpdeploy.compile(Net(), images(1), precision="bf16", backend="openvino", batch="1:2:2", io=io)
    expected = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[io]
    found = engine(images(2))
    assert found.dtype == expected and torch.allclose(found.float(), Net().eval()(images(2)), atol=0.1)
    assert str(engine(images(2).bfloat16().float().numpy()).dtype) == str(expected).removeprefix("torch.")


@pytest.mark.slow
@pytest.mark.parametrize(("backend", "io", "allowed"), [("openvino", "fp16", 6e-3), ("onnxruntime", "bf16", 6e-2)])
def test_ends_of_less_precision_than_the_engine_are_held_to_their_own_budget(
    backend: str, io: str, allowed: float
) -> None:
    engine = mlpdeploy.compile(Net(), images(1), precision="fp32", backend=backend, batch="1:2:2", io=io)
    found = engine.verify()
    assert found.passed and {stage.budget.max_relative_error for stage in found.stages if stage.name == "engine"} == {
        allowed
    }


def test_no_file_takes_the_place_of_a_function_once_it_is_imported() -> None:
    files = {module.name for module in pkgutil.iter_modules(mlpdeploy.__path__)}
    assert files & set(mlpdeploy.__all__) == {"errors"}
    assert mlpdeploy.doctor().keys() == mlpdeploy.doctor().keys()


class Unique(Net):
    """A module that cannot be copied."""

    def __deepcopy__(self, memo: object) -> nn.Module:
        raise RuntimeError("there is one")


BAD: dict[str, tuple[type[MlpdeployError], str, Callable[[], object]]] = {
    "a class": (InputError, "it is the class Net", lambda: mlpdeploy.compile(Net, images(1))),  # type: ignore[arg-type]
    "a function": (InputError, "it is a function", lambda: mlpdeploy.compile(lambda x: x, images(1))),  # type: ignore[arg-type]
    "a shape": (InputError, "'input' is a int", lambda: mlpdeploy.compile(Net(), [3])),
    "a word": (InputError, "'input' is a str: give a torch tensor or", lambda: mlpdeploy.compile(Net(), "image")),
    "nothing": (InputError, "its first axis must be a batch", lambda: mlpdeploy.compile(Net(), torch.tensor(1.0))),
    "an empty batch": (InputError, r"shape \(0, 3, 16", lambda: mlpdeploy.compile(Net(), images(0))),
    "complex": (InputError, "dtype complex64", lambda: mlpdeploy.compile(Net(), images(1).to(torch.complex64))),
    "too many": (InputError, "takes 1 inputs, the example has 2", lambda: mlpdeploy.compile(Net(), (images(1),) * 2)),
    "rows": (InputError, "same number of rows", lambda: mlpdeploy.compile(Two(), (torch.ones(1, 4), torch.ones(2, 5)))),
    "no batch axis": (NetworkError, "does not take the example", lambda: mlpdeploy.compile(Net(), images(1)[0])),
    "size": (NetworkError, "RuntimeError: mat1", lambda: mlpdeploy.compile(Net(), torch.ones(1, 3, 20, 16))),
    "not copied": (InputError, "Unique cannot be copied", lambda: mlpdeploy.compile(Unique(), images(1))),
    "not traced": (NetworkError, "control flow", lambda: mlpdeploy.compile(Branches(), images(1), backend="openvino")),
    "precision": (InputError, "choose one of", lambda: mlpdeploy.compile(Net(), images(1), precision="fp7")),
    "batch": (InputError, "MIN <= OPT", lambda: mlpdeploy.compile(Net(), images(1), batch="4:2:1")),
    "range": (InputError, "smallest and the largest", lambda: mlpdeploy.compile(Net(), images(1), value_range=(1, 0))),
    "backend": (InputError, "did you mean openvino", lambda: mlpdeploy.compile(Net(), images(1), backend="openvin")),
    "no artifact": (ArtifactError, "there is no artifact at", lambda: mlpdeploy.load("no such folder")),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_input_is_one_clear_line(what: str) -> None:
    kind, message, call = BAD[what]
    with pytest.raises(kind, match=message) as raised:
        call()
    assert len(str(raised.value).splitlines()) == 1


def test_the_network_in_hand_has_no_name_on_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tests.terminal.test_cli import in_process

    monkeypatch.chdir(tmp_path)
    assert in_process("build", "python:Net", "--backend", "openvino") == 2
    assert "pass it to mlpdeploy.compile" in capsys.readouterr().err


def test_the_examples_of_the_docstrings_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(api, raise_on_error=True)
    assert found.attempted == 10 and found.failed == 0


@pytest.mark.slow
def test_the_example_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", (REPOSITORY / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["logits"].shape == (5, 1000) and names["again"].manifest == names["engine"].manifest


@pytest.mark.slow
def test_several_threads_compile_at_once_each_its_own_network() -> None:
    """torch.export keeps what it does in classes and modes that all threads share: calls of networks too, so later."""
    found: dict[int, tuple[Engine, nn.Module, Tensor]] = {}

    def compiled(depth: int) -> None:
        torch.manual_seed(depth)
        network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(depth)), nn.Tanh()).eval()
        rows = torch.randn(3, 8)
        engine = mlpdeploy.compile(network, rows, precision="fp32", backend="onnxruntime", batch="1:2:4")
        assert engine(rows).shape == (3, 8)
        found[depth] = engine, network, rows

    threads = [threading.Thread(target=compiled, args=(depth,)) for depth in (1, 2, 3, 4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.keys() == {1, 2, 3, 4}
    for engine, network, rows in found.values():
        torch.testing.assert_close(engine(rows), network(rows), rtol=1e-5, atol=1e-5)
