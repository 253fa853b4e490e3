"""The kernel's arithmetic, on the CPU by Triton's interpreter, against a contraction in float64.

Run by `test_arithmetic.py` in a process of its own: Triton reads TRITON_INTERPRET when it is imported. BF16 is left
out: the interpreter keeps its bits as integers and multiplies those.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mlpdeploy import kernels
from mlpdeploy.graph import custom_ops

launch = kernels.load("segment_grouped_projection.launch")
problem = kernels.load("segment_grouped_projection.problem")

# The exponential of GELU by tanh may be infinite, on a GPU too; here NumPy says so.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")

SMALL = st.integers(1, 7)
SIZES = st.tuples(st.integers(1, 3), SMALL, SMALL, SMALL, st.sampled_from([1, 1, 2, 5]), st.integers(1, 5), SMALL)
"""B, P, Q, S, O, K, T."""
CONFIGS = st.builds(
    problem.Config,
    st.sampled_from([16, 32]),
    st.sampled_from([16, 32]),
    st.sampled_from([16, 32]),
    st.just(4),
    st.just(2),
)
TOLERANCE = {torch.float32: 1e-6, torch.float16: 2e-3}
quick = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)


def drawn(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def contraction(x: Tensor, weight: Tensor, k: int) -> Tensor:
    p, s = x.shape[1], x.shape[3]
    return torch.einsum("bpqso,ktps->bkqto", x.double(), weight.double().reshape(k, -1, p, s))


def agree(got: Tensor, wanted: Tensor) -> None:
    assert got.shape == wanted.shape and got.is_contiguous()
    error = (got.double() - wanted).abs().max() / wanted.abs().max().clamp(min=1)
    assert error <= TOLERANCE[got.dtype], error


@quick
@given(SIZES, CONFIGS, st.sampled_from(list(TOLERANCE)), st.integers(0, 2**16))
def test_it_is_the_contraction(sizes, config, dtype, seed) -> None:
    b, p, q, s, o, k, t = sizes
    x, weight = drawn((b, p, q, s, o), dtype, seed), drawn((k * t, p * s), dtype, seed + 1)
    wanted = contraction(x, weight, k)
    agree(launch.project(x, weight, k, config, tf32=False), wanted)
    if o == 1:
        agree(launch.project(x[..., 0].contiguous(), weight, k, config, tf32=False), wanted[..., 0])


@quick
@given(SIZES, CONFIGS, st.sampled_from(list(TOLERANCE)), st.integers(0, 2**16), st.data())
def test_its_epilogue(sizes, config, dtype, seed, data) -> None:
    """Bias, GELU, a scale for each image and channel, and accumulation, each there or not, in place or not."""
    b, p, q, s, o, k, t = sizes
    x, weight = drawn((b, p, q, s, o), dtype, seed), drawn((k * t, p * s), dtype, seed + 1)
    wanted, options = contraction(x, weight, k), {}
    if data.draw(st.booleans()):
        options["bias"] = drawn((k * t,), dtype, seed + 2)
        wanted = wanted + options["bias"].double().reshape(k, 1, t, 1)
    if (gelu := data.draw(st.sampled_from([None, *custom_ops.GELUS]))) is not None:
        options["gelu"] = gelu
        wanted = torch.nn.functional.gelu(wanted, approximate=custom_ops.GELUS[gelu])
    if data.draw(st.booleans()):
        share = data.draw(st.sampled_from([n for n in range(1, b + 1) if b % n == 0]))
        segments = data.draw(st.sampled_from([n for n in range(1, q + 1) if q % n == 0]))
        options["scale"] = drawn((b // share, segments * t * o), dtype, seed + 3)
        factor = options["scale"].double().reshape(b // share, 1, 1, 1, segments, t, o)
        wanted = (wanted.reshape(b // share, share, k, -1, segments, t, o) * factor).reshape(wanted.shape)
    if data.draw(st.booleans()):
        options["accumulate"] = drawn((b, k, q, t, o), dtype, seed + 4)
        wanted = wanted + options["accumulate"].double()
        if data.draw(st.booleans()):
            options["out"] = options["accumulate"]
    got = launch.project(x, weight, k, config, tf32=False, **options)
    assert "out" not in options or got is options["out"]
    agree(got, wanted)


@pytest.mark.parametrize("axis", ["height", "width"])
def test_both_branches_of_permute_mlp(axis: str) -> None:
    """On activations `b h w (n s)` as they lie, reweighted and accumulated, as the hoisted weighted sum has it."""
    b, h, w, n, s = 2, 4, 4, 4, 3
    x, weight = drawn((b, h, w, n * s), torch.float32, 0), drawn((n * s, n * s), torch.float32, 1)
    scale, before = drawn((b, n * s), torch.float32, 2), drawn((b, h, w, n * s), torch.float32, 3)
    spread, matrix = x.double().reshape(b, h, w, n, s), weight.double().reshape(4, s, 4, s)
    formula = "bhwns,kuhs->bkwnu" if axis == "height" else "bhwns,kuws->bhknu"
    wanted = before.double() + torch.einsum(formula, spread, matrix).reshape(x.shape) * scale.double()[:, None, None]
    stored = (b, h, w * n, s) if axis == "height" else (b * h, w, n, s)
    config = problem.Config(16, 16, 16, 4, 2)
    got = launch.project(
        x.reshape(stored), weight, 4, config, scale=scale, accumulate=before.reshape(stored), tf32=False
    )
    agree(got.reshape(x.shape), wanted)


@pytest.mark.parametrize("parts", ["bias", "bias gelu", "accumulate", "scale accumulate", "bias gelu scale accumulate"])
def test_operands_as_the_operation_has_them(parts: str) -> None:
    """The operation's shapes, a scale that is a view of every third number, and a residual that lies otherwise."""
    b, p, q, s, k, t = 2, 3, 4, 5, 3, 2
    x, weight = drawn((b, p, q, s), torch.float32, 0), drawn((k * t, p * s), torch.float32, 1)
    scale = drawn((b, 1, 1, q * t, 3), torch.float32, 3)[..., 1]
    accumulate = drawn((b, q * t, 1, k), torch.float32, 4).permute(0, 3, 2, 1)
    bias = drawn((k, 1, t), torch.float32, 2)
    given = (
        bias if "bias" in parts else None, "erf" if "gelu" in parts else None,
        scale if "scale" in parts else None, accumulate if "accumulate" in parts else None,
    )  # fmt: skip
    double = [one.double() if isinstance(one, Tensor) else one for one in given]
    got = launch.project(x, weight, k, problem.Config(16, 16, 16, 4, 2), tf32=False, **launch._flat(*given))
    wanted = custom_ops.by_permuting(x.double(), weight.double(), k, *double)
    assert got.shape == wanted.shape and got.is_contiguous()
    agree(got, wanted)


@pytest.mark.parametrize("gelu", custom_ops.GELUS)
@pytest.mark.parametrize("shape", [(5, 1, 1, 9), (2, 1, 1, 49, 3), (1, 1, 1, 7, 20)], ids=str)
def test_mlps_over_channels_and_tokens(shape: tuple[int, ...], gelu: str) -> None:
    """Bias and GELU behind a plain linear and behind a product from the left, which are one segment with q = 1."""
    x, weight, behind = drawn(shape, torch.float32, 0), drawn((18, shape[3]), torch.float32, 1), [1] * (len(shape) - 4)
    given = drawn((1, 1, 18, *behind), torch.float32, 2), gelu, None, None
    got = launch.project(x, weight, 1, problem.Config(16, 16, 16, 4, 2), tf32=False, **launch._flat(*given))
    rows = x.double().movedim(3, -1) @ weight.double().T + given[0].double().flatten()
    agree(got, torch.nn.functional.gelu(rows, approximate=custom_ops.GELUS[gelu]).movedim(-1, 3))


@pytest.mark.parametrize("sizes", [(2, 49, 37, 20, 56), (1, 196, 196, 8, 200), (300, 7, 5, 1, 7)], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_a_product_from_the_left_of_three_axes(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    b, n, m, c, pitch = sizes
    x, weight = drawn((b, n, c), dtype, 0), drawn((m, n), dtype, 1) / n**0.5
    longer = torch.nn.functional.pad(weight, (0, pitch - n))
    got = launch.project(x, longer, 1, problem.Config(32, 16, 32, 4, 2), tf32=False)
    agree(got, weight.double() @ x.double())


@pytest.mark.parametrize("gelu", [None, "erf"])
@pytest.mark.parametrize(("shape", "pitch"), [((3, 1, 1, 9), 16), ((2, 1, 1, 49, 3), 56), ((2, 2, 3, 7), 16)], ids=str)
def test_rows_of_a_weight_that_end_in_zeros(shape: tuple[int, ...], pitch: int, gelu: str | None) -> None:
    """What stands behind a row of x belongs to the next, and counts for nothing."""
    depth, given = shape[1] * shape[3], (None, gelu, None, None)
    x, weight = drawn(shape, torch.float32, 0), drawn((18, depth), torch.float32, 1)
    longer = torch.nn.functional.pad(weight, (0, pitch - depth))
    for block_k in (16, 32):
        config = problem.Config(16, 16, block_k, 4, 2)
        got = launch.project(x, longer, 2, config, tf32=False, **launch._flat(*given))
        agree(got, custom_ops.by_permuting(x.double(), weight.double(), 2, *given))
    torch.testing.assert_close(*(custom_ops.by_permuting(x, one, 2, *given) for one in (longer, weight)))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_stays_where_it_is() -> None:
    """Zeros behind a row of the weight meet nothing: 0 times infinity would be no number."""
    x, weight = drawn((3, 13, 8), torch.float32, 0), drawn((7, 13), torch.float32, 1)
    x[0, 12, 3], x[1, 0, 0] = float("inf"), float("nan")
    got = launch.project(x, torch.nn.functional.pad(weight, (0, 3)), 1, problem.Config(16, 16, 16, 4, 2), tf32=False)
    assert torch.equal(got.isnan(), (weight @ x).isnan()) and torch.equal(got.isinf(), (weight @ x).isinf())


def test_gelu_by_tanh_ends_as_it_should() -> None:
    """Where its exponential is infinite, or vanishes."""
    x = torch.tensor([-1e18, -300.0, -20.0, 0.0, 20.0, 300.0, 1e18]).reshape(7, 1, 1, 1)
    got = launch.project(x, torch.ones(1, 1), 1, problem.Config(16, 16, 16, 4, 2), tf32=False, gelu="tanh")
    assert got.flatten().tolist() == x.clamp(min=0).flatten().tolist()


def test_addresses_of_64_bits_are_the_same_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = drawn((3, 2, 5, 3), torch.float32, 0), drawn((8, 6), torch.float32, 1)
    config = problem.Config(16, 16, 16, 4, 2)
    narrow = launch.project(x, weight, 4, config, tf32=False)
    monkeypatch.setattr(problem, "INDEXABLE", 1)
    assert launch.describe(x, weight, 4).wide
    assert torch.equal(launch.project(x, weight, 4, config, tf32=False), narrow)


def test_tensors_that_do_not_fit_are_refused() -> None:
    config = problem.Config(16, 16, 16, 4, 2)
    x, weight = torch.zeros(3, 2, 5, 3), torch.zeros(8, 6)
    for bad in (
        lambda: launch.project(x, torch.zeros(8, 5), 4, config),
        lambda: launch.project(x, weight, 3, config),
        lambda: launch.project(x, weight, 4, config, scale=torch.zeros(2, 10)),
        lambda: launch.project(x, weight, 4, config, scale=torch.zeros(3, 4)),
    ):
        with pytest.raises(ValueError, match=r"fit|contract|divide"):
            bad()
