"""A job away from home: its artifact comes from the store and goes back there, and its row says what went wrong."""

from __future__ import annotations

import _thread
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mlpdeploy.artifact import store
from mlpdeploy.artifact.depot import Folder, Remote
from mlpdeploy.errors import InputError
from mlpdeploy.evidence.documents.matrix import Needs
from mlpdeploy.matrix import elsewhere
from mlpdeploy.matrix.elsewhere import sent, work
from tests.matrix.away import PLACE, Away
from tests.system.test_processes import alive, until


def test_what_is_built_comes_to_the_store_and_nothing_stays_behind(away: Away, tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    came = away.work()
    assert came.row.state == "built" and came.row.folder == str(away.depot.root / PLACE)
    artifact = store.open_artifact(away.depot.root / PLACE)
    assert artifact.manifest["key"] == came.row.key
    assert b"progress of build cam_1d_cam" in came.log and not away.out.exists()
    (told,) = away.told
    assert (told.job, told.step, told.worker) == (came.row.job, "build", came.row.worker)


def test_what_is_there_already_is_not_built_nor_sent_again(away: Away) -> None:
    built, cached = away.work().row, away.work().row
    assert (built.state, cached.state) == ("built", "cached") and cached.folder == built.folder
    assert away.depot.came == [PLACE]


def test_what_was_damaged_in_the_store_is_built_again_and_that_is_said(away: Away, tmp_path: Path) -> None:
    remote = Remote(f"file://{tmp_path}/remote")
    away.work(depot=remote)
    path = tmp_path / "remote" / f"{PLACE}.zip"
    path.write_bytes(path.read_bytes()[:-30])
    came = away.work(depot=remote)
    assert came.row.state == "built" and b"building again what lies at file://" in came.log
    assert away.work(depot=remote).row.state == "cached"


def test_what_measures_waits_until_it_is_sent_again_to_run_alone(away: Away) -> None:
    first = away.work("bench = true").row
    assert (first.state, [step.outcome for step in first.steps]) == ("pending", ["passed", "pending"])
    second = away.work("bench = true", given=first).row
    assert second.state == "built" and second.facts.latency_ms == {"8": 1.5}
    assert (away.depot.root / PLACE / "bench.json").read_text() == "{}"
    assert [(name, threads) for name, _, threads, *_ in away.commands()] == [("build", "3"), ("bench", "None")]


def test_what_is_to_be_measured_and_is_gone_is_said(away: Away, tmp_path: Path) -> None:
    first = away.work("bench = true").row
    row = away.work("bench = true", given=first, depot=Folder(tmp_path / "empty")).row
    assert row.state == "failed" and "is not in the store any more" in str(row.error)


def test_a_command_that_fails_is_its_row_and_nothing_comes(away: Away) -> None:
    away.behave(build=["refused"])
    row = away.work().row
    assert (row.state, row.error, away.depot.came) == ("failed", "build: no such thing", [])


def test_a_store_that_fails_is_in_the_row_beside_what_was_done(away: Away, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(path: Path, place: str) -> None:
        raise InputError("--store s3://x:\nno such bucket")

    monkeypatch.setattr(away.depot, "put", fails)
    row = away.work("bench = true").row
    assert (row.state, row.error, row.folder) == ("failed", "--store s3://x: no such bucket", None)
    assert [step.outcome for step in row.steps] == ["passed", "skipped"]


def test_another_mlpdeploy_is_not_asked_to_build(away: Away) -> None:
    row = away.work(sources="another").row
    assert row.state == "failed" and "has another mlpdeploy" in str(row.error) and away.commands() == []


def test_who_sends_it_says_where_code_lies(away: Away, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = sent(away.job(), Path("out"), 0)
    elsewhere_folder = tmp_path / "other"
    elsewhere_folder.mkdir()
    monkeypatch.chdir(elsewhere_folder)
    row = work(replace(asked, path="/their/code"), away.depot, away.told.append).row
    assert row.state == "built" and Path.cwd() == tmp_path
    assert away.commands()[0][3] == "/their/code"
    assert work(replace(asked, folder="/no/such/folder"), away.depot, away.told.append).row.state == "cached"


def test_an_engine_that_pytorch_compiles_is_told_no_threads(away: Away) -> None:
    job = away.job()
    inductor = replace(job, selection=replace(job.selection, backend="inductor"))
    asked = replace(sent(job, Path("out"), 0), threads=None)
    assert elsewhere._environment(job, asked)["OMP_NUM_THREADS"] == "3"
    assert "OMP_NUM_THREADS" not in elsewhere._environment(inductor, asked)
    assert elsewhere._environment(inductor, replace(asked, threads="2"))["OMP_NUM_THREADS"] == "2"


@pytest.mark.skipif(os.name != "posix", reason="signals of a POSIX system")
def test_where_it_is_interrupted_its_commands_have_ended(away: Away, tmp_path: Path) -> None:
    away.behave(build=["waits"])

    def interrupt() -> None:
        until(lambda: bool(away.commands()))
        _thread.interrupt_main()  # as a cluster does: no system call is cut short by it

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        away.work()
    thread.join()
    assert (tmp_path / "cleared").exists() and not alive(int(away.commands()[0][4])) and away.depot.came == []


def test_a_place_among_the_artifacts_is_kept(away: Away) -> None:
    """Jobs of one network that differ otherwise lie in folders of their own, as they do without a cluster."""
    job = away.job()
    apart = replace(job, selection=replace(job.selection, out=Path("out/batch-4")), needs=Needs(cpus=1))
    row = work(sent(apart, Path("out"), 0), away.depot, away.told.append).row
    assert row.folder == str(away.depot.root / "batch-4" / PLACE)
