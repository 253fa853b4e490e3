"""Where there is no Ray, or no cluster, one line says so; and what jobs need is said in Ray's words."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from mlpdeploy.artifact.depot import Folder
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.evidence.documents.matrix import Needs
from mlpdeploy.matrix import on_ray, ray_session
from mlpdeploy.matrix.on_ray import Desk
from mlpdeploy.terminal import cli
from tests.matrix.away import PLACE, Away

PLAN = 'network = "mixer_s32"\n'


def run(tmp_path: Path, *arguments: str) -> int:
    (tmp_path / "plan.toml").write_text(PLAN)
    with pytest.raises(SystemExit) as left:
        cli.main(["matrix", str(tmp_path / "plan.toml"), "--out", str(tmp_path / "out"), *arguments])
    return int(str(left.value.code))


def test_without_ray_one_line_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(tmp_path, "--on", "ray") == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert line == "error: --on ray needs Ray, which is not installed: pip install 'mlpdeploy[ray]'"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--on", "mars"], "--on 'mars' is not known: choose one of here, ray"),
        (["--address", "a:1"], "--address a:1: that is for --on ray"),
        (["--store", "s3://x"], "--store s3://x: that is for --on ray"),
        (["--on", "ray", "--jobs", "2"], "--jobs is for --on here"),
        (["--on", "ray", "--store", "nowhere://x"], "--store nowhere://x: Protocol not known"),
        (["--on", "ray", "--address", "ray://a:10001"], "--address ray://a:10001: give HOST:PORT"),
        (["--on", "ray", "--address", "head"], "--address head: give HOST:PORT"),
        (["--join", "x.json", "--on", "ray"], "--join runs nothing"),
        (["--dry-run", "--address", "a:1"], "--address a:1: that is for --on ray"),
    ],
)
def test_options_that_do_not_fit_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys.modules[__name__])
    assert run(tmp_path, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {said}") and not (tmp_path / "out" / "matrix").exists()


def test_where_no_cluster_answers_that_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", sys.modules[__name__])
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
    with pytest.raises(MachineLacks, match=rf"--address 127.0.0.1:{port}: no Ray cluster answers there"):
        with ray_session.connected(f"127.0.0.1:{port}"):
            pass
    with pytest.raises(MachineLacks, match="no Ray cluster answers there"):
        with ray_session.connected("127.0.0.1:999999"):
            pass


def test_a_path_that_is_too_long_for_sockets_is_said() -> None:
    with pytest.raises(InputError, match="set TMPDIR to a shorter one"):
        ray_session._here(Path("/" + "x" * 40), 1)


def test_what_jobs_need_in_rays_words() -> None:
    assert on_ray._resources(Needs()) == {"num_cpus": 1}
    assert on_ray._resources(Needs(4, 1 << 30, "any")) == {"num_cpus": 4, "memory": 1 << 30, "num_gpus": 1}
    assert on_ray._resources(Needs(gpu="L4")) == {"num_cpus": 1, "num_gpus": 1, "accelerator_type": "L4"}


@pytest.mark.parametrize(
    ("needs", "has"),
    [
        (Needs(), True),
        (Needs(cpus=4), True),
        (Needs(cpus=5), False),
        (Needs(memory=100), True),
        (Needs(memory=101), False),
        (Needs(gpu="any"), True),
        (Needs(gpu="L4"), True),
        (Needs(gpu="H100"), False),
    ],
)
def test_which_nodes_have_what_a_job_needs(needs: Needs, has: bool) -> None:
    node = {"CPU": 4.0, "memory": 100.0, "GPU": 1.0, "accelerator_type:L4": 1.0, "node:10.0.0.1": 1.0}
    assert on_ray._has(node, needs) is has
    assert not on_ray._has({"CPU": 0.0}, needs)


def test_the_desk_gives_and_takes_artifacts_as_bytes(away: Away, tmp_path: Path) -> None:
    away.work()
    first, second = Desk(away.depot), Desk(Folder(tmp_path / "second"))
    content = first.take(PLACE)
    assert content is not None and first.take("net/fp32/none") is None
    second.put(content, PLACE)
    assert second.take(PLACE) == content
    first.tell(away.told[0])
    first.tell(away.told[0])
    assert first.told() == [away.told[0]] * 2 and first.told() == []
