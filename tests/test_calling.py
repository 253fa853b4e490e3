"""Calls of CPU engines: inputs are read where they lie, answers are the caller's own, and `out` is written into."""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy import Engine
from mlpdeploy.calling import _ready
from mlpdeploy.errors import InputError
from tests.test_api import Net, images

WIDE = 4096
"""Numbers of a row that are too many to be copied at batch 8: an engine reads and writes them where they lie."""
CPU = ("openvino", "onnxruntime")


class Several(nn.Module):
    """A large and a small input, a large and a small output."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.rows, self.last = nn.Embedding(7, 3), nn.Linear(WIDE, 3)

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.tanh(x), self.last(x) + self.rows(ids).sum(1)


def given(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, WIDE, generator=generator), torch.randint(0, 7, (rows, 2), generator=generator)


def expected(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        found: tuple[Tensor, Tensor] = Several()(*given(rows, seed))
    return found


def alike(found: Any, wanted: Any) -> bool:
    return all(torch.allclose(torch.as_tensor(one), two, atol=1e-5) for one, two in zip(found, wanted, strict=True))


@pytest.fixture(scope="module", params=CPU)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    example = given(8)
    example[1][0] = torch.tensor([0, 6])
    with mlpdeploy.compile(
        Several(), example, precision="fp32", backend=request.param, batch="1:4:8", output_names=("large", "small")
    ) as made:
        yield made


def test_answers_remain_whatever_is_asked_later(engine: Engine) -> None:
    sizes = (1, 8, 8, 1, 3, 8)
    found = [engine(*given(rows, seed)) for seed, rows in enumerate(sizes)]
    arrays = [engine(*(one.numpy() for one in given(rows, seed))) for seed, rows in enumerate(sizes)]
    for seed, rows in enumerate(sizes):
        assert alike(found[seed], expected(rows, seed)) and alike(arrays[seed], expected(rows, seed))
    for one in arrays[1]:
        one[...] = 0  # the caller's own, to write into
    assert alike(engine(*given(8, 1)), expected(8, 1)) and alike(found[1], expected(8, 1))


def test_what_lies_otherwise_is_taken_as_what_it_is(engine: Engine) -> None:
    x, ids = given(8)
    read_only = x.numpy().copy()
    read_only.setflags(write=False)
    spread = torch.empty(8, 2 * WIDE)[:, ::2].copy_(x)
    others: list[tuple[Any, Any]] = [
        (read_only, ids.numpy()), (spread, ids), (x.double(), ids.int()), (x.requires_grad_(), ids),
        (x.detach(), ids.t().contiguous().t()),
        (np.asfortranarray(x.detach().numpy()), ids.numpy().astype(np.uint8)),
    ]  # fmt: skip
    for one in others:
        assert alike(engine(*one), expected(8))
    with pytest.raises(InputError, match=r"'ids' takes int64, it was given float32"):
        engine(x, ids.float())
    with pytest.raises(InputError, match="all inputs must have the same number of rows"):
        engine(x, ids[:3])


def test_inputs_that_fit_are_not_copied() -> None:
    x, float32 = torch.ones(2, 3), np.dtype(np.float32)
    array = x.numpy()
    assert _ready(array, float32) is array and np.shares_memory(_ready(x, float32), array)  # type: ignore[arg-type]
    for one in (x.double(), x.t(), x.to_sparse(), x.to("meta"), array[:, ::2], x.clone().requires_grad_(), x[:0], 1.0):
        assert _ready(one, float32) is None


@pytest.mark.parametrize("kind", [Tensor.numpy, lambda one: one], ids=["arrays", "tensors"])
def test_out_is_written_into_and_returned(engine: Engine, kind: Callable[[Tensor], Any]) -> None:
    out = kind(torch.zeros(8, WIDE)), kind(torch.zeros(8, 3))
    for seed in range(3):
        assert engine(*given(8, seed), out=out) is out
        assert alike(out, expected(8, seed))
    named = {"small": kind(torch.zeros(2, 3)), "large": kind(torch.zeros(2, WIDE))}
    assert engine(*given(2, 5), out=named) is named
    assert alike((named["large"], named["small"]), expected(2, 5)) and alike(out, expected(8, 2))
    assert alike(engine(*given(2, 6)), expected(2, 6)) and alike((named["large"], named["small"]), expected(2, 5))


@pytest.mark.parametrize(
    ("out", "said"),
    [
        (lambda x: torch.zeros(2, WIDE), "the outputs are large, small; out has 0"),
        (lambda x: {"large": torch.zeros(2, WIDE)}, "the outputs are large, small; out has large"),
        (lambda x: [torch.zeros(3, WIDE), torch.zeros(3, 3)], "must be float32 [2, 4096] on cpu; it is float32 [3, "),
        (lambda x: [torch.zeros(2, WIDE), np.zeros((2, 3))], "must be float32 [2, 3] on cpu; it is float64 [2, 3] on"),
        (lambda x: [torch.zeros(2, WIDE), [0.0]], "'small' must be float32 [2, 3] on cpu; it is a list"),
        (lambda x: [torch.zeros(2, WIDE, device="meta"), torch.zeros(2, 3)], "on cpu; it is float32 [2, 4096] on meta"),
        (lambda x: [torch.zeros(2, WIDE), torch.zeros(3, 2).t()], "out for 'small' must be contiguous and writable"),
        (lambda x: [torch.zeros(2, WIDE), torch.zeros(2, 3).requires_grad_()], "and no part of autograd"),
        (lambda x: [torch.zeros(2, WIDE), np.broadcast_to(np.zeros(3, np.float32), (2, 3))], "contiguous and writable"),
        (lambda x: [x, torch.zeros(2, 3)], "out for 'large' shares memory with 'x'"),
        (lambda x: [(y := torch.zeros(2 * WIDE)).view(2, WIDE), y[5:11].view(2, 3)], "shares memory with 'large'"),
    ],
)  # fmt: skip
def test_an_out_that_does_not_fit_is_one_line_and_stays_as_it_was(
    engine: Engine, out: Callable[[Tensor], Any], said: str
) -> None:
    x, ids = given(2)
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        engine(x, ids, out=out(x))
    assert len(str(caught.value).splitlines()) == 1 and torch.equal(x, given(2)[0])


class Twice(nn.Module):
    """What it computes and what it is given, each as two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        return y, y, x, x, y.reshape(y.shape[0], -1)


@pytest.mark.slow
@pytest.mark.parametrize("backend", CPU)
def test_outputs_that_are_the_same_are_outputs_of_their_own(backend: str) -> None:
    network, x = Twice().eval(), torch.randn(3, 8)
    engine = mlpdeploy.compile(network, x, precision="fp32", backend=backend, batch="1:2:4")
    for rows in (3, 1, 3):
        found = engine(x[:rows])
        found[0].add_(1)
        found[2].add_(1)
        one, _, same, *_ = network(x[:rows])
        assert alike(found, (one + 1, one, same + 1, same, one))


@pytest.mark.slow
@pytest.mark.parametrize("backend", CPU)
def test_ends_in_bf16(backend: str) -> None:
    engine = mlpdeploy.compile(Net(), images(2), precision="fp32", io="bf16", backend=backend, batch="1:2:4")
    x, wanted = images(2).bfloat16(), Net().eval()(images(2).bfloat16().float()).detach()
    found, out = engine(x), torch.zeros_like(wanted, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16 and torch.allclose(found.float(), wanted, atol=2e-2)
    assert engine(x, out=out) is out and torch.equal(out, found)
    array = engine(x.view(torch.int16).numpy().view(ml_dtypes.bfloat16))
    assert array.dtype == ml_dtypes.bfloat16 and (array.astype(np.float32) == found.float().numpy()).all()


def test_a_pool_answers_threads_and_outlives_what_it_was_made_from(engine: Engine) -> None:
    known = [(given(rows, rows), expected(rows, rows)) for rows in (1, 2, 8)]
    with engine.pool(2) as pool, ThreadPoolExecutor(6) as threads:
        engine.close()
        found = list(threads.map(lambda place: alike(pool(*known[place % 3][0]), known[place % 3][1]), range(60)))
        assert all(found) and repr(pool) == repr(engine)
        again = pickle.loads(pickle.dumps(pool))
        assert again._loading == pool._loading and alike(again(*known[0][0]), known[0][1])
    with pytest.raises(InputError, match="contexts of a pool 0: it must be at least 1"):
        engine.pool(0)


def test_the_folder_of_an_engine_stays_as_long_as_its_pool(tmp_path: Path) -> None:
    pool = mlpdeploy.compile(Net(), images(1), precision="fp32", backend="onnxruntime", batch="1:2:4").pool(1)
    assert pool.folder.exists() and len(pool(images(2))) == 2
    pool.close()
    assert len(pool(images(3))) == 3
    assert mlpdeploy.load(pool.save(tmp_path / "kept"), cuda_graphs=False)._loading.contexts is None
