"""The rows that random ones never are: which there are of an input, and what is in them."""

import numpy as np
import pytest
import torch

from mlpdeploy.graph.precision.extremes import BLACK, CONSTANT, LARGE, NAMES, ONE_HOT, WHITE, ZEROS, extremes
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.network.source import source_of
from mlpdeploy.selection.choice import NetworkChoice

IMAGE = TensorSpec("image", (3, 5, 4), torch.float32, black=(-2.0, -1.0, -3.0), white=(2.0, 3.0, 1.0))


def rows(*specs: TensorSpec) -> dict[str, dict[str, np.ndarray]]:
    found = extremes(specs, np.random.default_rng(0))
    for spec in specs:
        assert found.arrays[spec.name].shape == (len(found.names), *spec.shape)
    return {name: {s.name: found.arrays[s.name][i] for s in specs} for i, name in enumerate(found.names)}


def test_an_image_is_black_white_and_has_one_hot_pixel() -> None:
    found = {name: row["image"] for name, row in rows(IMAGE).items()}
    assert set(found) == set(NAMES)
    assert (found[ZEROS] == 0).all() and (found[CONSTANT] == 1).all()
    assert (found[BLACK] == np.reshape([-2, -1, -3], (3, 1, 1))).all()
    assert (found[WHITE] == np.reshape([2, 3, 1], (3, 1, 1))).all()
    other = (found[ONE_HOT] != found[BLACK]).all(axis=0)
    assert other.sum() == 1 and (found[ONE_HOT][:, other][:, 0] == [2, 3, 1]).all()
    assert 50 < np.abs(found[LARGE]).mean() < 120


def test_what_is_no_image_has_no_black() -> None:
    found = {name: row["x"] for name, row in rows(TensorSpec("x", (7,), torch.float32)).items()}
    assert set(found) == {ZEROS, CONSTANT, ONE_HOT, LARGE}
    assert sorted(found[ONE_HOT]) == [0] * 6 + [1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64])
def test_bounded_rows_stay_within_their_bounds(dtype: torch.dtype) -> None:
    found = {name: row["x"] for name, row in rows(TensorSpec("x", (3, 2), dtype, -3, 4)).items()}
    assert set(found) == {ZEROS, CONSTANT, BLACK, WHITE, ONE_HOT}
    assert all((row >= -3).all() and (row < 4).all() for row in found.values())
    assert (found[BLACK] == -3).all() and (found[WHITE] > 2.99).all()
    assert all(row.dtype == (np.float32 if dtype is torch.float32 else np.int64) for row in found.values())
    assert ZEROS not in rows(TensorSpec("x", (3,), dtype, 2, 9))


def test_of_several_inputs_a_row_that_one_cannot_have_is_random() -> None:
    found = rows(TensorSpec("x", (50,), torch.float32), TensorSpec("ids", (50,), torch.int64, 0, 9))
    assert set(found) == set(NAMES)
    assert (found[BLACK]["ids"] == 0).all() and len(np.unique(found[BLACK]["x"])) == 50
    assert len(np.unique(found[LARGE]["ids"])) > 3


@pytest.mark.parametrize(
    ("name", "inputs", "black"),
    [
        ("mixer_s32", None, (-1.0, -1.0, -1.0)),
        ("resmlp_12", None, (-2.1179, -2.0357, -1.8044)),
        ("torch.nn:Identity", (3, 6, 6), ()),
    ],
)
def test_black_is_that_of_the_networks_normalisation(
    name: str, inputs: tuple[int, ...] | None, black: tuple[float, ...]
) -> None:
    """Of a network of one's own nobody knows it."""
    (spec,) = source_of(NetworkChoice(name, input_shape=inputs)).specs()
    assert spec.black == pytest.approx(black, abs=1e-4)
