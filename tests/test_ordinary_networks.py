"""PyTorch as people write it: each network here builds and verifies, or is refused in one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import mlpdeploy
from mlpdeploy.errors import InputError, NetworkError

ROWS = torch.randn(3, 24, generator=torch.Generator().manual_seed(0))
FLOAT8 = getattr(torch, "float8_e4m3fn", None)


class Net(nn.Module):
    """`inner`, on (b, 24), and a linear behind it that reads it."""

    def __init__(self, inner: Callable[[Net, Tensor], Tensor]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inner, self.last, self.square = inner, nn.Linear(24, 4), nn.Linear(24, 24)
        self.weight = nn.Parameter(torch.randn(13, 13, dtype=torch.cfloat) / 4)
        self.complex = nn.Linear(13, 13, dtype=torch.cfloat)
        self.table, self.meta_ = nn.Embedding(8, 24), nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.inner(self, x))


def spectrum(form: Callable[[Net, Tensor], Tensor]) -> Callable[[Net, Tensor], Tensor]:
    return lambda net, x: torch.fft.irfft(form(net, torch.fft.rfft(x)), n=24)


def low_modes(net: Net, f: Tensor) -> Tensor:
    kept = torch.zeros(f.shape[0], 13, dtype=torch.cfloat)
    kept[:, :5] = f[:, :5] * net.weight[0, :5]
    return kept


def cleared(net: Net, f: Tensor) -> Tensor:
    f = f * 2
    f[:, 5:] = 0
    return f


WORKS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "a product with a complex matrix": spectrum(lambda net, f: f @ net.weight),
    "an einsum with a complex matrix": spectrum(lambda net, f: torch.einsum("bf,fg->bg", f, net.weight)),
    "a complex linear": spectrum(lambda net, f: net.complex(f)),
    "low modes, padded": spectrum(lambda net, f: F.pad(f[:, :5] * 2, (0, 8))),
    "low modes, written into zeros": spectrum(low_modes),
    "high modes, cleared": spectrum(cleared),
    "modes joined with zeros": spectrum(lambda net, f: torch.cat([f[:, :5], torch.zeros_like(f[:, 5:])], 1)),
    "masked modes": spectrum(lambda net, f: f.masked_fill(torch.arange(13) > 6, 0)),
    "chosen modes": spectrum(lambda net, f: torch.where(torch.arange(13) > 6, f, torch.zeros_like(f))),
    "modes in another order": spectrum(lambda net, f: f.index_select(1, torch.arange(12, -1, -1))),
    "frequencies": spectrum(lambda net, f: f * torch.exp(-torch.fft.rfftfreq(24))),
    "literals": lambda net, x: x @ (torch.tensor([[0.9, 0.1]]).repeat(24, 12) / 24),
    "vmap": lambda net, x: torch.vmap(lambda row: net.square(row).softmax(-1))(x),
    "masks of masks": lambda net, x: torch.where((x > 0) & ~(x > 1) | (x < -1), x, -0.1),
    "where it is finite": lambda net, x: torch.where(torch.isfinite(x), x, 0.0),
    "nan_to_num": lambda net, x: torch.nan_to_num(x),
    "a quantile": lambda net, x: torch.minimum(x, torch.quantile(x, 0.9, dim=1, keepdim=True)),
    "buckets": lambda net, x: net.table(torch.bucketize(x[:, 0].contiguous(), torch.linspace(-1, 1, 7))),
    "a mask of attention": lambda net, x: F.scaled_dot_product_attention(
        *[x.reshape(-1, 1, 3, 8)] * 3, attn_mask=torch.ones(3, 3).tril().bool()
    ).reshape(-1, 24),
}


def proved(network: nn.Module, example: object, backend: str, precision: str) -> mlpdeploy.Engine:
    engine = mlpdeploy.compile(network.eval(), example, precision=precision, backend=backend, batch="1:2:4")
    found = engine.verify()
    assert found.passed, found.verdict()
    given = example if isinstance(example, tuple) else (example,)
    wanted, got = network(*given).detach(), engine(*given)
    assert (got - wanted).abs().max() <= (1e-4 if precision == "fp32" else 2e-2) * wanted.abs().max()
    return engine


@pytest.mark.slow
@pytest.mark.parametrize("name", WORKS)
def test_it_builds_and_verifies(name: str) -> None:
    proved(Net(WORKS[name]), ROWS, "openvino", "fp32")


@pytest.mark.slow
@pytest.mark.parametrize(
    "prepared",
    [lambda x: x / 255, lambda x: (x - 127.5) / 127.5, lambda x: x * (1 / 255), lambda x: x.float() / 255],
    ids=["divided", "centred", "multiplied", "cast"],
)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64], ids=str)
def test_whole_numbers_become_real_ones_in_front_of_a_layer(
    prepared: Callable[[Tensor], Tensor], dtype: torch.dtype
) -> None:
    class Pixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.mix, self.last = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)

        def forward(self, image: Tensor) -> Tensor:
            return self.last(self.mix(prepared(image)).relu().mean((2, 3)))

    images = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 3, 8, 8))).to(dtype)
    proved(Pixels(), images, "onnxruntime", "fp16")


class Spare(nn.Module):
    """Takes what it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(24, 4)

    def forward(self, x: Tensor, unused: Tensor) -> Tensor:
        return self.last(x)


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(24, 4)

    def forward(self, *images: Tensor) -> Tensor:
        return self.last(sum(images))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_inputs_that_nothing_uses_and_inputs_without_names(backend: str) -> None:
    proved(Spare(), (ROWS, ROWS), backend, "fp32")
    proved(Many(), (ROWS, 2 * ROWS), backend, "fp32")
    proved(Many(), ROWS, backend, "fp32")


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_one_size(mode: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.EmbeddingBag(50, 8, mode=mode), nn.Linear(8, 4))
    proved(network, torch.randint(0, 50, (3, 5)), "onnxruntime", "fp32")


@pytest.mark.slow
def test_wrappers_are_taken_off() -> None:
    averaged = torch.optim.swa_utils.AveragedModel(nn.Linear(24, 4))
    proved(averaged, ROWS, "onnxruntime", "fp32")
    batch = torch.export.Dim("batch")
    exported = torch.export.export(nn.Linear(24, 4), (ROWS,), dynamic_shapes=({0: batch},)).module()
    engine = mlpdeploy.compile(exported, ROWS, precision="fp32", backend="onnxruntime", batch="1:2:4")
    assert engine.verify().passed


class Kept(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.meta = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.meta(x)


@dataclass
class Answer:
    logits: Tensor


class Answering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.last = nn.Linear(24, 4)

    def forward(self, x: Tensor) -> Answer:
        return Answer(self.last(x))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(8, 32, proj_size=24, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.cells(x.reshape(-1, 3, 8))[0]


def quantised() -> nn.Module:
    return torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(24, 4)), {nn.Linear})


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "a generator": (
        lambda: Net(lambda net, x: x + torch.rand(24, generator=torch.Generator().manual_seed(0))),
        r"draws from a generator of random numbers in forward.*register a buffer, in module .*test_ordinary",
    ),
    "a part called meta": (Kept, r"has a part called 'meta', which torch.export cannot: rename it"),
    "a dataclass": (Answering, r"returns a Answer, which torch.export cannot see into; return a tensor"),
    "an LSTM with a projection": (Recurrent, r"has an LSTM with proj_size.* put a Linear behind the LSTM, in module"),
    "a scripted part": (
        lambda: nn.Sequential(torch.jit.script(nn.Linear(24, 24)), nn.Linear(24, 4)), r"0 is TorchScript, which",
    ),
    "a quantised part": (quantised, r"0 is quantised already \(Linear\): give the network in float"),
    "an operation that no file has": (
        lambda: Net(lambda net, x: torch.cumprod(x.sigmoid(), 1)), r"aten.cumprod.default has no ONNX form: module",
    ),
    "the length of the batch": (
        lambda: Net(lambda net, x: x.reshape(len(x), -1)), r"works only for some batch sizes.*use x.shape\[0\] for len",
    ),
    "take_along_dim": (
        lambda: Net(lambda net, x: x - torch.take_along_dim(x, x.argmax(1, keepdim=True), 1)),
        r"torch.export takes it for 3 in aten.take_along_dim.default, in module .*torch.gather for take_along_dim",
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of what is deprecated in PyTorch, and of LSTMs with projections
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_built_is_one_line(name: str) -> None:
    make, line = REFUSED[name]
    with pytest.raises(InputError, match=line) as refused:
        mlpdeploy.compile(make().eval(), ROWS, precision="fp32", backend="onnxruntime", batch="1:2:4")
    assert "\n" not in str(refused.value)


@pytest.mark.skipif(FLOAT8 is None, reason="this PyTorch has no float8")
def test_casts_to_float8_are_refused_where_they_stand() -> None:
    network = Net(lambda net, x: x.to(FLOAT8).float())
    with pytest.raises(NetworkError, match=r"computes in float8_e4m3fn, .*leave such casts out, in module .*ordinary"):
        mlpdeploy.compile(network.eval(), ROWS, precision="fp32", backend="onnxruntime")


def test_what_is_no_factory_is_said() -> None:
    for name in ("torch:randn", "os:getcwd"):
        with pytest.raises(InputError, match=r"no factory of networks|must make an nn.Module"):
            mlpdeploy.build(mlpdeploy.Selection(name, input_shape=(8,), precision="fp32", backend="onnxruntime"))


@pytest.mark.slow
@pytest.mark.parametrize("low", [torch.float16, torch.bfloat16])
def test_what_computes_in_half_by_itself_is_held_to_the_budget_of_that(low: torch.dtype) -> None:
    """An engine may round otherwise than PyTorch where the network itself rounds so coarsely."""

    class Halved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.first, self.last = nn.Linear(24, 24), nn.Linear(24, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.last((self.first(x).to(low) * 2).float())

    engine = mlpdeploy.compile(Halved().eval(), ROWS, precision="fp32", backend="openvino", batch="1:2:4")
    found = engine.verify()
    assert found.passed, found.verdict()
    allowed = {stage.name: stage.budget.max_relative_error for stage in found.stages}
    assert allowed["engine"] == (6e-3 if low is torch.float16 else 6e-2)
    assert allowed["rewritten graph, float64"] == 1e-9
