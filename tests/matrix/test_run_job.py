"""One job: its row has what its commands found and what went wrong; a killed one is tried again, bad input is not."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from mlpdeploy.matrix.run_job import Manner, run_job
from mlpdeploy.system.processes import Children
from tests.matrix.conftest import Fake
from tests.system.test_processes import until

ALL = 'verify = true\nevaluate = { data = "val" }\nbench = { batch = 8 }\nregress = { baseline = "old" }\n'
LOG = Path("logs/job.log")


def test_a_row_has_what_each_command_found(fake: Fake) -> None:
    row = run_job(fake.job(ALL), LOG)
    assert row.state == "built" and row.error is None and row.attempts == 1
    assert [(step.name, step.outcome, step.exit_code) for step in row.steps] == [
        (name, "passed", 0) for name in ("build", "verify", "evaluate", "bench", "regress")
    ]
    assert row.folder == "artifacts/cam_1d_cam/fp32/onnxruntime" and row.files["model.onnx"] == row.key
    facts = row.facts
    assert (facts.engine_bytes, facts.launches, facts.layers, facts.top1) == (3, 7, None, 0.75)
    assert facts.of_budget == pytest.approx(0.2) and facts.latency_ms == {"8": 1.5}
    assert row.worker is not None and row.worker.endswith(f"/{os.getpid()}") and row.machine is not None
    logged = LOG.read_text()
    assert logged.count("$ ") == 5 and "progress of regress cam_1d_cam" in logged


def test_commands_are_told_the_selection_or_the_artifact(fake: Fake) -> None:
    options = 'image-size = 32\nseed = 3\nverify = { data = "digits" }\nregress = { baseline = "b", batch = [1, 8] }'
    run_job(fake.job(options), LOG)
    build, verify, regress = (line.split(maxsplit=4)[4] for line in fake.lines() if line.startswith("begin"))
    chosen, more = "cam_1d_cam --precision fp32 --backend onnxruntime", "--image-size 32 --seed 3"
    assert build == f"{chosen} --batch 1:8:32 {more} --json"
    assert verify == "artifacts/cam_1d_cam/fp32/onnxruntime --out artifacts --data digits --json"
    assert regress == f"{chosen} {more} --baseline b --batch 1,8 --json"


def test_what_is_built_already_is_cached(fake: Fake) -> None:
    first, second = run_job(fake.job("verify = true"), LOG), run_job(fake.job("verify = true"), LOG)
    assert (first.state, second.state) == ("built", "cached")
    assert second.steps[0].outcome == "cached" and second.steps[1].outcome == "passed" and second.files == first.files


@pytest.mark.parametrize(
    ("how", "error", "code"),
    [
        ("refused", "build: no such thing", 2),
        ("lacks", "build: no GPU", 3),
        ("silent", "build: it gave no result (exit code 0): see the log", 0),
        ("killed", "build: ended by signal 9 (SIGKILL)", -9),
        ("asked to end", "build: ended by signal 15 (SIGTERM)", 143),
    ],
)
def test_a_command_that_fails_is_a_step_and_what_follows_is_skipped(
    fake: Fake, how: str, error: str, code: int
) -> None:
    fake.behave(cam_1d_cam_build=[how])
    row = run_job(fake.job("verify = true"), LOG)
    assert (row.state, row.error, row.key, row.files) == ("failed", error, None, {})
    assert [(step.outcome, step.exit_code) for step in row.steps] == [("failed", code), ("skipped", None)]


def test_a_gate_that_is_missed_fails_the_job_and_keeps_what_was_found(fake: Fake) -> None:
    fake.behave(cam_1d_cam_verify=["missed"])
    row = run_job(fake.job("verify = true\nbench = true"), LOG)
    assert row.state == "failed" and row.error == "verify: the engine missed" and row.facts.of_budget is not None
    assert [step.outcome for step in row.steps] == ["passed", "failed", "skipped"] and row.key is not None


@pytest.mark.parametrize("how", ["killed", "asked to end", "memory", "crashed"])
def test_what_was_killed_or_had_no_memory_is_tried_again(fake: Fake, how: str) -> None:
    fake.behave(cam_1d_cam_build=[how, how, "passed"])
    assert run_job(fake.job(), LOG, Manner(retries=1)).state == "failed"
    (fake.folder / "calls.txt").unlink()
    row = run_job(fake.job(), LOG, Manner(retries=2))
    assert row.state == "built" and row.attempts == 3 and row.error is None
    assert fake.calls() == ["build cam_1d_cam"] * 3


@pytest.mark.parametrize("how", ["refused", "lacks", "silent"])
def test_what_would_fail_again_is_not_tried_again(fake: Fake, how: str) -> None:
    fake.behave(cam_1d_cam_build=[how, "passed"])
    row = run_job(fake.job(), LOG, Manner(retries=5))
    assert row.state == "failed" and row.attempts == 1 and len(fake.calls()) == 1


def test_some_commands_now_and_the_others_later(fake: Fake) -> None:
    job = fake.job("verify = true\nbench = true")
    first = run_job(job, LOG, names=("build", "verify"))
    assert first.state == "pending" and fake.calls() == ["build cam_1d_cam", "verify cam_1d_cam"]
    last = run_job(job, LOG, given=first)
    assert last.state == "built" and fake.calls()[2:] == ["bench cam_1d_cam"]
    assert last.seconds >= first.seconds and last.facts.latency_ms == {"8": 1.5}


def test_evidence_of_an_artifact_that_another_build_replaced_is_none(fake: Fake) -> None:
    fake.behave(cam_1d_cam_verify=["replaced"])
    row = run_job(fake.job("verify = true\nbench = true"), LOG)
    assert row.state == "failed"
    assert row.error == "verify: another build has replaced artifacts/cam_1d_cam/fp32/onnxruntime meanwhile"


def test_a_log_that_cannot_be_written_is_an_error_of_the_row(fake: Fake) -> None:
    (fake.folder / "logs").write_text("a file")
    row = run_job(fake.job(), LOG)
    assert row.state == "failed" and row.error == "build: cannot be run (File exists)"


@pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")
def test_a_job_whose_processes_are_ended_is_cancelled_and_clears_up(fake: Fake) -> None:
    fake.behave(cam_1d_cam_build=["waits"])
    children = Children()

    def end_soon() -> None:
        until(lambda: bool(fake.calls("waiting")))
        children.end()

    ender = threading.Thread(target=end_soon)
    ender.start()
    row = run_job(fake.job("verify = true"), LOG, Manner(retries=3, children=children))
    ender.join()
    assert row.state == "cancelled" and row.error == "build: ended with the run" and row.attempts == 1
    assert [step.outcome for step in row.steps] == ["cancelled", "skipped"]
    assert fake.calls("cleared") == ["cam_1d_cam"]
    (pid,) = (int(line.split()[1]) for line in fake.lines() if line.startswith("waiting"))
    with pytest.raises(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
