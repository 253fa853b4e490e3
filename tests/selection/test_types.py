"""Values of a selection as Python gives them: what means the same is taken, anything else is refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

import mlpdeploy
from mlpdeploy.errors import InputError
from mlpdeploy.selection import Selection

SAME: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"out": "somewhere"}, {"out": Path("somewhere")}),
    ({"batch": 8}, {"batch": "8"}),
    ({"gpus": ["sm89"]}, {"gpus": ("sm89",)}),
    ({"image_size": np.int64(64)}, {"image_size": 64}),
    ({"seed": np.int64(3)}, {"seed": 3}),
    ({"mean": (0, 0.5, np.float32(1)), "std": np.ones(3)}, {"mean": (0.0, 0.5, 1.0), "std": (1.0, 1.0, 1.0)}),
    ({"precision": "int8", "calibration": Path("rows.npz")}, {"precision": "int8", "calibration": "rows.npz"}),
    ({"features": {"weight-streaming": None}.keys()}, {"features": ("weight-streaming",)}),
]
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"gpus": "sm89"}, "gpus 'sm89': give a list or tuple of words"),
    ({"features": "stripped"}, "features 'stripped': give a list or tuple of words"),
    ({"disabled_rules": {"fold_affine": 1}}, "disabled_rules .*: give a list or tuple of words"),
    ({"inputs": 3}, "inputs 3: give a list or tuple of words"),
    ({"mean": "0.5,0.5,0.5"}, "mean .*: give a list or tuple of numbers"),
    ({"input_shape": (3, 32.5, 32)}, "input_shape 32.5: it must be a whole number"),
    ({"out": 3}, "out 3: it must be a path"),
    ({"checkpoint": True}, "checkpoint True: it must be a path"),
    ({"precision": None}, "precision None: it must be words"),
    ({"backend": b"onnxruntime"}, "backend .*: it must be words"),
    ({"pretrained": "no"}, "pretrained 'no': it must be True or False"),
    ({"image_size": "224"}, "image_size '224': it must be a whole number"),
    ({"seed": True}, "seed True: it must be a whole number"),
    ({"crop": "0.9"}, "crop '0.9': it must be a number"),
    ({"io": object}, "io .*: it must be words"),
]


@pytest.mark.parametrize(("given", "meant"), SAME, ids=lambda one: next(iter(one)))
def test_what_means_the_same_is_the_same(given: dict[str, Any], meant: dict[str, Any]) -> None:
    found = Selection("vip_s7", **given)
    assert found == Selection("vip_s7", **meant)
    for name, value in meant.items():
        assert getattr(found, name) == value and type(getattr(found, name)) is type(value)


@pytest.mark.parametrize(("given", "line"), WRONG, ids=lambda one: next(iter(one)))
def test_what_does_not_is_one_line(given: dict[str, Any], line: str) -> None:
    with pytest.raises(InputError, match=line) as refused:
        Selection("vip_s7", **given)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["gpus", "features", "disabled_rules", "enabled_rules", "input_names", "output_names"])
def test_one_word_is_not_taken_for_its_letters(name: str) -> None:
    given: dict[str, Any] = {name: "sm89"}
    with pytest.raises(InputError, match=f"{name} 'sm89': give a list or tuple of words"):
        mlpdeploy.compile(nn.Linear(4, 4), np.zeros((1, 4), np.float32), backend="onnxruntime", **given)
