"""Where pooling less its input takes its scales along, and where it must not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.proof import fired, prove, reasons, targets

aten = torch.ops.aten
SHAPE = (4, 5, 6)


def pool(x: Tensor) -> Tensor:
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class Mixed(nn.Module):
    """A form of pooling less its input, with a group norm and channel constants at hand."""

    def __init__(self, form: Callable[[Mixed, Tensor], Tensor], groups: int = 1) -> None:
        super().__init__()
        self.form, self.norm = form, nn.GroupNorm(groups, 4)
        self.scale, self.shift = nn.Parameter(torch.empty(4, 1, 1)), nn.Parameter(torch.empty(4, 1, 1))
        self.place = nn.Parameter(torch.empty(5, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self, x)


def difference(z: Tensor) -> Tensor:
    return pool(z) - z


def two(m: Mixed, x: Tensor) -> Tensor:
    """A scale and a shift in front, two scales behind."""
    return difference(x * m.scale + m.shift) * m.scale * 3


def residual(m: Mixed, x: Tensor) -> Tensor:
    z = m.norm(x)
    return z + difference(z) * m.scale


FOLDED: dict[str, tuple[Callable[[Mixed, Tensor], Tensor], int]] = {
    "norm and scale": (lambda m, x: x + m.scale * difference(m.norm(x)), 0),
    "norm alone": (lambda m, x: difference(m.norm(x)), 0),
    "norm, shift and scale": (lambda m, x: difference((m.norm(x) + m.shift) * m.scale) * 2, 0),
    "no norm": (two, 1),
    "a shift in front": (lambda m, x: difference(x + m.shift), 0),
    "divided by a number": (lambda m, x: difference(m.norm(x)) / 7, 0),
}
"""The form, and how many products are left of it."""

KEPT: dict[str, Callable[[Mixed, Tensor], Tensor]] = {
    "one scale and no norm": lambda m, x: difference(x) * m.scale,
    "the norm is read elsewhere": residual,
    "a shift behind": lambda m, x: difference(x) + m.shift,
    "scaled by place": lambda m, x: difference(x * m.place) * m.place,
    "another tensor": lambda m, x: (pool(m.norm(x)) - x) * m.scale,
    "the other way round": lambda m, x: (lambda z: z - pool(z))(m.norm(x)) * m.scale,
}


@pytest.mark.parametrize("form", FOLDED)
def test_folds(form: str) -> None:
    build, products = FOLDED[form]
    result = prove(Mixed(build), SHAPE)
    assert fired(result)["fold_pooling"] == 1
    left = targets(result)
    assert left[aten.mul.Tensor] + left[aten.div.Tensor] == products
    assert (left[aten.avg_pool2d.default], left[aten.sub.Tensor]) == (1, 1)


def test_several_groups_fold_as_one_does() -> None:
    assert fired(prove(Mixed(FOLDED["norm and scale"][0], groups=2), SHAPE))["fold_pooling"] == 1


@pytest.mark.parametrize("form", KEPT)
def test_leaves_alone(form: str) -> None:
    assert fired(prove(Mixed(KEPT[form]), SHAPE))["fold_pooling"] == 0


def test_zeros_around_the_image_are_no_neighbours() -> None:
    """Counted zeros make the mean of a constant another one at the border."""

    def form(m: Mixed, x: Tensor) -> Tensor:
        z = m.norm(x)
        return m.scale * (F.avg_pool2d(z, 3, 1, 1) - z)

    result = prove(Mixed(form), SHAPE)
    assert fired(result)["fold_pooling"] == 0
    assert reasons(result, "fold_pooling") == ["its pooling counts zeros around the image"]


def test_a_divisor_of_its_own_is_refused() -> None:
    def form(m: Mixed, x: Tensor) -> Tensor:
        z = m.norm(x)
        return F.avg_pool2d(z, 3, 1, 1, count_include_pad=False, divisor_override=4) - z

    assert fired(prove(Mixed(form), SHAPE))["fold_pooling"] == 0
