"""A plan on a real Ray cluster: nothing lost, nothing built twice, and no process left behind.

Ray takes seconds to begin, and jobs are real builds: `python -m pytest -m large` runs this where Ray is installed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mlpdeploy.artifact import store
from mlpdeploy.artifact.archive import unpack
from tests.conftest import REPOSITORY
from tests.matrix.ray_cluster import ENVIRONMENT
from tests.system.test_processes import until

pytest.importorskip("ray")
pytestmark = [pytest.mark.large, pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")]

NETS = """
import os, pathlib, sys, time
from torch import nn
words = sys.argv[2:sys.argv.index("--out")]
with open("begun.txt", "a") as file:  # which build, and the process between it and the worker
    file.write(f"{os.getppid()} {' '.join(words)}\\n")
if pathlib.Path("waits").exists() and pathlib.Path("waits").read_text() in " ".join(words):
    pathlib.Path("waits").unlink()
    time.sleep(600)
def made(width):
    return nn.Sequential(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 4))
def a(): return made(8)
def b(): return made(9)
def c(): return made(10)
def d(): return made(11)
def e(): return made(12)
def f(): return made(13)
"""
USUAL = 'backend = ["onnxruntime", "openvino"]\nbatch = "1:2:4"\ninput-shape = "8"\n'


class Lab:
    """A folder with networks, and processes that carry a mark by which all of theirs are found."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.mark = folder, uuid.uuid4().hex
        (folder / "nets.py").write_text(NETS)
        self.environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(REPOSITORY), "MARK": self.mark}

    def start(self, *arguments: str, **how: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "mlpdeploy", *arguments]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, text=True, **how)

    def run(self, *arguments: str, code: int = 0) -> dict[str, Any]:
        """The JSON document of a command."""
        process = self.start(*arguments, "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        stdout, stderr = process.communicate()
        assert process.returncode == code, stdout + stderr
        found: dict[str, Any] = json.loads(stdout)
        return found

    def begun(self) -> list[str]:
        path = self.folder / "begun.txt"
        return path.read_text().splitlines() if path.exists() else []

    def left(self) -> list[str]:
        """The commands of all processes with the mark."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if f"MARK={self.mark}".encode() in (path / "environ").read_bytes().split(b"\0"):
                    found.append((path / "cmdline").read_text())
            except OSError:
                continue
        return found


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    until(lambda: made.left() == [])


@contextmanager
def cluster(lab: Lab, path: Path = REPOSITORY) -> Iterator[str]:
    """The address of a cluster of two nodes with one CPU each, whose mlpdeploy lies at a path."""
    command = [sys.executable, str(Path(__file__).with_name("ray_cluster.py"))]
    environment = {**lab.environment, "PYTHONPATH": str(path)}
    with tempfile.TemporaryDirectory(
        prefix="ray-", ignore_cleanup_errors=True
    ) as folder:  # its sockets' paths are short
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen([*command, folder], cwd=folder, env=environment, **pipes) as process:
            assert process.stdin is not None and process.stdout is not None
            yield process.stdout.readline().strip()
            process.stdin.close()
        assert process.returncode == 0


@pytest.fixture
def address(lab: Lab) -> Iterator[str]:
    with cluster(lab) as found:
        yield found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_plan_of_24_with_a_worker_killed_one_failure_and_one_built_already(lab: Lab, address: str) -> None:
    (lab.folder / "plan.toml").write_text(
        USUAL + '[[jobs]]\nnetwork = ["nets:a", "nets:b", "nets:c", "nets:d", "nets:e"]\nprecision = ["fp32", "fp16"]\n'
        '[[jobs]]\nnetwork = "nets:f"\nprecision = "fp32"\n'
        '[[jobs]]\nnetwork = "nets:f"\nprecision = "fp16"\nbackend = "onnxruntime"\n'
        '[[jobs]]\nnetwork = "nets:f"\nprecision = "fp16"\nbackend = "openvino"\ncheckpoint = "missing.safetensors"\n'
    )
    built = ["--precision", "fp32", "--backend", "onnxruntime", "--batch", "1:2:4", "--input-shape", "8"]
    assert lab.run("build", "nets:a", *built, "--out", "artifacts")["cached"] is False
    before = store.open_artifact(lab.folder / "artifacts/nets-a/fp32/onnxruntime").manifest
    (lab.folder / "waits").write_text("nets:c --precision fp16 --backend openvino")
    (lab.folder / "begun.txt").unlink()

    arguments = ("matrix", "plan.toml", "--on", "ray", "--address", address, "--retries", "2", "--json")
    process = lab.start(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: any("nets:c --precision fp16 --backend openvino" in line for line in lab.begun()))
    (line,) = [one for one in lab.begun() if "nets:c --precision fp16 --backend openvino" in one]
    os.kill(parent(int(line.split()[0])), signal.SIGKILL)
    stdout, stderr = process.communicate()
    assert process.returncode == 1, stdout + stderr

    rows = json.loads(stdout)["rows"]
    states = Counter(row["state"] for row in rows)
    assert states == {"built": 22, "cached": 1, "failed": 1}, stdout
    assert [row["job"] for row in rows if row["attempts"] > 1] == ["nets:c fp16 openvino 1:2:4"]
    (failed,) = [row for row in rows if row["state"] == "failed"]
    assert "missing.safetensors" in failed["error"] and failed["selection"]["name"] == "nets:f"
    for row in rows:
        assert Path(lab.folder / row["log"]).exists()
        if row is not failed:
            artifact = store.open_artifact(lab.folder / row["folder"])
            assert artifact.manifest["key"] == row["key"] and artifact.manifest["selection"] == row["selection"]
            assert {name: file["sha256"] for name, file in artifact.manifest["files"].items()} == row["files"]
    assert store.open_artifact(lab.folder / "artifacts/nets-a/fp32/onnxruntime").manifest == before
    assert len({row["folder"] for row in rows}) == 24  # that of the failed one is None
    times = Counter(line.partition(" ")[2] for line in lab.begun())
    assert [words for words, count in times.items() if count > 1] == [line.partition(" ")[2]] and max(
        times.values()
    ) == 2

    again = lab.run(*arguments[:-1], code=1)
    assert again["counts"] == {"built": 0, "cached": 23, "failed": 1, "cancelled": 0, "pending": 0}
    assert "error" not in again


def test_what_measures_runs_on_a_cluster_that_begins_and_ends_with_the_run(lab: Lab) -> None:
    (lab.folder / "plan.toml").write_text(
        USUAL + 'network = ["nets:a", "nets:b"]\nprecision = "fp32"\nbench = { time = 0.5, batch = 2 }\n'
    )
    rows = lab.run("matrix", "plan.toml", "--on", "ray", "--store", "engines")["rows"]
    assert [row["state"] for row in rows] == ["built"] * 4 and all(row["facts"]["latency_ms"]["2"] > 0 for row in rows)
    assert all((lab.folder / row["folder"] / "bench.json").exists() for row in rows)
    assert all(row["folder"].startswith("engines/") for row in rows)
    assert lab.left() == []


def test_a_cluster_with_another_mlpdeploy_is_one_line(lab: Lab) -> None:
    (lab.folder / "another" / "mlpdeploy").mkdir(parents=True)
    (lab.folder / "another" / "mlpdeploy" / "__init__.py").touch()
    (lab.folder / "plan.toml").write_text(USUAL + 'network = "nets:a"\n')
    with cluster(lab, lab.folder / "another") as found:
        process = lab.start("matrix", "plan.toml", "--on", "ray", "--address", found, stderr=subprocess.PIPE)
        _, stderr = process.communicate()
        (line,) = stderr.splitlines()
        assert process.returncode == 3 and line.startswith("error: --on ray: the cluster has another mlpdeploy")


REMOTE = """
import sys
from pathlib import Path
from mlpdeploy.artifact.depot import Remote
from mlpdeploy.matrix import plan
from mlpdeploy.matrix.executor import Order
from mlpdeploy.matrix.on_ray import OnRay
found = plan.read(Path("plan.toml"), Path("out"))
events = list(OnRay(Remote(sys.argv[1]), Path("out"), cpus=1).run(found.jobs, Order(logs=Path("logs"))))
print(events[-1].state, events[-1].folder, events[-1].error)
"""


def test_workers_reach_a_remote_store_by_themselves(lab: Lab) -> None:
    (lab.folder / "plan.toml").write_text(
        'network = "nets:a"\nprecision = "fp32"\nbackend = "onnxruntime"\nbatch = "1:2:4"\ninput-shape = "8"\n'
    )
    url = f"file://{lab.folder}/remote"
    for state in ("built", "cached"):
        command = [sys.executable, "-c", REMOTE, url]
        found = subprocess.run(command, cwd=lab.folder, env=lab.environment, check=True, stdout=subprocess.PIPE)
        assert found.stdout.decode().split() == [state, f"{url}/nets-a/fp32/onnxruntime.zip", "None"]
    assert not (lab.folder / "out").exists()
    artifact = unpack(lab.folder / "remote/nets-a/fp32/onnxruntime.zip", lab.folder / "unpacked")
    assert store.open_artifact(artifact.folder).manifest["selection"]["name"] == "nets:a"


def test_a_job_that_cannot_run_or_whose_worker_dies_is_a_row(lab: Lab) -> None:
    (lab.folder / "plan.toml").write_text(
        'backend = "onnxruntime"\nprecision = "fp32"\nbatch = "1:2:4"\ninput-shape = "8"\n'
        '[[jobs]]\nnetwork = "nets:a"\nneeds = { cpus = 4096, memory = "1GiB", gpu = "L4" }\n'
        '[[jobs]]\nnetwork = "nets:b"\n'
    )
    (lab.folder / "waits").write_text("nets:b")
    process = lab.start("matrix", "plan.toml", "--on", "ray", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    until(lambda: not (lab.folder / "waits").exists() and len(lab.begun()) > 0)
    os.kill(parent(int(lab.begun()[0].split()[0])), signal.SIGKILL)
    stdout, stderr = process.communicate()
    assert process.returncode == 1, stdout + stderr
    first, second = json.loads(stdout)["rows"]
    assert first["error"] == "no node of the cluster has 4096 CPU(s) and 1073741824 bytes of memory and a GPU (L4)"
    assert second["state"] == "failed" and second["error"].startswith("its worker was lost (WorkerCrashedError: ")
    until(lambda: lab.left() == [])  # the command of the worker that was killed ends a little later


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
@pytest.mark.parametrize("where", ["here", "cluster"])
def test_a_run_that_is_asked_to_end_leaves_no_process(
    lab: Lab, request: pytest.FixtureRequest, number: int, code: int, where: str
) -> None:
    own = ["--address", request.getfixturevalue("address")] if where == "cluster" else []
    before = Counter(lab.left()) if own else Counter()
    (lab.folder / "plan.toml").write_text(USUAL + 'network = ["nets:a", "nets:b"]\nprecision = "fp32"\n')
    (lab.folder / "waits").write_text("nets:a")
    process = lab.start("matrix", "plan.toml", "--on", "ray", *own, process_group=0, stderr=subprocess.PIPE)
    until(lambda: not (lab.folder / "waits").exists() and len(lab.begun()) > 0)
    os.killpg(process.pid, number) if number == signal.SIGINT else os.kill(process.pid, number)
    _, stderr = process.communicate()
    assert process.returncode == code, stderr
    if number != signal.SIGKILL:
        (line,) = [line for line in stderr.splitlines() if "error" in line]
        assert "the last good artifact is untouched" in line and "Traceback" not in stderr
        document = json.loads((lab.folder / "artifacts/matrix/plan.json").read_text())
        assert document["counts"]["cancelled"] >= 1 and document["counts"]["built"] == 0
    commands = ("tied.py", "mlpdeploy\0build")
    if (
        own or number == signal.SIGKILL
    ):  # the cluster stays; of one that was left alone, Ray's agents end a little later
        until(lambda: not any(word in one for one in lab.left() for word in commands))
        until(lambda: own == [] or not (Counter(one for one in lab.left() if "raylet" in one) - before))
    else:
        assert lab.left() == []


ADDRESSES = """
import json
from mlpdeploy.matrix.ray_session import connected
with connected(None, 1) as session:
    listening = [line.split()[1] for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}") if " 0A " in line]
    nodes = [node["NodeManagerAddress"] for node in session.ray.nodes()]
    found = [nodes, session.ray.get_runtime_context().gcs_address, listening]
print(json.dumps(found))
"""


def test_the_runs_own_cluster_is_reached_from_this_machine_alone(lab: Lab) -> None:
    how: dict[str, Any] = {"cwd": lab.folder, "env": lab.environment, "capture_output": True, "text": True}
    ran = subprocess.run([sys.executable, "-c", ADDRESSES], check=True, **how)
    nodes, gcs, listening = json.loads(ran.stdout.splitlines()[-1])
    assert nodes == ["127.0.0.1"] and gcs.startswith("127.0.0.1:")
    port = f"{int(gcs.rpartition(':')[2]):04X}"
    (address,) = {one.rpartition(":")[0] for one in listening if one.endswith(f":{port}")}
    assert address in ("0100007F", "0000000000000000FFFF00000100007F")  # 127.0.0.1, and the same in IPv6
