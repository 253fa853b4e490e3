"""An evaluation that was interrupted goes on where it ended, and begins anew where anything is another."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy import pipeline
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.commands import evaluating
from mlpdeploy.commands.evaluating import evaluate
from mlpdeploy.commands.tally import Kept
from mlpdeploy.evidence.documents.evaluation import Evaluation
from mlpdeploy.selection import Selection
from tests.commands.class_home import COUNT, home, selection
from tests.conftest import REPOSITORY
from tests.listening import Listener
from tests.warm import Warm

__all__ = ["home"]

ENDED = """
import os, signal, sys
os.setpgrp()
signal.signal(signal.SIGINT, signal.default_int_handler)
from mlpdeploy.commands import evaluating, tally
from mlpdeploy.evidence.proof import images
from mlpdeploy.terminal.cli import main

evaluating.EVERY, images.AT_ONCE, write = -1.0, 2, tally.Kept.write

def ending(self, counted):
    write(self, counted)
    if counted.done >= 40 and not ending.done:
        ending.done = True
        if sys.argv[1] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        os.killpg(0, signal.SIGINT if sys.argv[1] == "interrupt" else signal.SIGTERM)

ending.done = False
tally.Kept.write = ending
main(sys.argv[2:])
"""


class Ending(Listener):
    """Ends the evaluation after so many images, as Ctrl-C does."""

    def __init__(self, after: int) -> None:
        super().__init__()
        self.after = after

    def step(self, phase: str, done: int, total: int) -> None:
        if phase == "images" and done >= self.after:
            raise KeyboardInterrupt


FEW = {"only": ("engine",), "workers": 0}
"""Of a network that is not even loaded."""


@pytest.fixture(scope="module")
def built(home: Path) -> tuple[Selection, Artifact]:
    """What was asked for, and the engine; how its images are resized was not said."""
    asked = selection(home, resize=None)
    return asked, pipeline.build(asked)


@pytest.fixture
def data(home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(home / "val", tmp_path / "val"))


@pytest.fixture
def again(built: tuple[Selection, Artifact], data: Path) -> Any:
    """Evaluate on `data`; what was found, and what was said."""
    asked, artifact = built

    def run(**options: Any) -> tuple[Evaluation, list[str]]:
        heard = Listener()
        changed = replace(asked, resize=options.pop("resize", None))
        return evaluate(changed, data, artifact=artifact, progress=heard, **{**FEW, **options}), heard.lines

    return run


@pytest.fixture
def kept(built: tuple[Selection, Artifact], data: Path) -> Path:
    """The file that an evaluation on `data` leaves which is interrupted."""
    asked, artifact = built
    with pytest.raises(KeyboardInterrupt):
        evaluate(asked, data, artifact=artifact, progress=Ending(50), **FEW)
    return artifact.folder.parent / f".{artifact.folder.name}.evaluation.json"


@pytest.mark.parametrize("workers", [0, 2])
def test_the_same_call_goes_on_where_it_was_interrupted(
    data: Path, again: Any, request: pytest.FixtureRequest, workers: int
) -> None:
    (data / "0" / "000.png").write_bytes(b"no image")  # among those before
    (data / "9" / "zzz.png").write_bytes(b"no image")  # and the last one
    kept = request.getfixturevalue("kept")
    seen = json.loads(kept.read_text())
    assert 50 <= seen["done"] < 60 and len(seen["skipped"]) == 1
    whole, lines = again(workers=workers)
    assert f"{seen['done']} of {COUNT + 2} images were finished before: going on behind them" in lines
    anew, lines = again()
    assert anew == whole and whole.unread == 2 and not any("before" in line for line in lines)
    assert not kept.exists() and multiprocessing.active_children() == []


def test_only_images_that_are_left_are_run(again: Any, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, counted = COUNT - json.loads(kept.read_text())["done"], list[int]()
    marks = evaluating._marks

    def counting(runs: Any, artifact: Any, images: Any, labels: Any) -> Any:
        counted.append(len(images))
        return marks(runs, artifact, images, labels)

    monkeypatch.setattr(evaluating, "_marks", counting)
    again()
    assert sum(counted) == left


def another_engine(data: Path, kept: Path) -> None:
    found = json.loads(kept.read_text())
    found["about"]["engine"]["model.onnx"] = "0" * 64
    kept.write_text(json.dumps(found))


CHANGES: dict[str, Any] = {
    "images": lambda data, kept: (data / "0" / "new.png").write_bytes(b""),
    "images, by time": lambda data, kept: os.utime(next((data / "1").iterdir()), (1, 1)),
    "images, by class": lambda data, kept: (data / "1").rename(data / "11") and (data / "11").rename(data / "01"),
    "contenders": {"only": ("engine", "pytorch")},
    "preparation": {"resize": "nearest"},
    "engine": another_engine,
}


@pytest.mark.parametrize("name", CHANGES)
def test_where_anything_is_another_it_begins_anew_and_says_so(data: Path, again: Any, kept: Path, name: str) -> None:
    options = CHANGES[name]
    if callable(options):
        options(data, kept)
        options = {}
    _, lines = again(**options)
    assert f"the evaluation that was begun is not gone on with: other {name.partition(',')[0]} now" in lines
    assert not kept.exists()


def test_restart_begins_anew(again: Any, kept: Path) -> None:
    found, lines = again(restart=True)
    assert found.images == COUNT and not any("begun" in line or "before" in line for line in lines)
    assert not kept.exists()


@pytest.mark.parametrize("content", ["", "{}", '{"about": {}}', "[", "more", "less", "no code", "not packed"])
def test_a_damaged_file_is_one_line_and_costs_no_evaluation(again: Any, kept: Path, content: str) -> None:
    document = json.loads(kept.read_text())
    changes = {"more": {"done": COUNT + 1}, "less": {"marks": document["marks"][:8]}, "no code": {"marks": "!"},
               "not packed": {"marks": "AAAA"}}  # fmt: skip
    kept.write_text(json.dumps(document | changes[content]) if content in changes else content)
    found, lines = again()
    assert found.images == COUNT
    assert any(line.startswith("the evaluation that was begun is not gone on with: ") for line in lines)


def test_where_nothing_can_be_kept_it_is_said_once(again: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluating, "EVERY", -1.0)
    (tmp_path / "file").write_text("")
    real = Kept.__init__

    def elsewhere(self: Kept, *given: Any) -> None:
        real(self, *given)
        self.path = tmp_path / "file" / "kept.json"

    monkeypatch.setattr(Kept, "__init__", elsewhere)
    found, lines = again()
    assert found.images == COUNT
    assert sum("an interrupted evaluation will begin anew: " in line for line in lines) == 1


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "interrupt", "terminate"])
def test_a_process_that_ends_leaves_what_it_counted(
    home: Path, built: tuple[Selection, Artifact], data: Path, again: Any, warm: Warm, how: str
) -> None:
    (data.parent / "ended.py").write_text(ENDED)
    words = ["evaluate", str(built[1].folder), "--data", str(data), "--workers", "2", "--only", "engine", "--json"]
    found = warm.run([str(data.parent / "ended.py"), how, *words], home, PYTHONPATH=f"{REPOSITORY}:{home}")
    assert found.returncode == {"kill": -9, "interrupt": 130, "terminate": 143}[how], found.stderr
    assert "Traceback" not in found.stderr
    if how != "kill":
        assert json.loads(found.stdout)["error"]["exit_code"] == found.returncode
    whole, lines = again()
    assert any(f" of {COUNT} images were finished before" in line for line in lines)
    assert whole == again(restart=True)[0]
