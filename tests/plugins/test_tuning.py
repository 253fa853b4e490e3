"""What was measured: the competition, the machine's own file in bad hands, and the choices that come with the code."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from time import sleep
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton, which the kernel is written in, is not installed")

from triton.runtime.errors import OutOfResources, PTXASError

from mlpdeploy import kernels
from tests.plugins.test_operation import forget, own_cache

__all__ = ["own_cache"]

tuning: Any = kernels.load("common.tuning")
configurations: Any = kernels.load("common.configurations")
problem: Any = kernels.load("segment_grouped_projection.problem")
mlps: Any = kernels.load("token_mlp.problem")

GIVEN = problem.Problem(16, 16, 24, 1, 16, 24, "fp16")
H100 = "NVIDIA H100 80GB HBM3"
BEST = (problem.Problem(32, 32, 6, 32, 32, 6, "fp16"), 128), (problem.Problem(16, 16, 24, 16, 16, 24, "fp16"), 128)
"""vip_s7 and vip_s14 at their batch, whose fastest tile on an H100 was 128 x 256."""


@pytest.fixture
def h100(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A machine with two GPUs, the second an H100, and a file of choices of its own that comes with the code."""
    names = {(7, 5): "Tesla T4", (9, 0): H100}
    found = [SimpleNamespace(name=name, major=major, minor=minor) for (major, minor), name in names.items()]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(found))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: found[place])
    monkeypatch.setattr(tuning, "SHIPPED", tmp_path / "measured.json")
    forget()
    return names


@pytest.mark.parametrize("refusal", [RuntimeError("CUDA"), OutOfResources(1, 0, "shared memory"), PTXASError("no")])
def test_the_fastest_is_remembered_by_shape_class_and_gpu(refusal: Exception) -> None:
    """Triton's errors are no RuntimeErrors, and cost a candidate as those do, not the build."""
    tried: list[Any] = []
    first = GIVEN.shortlist(32, 90)[3]
    wanted = GIVEN.variants(first, 90)[0]

    def seconds(choice: Any) -> float:
        tried.append(choice)
        if choice == GIVEN.shortlist(32, 90)[1]:
            raise refusal
        return {first: 1.0, wanted: 0.5}.get(choice, 2.0)

    taken = tuning.timings(GIVEN, 32, 90, lambda choice: choice, seconds)
    assert tuning.fastest(taken) == wanted and len(taken) == len(tried) - 1 and tuning.LIBRARY in taken
    assert len({*tried}) == len(tried)
    for batch in (32, 17):  # 17 to 32 are one class
        assert tuning.choose(GIVEN, batch, 90) == wanted
    for other in ((GIVEN, 33, 90), (GIVEN, 32, 80)):
        assert tuning.remembered(*other) is None and tuning.choose(*other) == GIVEN.default(*other[1:])
    assert tuning.remembered(replace(GIVEN, precision="bf16"), 32, 90) is None


def test_where_nothing_can_be_measured_nothing_is_remembered() -> None:
    def refuse(choice: Any) -> Any:
        raise RuntimeError("out of memory")

    assert tuning.timings(GIVEN, 32, 90, refuse, lambda run: 1.0) == {}
    assert tuning.remembered(GIVEN, 32, 90) is None


@pytest.mark.parametrize(("given", "batch"), BEST)
def test_every_likely_tile_competes_and_the_best_in_all_its_forms(given: Any, batch: int) -> None:
    tiles = [(one.block_m, one.block_n, one.warps) for one in given.shortlist(batch, 90)]
    assert (256, 64, 4) not in tiles  # whose addresses do not fit its registers
    assert {(128, 256, 8), (128, 128, 8), (128, 128, 4), (64, 256, 4), (256, 64, 8)} <= {*tiles}
    assert len({*tiles}) == len(tiles) == 8
    chosen = next(one for one in given.shortlist(batch, 90) if (one.block_m, one.block_n, one.warps) == (128, 128, 4))
    forms = {(one.block_k, one.stages) for one in (chosen, *given.variants(chosen, 90))}
    assert forms == {(64, 4), (64, 3), (32, 4)}


def test_two_blocks_of_a_form_fit_a_multiprocessor() -> None:
    """228 KiB on an H100, of which each block takes one more: Inductor's own best, of three steps, is among them."""
    found = BEST[0][0].candidates(90)
    assert configurations.Config(128, 128, 64, 4, 3) in found
    for config in configurations.leading(found):
        forms = (config, *BEST[0][0].variants(config, 90))
        assert min(2 * (BEST[0][0].shared(one) + 1024) for one in forms) <= 228 << 10


def test_no_tile_has_twice_the_rows_that_there_are() -> None:
    for batch in (1, 3, 64):
        small = problem.Problem(1, 1, 192, 1, 1, 576, "fp16")
        assert all(one.block_m <= max(16, 2 * batch) for one in small.shortlist(batch, 90))


def test_variants_of_a_token_mlp_share_its_tile() -> None:
    given = mlps.Problem(196, 384, 196, 768, "fp16", "erf")
    found = given.shortlist(128, 90)
    assert len({(one.block_m, one.warps) for one in found}) == len(found)
    for config in found:
        others = given.variants(config, 90)
        assert config not in others and {*others} <= {*given.candidates(90)}
        assert {(one.block_m, one.block_n, one.warps) for one in others} <= {(config.block_m, 256, config.warps)}


def test_choices_add_up_in_a_file_and_damage_is_forgotten() -> None:
    config = GIVEN.candidates(90)[-1]
    tuning.remember({"a": config}, 90)
    tuning.remember({"b": tuning.LIBRARY}, 90)
    path = tuning.file(90)
    known = {"a": config, "b": tuning.LIBRARY}
    assert tuning._read(path) == known and [*path.parent.iterdir()] == [path]
    records: list[Any] = [{"shape": "a", "choice": {"block_m": 16}}, {"shape": ["a"], "choice": "library"}, {}, [], 3]
    damage = [b"{", b"\xff\xfe", b"[" * 100_000, *(json.dumps(one).encode() for one in records), b'{"shape": "a", "ch']
    with path.open("ab") as file:
        file.write(b"\n".join(damage))  # the last by a process that was killed while it wrote
    assert tuning._read(path) == known
    tuning.remember({"a": tuning.LIBRARY}, 90)
    assert tuning._read(path) == {**known, "a": tuning.LIBRARY}


@pytest.mark.parametrize(
    "choice", [{"block_m": "128"}, {"block_m": 100}, {"stages": 9}, {"warps": [4]}, {"block_k": None}], ids=str
)
def test_what_no_kernel_is_made_for_is_not_used(choice: dict[str, Any]) -> None:
    name = GIVEN.shape_class(1)
    tuning.remember({name: configurations.Config(**asdict(GIVEN.default(1, 90)) | choice)}, 90)
    assert tuning.remembered(GIVEN, 1, 90) is None and tuning.choose(GIVEN, 1, 90) == GIVEN.default(1, 90)


def test_a_cache_that_cannot_be_written_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    tuning.remember({"a": tuning.LIBRARY}, 90)
    assert tuning.choose(GIVEN, 1, 90) == GIVEN.default(1, 90)


def remember_many(first: int) -> None:
    for place in range(first, first + 50):
        tuning.remember({f"shape {place}": tuning.LIBRARY}, 90)


def test_those_that_measure_at_once_lose_nothing() -> None:
    with ThreadPoolExecutor(4) as pool:
        [*pool.map(remember_many, range(0, 200, 50))]
    assert tuning._read(tuning.file(90)) == {f"shape {place}": tuning.LIBRARY for place in range(200)}


@pytest.mark.parametrize("place", ["", "a file where the folder should be"])
def test_measurements_wait_for_one_another(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels compile at once. Where there is no place for a lock nothing waits, and all are measured."""
    running, most, compiled = [0], [0], [0]

    def bench(function: Any, **options: Any) -> float:
        running[0] += 1
        most[0] = max(most[0], running[0])
        sleep(0.02)
        running[0] -= 1
        return 1e3

    monkeypatch.setattr("triton.testing.do_bench", bench)
    if place:
        (tmp_path / "cache").write_text(place)
    with ThreadPoolExecutor(4) as pool:
        taken = [*pool.map(tuning.seconds, [lambda: compiled.append(1)] * 4)]
    assert taken == [1.0] * 4 and len(compiled) == 5 and (most[0] == 1 or place)


def test_what_one_machine_measured_serves_the_next_with_that_gpu(h100: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no GPU of the same compute capability but another name; a build measures what is not there."""
    chosen = GIVEN.candidates(90)[3]
    tuning.remember({GIVEN.shape_class(8): chosen}, 90)
    tuning.ship(90)
    assert tuning.file(90).name.startswith("kernels-nvidia-h100-80gb-hbm3-")
    tuning.file(90).unlink()
    forget()
    assert tuning.choose(GIVEN, 8, 90) == chosen and tuning.remembered(GIVEN, 64, 90) is None
    own = GIVEN.candidates(90)[4]
    tuning.remember({GIVEN.shape_class(8): own}, 90)
    assert tuning.choose(GIVEN, 8, 90) == own
    tuning.ship(90)
    document = json.loads(tuning.SHIPPED.read_text())
    assert document[H100]["choices"] == {GIVEN.shape_class(8): asdict(own)} and [*document] == [H100]
    tuning.file(90).unlink()
    forget()
    h200 = SimpleNamespace(name="NVIDIA H200", major=9, minor=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda place: h200)
    assert tuning.remembered(GIVEN, 8, 90) is None


def test_what_another_kernel_was_measured_with_is_not_used_and_goes(h100: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.remember({GIVEN.shape_class(8): tuning.LIBRARY}, 90)
    tuning.ship(90)
    monkeypatch.setattr(tuning, "_code", lambda: "another")
    forget()
    assert tuning.remembered(GIVEN, 8, 90) is None
    tuning.remember({"new": tuning.LIBRARY}, 90)
    tuning.ship(90)
    document = json.loads(tuning.SHIPPED.read_text())
    assert document[H100]["code"] == "another" and document[H100]["choices"] == {"new": tuning.LIBRARY}


def test_a_gpu_that_is_not_here_is_not_shipped(h100: Any) -> None:
    with pytest.raises(ValueError, match=r"no GPU of compute capability 8\.0"):
        tuning.ship(80)
    assert not tuning.SHIPPED.exists()


def test_the_choices_that_come_with_the_code_are_choices() -> None:
    document = json.loads(tuning.SHIPPED.read_text())
    for entry in document.values():
        assert {*entry} == {"code", "triton", "choices"}
        assert all(isinstance(tuning._choice(one), str | configurations.Config) for one in entry["choices"].values())
