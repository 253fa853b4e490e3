"""What only a GPU can show: `python -m pytest -m gpu`."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mlpdeploy import kernels
from mlpdeploy.engine.backend import BuildRequest, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.graph import custom_ops

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU that PyTorch can use"),
]

launch: Any = kernels.load("segment_grouped_projection.launch")
tuning: Any = kernels.load("common.tuning")

ALLOWED = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 4e-6}
SHAPES = [(2, 16, 256, 24, 1, 16, 24), (3, 32, 32, 6, 1, 32, 6), (1, 28, 28, 2, 64, 1, 112), (5, 7, 3, 5, 1, 3, 11)]
"""B, P, Q, S, O, K, T: ViP's height and width, RaftMLP's first linear, and sizes that divide nothing."""


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tuning._remembered.cache_clear()
    yield
    tuning._remembered.cache_clear()


def drawn(sizes: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    b, p, q, s, o, k, t = sizes
    x = torch.randn(b, p, q, s, *([o] if o > 1 else []), device="cuda").to(dtype)
    weight = (torch.randn(k * t, p * s, device="cuda") / (p * s) ** 0.5).to(dtype)
    return x, weight, custom_ops.by_permuting(x.double(), weight.double(), k)


def agree(got: torch.Tensor, wanted: torch.Tensor) -> None:
    assert got.shape == wanted.shape and got.is_contiguous()
    assert float((got.double() - wanted).abs().max() / wanted.abs().max()) <= ALLOWED[got.dtype]


@pytest.mark.parametrize("dtype", list(ALLOWED), ids=str)
@pytest.mark.parametrize("sizes", SHAPES, ids=str)
def test_every_candidate_is_the_contraction(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    x, weight, wanted = drawn(sizes, dtype)
    sm = launch.compute_capability(x.device)
    for config in launch.describe(x, weight, sizes[5], tf32=False).shortlist(sizes[0], sm):
        agree(launch.project(x, weight, sizes[5], config, tf32=False), wanted)


@pytest.mark.parametrize("sizes", SHAPES[:2], ids=str)
def test_the_operation_is_the_same_eager_and_compiled(sizes: tuple[int, ...]) -> None:
    x, weight, wanted = drawn(sizes, torch.float16)
    assert launch.serves(x, weight)
    agree(custom_ops.segment_grouped_projection(x, weight, sizes[5]), wanted)
    compiled = torch.compile(lambda x, w: torch.ops.mlpdeploy.segment_grouped_projection(x, w, sizes[5]).relu())
    for batch in (sizes[0], 1, 7):
        x, weight, wanted = drawn((batch, *sizes[1:]), torch.float16)
        agree(compiled(x, weight), wanted.relu())


def test_what_was_measured_is_used_and_still_right() -> None:
    x, weight, wanted = drawn(SHAPES[0], torch.float16)
    assert not launch.is_tuned((x, weight, 16))
    taken = launch.tune((x, weight, 16), custom_ops.by_permuting)
    assert tuning.LIBRARY in taken and len(taken) > 2 and launch.is_tuned((x, weight, 16))
    agree(custom_ops.segment_grouped_projection(x, weight, 16), wanted)


@pytest.mark.parametrize("rows", [1, 16], ids=["height", "width"])
def test_its_epilogue_is_the_same_eager_compiled_and_tuned(rows: int) -> None:
    """Both branches of a block of vip_s14, weighted by every third of 1152 numbers and accumulated."""
    run = torch.ops.mlpdeploy.segment_grouped_projection_epilogue
    compiled = torch.compile(lambda *given: run(*given).relu())
    for batch in (4, 1, 7):
        x = torch.randn(batch * rows, 16, 256 // rows, 24, device="cuda", dtype=torch.float16)
        weight = torch.randn(384, 384, device="cuda", dtype=torch.float16) / 384**0.5
        scale = torch.randn(batch, 1, 1, 384, 3, device="cuda", dtype=torch.float16)[..., 1]
        accumulate = torch.randn(batch, 16, 16, 384, device="cuda", dtype=torch.float16)
        given = (x, weight, 16, None, None, scale, accumulate)
        exact = [one.double() if isinstance(one, torch.Tensor) else one for one in given]
        wanted = custom_ops.by_permuting(*exact)  # type: ignore[arg-type]
        agree(run(*given), wanted)
        agree(compiled(*given), wanted.relu())
    assert launch.tune(given, custom_ops.by_permuting) is not None and launch.is_tuned(given)
    agree(run(*given), wanted)


@pytest.mark.parametrize("gelu", custom_ops.GELUS)
@pytest.mark.parametrize("shape", [(784, 1, 1, 192), (4, 1, 1, 196, 192)], ids=["channels", "tokens"])
def test_mlps_are_the_same_eager_compiled_and_tuned(shape: tuple[int, ...], gelu: str) -> None:
    """The rows of the weight of the tokens are 200 numbers, of which 196 count."""
    run = torch.ops.mlpdeploy.segment_grouped_projection_epilogue
    x = torch.randn(shape, device="cuda", dtype=torch.float16)
    weight = torch.randn(384, shape[3], device="cuda", dtype=torch.float16) / shape[3] ** 0.5
    weight = torch.nn.functional.pad(weight, (0, -shape[3] % 8))
    bias = torch.randn(1, 1, 384, *[1] * (len(shape) - 4), device="cuda", dtype=torch.float16)
    given = (x, weight, 1, bias, gelu, None, None)
    wanted = custom_ops.by_permuting(x.double(), weight.double(), 1, bias.double(), gelu)
    agree(run(*given), wanted)
    agree(torch.compile(lambda *given: run(*given).relu())(*given), wanted.relu())
    taken = launch.tune(given, custom_ops.by_permuting)
    assert tuning.LIBRARY in taken and launch.is_tuned(given)
    agree(run(*given), wanted)
    agree(launch.compiled(custom_ops.by_permuting, given)(), wanted)


@pytest.mark.parametrize("sizes", [(4, 196, 196, 384), (300, 49, 33, 7), (1, 196, 384, 768)], ids=str)
def test_products_over_tokens_are_the_same_eager_compiled_and_tuned(sizes: tuple[int, ...]) -> None:
    """Bare ones, of three axes, whose rows are padded."""
    b, n, m, c = sizes
    run = torch.ops.mlpdeploy.segment_grouped_projection
    x = torch.randn(b, n, c, device="cuda", dtype=torch.float16)
    weight = torch.randn(m, n, device="cuda", dtype=torch.float16) / n**0.5
    given = (x, torch.nn.functional.pad(weight, (0, -n % 8)), 1)
    wanted = weight.double() @ x.double()
    agree(run(*given), wanted)
    agree(torch.compile(lambda *given: run(*given).relu())(*given), wanted.relu())
    taken = launch.tune(given, custom_ops.by_permuting)
    assert tuning.LIBRARY in taken and launch.is_tuned(given)
    agree(run(*given), wanted)


@pytest.mark.parametrize("dtype", list(ALLOWED), ids=str)
@pytest.mark.parametrize("sizes", [(4, 196, 384, 192), (3, 49, 256, 512), (2, 7, 33, 21)], ids=str)
def test_token_mlps_are_the_same_eager_compiled_and_tuned(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Mixer's, whose rows of 196 and 49 numbers are padded in 16 bits, and sizes that divide nothing."""
    from mlpdeploy.graph.token_mlp import by_products

    (b, n, h, c), run = sizes, torch.ops.mlpdeploy.token_mlp
    mlps: Any = kernels.load("token_mlp.launch")

    def made(*shape: int) -> torch.Tensor:
        return (torch.randn(shape, device="cuda") / shape[-1] ** 0.5).to(dtype)

    up, down = (torch.nn.functional.pad(one, (0, -one.shape[1] % 8)) for one in (made(h, n), made(n, h)))
    given = (made(b, n, c), up, made(h, 1), "erf", down, made(n, 1), made(b, n, c))
    exact = [one.double() if isinstance(one, torch.Tensor) else one for one in given]
    wanted = by_products(*exact)  # type: ignore[arg-type]
    flat = mlps._flat(*given)
    problem = mlps.describe(**flat, tf32=False)
    for config in problem.candidates(launch.compute_capability(up.device)):
        agree(mlps.run(config, **flat, tf32=False), wanted)
    agree(torch.compile(lambda *given: run(*given).relu())(*given), wanted.relu())
    assert tuning.LIBRARY in mlps.tune(given, by_products) and mlps.is_tuned(given)
    agree(run(*given), wanted)


@pytest.mark.parametrize(
    "rules",
    [(), ("fuse_epilogues", "hoist_reweighting"), ("activate_projections",)],
    ids=["default", "epilogues", "activated"],
)
def test_the_inductor_backend_carries_the_kernel(rules: tuple[str, ...], tmp_path: Path) -> None:
    from mlpdeploy.engine.onnx.emit import Emitted
    from mlpdeploy.graph.precision.plan import plan
    from mlpdeploy.graph.precision.typed import apply
    from mlpdeploy.graph.rewrite import rewrite
    from mlpdeploy.graph.tracing.trace import TensorSpec, trace
    from mlpdeploy.zoo.vip import VisionPermutator

    torch.manual_seed(0)
    network = VisionPermutator((1, 1), (48, 96), (8, 4), (True, False), patch_size=4, image_size=32, num_classes=10)
    specs = [TensorSpec("input", (3, 32, 32), torch.float32)]
    rewritten = rewrite(trace(network.eval(), specs), enabled=rules)
    typed = apply(rewritten, plan(rewritten, "fp16"))

    class Silent:
        def step(self, phase: str, done: int, total: int) -> None:
            pass

    backend, given = backends()["inductor"], Emitted(None, typed)  # type: ignore[arg-type]
    built = backend.build(given, BuildRequest("fp16", Batch(1, 4, 8), ("current",)), tmp_path, Silent())
    assert built.facts["device"] == "cuda"
    exact = copy.deepcopy(network).double()
    with backend.load(built.engine, built.facts) as run:
        for batch in (1, 4, 8):
            images = np.random.default_rng(batch).standard_normal((batch, 3, 32, 32), dtype=np.float32)
            (found,) = run({"input": images}).values()
            with torch.no_grad():
                wanted = exact(torch.from_numpy(images).double()).numpy()
            assert np.abs(found - wanted).max() <= 1e-2 * np.abs(wanted).max()
