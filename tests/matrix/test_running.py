"""A plan's jobs as one document: written after each, gone on from, joined of shards; nothing that is done is lost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents import matrix
from mlpdeploy.evidence.documents.matrix import Matrix
from mlpdeploy.matrix import shards
from mlpdeploy.matrix.executor import Order, Running
from mlpdeploy.matrix.here import Here
from mlpdeploy.matrix.plan import Plan
from mlpdeploy.matrix.running import Part, join, run, text
from tests.matrix.conftest import Fake, Listening, by_job

SAVED = Path("results/plan.json")


def ran(plan: Plan, watcher: Listening | None = None, *, resume: bool = False) -> Matrix:
    """All jobs of a plan, run."""
    return run(Part(plan, plan.jobs, SAVED), Here(), Order(logs=Path("logs")), watcher or Listening(), resume=resume)


def test_the_document_is_written_after_every_job(fake: Fake) -> None:
    seen = []
    watcher = Listening(lambda running: seen.append(matrix.read(SAVED).counts()["built"]))
    found = ran(fake.plan(), watcher)
    assert seen == [0, 1] and matrix.read(SAVED).rows == found.rows and found.passed
    assert [row.job for row in watcher.rows] == [row.job for row in found.rows]
    assert found.rows[0].job == "cam_1d_cam fp32 onnxruntime 1:8:32"


def test_what_is_done_is_not_done_again_and_what_failed_is(fake: Fake) -> None:
    fake.behave(cam_1d_pe_verify=["missed", "passed"])
    plan = fake.plan("verify = true")
    assert not ran(plan).passed
    watcher = Listening()
    found = ran(plan, watcher, resume=True)
    assert fake.calls()[4:] == ["build cam_1d_pe", "verify cam_1d_pe"]
    assert found.passed and [row.state for row in found.rows] == ["built", "cached"]
    assert watcher.were_done == [found.rows[0].job]
    assert ran(plan, resume=True).rows == found.rows and len(fake.calls()) == 6


def test_without_resume_all_is_asked_again_and_found_built(fake: Fake) -> None:
    ran(fake.plan())
    assert [row.state for row in ran(fake.plan()).rows] == ["cached", "cached"]


def test_a_job_is_done_again_whose_plan_changed_or_whose_artifact_did(fake: Fake) -> None:
    ran(fake.plan())
    assert [row.state for row in ran(fake.plan("verify = true"), resume=True).rows] == ["cached", "cached"]
    assert len(fake.calls()) == 6
    ran(fake.plan("verify = true\nseed = 1", ["cam_1d_pe"]), resume=True)  # which replaces the artifact of another
    assert fake.calls()[6:] == ["build cam_1d_pe", "verify cam_1d_pe"]
    (fake.folder / "artifacts/cam_1d_pe/fp32/onnxruntime/manifest.json").unlink()
    ran(fake.plan("verify = true\nseed = 1", ["cam_1d_pe"]), resume=True)
    assert len(fake.calls()) == 10


def test_a_run_that_is_interrupted_keeps_what_is_done_and_goes_on_from_there(fake: Fake) -> None:
    plan = fake.plan("bench = true", ["cam_1d_cam", "cam_1d_pe", "cam_1d_noenc"])

    def interrupted(running: Running) -> None:
        if running.step == "bench" and "cam_1d_pe" in running.job:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(plan, Listening(interrupted))
    rows = by_job(matrix.read(SAVED).rows)
    assert {name: row.state for name, row in rows.items()} == {
        "cam_1d_cam": "built", "cam_1d_pe": "cancelled", "cam_1d_noenc": "cancelled",
    }  # fmt: skip
    assert rows["cam_1d_pe"].steps[0].outcome == "passed" and rows["cam_1d_pe"].key is not None
    before = len(fake.calls())
    assert ran(plan, resume=True).passed
    assert "build cam_1d_cam" not in fake.calls()[before:] and fake.calls().count("build cam_1d_pe") == 2


def test_a_job_that_was_not_begun_stays_pending(fake: Fake) -> None:
    def interrupted(running: Running) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ran(fake.plan(), Listening(interrupted))
    assert [row.state for row in matrix.read(SAVED).rows] == ["cancelled", "pending"]


def test_a_document_that_cannot_be_used_ends_the_run_before_it_begins(fake: Fake) -> None:
    SAVED.parent.mkdir()
    SAVED.write_text('{"kind": "bench"}')
    with pytest.raises(InputError, match="is no result of `mlpdeploy matrix`"):
        ran(fake.plan(), resume=True)
    assert SAVED.read_text() == '{"kind": "bench"}' and not fake.calls()
    SAVED.unlink()
    SAVED.mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        ran(fake.plan())
    assert not fake.calls()


def test_shards_are_joined_to_what_one_run_would_have_found(fake: Fake) -> None:
    plan = fake.plan('batch = ["1", "2", "4"]\n')
    parts = [Part(plan, shards.part(plan.jobs, i, 4), Path(f"{i}.json"), (i, 4)) for i in (1, 2, 3, 4)]
    for part in parts:
        run(part, Here(), Order(logs=Path("logs")), Listening())
    found = join(Part(plan, plan.jobs, SAVED), [part.saved for part in parts])
    assert found.passed and found.shard is None and matrix.read(Path("2.json")).shard == {"index": 2, "count": 4}
    hashes = {row.job: row.files for row in found.rows}
    assert {row.job: row.files for row in ran(plan).rows} == hashes and len(hashes) == 6
    missing = join(Part(plan, plan.jobs, SAVED), [Path("1.json"), Path("3.json"), Path("1.json")])
    assert [row.state for row in missing.rows].count("pending") == 6 - len(parts[0].jobs) - len(parts[2].jobs)
    assert not missing.passed


def test_of_two_rows_of_one_job_the_better_one_is_kept(fake: Fake) -> None:
    plan = fake.plan()
    good = ran(plan)
    failed = replace(good, rows=tuple(replace(row, state="failed") for row in good.rows))
    for name, document in (("good", good), ("failed", failed)):
        Path(name).write_text(text(document))
    for order in (["good", "failed"], ["failed", "good"]):
        assert join(Part(plan, plan.jobs, SAVED), [*map(Path, order)]).rows == good.rows


def test_only_results_of_this_plan_are_joined(fake: Fake) -> None:
    found = ran(fake.plan())
    other = fake.plan("verify = true")
    with pytest.raises(InputError, match="a result of another plan"):
        join(Part(other, other.jobs, SAVED), [SAVED])
    strange = json.loads(SAVED.read_text())
    strange["plan"]["sha256"] = other.sha256
    strange["rows"][0]["job"] = "another"
    SAVED.write_text(json.dumps(strange))
    with pytest.raises(InputError, match="has a job 'another'"):
        join(Part(other, other.jobs, SAVED), [SAVED])
    assert found.passed
