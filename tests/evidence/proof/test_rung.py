"""What a rung finds at one batch size: rows against their reference, and against themselves elsewhere in the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.proof.ladder import Check
from mlpdeploy.evidence.proof.rung import accuracy, checked

ROWS = np.random.default_rng(0).standard_normal((8, 5))


class Doubled:
    """A reference of the function that doubles, on eight rows."""

    count, rows, outputs = len(ROWS), {"x": ROWS}, {"y": 2 * ROWS}

    def usual(self, name: str) -> float:
        return float(np.abs(self.outputs[name]).max())


def check(size: int, of: Callable[[np.ndarray], np.ndarray] = lambda x: 2 * x) -> tuple[Check, int]:
    """What is found at a size, and in how many runs."""
    sizes: list[int] = []

    def run(arrays: Any) -> dict[str, np.ndarray]:
        sizes.append(len(arrays["x"]))
        return {"y": of(arrays["x"])}

    against: Any = Doubled()
    (found,) = checked(run, against, size, np.random.default_rng(1))
    assert set(sizes) == {size}
    return found, len(sizes)


@pytest.mark.parametrize(("size", "runs"), [(1, 1), (2, 2), (15, 2), (16, 1), (17, 1), (64, 1)])
def test_a_batch_that_has_every_row_twice_needs_no_second_run(size: int, runs: int) -> None:
    found, taken = check(size)
    assert taken == runs and found.reference.max_relative == 0
    assert (found.permuted is None) == (size == 1)
    assert found.permuted is None or found.permuted.max_relative == 0


@pytest.mark.parametrize("size", [4, 16, 19, 32])
@pytest.mark.parametrize("place", [0, 3, -1])
def test_a_row_that_depends_on_its_place_is_seen(size: int, place: int) -> None:
    def off(x: np.ndarray) -> np.ndarray:
        y = 2 * x
        y[place] += 0.01
        return y

    permuted = check(size, off)[0].permuted
    assert permuted is not None and permuted.max_relative > 1e-3


@pytest.mark.parametrize("size", [5, 16, 24])
def test_a_row_that_depends_on_its_neighbour_is_seen(size: int) -> None:
    permuted = check(size, lambda x: 2 * x + 0.01 * np.roll(x, 1, 0))[0].permuted
    assert permuted is not None and permuted.max_relative > 1e-3


def test_a_label_that_is_no_class_is_one_line() -> None:
    outputs = {"y": ROWS}
    assert accuracy(outputs, ROWS.argmax(1)) == 1 and accuracy(outputs, None) is None
    with pytest.raises(InputError, match="one of the labels is 5; the network has 5 classes"):
        accuracy(outputs, np.arange(8) % 6)
