"""Complex arithmetic in real numbers: every transform and form against torch's own, and what has no such form."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from mlpdeploy.graph.rewrite import rewrite
from mlpdeploy.graph.tracing.trace import trace
from tests.graph.proof import assert_same, aten, fired, prove, randomised, reasons, rewritten, specs, targets
from tests.graph.rules.examples import Example, NearMiss, Spectra

Forward = Callable[[nn.Module, Tensor], Tensor]

EXAMPLE = Example(Spectra, (6, 4), fires=3)


class Net(nn.Module):
    """`quirk` on (b, 6, 5); real and imaginary parts of a complex result lie beside each other."""

    def __init__(self, quirk: Forward) -> None:
        super().__init__()
        self.quirk = quirk
        self.scale = nn.Parameter(torch.randn(6, 5, 2))
        self.square = nn.Parameter(torch.randn(5, 5, 2))

    def forward(self, x: Tensor) -> Tensor:
        result = self.quirk(self, x)
        return torch.view_as_real(result.resolve_conj()) if result.is_complex() else result


fft = torch.fft


def _turned(net: nn.Module, x: Tensor) -> Tensor:
    """A product of complex numbers that is written in real ones."""
    real, imaginary = net.scale.unbind(-1)
    return torch.stack([x * real - (x + 1) * imaginary, x * imaginary + (x + 1) * real], -1)


NEAR_MISSES = {
    "over the batch": NearMiss(
        lambda: Net(lambda net, x: fft.fft(x, dim=0).real),
        (6, 5),
        ("aten.fft_fft.default has no form in real numbers", "aten.real.default has no form in real numbers"),
        batches=(3, 5),
    ),
    "written in real numbers": NearMiss(lambda: Net(_turned), (6, 5)),
}

TRANSFORMS: dict[str, Forward] = {
    **{f"fft {norm}": lambda net, x, norm=norm: fft.fft(x, norm=norm) for norm in (None, "ortho", "forward")},
    **{f"ifft {norm}": lambda net, x, norm=norm: fft.ifft(x, dim=1, norm=norm) for norm in (None, "ortho", "forward")},
    **{f"rfft {n}": lambda net, x, n=n: fft.rfft(x, n, dim=1) for n in (None, 1, 4, 5, 6, 7, 9)},
    **{f"irfft {n}": lambda net, x, n=n: fft.irfft(fft.rfft(x, dim=-1), n) for n in (None, 1, 3, 4, 5, 6, 11)},
    **{f"fft {n} of 5": lambda net, x, n=n: fft.fft(x, n) for n in (1, 3, 8)},
    **{f"hfft {norm}": lambda net, x, norm=norm: fft.hfft(fft.ifft(x), dim=1, norm=norm) for norm in (None, "ortho")},
    "ihfft": lambda net, x: fft.ihfft(x, dim=1),
    "fft2": lambda net, x: fft.fft2(x),
    "ifft2": lambda net, x: fft.ifft2(fft.fft2(x), s=(4, 9)),
    "rfft2": lambda net, x: fft.rfft2(x, norm="ortho"),
    "irfft2": lambda net, x: fft.irfft2(fft.rfft2(x), s=(6, 5)),
    "irfft2 of another size": lambda net, x: fft.irfft2(fft.rfft2(x, norm="ortho"), s=(3, 7), norm="ortho"),
    "fftn": lambda net, x: fft.fftn(x, dim=(2, 1), norm="forward"),
    "rfftn and back": lambda net, x: fft.irfftn(fft.rfftn(x, dim=(2, 1)), s=(5, 6), dim=(2, 1)),
    "there and back": lambda net, x: fft.ifft(fft.fft(x)).real,
}

FORMS: dict[str, Forward] = {
    "a filter": lambda net, x: fft.irfft2(fft.rfft2(x) * torch.view_as_complex(net.scale)[:, :3], s=(6, 5)),
    "real part": lambda net, x: fft.fft(fft.fft(x, dim=-1), dim=-2).real,
    "imaginary part": lambda net, x: fft.fft(x).imag + x,
    "numbers": lambda net, x: (fft.fft(x) * 1j + (2 - 3j)) / 4 - 1j,
    "a number minus": lambda net, x: 3 - fft.fft(x),
    "powers": lambda net, x: fft.fft(x).square() + fft.ifft(x).pow(3) - fft.fft(x, dim=1) ** 4 / 100,
    "the square of real numbers": lambda net, x: torch.complex(x, torch.zeros_like(x)).pow(2).real,
    "conjugate": lambda net, x: fft.fft(x).conj() * fft.ifft(x),
    "a real factor": lambda net, x: fft.fft(x) * x + x * fft.rfft(x, 8),
    "matrices": lambda net, x: fft.fft(x) @ torch.view_as_complex(net.square),
    "an einsum": lambda net, x: torch.einsum("btc,cd->bdt", fft.fft(x), torch.view_as_complex(net.square)),
    "magnitude and angle": lambda net, x: fft.fft(x).abs() + (fft.fft(x)[..., 1:2] + 9).angle(),
    "polar": lambda net, x: torch.polar(x.abs() + 1, x) * 2,
    "parts joined": lambda net, x: torch.complex(x, x * 2 + 1).transpose(1, 2) - 1,
    "pairs": lambda net, x: torch.view_as_complex(torch.stack([x, x + 1], -1)),
    "moved about": lambda net, x: (
        torch.cat([fft.fft(x).flip(1).roll(2, 2), x + 0j], 1).reshape(-1, 60).unflatten(1, (12, 5))
    ),
    "parted": lambda net, x: fft.fft(x).chunk(2, 1)[0].sum(2, keepdim=True) + fft.fft(x).unbind(1)[2].unsqueeze(1),
    "shifted": lambda net, x: fft.ifftshift(fft.fftshift(fft.fft2(x), dim=(1, 2)) * 2, dim=(1, 2)),
    "minus": lambda net, x: -fft.fft(x),
}


@pytest.mark.parametrize("name", [*TRANSFORMS, *FORMS])
def test_no_complex_number_is_left_and_the_results_are_torchs(name: str) -> None:
    result = prove(Net((TRANSFORMS | FORMS)[name]), (6, 5), batches=(1, 3))
    values = [value for node in result.module.graph.nodes if isinstance(value := node.meta.get("val"), Tensor)]
    assert not any(value.is_complex() for value in values)
    assert fired(result)["decompose_complex"] and not reasons(result, "decompose_complex")


def test_token_mixing_by_transforms_needs_no_more_than_its_projections() -> None:
    """FNet's two transforms: of each only what the real part at the end needs."""
    result = prove(Net(FORMS["real part"]), (6, 5))
    assert targets(result)[aten.linear.default] <= 4


@pytest.mark.parametrize(
    "quirk",
    [
        lambda net, x: (fft.fft(x) / (fft.ifft(x) + 3)).real,
        lambda net, x: torch.exp(fft.fft(x) / 9).real,
        lambda net, x: fft.ifft(torch.exp(fft.fft(x) / 9) * 2).real,
    ],
    ids=["a division by a complex number", "an exponential", "a product in between"],
)
def test_what_has_no_real_form_is_refused_and_stays_right(quirk: Forward) -> None:
    network = Net(quirk)
    result = rewritten(network, (6, 5))
    assert reasons(result, "decompose_complex")
    assert_same(network, result, [(6, 5)], batches=(1, 3))


def test_the_rule_can_be_left_out() -> None:
    network = randomised(Net(FORMS["a filter"]))
    result = rewrite(trace(network, specs([(6, 5)])), disabled={"decompose_complex"})
    assert_same(network, result, [(6, 5)])


def test_matrices_of_a_long_axis_are_exact() -> None:
    """An angle of 2 pi j k / n for j k in the millions is reduced in whole numbers."""

    class Long(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.view_as_real(fft.fft(x))

    prove(Long(), (1009,), batches=(2,))
