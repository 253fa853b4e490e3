"""Jobs of this machine: several at once, what measures alone and behind all else, and nothing left behind."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from mlpdeploy.engine import nvidia
from mlpdeploy.evidence.documents.matrix import Row
from mlpdeploy.matrix import plan
from mlpdeploy.matrix.executor import Order, Running
from mlpdeploy.matrix.here import Here, beside_others
from mlpdeploy.matrix.plan import Plan
from tests.matrix.conftest import Fake, by_job
from tests.system.test_processes import until

ORDER = Order(logs=Path("logs"))


def rows(found: Plan, at_once: int = 1) -> dict[str, Row]:
    """How the jobs of a plan ended."""
    events = [event for event in Here(at_once).run(found.jobs, ORDER) if isinstance(event, Row)]
    ended = [row for row in events if row.state != "pending"]
    assert len(ended) == len(found.jobs)
    return by_job(ended)


def test_as_many_jobs_run_at_once_as_are_asked_for(fake: Fake) -> None:
    fake.behave(cam_1d_cam_build=["meets"], cam_1d_pe_build=["meets"])
    assert {row.state for row in rows(fake.plan(), 2).values()} == {"built"}


def test_one_at_a_time_is_in_the_order_of_the_plan(fake: Fake) -> None:
    rows(fake.plan("verify = true"))
    assert fake.calls() == ["build cam_1d_cam", "verify cam_1d_cam", "build cam_1d_pe", "verify cam_1d_pe"]


def test_what_measures_time_runs_alone_behind_all_else(fake: Fake) -> None:
    timed = 'verify = true\nbench = true\nregress = { baseline = "b" }'
    found = rows(fake.plan(timed, ["cam_1d_cam", "cam_1d_pe", "cam_1d_noenc"]), 3)
    assert {row.state for row in found.values()} == {"built"}
    lines = [line.split()[:3] for line in fake.lines()]
    first = next(place for place, (_, command, _) in enumerate(lines) if command in ("bench", "regress"))
    assert all(command in ("bench", "regress") for _, command, _ in lines[first:])
    assert lines[first::2] == [["begin", *one[1:]] for one in lines[first + 1 :: 2]]  # each ends before the next begins
    assert [network for _, command, network in lines[first::2] if command == "bench"] == [
        "cam_1d_cam", "cam_1d_pe", "cam_1d_noenc",
    ]  # fmt: skip


@pytest.mark.parametrize("build", ["search = 5", "worth = true"])
def test_a_build_that_measures_runs_alone_too(fake: Fake, build: str) -> None:
    job = fake.job(f"build = {{ {build} }}\nverify = true")
    assert beside_others(job) == () and beside_others(fake.job("verify = true")) == ("build", "verify")


def test_what_is_made_for_this_machines_gpu_runs_alone(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "probe", lambda: nvidia.Gpu("NVIDIA L4", "sm89", "13.0"))
    fake.plan_file.write_text(
        'network = "cam_1d_cam"\nprecision = "fp32"\nbackend = "inductor"\ngpu = ["current", "sm89"]'
    )
    current, named = plan.read(fake.plan_file).jobs
    assert current.needs.gpu == "any" and beside_others(current) == ()
    assert named.needs.gpu is None


def test_jobs_at_once_divide_the_cores_where_that_changes_no_engine(
    fake: Fake, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlpdeploy.matrix.here.cores", lambda: 8)
    rows(fake.plan('[[jobs]]\n[[jobs]]\nnetwork = "cam_1d_noenc"\nneeds = { cpus = 3 }\nbench = true'), 2)
    told = {tuple(line.split()[1:3]): line.split()[3] for line in fake.lines() if line.startswith("begin")}
    assert told["build", "cam_1d_pe"] == "4" and told["build", "cam_1d_noenc"] == "3"
    assert told["bench", "cam_1d_noenc"] == "None"
    fake.folder.joinpath("calls.txt").unlink()
    inductor = fake.plan("[[jobs]]\nbackend = 'inductor'")
    rows(inductor, 2)
    rows(fake.plan(), 1)
    assert {line.split()[3] for line in fake.lines() if line.startswith("begin")} == {"None"}


def test_threads_that_the_user_says_stay(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    rows(fake.plan(), 2)
    assert {line.split()[3] for line in fake.lines() if line.startswith("begin")} == {"5"}


def test_a_job_that_fails_is_a_row_and_the_others_go_on(fake: Fake) -> None:
    fake.behave(cam_1d_cam_build=["refused"], cam_1d_pe_bench=["killed"])
    found = rows(fake.plan("bench = true", ["cam_1d_cam", "cam_1d_pe", "cam_1d_noenc"]), 2)
    assert {name: row.state for name, row in found.items()} == {
        "cam_1d_cam": "failed", "cam_1d_pe": "failed", "cam_1d_noenc": "built",
    }  # fmt: skip
    assert [step.outcome for step in found["cam_1d_cam"].steps] == ["failed", "skipped"]
    assert found["cam_1d_pe"].error.startswith("bench: ended by signal 9") and "bench cam_1d_cam" not in fake.calls()


def test_a_run_that_is_left_ends_what_it_began_and_begins_no_more(fake: Fake) -> None:
    fake.behave(cam_1d_cam_build=["waits"], cam_1d_pe_build=["waits"])
    with closing(Here(2).run(fake.plan("", ["cam_1d_cam", "cam_1d_pe", "cam_1d_noenc"]).jobs, ORDER)) as events:
        begun = [next(events), next(events)]
        assert all(isinstance(event, Running) and event.step == "build" for event in begun)
        until(lambda: len(fake.calls("waiting")) == 2)
    assert sorted(fake.calls("cleared")) == ["cam_1d_cam", "cam_1d_pe"] and len(fake.calls()) == 2
