"""Both sides in processes of their own: on stand-in engines, whose time is written down, and on a real one."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mlpdeploy.commands.interpreter import own
from mlpdeploy.commands.measuring import held_to
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.evidence.latency import clocks, elsewhere, load_pairs, sequential_test, timing
from mlpdeploy.evidence.latency.contenders import Contender, Loadable
from mlpdeploy.graph.tracing.trace import TensorSpec
from tests.standin_interpreter import interpreter, package
from tests.system.test_processes import alive, until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name != "posix", reason="stand-ins are programs of a POSIX shell"),
]
SPECS = (TensorSpec("x", (3,), torch.float32), TensorSpec("ids", (), torch.int64, 0, 9))
FACTS = {"threads": 1, "inputs": [{"name": "x", "dtype": "bfloat16"}, {"name": "ids", "dtype": "int32"}]}


class Sides:
    """Contenders whose interpreter is a stand-in, and the rows of their calls."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        self.python = interpreter(folder / "python", package(folder / "other"))

    def __call__(self, name: str, **how: Any) -> Contender:
        file = self.folder / name
        file.write_text(json.dumps(how))
        variables = os.environ | {"STANDIN_LOG": str(self.log)}
        backend: Any = SimpleNamespace(name="standin")
        place = elsewhere.Place(str(self.python), variables, f"--baseline-env {name}")
        return place.contender(name, Loadable(backend, file, FACTS), SPECS, self.folder)

    def rows(self) -> list[list[Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def sides(tmp_path: Path) -> Sides:
    return Sides(tmp_path)


def pair(baseline: Contender, candidate: Contender, *sizes: int) -> tuple[load_pairs.LoadPair, ...]:
    return next(load_pairs.pairs(baseline, candidate, dict.fromkeys(sizes, 0.0), 0))


def test_ten_per_cent_are_caught_and_an_equal_side_passes(sides: Sides) -> None:
    baseline = sides("baseline", ns=1_000_000)
    for two in pair(baseline, sides("candidate", ns=1_100_000), 1, 4):
        assert two.log_ratios == pytest.approx([np.log(1.1)] * 2)
        assert two.baseline[0].median == pytest.approx(1e-3)
        assert sequential_test.run([two.log_ratio] * 10, 0.03).verdict == sequential_test.REGRESSED
    (two,) = pair(baseline, sides("candidate", ns=1_000_000), 1)
    assert sequential_test.run([two.log_ratio] * 10, 0.03).verdict == sequential_test.PASSED


def test_they_take_turns_on_the_same_inputs_cores_and_threads(sides: Sides) -> None:
    with held_to(1):
        pair(sides("baseline", ns=1_000_000), sides("candidate", ns=2_000_000), 2)
    rows = sides.rows()
    assert all(one[2] <= other[1] for one, other in itertools.pairwise(rows))  # never two at once
    turns = [row[0] for row in rows]
    assert {turns[0], turns[len(turns) // 2]} == {"baseline", "candidate"}  # each is loaded and warmed up first once
    seen = [[row[3:] for row in rows if row[0] == name] for name in ("baseline", "candidate")]
    assert seen[0] == seen[1] and seen[0]
    given, cores, threads = seen[0][0]
    assert (given["x"][:2], given["ids"][:2]) == ([[2, 3], "bfloat16"], [[2], "int32"])
    assert len({row[0]["x"][2] for row in seen[0]}) == 4  # as many batches are drawn
    assert len(cores) == threads == 1


def test_each_load_is_a_process_of_its_own_that_ends_with_it(sides: Sides) -> None:
    one, numbers = sides("baseline", ns=1_000_000), list[int]()
    for _ in range(2):
        with one.load() as call:
            assert isinstance(call, clocks.Elsewhere) and isinstance(call.on_host(1), timing.Timekeeper)
            numbers.append(call.server.process._process.pid)  # type: ignore[attr-defined]
            assert alive(numbers[-1])
        assert not alive(numbers[-1])
    assert len(set(numbers)) == 2


@pytest.mark.parametrize(
    ("how", "kind", "said"),
    [
        ({"lacks": "no openvino here"}, MachineLacks, "no openvino here"),
        ({"die": 9}, InputError, "its process was ended by signal 9"),
        ({"ns": 1, "wait": 600}, InputError, "its process did not answer within 2 s"),
        ({"other": 1}, InputError, "KeyError: 'ns'"),
    ],
)
def test_a_side_that_fails_is_named_in_one_line_and_no_process_stays(
    how: dict[str, Any], kind: type[Exception], said: str, sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(elsewhere, "PATIENCE", 2.0)
    numbers = list[int]()
    asked = elsewhere.asked

    def noted(*words: Any) -> Any:
        stack = asked(*words)
        enter = stack.__enter__
        stack.__enter__ = lambda: numbers.append((found := enter())._process.pid) or found
        return stack

    monkeypatch.setattr(elsewhere, "asked", noted)
    with pytest.raises(kind, match=f"^--baseline-env candidate: {said}") as raised:
        pair(sides("baseline", ns=1_000_000), sides("candidate", **how), 1)
    assert "\n" not in str(raised.value)
    until(lambda: not any(map(alive, numbers)))


class OnClock:
    """A server whose engine is on a GPU's clock."""

    def ask(self, what: str, **words: Any) -> dict[str, Any]:
        return {"phases": [1e-3, 2e-3, 3e-3]} if what == "phases" else {"uncaptured": "no graphs there"}


@pytest.mark.parametrize(
    ("clock", "other", "why"),
    [
        (None, None, None), ("", "", ""), ("no PyTorch there", None, "no PyTorch there"),
        (None, "", "candidate does not run on the GPU"),
    ],
)  # fmt: skip
def test_a_gpus_clock_is_used_where_both_sides_have_it(clock: str | None, other: str | None, why: str | None) -> None:
    server: Any = OnClock()
    calls: Any = {name: elsewhere.Loaded(server, told) for name, told in (("baseline", clock), ("candidate", other))}
    assert clocks.host_clock(calls) == why
    if why is None:
        inputs = clocks.Inputs({name: [(8, 0), (8, 1)] for name in calls})
        taken = clocks.timed(calls, inputs, rounds=3)
        assert taken.seconds["baseline"].tolist() == [2e-3] * 3 and taken.phases["baseline"].shape == (3, 3)
        assert taken.uncaptured == dict.fromkeys(calls, "no graphs there")


@pytest.mark.slow
def test_a_real_engine_is_timed_by_its_own_process(tmp_path: Path) -> None:
    from mlpdeploy import pipeline
    from mlpdeploy.artifact.lookup import backend_of
    from mlpdeploy.selection import Selection

    selection = Selection("tests.test_api:Net", "fp32", "onnxruntime", "1", input_shape=(3, 16, 16), out=tmp_path)
    artifact = pipeline.build(selection)
    loadable = Loadable(backend_of(artifact), artifact.engine, artifact.manifest["facts"]).on(1)
    (port,) = loadable.facts["inputs"]
    specs = (TensorSpec(port["name"], (3, 16, 16), torch.float32),)
    both = [own().contender(name, loadable, specs, tmp_path) for name in ("baseline", "candidate")]
    (two,) = pair(both[0], both[1], 1)
    assert min(load.quartile for side in (two.baseline, two.candidate) for load in side) > 0
