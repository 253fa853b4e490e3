"""A selection as the arguments of a command: read back, it is the same selection, whatever was chosen."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import typer

from mlpdeploy.commands import abroad
from mlpdeploy.engine.backend import BuildRequest
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import InputError
from mlpdeploy.selection import Selection
from mlpdeploy.selection.arguments import arguments
from mlpdeploy.selection.choice import CalibrationChoice, EngineChoice, NetworkChoice
from mlpdeploy.terminal.cli import app
from mlpdeploy.terminal.options import CALLED, selected

PLAIN = Selection("mixer_s32", "int8", calibration="random")
OTHERS: dict[str, Any] = {
    "name": "vip_s7", "precision": "fp32", "backend": "openvino", "batch": "2:2:4", "checkpoint": Path("None"),
    "image_size": 64, "num_classes": 7, "input_shape": (3, 16, 16), "gpus": ("sm86", "current"), "out": Path("a b"),
    "seed": 3, "disabled_rules": ("fold_affine", "hoist_reweighting"), "enabled_rules": ("project_tokens",),
    "pretrained": True, "io": "bf16", "level": 0, "plugin": "off", "calibration": "a b.npz", "calibrator": "mse",
    "max_drop": 0.0, "min_sqnr": 30.5, "mean": (0.5, 0.25, 0.125), "std": (0.5, 1.0, 2.0), "crop": 0.9, "resize": "box",
    "limit": 64, "inputs": ("x:3,8,8", "ids:5:int64:0..9"), "input_names": ("a", "b"), "output_names": ("c",),
    "ema": False, "features": ("stripped", "weight-streaming"), "timing_cache": Path("a.cache"),
    "route": "-copy_ppg=off -kgen:codegen:cuda_tile=2",
    "pixels": "hwc:20x30", "normalize": True, "softmax": True, "topk": 3, "labels": Path("a b.txt"),
}  # fmt: skip
"""For each field a value that is not the usual one."""


TENSORRT = ("features", "timing_cache", "route")


def places(selection: Selection) -> dict[str, str]:
    """Where things lie, which no document says."""
    found = {"out": selection.out, "timing_cache": selection.timing_cache}
    return {name: str(path) for name, path in found.items() if path is not None}


def changed(field: str) -> Selection:
    """A selection that differs in one field, and in what that one asks for."""
    with_it: dict[str, Any] = {
        "ema": {"checkpoint": Path("None")}, "precision": {"calibration": None}, "inputs": {"name": "nets:Net"},
        "input_shape": {"name": "nets:Net"}, "pretrained": {"name": "mixer_b16"},
        "mean": {"std": (1.0, 1.0, 1.0)}, "std": {"mean": (0.0, 0.0, 0.0)},
    }.get(field, {})  # fmt: skip
    return replace(PLAIN, **{field: OTHERS[field]}, **with_it)


def read_back(command: str, words: list[str]) -> Selection:
    """What a command makes of its arguments."""
    parser = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    return selected(parser.make_context(command, list(words)).params)


@pytest.mark.parametrize("field", [field.name for field in fields(Selection)])
def test_every_field_of_a_selection_survives_the_way_into_a_build(field: str) -> None:
    selection = changed(field)
    words = arguments("build", selection.to_json() | places(selection))
    assert read_back("build", words) == selection
    assert getattr(selection, field) != getattr(Selection("mixer_s32"), field)


@pytest.mark.parametrize("field", [field.name for field in fields(Selection)])
def test_a_verification_is_given_what_it_takes_and_nothing_else(field: str) -> None:
    # It finds an INT8 engine's calibration in the artifact.
    kept = {"calibration": None, "calibrator": "auto", "max_drop": None, "min_sqnr": None, "timing_cache": None}
    selection = changed(field)
    found = read_back("verify", arguments("verify", selection.to_json() | places(selection)))
    assert found == replace(selection, **kept)


@pytest.mark.parametrize("command", ["build", "verify", "bench", "regress", "sensitivity"])
def test_every_field_that_means_something_to_a_command_is_an_option_of_it(command: str) -> None:
    of_int8 = {"calibration", "calibrator", "max_drop", "min_sqnr"}
    without = {
        "verify": of_int8 | {"timing_cache"},
        "sensitivity": {"backend", "batch", "gpus", "io", "level", "plugin", "max_drop", "min_sqnr", *TENSORRT},
    }.get(command, set())
    parameters = typer.main.get_command(app).commands[command].params  # type: ignore[attr-defined]
    taken = {parameter.name: parameter for parameter in parameters}
    asked = {field.name for field in fields(Selection) if CALLED[field.name] in taken}
    assert asked == {field.name for field in fields(Selection)} - without
    helped = [name for name, parameter in taken.items() if not getattr(parameter, "help", "said")]
    assert not helped and next(iter(taken)) == "name"


def test_the_parts_of_a_selection_stand_alone() -> None:
    chosen = replace(PLAIN, seed=3, level=2)
    network = NetworkChoice("mixer_s32", seed=3)
    assert all(getattr(chosen, field.name) == getattr(network, field.name) for field in fields(NetworkChoice))
    assert chosen.request() == EngineChoice("int8", level=2).request()
    assert chosen.request("fp16", Batch(1, 1, 1)) == BuildRequest("fp16", Batch(1, 1, 1), level=2)
    with pytest.raises(InputError, match="--max-drop and --min-sqnr exclude"):
        CalibrationChoice(max_drop=1.0, min_sqnr=3.0)


def test_what_is_usual_is_left_out_but_for_what_names_the_engine() -> None:
    plain = Selection("mixer_s32", backend="openvino")
    engine = ["mixer_s32", "--precision", "fp16", "--backend", "openvino", "--batch", "1:8:32"]
    assert arguments("build", plain.to_json()) == arguments("verify", plain.to_json()) == engine
    rich = replace(plain, seed=3, disabled_rules=("fold_affine",))
    assert arguments("build", rich.to_json()) == [*engine, "--seed", "3", "--disable-rule", "fold_affine"]


def test_files_are_found_from_another_folder_and_words_stay_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("random", "photos"):
        (tmp_path / name).mkdir()
    given = Selection("mixer_s32", "int8", calibration="photos", checkpoint=Path("a.pth"))
    found = abroad._given(given, Path("out"))
    assert (found["calibration"], found["checkpoint"]) == (str(tmp_path / "photos"), str(tmp_path / "a.pth"))
    assert abroad._given(replace(given, calibration="random"), Path("out"))["calibration"] == "random"
