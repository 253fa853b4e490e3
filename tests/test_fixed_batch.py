"""Networks whose code fixes the batch: they build for that size, and are told which where it was not asked for."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.errors import InputError, NetworkError
from mlpdeploy.terminal import cli as command_line

NAMES = ("reshaped", "recurrent", "joined", "four")
SIZES = {"reshaped": 1, "recurrent": 1, "joined": 1, "four": 4, "mixing": 4, "counted": 5}
SHAPES = {"recurrent": (3, 32), "joined": (4, 32), "four": (3, 8, 8)}


class Net(nn.Module):
    def __init__(self, form: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.form = form
        self.first, self.last, self.norm = nn.Linear(32, 32), nn.Linear(32, 4), nn.LayerNorm(32)
        self.cell, self.patches = nn.GRU(32, 32, batch_first=True), nn.Conv2d(3, 32, 4, 4)
        self.five, self.four = nn.Linear(5, 5), nn.Linear(4, 4)
        self.register_buffer("state", torch.randn(1, 1, 32))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(getattr(self, self.form)(x))

    def reshaped(self, x: Tensor) -> Tensor:
        return self.first(x).relu().reshape(1, 32)

    def recurrent(self, x: Tensor) -> Tensor:
        return self.cell(x, self.state)[0][:, -1]

    def joined(self, x: Tensor) -> Tensor:
        x = torch.cat([self.state, x], 1)
        return (x + self.five(self.norm(x).transpose(1, 2)).transpose(1, 2)).mean(1)

    def four_images(self, x: Tensor) -> Tensor:
        x = self.patches(x).view(4, 32, 4)
        return (x + self.four(x)).mean(2)

    def mixing(self, x: Tensor) -> Tensor:
        return self.first(x).softmax(0).reshape(4, 32)

    def counted(self, x: Tensor) -> Tensor:
        return self.first(x).reshape(len(x), 8, 4).flatten(1)


def network(name: str) -> nn.Module:
    return Net({"four": "four_images"}.get(name, name)).eval()


def four() -> nn.Module:
    return network("four")


def example(name: str) -> Tensor:
    return torch.randn(SIZES[name], *SHAPES.get(name, (32,)), generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("name", [*NAMES, "counted"])
def test_it_builds_for_the_batch_that_the_network_fixes(name: str, backend: str, precision: str) -> None:
    net, rows = network(name), example(name)
    engine = mlpdeploy.compile(net, rows, precision=precision, backend=backend, batch=SIZES[name])
    assert engine.verify().passed
    expected = net(rows)
    torch.testing.assert_close(engine(rows), expected, rtol=1e-2, atol=1e-2 if precision == "fp16" else 1e-5)
    with pytest.raises(InputError, match=f"built for batch {SIZES[name]}; it was given {SIZES[name] + 1}"):
        engine(torch.cat([rows, rows[:1]]))


@pytest.mark.slow
def test_in_int8() -> None:
    engine = mlpdeploy.compile(
        network("four"), example("four"), precision="int8", backend="onnxruntime", batch=4, calibration="random"
    )
    assert engine.verify().passed


@pytest.mark.slow
def test_for_tensorrt_without_a_dynamic_dimension() -> None:
    pytest.importorskip("tensorrt_rtx")
    engine = mlpdeploy.compile(network("four"), example("four"), precision="fp16", backend="tensorrt-rtx", batch=4)
    assert engine.verify().passed


@pytest.mark.parametrize("name", NAMES)
def test_the_size_is_said_where_another_was_asked_for(name: str) -> None:
    with pytest.raises(NetworkError, match=rf"{name}|{Net.__name__}.*fixes the batch: --batch {SIZES[name]} builds it"):
        mlpdeploy.compile(network(name), example(name), precision="fp32", backend="onnxruntime")


def test_no_size_is_promised_where_none_would_do() -> None:
    """Something else than the batch is wrong: the network takes any, and says so by its own error."""

    class Deciding(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * 2 if x.sum() > 0 else x

    for batch in ("1:2:4", "4"):
        with pytest.raises(NetworkError, match="control flow depends on the values") as caught:
            mlpdeploy.compile(Deciding(), torch.randn(2, 8), precision="fp32", backend="onnxruntime", batch=batch)
        assert "--batch" not in str(caught.value)


def test_no_size_is_promised_where_the_first_axis_is_another() -> None:
    class TimeFirst(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.transpose(0, 1) * 2

    with pytest.raises(NetworkError, match=r"its first axis is not the batch$"):
        mlpdeploy.compile(TimeFirst(), torch.randn(2, 16, 8), precision="fp32", backend="onnxruntime")


def test_rows_must_not_meet_in_a_fixed_batch_either() -> None:
    with pytest.raises(NetworkError, match="lets a row depend on the others"):
        mlpdeploy.compile(network("mixing"), example("mixing"), precision="fp32", backend="onnxruntime", batch=4)


@pytest.mark.slow
def test_every_command_takes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = (f"{__name__}:four", "--input-shape", "3,8,8")
    engine = ("--precision", "fp32", "--backend", "onnxruntime", "--batch", "4")
    for line in (
        ("build", *chosen, *engine),
        ("verify", *chosen, *engine),
        ("bench", *chosen, *engine, "--time", "0.3", "--against", "eager,export", "--credit"),
        ("sensitivity", *chosen, "--calibration", "random"),
    ):
        with pytest.raises(SystemExit) as left:
            command_line.main(list(line))
        printed = capsys.readouterr()
        assert left.value.code == 0, printed
        assert "traced at batch 4 alone" in printed.out + printed.err
