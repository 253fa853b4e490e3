"""The same questions to every backend: build, run, refuse. One that cannot build or run here skips, saying why."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mlpdeploy.engine.backend import Backend, BuildRequest, Built, backends
from mlpdeploy.engine.batch import Batch
from mlpdeploy.errors import ArtifactError, InputError, MachineLacks
from tests.engine.small_networks import SHAPE, TOLERANCE, emitted, images, reference

SLOW = {"inductor": pytest.mark.slow}  # which compiles C++ for seconds
NAMES = [pytest.param(name, marks=SLOW.get(name, ())) for name in sorted(backends())]
BATCH = Batch(1, 4, 8)
Engines = Callable[[str, str], tuple[Backend, Built]]


class Steps:
    """A progress that remembers."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, int, int]] = []

    def step(self, phase: str, done: int, total: int) -> None:
        self.seen.append((phase, done, total))


@pytest.fixture(scope="session")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Engines:
    """Engines by backend and precision, each built once; the facts have been through JSON, as in a manifest."""
    made: dict[tuple[str, str], Built] = {}

    def get(name: str, precision: str) -> tuple[Backend, Built]:
        backend = backends()[name]
        reason = backend.available() or backend.supports(precision)
        if reason is not None:
            pytest.skip(f"{name}: {reason}")
        if (name, precision) not in made:
            folder = tmp_path_factory.mktemp(f"{name}-{precision}")
            steps = Steps()
            built = backend.build(emitted(precision), BuildRequest(precision, BATCH, threads=1), folder, steps)
            assert steps.seen and all(1 <= done <= total for _, done, total in steps.seen)
            made[name, precision] = replace(built, facts=json.loads(json.dumps(built.facts)))
        return backend, made[name, precision]

    return get


def runnable(backend: Backend) -> None:
    reason = backend.executable()
    if reason is not None:
        pytest.skip(f"{backend.name}: {reason}")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "tf32", "fp16", "bf16"])
def test_agrees_with_pytorch_at_every_batch(engines: Engines, name: str, precision: str) -> None:
    backend, built = engines(name, precision)
    runnable(backend)
    with backend.load(built.engine, built.facts) as run:
        for batch in (1, 3, 8):
            given = images(batch, seed=batch)
            found = run({"image": given.numpy()})
            wanted = reference(precision, given)
            assert list(found) == ["logits"] and found["logits"].dtype == np.float32
            assert found["logits"].shape == (batch, 5)
            assert np.abs(found["logits"] - wanted).max() <= TOLERANCE[precision] * np.abs(wanted).max()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_results_outlive_the_next_call(engines: Engines, name: str) -> None:
    backend, built = engines(name, "fp32")
    runnable(backend)
    with backend.load(built.engine, built.facts) as run:
        first = run({"image": images(2, seed=1).numpy()})["logits"]
        kept = first.copy()
        second = run({"image": images(2, seed=2).numpy()})["logits"]
    assert (first == kept).all() and not (first == second).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_facts_are_json_and_whole(engines: Engines, name: str) -> None:
    backend, built = engines(name, "fp32")
    facts = built.facts
    assert built.engine.name == backend.engine_file and built.engine.stat().st_size == facts["engine_bytes"] > 0
    assert facts["backend"] == name and facts["precision"] == "fp32" and facts["batch"] == [1, 4, 8]
    assert facts["versions"] == backend.versions() and "none" not in facts["versions"].values()
    assert facts["inputs"] == [{"name": "image", "shape": list(SHAPE), "dtype": "float32"}]
    assert facts["outputs"] == [{"name": "logits", "shape": [5], "dtype": "float32"}]
    assert facts["executed"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("inputs", "words"),
    [
        ({}, "given nothing"),
        ({"images": np.zeros((2, *SHAPE), np.float32)}, "given images"),
        ({"image": np.zeros((2, *SHAPE), np.float32), "mask": np.zeros(2, np.float32)}, "given image, mask"),
        ({"image": np.zeros((2, *SHAPE), np.float64)}, "given float64"),
        ({"image": np.zeros((2, 3, 8, 9), np.float32)}, r"given float32 \[2, 3, 8, 9\]"),
        ({"image": np.zeros(SHAPE, np.float32)}, r"given float32 \[3, 8, 8\]"),
        ({"image": np.float32(0)}, r"given float32 \[\]"),
        ({"image": [1.0]}, "given list"),
        ({"image": np.zeros((0, *SHAPE), np.float32)}, "batch 1 to 8; it was given 0"),
        ({"image": np.zeros((9, *SHAPE), np.float32)}, "batch 1 to 8; it was given 9"),
    ],
)
def test_wrong_inputs_are_one_clear_line(engines: Engines, name: str, inputs: dict, words: str) -> None:
    backend, built = engines(name, "fp32")
    runnable(backend)
    with backend.load(built.engine, built.facts) as run, pytest.raises(InputError, match=words) as raised:
        run(inputs)
    assert "\n" not in str(raised.value)


def altered(data: bytes) -> bytes:
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "harm", [altered, lambda data: data[:-100], lambda data: b""], ids=["bit", "truncated", "empty"]
)
def test_a_harmed_engine_is_refused(
    engines: Engines, name: str, harm: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    backend, built = engines(name, "fp32")
    engine = tmp_path / backend.engine_file
    engine.write_bytes(harm(built.engine.read_bytes()))
    with pytest.raises(ArtifactError, match="altered or cut short"), backend.load(engine, built.facts):
        pass


@pytest.mark.parametrize("name", NAMES)
def test_another_version_is_refused_naming_both(engines: Engines, name: str) -> None:
    backend, built = engines(name, "fp32")
    package, here = next(iter(backend.versions().items()))
    facts = {**built.facts, "versions": {**built.facts["versions"], package: "0.1.2"}}
    with pytest.raises(ArtifactError) as raised, backend.load(built.engine, facts):
        pass
    message = str(raised.value)
    assert f"{package} 0.1.2" in message and f"{package} {here}" in message and "\n" not in message


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_another_backends_file_and_broken_facts_are_refused(
    engines: Engines, name: str, tmp_path: Path
) -> None:
    backend, built = engines(name, "fp32")
    with pytest.raises(ArtifactError, match="no engine"), backend.load(tmp_path / "none", built.facts):
        pass
    with pytest.raises(ArtifactError, match="not of"), backend.load(built.engine, {**built.facts, "backend": "x"}):
        pass
    for broken in ({}, {**built.facts, "inputs": 3}, {**built.facts, "batch": [1]}, {**built.facts, "outputs": [{}]}):
        with pytest.raises(ArtifactError, match="manifest"), backend.load(built.engine, broken):
            pass


@pytest.mark.parametrize("name", NAMES)
def test_an_engine_that_cannot_run_here_says_what_is_missing(engines: Engines, name: str) -> None:
    backend, built = engines(name, "fp32")
    if backend.executable() is None:
        pytest.skip(f"{name} runs here")
    with pytest.raises(MachineLacks, match="cannot run on this machine: "), backend.load(built.engine, built.facts):
        pass


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_building_again_replaces_the_engine(engines: Engines, name: str, tmp_path: Path) -> None:
    backend, _ = engines(name, "fp32")
    (tmp_path / backend.engine_file).write_bytes(b"an older engine")
    built = backend.build(emitted("fp32"), BuildRequest("fp32", Batch(2, 2, 2)), tmp_path, Steps())
    assert built.facts["batch"] == [2, 2, 2] and built.facts["engine_bytes"] > 100
    if backend.executable() is None:
        given = images(2)
        with backend.load(built.engine, built.facts) as run:
            found = run({"image": given.numpy()})["logits"]
        wanted = reference("fp32", given)
        assert np.abs(found - wanted).max() <= TOLERANCE["fp32"] * np.abs(wanted).max()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch", [Batch(0, 1, 2), Batch(4, 2, 8), Batch(1, 4, 2)])
def test_a_batch_profile_that_does_not_rise_is_refused(name: str, batch: Batch, tmp_path: Path) -> None:
    backend = backends()[name]
    if backend.available() is not None:
        pytest.skip(f"{name}: {backend.available()}")
    with pytest.raises(InputError, match="MIN <= OPT <= MAX"):
        backend.build(emitted("fp32"), BuildRequest("fp32", batch), tmp_path, Steps())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_precision_is_refused_with_the_known_ones(name: str) -> None:
    reason = backends()[name].supports("fp12")
    assert reason is not None and "fp12" in reason and "bf16" in reason and "\n" not in reason


@pytest.mark.parametrize("name", NAMES)
def test_names_and_reasons_are_whole(name: str) -> None:
    backend = backends()[name]
    assert backend.name == name and backend.versions()
    for reason in (backend.available(), backend.executable()):
        assert reason is None or (reason and "\n" not in reason)
