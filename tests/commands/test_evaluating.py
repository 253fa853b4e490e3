"""`mlpdeploy evaluate`: the counts are those of PyTorch, one image by one; what cannot be evaluated is one line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import mlpdeploy
from mlpdeploy import pipeline
from mlpdeploy.artifact import store
from mlpdeploy.commands import evaluating
from mlpdeploy.commands.evaluating import evaluate
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.network.labels import read_class_map
from tests.commands.class_home import COUNT, HOW, home, right, selection
from tests.listening import Listener
from tests.terminal.conftest import said

__all__ = ["home", "said"]


@pytest.mark.slow
@pytest.mark.parametrize(("batch", "workers"), [("1", 0), ("2:4:8", 2), ("3:64:64", 1)])
def test_every_contender_is_right_where_pytorch_is(home: Path, batch: str, workers: int) -> None:
    asked = selection(home, batch=batch, out=home / f"batch-{batch.replace(':', '-')}")
    pipeline.build(asked)
    found = evaluate(asked, home / "val", workers=workers)
    first, five = right(home / "val")
    assert [one.name for one in found.contenders] == ["engine", "typed graph", "PyTorch"]
    for one in found.contenders:
        assert (one.top1.right, one.top5.right, one.top1.count, one.not_finite) == (first, five, COUNT, 0)
    assert found.passed and found.images == COUNT and found.unread == 0
    assert found.paired is not None and (found.paired.first, found.paired.second) == (0, 0)
    assert found.agreement is not None and found.agreement.value == 1


def test_half_precision_ends_round_the_engines_images_only(home: Path) -> None:
    asked = selection(home, io="fp16", out=home / "fp16")
    pipeline.build(asked)
    found = evaluate(asked, home / "val", workers=0)
    assert found["PyTorch"].top1.right == right(home / "val")[0]
    assert abs(found["engine"].top1.right - found["PyTorch"].top1.right) <= 1


@pytest.mark.slow
def test_on_the_command_line(home: Path, said: Any) -> None:
    pipeline.build(selection(home))
    folder = home / "out" / "evaluate_nets-Digits" / "fp32" / "onnxruntime"
    out, err = said("evaluate", folder, "--data", "val", "--workers", "0")
    first, five = right(home / "val")
    assert "101 images of 10 classes below val" in err and "evaluate" in err
    rows = [line.split() for line in out.splitlines() if line.startswith("  ")]
    assert [row[0] for row in rows[1:4]] == ["engine", "typed", "PyTorch"]
    assert rows[1][1] == f"{first / COUNT:.2%}" and f"{five / COUNT:.2%}" in rows[1]
    assert "only the engine is right in 0, only PyTorch in 0; McNemar's exact test: p = 1" in out
    assert out.splitlines()[-1] == "passed: no difference between the engine and PyTorch is found (p = 1)"
    kept = json.loads((folder / store.EVALUATION).read_text())
    shown = json.loads(said("evaluate", folder, "--data", "val", "--workers", "0", "--json")[0])
    assert shown["contenders"] == kept["contenders"] and kept["images"] == COUNT
    assert store.attached(store.open_artifact(folder), store.EVALUATION) is not None
    assert kept["passed"] and f"{first / COUNT:.2%}" in (folder / store.REPORT).read_text()


def test_an_engine_that_is_worse_fails_and_says_by_how_much(
    home: Path, said: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.build(selection(home))
    real = evaluating.taking

    def spoiled(engine: Any, artifact: Any) -> Any:
        run = real(engine, artifact)
        return lambda arrays: {name: np.roll(values, 1, axis=1) for name, values in run(arrays).items()}

    monkeypatch.setattr(evaluating, "taking", spoiled)
    folder = home / "out" / "evaluate_nets-Digits" / "fp32" / "onnxruntime"
    out, _ = said("evaluate", folder, "--data", "val", "--workers", "0", "--only", "pytorch,engine", code=1)
    first, _ = right(home / "val")
    assert "the engine is right less often than PyTorch (p = " in out.splitlines()[-1]
    assert f"only PyTorch in {first};" in out and "typed graph" not in out
    document = json.loads(said("inspect", folder, "--json")[0])["evaluation"]
    assert not document["passed"] and document["paired"]["pytorch_only"] == first
    inspected = " ".join(said("inspect", folder)[0].split())
    assert f"engine {document['contenders'][0]['top1']['share']:.2%}" in inspected
    assert "the engine is right less often than PyTorch" in inspected


def test_left_out_contenders_need_no_network(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = selection(home)
    pipeline.build(asked)
    with monkeypatch.context() as patch:
        patch.setattr(evaluating, "load", None)
        found = evaluate(asked, home / "val", only=("engine",), workers=0)
    assert found["engine"].top1.right == right(home / "val")[0]
    assert found.passed and found.paired is None and "were not compared" in found.verdict()
    with monkeypatch.context() as patch:
        patch.setattr(type(pipeline.pick("onnxruntime", "fp32", ())), "executable", lambda self: "no such GPU")
        with pytest.raises(MachineLacks, match="no such GPU; --only typed,pytorch evaluates without the engine"):
            evaluate(asked, home / "val")
        assert evaluate(asked, home / "val", only=("typed",), workers=0)["typed graph"].top1.count == COUNT


@pytest.mark.slow
def test_broken_images_are_left_out_and_counted(home: Path, tmp_path: Path, said: Any) -> None:
    asked = selection(home)
    artifact = pipeline.build(asked)
    data = shutil.copytree(home / "val", tmp_path / "val")
    for name in ("0/000a.png", "5/zzz.png", "9/zzz.png"):
        (data / name).write_bytes(b"no image")
    for workers in (0, 2):
        found = evaluate(asked, data, workers=workers, only=("engine",))
        assert (found.images, found.unread, len(found.skipped)) == (COUNT, 3, 3)
        assert found["engine"].top1.right == right(home / "val")[0]
    assert f"skipped {data / '5' / 'zzz.png'}: is not a readable image" in said(
        "evaluate", artifact.folder, "--data", data, "--workers", "0", "--only", "engine"
    )[0].replace("\n", " ")
    (tmp_path / "bad" / "3").mkdir(parents=True)
    (tmp_path / "bad" / "3" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of the 1 images can be read; the first: .*a.png is not a readable"):
        evaluate(asked, tmp_path / "bad", workers=0)


def test_scores_that_are_not_finite_are_wrong_and_counted(home: Path, tmp_path: Path, said: Any) -> None:
    artifact = pipeline.build(selection(home, "Infinite", "4"))
    for label, grey in ((0, 0), (0, 200), (3, 0), (3, 90), (9, 120)):
        (tmp_path / str(label)).mkdir(exist_ok=True)
        Image.new("L", (8, 8), grey).save(tmp_path / str(label) / f"{grey}.png")
    out, _ = said("evaluate", artifact.folder, "--data", tmp_path, "--workers", "0", "--only", "engine,pytorch")
    assert "engine: scores of 2 images are not all finite: run verify" in out
    assert "PyTorch: scores of 2 images are not all finite: run verify" in out
    document = store.attached(artifact, store.EVALUATION)
    assert document is not None and all(one["top5"]["right"] <= 3 for one in document["contenders"])


def test_a_class_map_names_the_classes(home: Path, tmp_path: Path) -> None:
    asked = selection(home)
    pipeline.build(asked)
    data = tmp_path / "val"
    for digit in (1, 3, 7):
        shutil.copytree(home / "val" / str(digit), data / f"n{9 - digit}")
    with pytest.raises(InputError, match=r"3 sub-folders are not the 10 classes of the network; .*--class-map FILE"):
        evaluate(asked, data)
    (tmp_path / "map.txt").write_text("".join(f"n{9 - digit}\n" for digit in range(10)))
    found = evaluate(asked, data, class_map=tmp_path / "map.txt", workers=0)
    for one in found.contenders:
        assert (one.top1.right, one.top5.right) == right(home / "val", "1", "3", "7")
    (tmp_path / "map.txt").write_text("n8\nn6\n")
    with pytest.raises(InputError, match="sub-folder n2 is none of the classes that are named"):
        evaluate(asked, data, class_map=tmp_path / "map.txt")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "n1\n\nn2\n", {"n1": 0, "n2": 2}),
        ("a.json", '{"0": ["n1", "tench"], "1": ["n2", "shark"]}', {"n1": 0, "n2": 1}),
        ("a.txt", "n1\nn2\nn1\n", "names n1 twice"),
        ("a.txt", "a\nb\nc\nd\n", "names 4 classes, and the network has 3"),
        ("a.json", "3", "cannot be read"),
    ],
)  # fmt: skip
def test_class_maps(tmp_path: Path, name: str, text: str, said: Any) -> None:
    (tmp_path / name).write_text(text)
    if isinstance(said, dict):
        assert read_class_map(tmp_path / name, 3) == said
    else:
        with pytest.raises(InputError, match=f"--class-map .*: {said}"):
            read_class_map(tmp_path / name, 3)


def test_what_cannot_be_evaluated_is_one_line(home: Path, tmp_path: Path) -> None:
    asked = selection(home)
    pipeline.build(asked)
    (tmp_path / "empty").mkdir()
    shutil.copytree(home / "val" / "0", tmp_path / "flat")
    for data, options, line in (
        ("none", {}, "is not a folder of images"),
        ("empty", {}, "no image below .*empty"),
        ("flat", {}, r"flat does not tell the class of each image: \d+\.png lies in no sub-folder"),
        (home / "val", {"limit": 0}, "--limit 0: it must be at least 1"),
        (home / "val", {"workers": -1}, "--workers -1: it must be at least 0"),
        (home / "val", {"only": ("onnx",)}, "--only 'onnx' is not known: choose one of engine, typed, pytorch"),
        (home / "val", {"only": ()}, "--only: name one of engine, typed, pytorch at least"),
        (home / "val", {"class_map": tmp_path / "no.txt"}, "--class-map .*no.txt: cannot be read"),
    ):
        with pytest.raises(InputError, match=line) as raised:
            evaluate(asked, tmp_path / data, **options)  # type: ignore[arg-type]
        assert "\n" not in str(raised.value)


def test_a_sample_is_spread_evenly(home: Path) -> None:
    asked, heard = selection(home), Listener()
    pipeline.build(asked)
    found = evaluate(asked, home / "val", limit=20, workers=0, only=("engine",), progress=heard)
    assert found.images == 20
    assert any(line.endswith("spread evenly over 101") and "20 images of 10 classes" in line for line in heard.lines)


@pytest.mark.slow
def test_an_engine_in_python(home: Path, tmp_path: Path) -> None:
    from tests import digits

    network, images, _ = digits.load("mixer_digits")
    how = {name: value for name, value in HOW.items() if name != "input_shape"}
    with mlpdeploy.compile(
        network, images[:2], precision="fp32", backend="onnxruntime", batch="2:4:8", out=tmp_path, **how
    ) as engine:
        found = engine.evaluate(home / "val", workers=0)
        assert found["engine"].top1.right == found["PyTorch"].top1.right == right(home / "val")[0]
        again = mlpdeploy.load(engine.save(tmp_path / "saved"))
    with pytest.raises(InputError, match=r"engine.evaluate\(folder, network\)"):
        again.evaluate(home / "val")
    assert again.evaluate(home / "val", network, workers=0).passed
