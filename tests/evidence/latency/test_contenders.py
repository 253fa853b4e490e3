"""torch.compile as a contender: one program a batch size, and of two layouts the one that is faster."""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpdeploy.commands import bench_session
from mlpdeploy.evidence.documents.bench import COMPILE, MAX_AUTOTUNE
from mlpdeploy.evidence.latency import contenders, sittings
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.progress import Stages

IMAGES = (TensorSpec("image", (3, 8, 8), torch.float32),)


class Compiler:
    """torch.compile, which keeps what it was asked for; Inductor's part is left out."""

    def __init__(self) -> None:
        self.modes: list[str | None] = []
        self.graphs = 0
        self.strides: set[tuple[int, ...]] = set()

    def __call__(self, function: Any, *, dynamic: bool, mode: str | None) -> Any:
        self.modes.append(mode)
        return _compile(function, dynamic=dynamic, backend=self.made)

    def made(self, graph: Any, example: list[Any]) -> Any:
        self.graphs += 1
        self.strides |= {one.stride() for one in example if one.dim() == 4 and one.shape[1:] == (3, 8, 8)}
        return graph.forward


_compile = torch.compile


@pytest.fixture
def compiler(monkeypatch: pytest.MonkeyPatch) -> Compiler:
    made = Compiler()
    monkeypatch.setattr(torch, "compile", made)
    return made


def network(convolutions: int) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3 if index == 0 else 4, 4, 3) for index in range(convolutions)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(4 * (8 - 2 * convolutions) ** 2, 5)).eval()


def made(net: nn.Module, name: str = COMPILE) -> list[contenders.Contender]:
    return contenders.compiled(name, net, IMAGES, torch.float32, "cpu")


def answers(one: contenders.Contender, rows: np.ndarray) -> torch.Tensor:
    with one.load() as call:
        found: Any = call(one.prepare({"image": rows}))
    return torch.as_tensor(found)


def test_every_batch_size_has_a_program_of_its_own_however_many_there_are(compiler: Compiler) -> None:
    net = network(1)
    (way,) = made(net)
    for size in (*range(1, 12), 3, 2):
        rows = np.random.default_rng(size).random((size, 3, 8, 8), np.float32)
        torch.testing.assert_close(answers(way, rows), net(torch.from_numpy(rows)))
    assert compiler.graphs == 11 and compiler.modes == [None] * 11


def test_two_contenders_of_one_class_share_no_limit(compiler: Compiler) -> None:
    rows = np.zeros((1, 3, 8, 8), np.float32)
    for _ in range(10):
        answers(made(network(1))[0], rows)
    assert compiler.graphs == 10


@pytest.mark.parametrize(("name", "mode"), [(COMPILE, None), (MAX_AUTOTUNE, "max-autotune-no-cudagraphs")])
def test_what_convolves_may_lie_channels_last(compiler: Compiler, name: str, mode: str | None) -> None:
    net = network(2)
    before = [weight.stride() for weight in net.parameters()]
    ways = made(net, name)
    assert [way.name for way in ways] == [name, f"{name}, channels last"]
    rows = np.random.default_rng(0).random((2, 3, 8, 8), np.float32)
    for way in ways:
        torch.testing.assert_close(answers(way, rows), net(torch.from_numpy(rows)))
    assert compiler.modes == [mode, mode] and compiler.strides == {(192, 64, 8, 1), (192, 1, 24, 3)}
    assert [weight.stride() for weight in net.parameters()] == before


@pytest.mark.parametrize("fastest", ["compile", "compile, channels last"])
def test_the_faster_layout_is_the_contender(compiler: Compiler, monkeypatch: pytest.MonkeyPatch, fastest: str) -> None:
    def timed(ways: Any, sizes: list[int], *_: Any) -> dict[int, Any]:
        latencies = {one.name: SimpleNamespace(median=1.0 if one.name == fastest else 2.0) for one in ways}
        return {sizes[0]: SimpleNamespace(latency=latencies.__getitem__)}

    monkeypatch.setattr(sittings, "sittings", timed)
    net = network(2)
    session: Any = SimpleNamespace(
        source=SimpleNamespace(network=net), specs=IMAGES, selection=SimpleNamespace(seed=0), stages=Stages(),
        _torch=lambda: (torch.float32, "cpu"),
    )  # fmt: skip
    found = functools.partial(bench_session.Session._compiled, session)(COMPILE, 1)
    assert found.name == COMPILE and found.what.endswith("channels last") == (fastest != COMPILE)
