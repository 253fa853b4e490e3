"""An artifact's folder in the place of a name; which one is meant, and which one a build replaces."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact import trust
from mlpdeploy.engine.backend import BuildRequest
from mlpdeploy.engine.base import EngineBackend
from mlpdeploy.evidence.latency import contenders
from mlpdeploy.terminal import cli as command_line
from tests.terminal.conftest import Said
from tests.terminal.test_cli import NETS

BUILT = ("path_nets:Net", "--input-shape", "3,16,16", "--backend", "onnxruntime", "--precision", "fp32")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a user's network, built for ONNX Runtime; the tests run there."""
    folder = tmp_path_factory.mktemp("by_path")
    (folder / "path_nets.py").write_text(NETS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        with pytest.raises(SystemExit):
            command_line.main(["build", *BUILT, "--batch", "1:2:3", "--seed", "7"])
        yield folder / "artifacts" / "path_nets-Net" / "fp32" / "onnxruntime"
    sys.modules.pop("path_nets", None)


def test_verify_takes_a_path_and_needs_no_option_of_the_build(home: Path, said: Said) -> None:
    document = json.loads(said("verify", home, "--json")[0])
    assert document["passed"] and document["name"] == "path_nets:Net" and document["sizes"] == [1, 2, 3]
    assert "seed 7" in document["weights"]


def test_a_quick_verification_leaves_out_the_largest_batch_and_says_so(home: Path, said: Said) -> None:
    document = json.loads(said("verify", home, "--quick", "--json")[0])
    assert document["passed"] and document["sizes"] == [1, 2]
    assert "batch 3 was not tried: without --quick it is" in document["notes"]
    assert not any("not tried" in note for note in json.loads(said("verify", home, "--json")[0])["notes"])


@pytest.mark.slow
def test_bench_takes_a_path(home: Path, said: Said) -> None:
    document = json.loads(said("bench", home, "--against", "eager", "--time", "0.1", "--threads", "1", "--json")[0])
    assert document["network"]["name"] == "path_nets:Net" and [one["batch"] for one in document["measurements"]] == [
        1,
        2,
    ]
    assert (home / "bench.json").exists()
    count, *layers = json.loads((home / "profile.json").read_text())
    modules = document["layers"]["after"]["modules"]
    assert count["count"] > 1 and sum(layer["percentage"] for layer in layers) == pytest.approx(100)
    assert sum(one["medianMs"] for one in layers) == pytest.approx(sum(one["milliseconds"] for one in modules))


@pytest.mark.slow
def test_rivals_are_built_with_what_the_engine_was_built_with(
    home: Path, said: Said, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    requests, build = [], contenders.build

    def recorded(backend: Any, emitted: Any, request: BuildRequest, *arguments: Any) -> Any:
        requests.append(request)
        return build(backend, emitted, request, *arguments)

    monkeypatch.setattr(contenders, "build", recorded)
    options = ("--batch", "1", "--level", "3", "--plugin", "off", "--out", tmp_path)
    monkeypatch.setattr(EngineBackend, "has_levels", True)
    said("bench", *BUILT, "--against", "export", "--time", "0.1", "--threads", "1", *options)
    assert [(one.precision, one.level, one.plugin) for one in requests] == [("fp32", 3, "off")]


@pytest.mark.parametrize("option", [("--precision", "bf16"), ("--batch", "4"), ("--seed", "3"), ("--io", "fp16")])
def test_an_option_that_the_artifact_contradicts_is_one_line(home: Path, said: Said, option: tuple[str, str]) -> None:
    _, error = said("verify", home, *option, code=2)
    assert f"was built with {option[0][2:]} " in error and "leave that option out" in error


def test_options_that_the_artifact_was_built_with_may_be_repeated(home: Path, said: Said) -> None:
    said("verify", home, "--precision", "fp32", "--batch", "1:2:3", "--seed", "7")


def test_a_name_in_somebody_elses_artifact_is_imported_where_that_is_trusted_only(
    home: Path, said: Said, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trust, "is_own", lambda manifest: False)
    for command in ("verify", "bench"):
        assert "is no reason to import it" in said(command, home, code=2)[1]
    said("verify", home, "--trust")


def test_a_folder_above_artifacts_names_those_below_it(home: Path, said: Said) -> None:
    above = [folder for folder in home.parents if folder.name == "artifacts" or folder.parent.name == "artifacts"]
    assert len(above) == 2
    for folder, command in zip(above, ("verify", "inspect"), strict=True):
        assert f"there is no artifact at {folder}; below it are {home}" in said(command, folder, code=2)[1].replace(
            "\n", " "
        )


def test_no_result_takes_the_place_of_a_part_of_an_artifact(home: Path, said: Said) -> None:
    for part in ("model.onnx", "manifest.json", "engine.onnx"):
        before = (home / part).read_bytes()
        assert "is a part of an artifact" in said("report", home, "--html", home / part, code=2)[1]
        assert "is a part of an artifact" in said("bench", home, "--save", home / part, code=2)[1]
        assert (home / part).read_bytes() == before
    said("report", home, "--html", home / "report.html")


def test_a_folder_that_is_no_artifact_is_one_line(home: Path, said: Said, tmp_path: Path) -> None:
    for command in ("verify", "bench"):
        assert f"there is no artifact at {tmp_path}" in said(command, tmp_path, code=2)[1]


def test_where_another_artifact_is_there_it_is_named(home: Path, said: Said) -> None:
    _, error = said("verify", *BUILT[:-1], "fp16", code=2)
    assert f"built are {home.relative_to(Path.cwd())}" in error


@pytest.mark.slow
def test_a_build_says_what_it_replaces(home: Path, said: Said) -> None:
    _, progress = said("build", *BUILT, "--batch", "4", "--seed", "7")
    assert f"this replaces the engine at {home.relative_to(Path.cwd())}, built with batch 1:2:3" in progress
    _, progress = said("build", *BUILT, "--batch", "1:2:3", "--seed", "7")
    assert "built with batch 4:4:4" in progress
    _, progress = said("build", *BUILT, "--batch", "1:2:3", "--seed", "7", "--force")
    assert "this replaces" not in progress


@pytest.mark.slow
@pytest.mark.parametrize("worth", [True, False])
def test_what_int8_is_worth_is_measured_unless_nobody_asks(home: Path, said: Said, worth: bool) -> None:
    options = ("--calibration", "random", "--batch", "2", "--force", "--worth" if worth else "--no-worth")
    out, progress = said("build", *BUILT[:-1], "int8", *options, "--json")
    assert (json.loads(out)["manifest"]["quantised"]["worth"] is not None) == worth
    assert ("worth it?" in progress) == worth
