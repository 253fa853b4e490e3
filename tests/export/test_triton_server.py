"""A real tritonserver serves what was exported (`python -m pytest -m online` fetches it): without a GPU, by Python.

The server comes with NVIDIA's wheel `nvidia-pytriton`. Its Python backend starts the interpreter that is found on PATH,
whose environment needs an older NumPy than ours: so it gets one of its own, without PyTorch.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mlpdeploy
from mlpdeploy.artifact.store import Artifact
from mlpdeploy.export import triton
from tests.conftest import REPOSITORY, Cli
from tests.export.made_up import made_up
from tests.test_api import Net, Two
from tests.test_walkthrough import walk

pytestmark = [pytest.mark.slow, pytest.mark.online]

PACKAGES = ("nvidia-pytriton==0.7.0", "tritonclient[all]", "numpy<2", "ml_dtypes", "polygraphy")
ENGINES = ("openvino", "onnxruntime")
"""Needed in the version that is installed here."""
CLIENTS, SIZES = 4, (1, 3, 8)
ROWS = CLIENTS + max(SIZES)


class Numbers(torch.nn.Module):
    """A number of each row in, and one out: batches without another axis."""

    def forward(self, image: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return image.mean((1, 2)) * scale


EXAMPLES: dict[str, tuple[type[torch.nn.Module], str, Any]] = {
    "net": (Net, "openvino", {"image": torch.randn(ROWS, 3, 16, 16)}),
    "two": (Two, "onnxruntime", {"scale": torch.randn(ROWS, 4), "ids": torch.randint(0, 7, (ROWS, 5))}),
    "numbers": (Numbers, "openvino", {"image": torch.randn(ROWS, 4, 4), "scale": torch.randn(ROWS)}),
}


@dataclass(frozen=True)
class Server:
    """An environment with tritonserver."""

    python: Path
    packages: Path
    backends: Path

    @contextmanager
    def serving(self, repository: Path, log: Path) -> Iterator[tuple[int, int]]:
        """The ports, HTTP and gRPC, of a server that is ready. It must end well when it is told to."""
        ports = free_ports(2)
        program = self.packages / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        words = [
            program, "--backend-directory", self.backends, "--model-repository", repository, "--allow-metrics", "false",
            "--http-address", "127.0.0.1", "--grpc-address", "127.0.0.1", "--http-port", ports[0], "--grpc-port",
            ports[1],
        ]  # fmt: skip
        libraries = [str(self.packages / "nvidia_pytriton.libs"), str(sysconfig.get_config_var("LIBDIR"))]
        environment = os.environ | {
            "PATH": f"{self.python.parent}{os.pathsep}{os.environ['PATH']}",
            "LD_LIBRARY_PATH": os.pathsep.join(libraries),
        }  # fmt: skip
        with log.open("w") as output:
            process = subprocess.Popen([*map(str, words)], env=environment, stdout=output, stderr=output)
        try:
            until_ready(process, ports[0], log)
            yield ports[0], ports[1]
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()

    def run(self, *words: object) -> None:
        """Run tests/export/asking.py; it must end well."""
        script = Path(__file__).with_name("asking.py")
        done = subprocess.run([self.python, script, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


def free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def until_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    for _ in range(600):
        assert process.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready"):
                return
        except OSError:
            time.sleep(0.1)
    raise AssertionError(log.read_text())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    folder = tmp_path_factory.mktemp("triton")
    python = folder / "environment" / "bin" / "python"
    engines = [f"{package}=={importlib.metadata.version(package)}" for package in ENGINES]
    subprocess.run([sys.executable, "-m", "venv", folder / "environment"], check=True)
    subprocess.run([python, "-m", "pip", "install", "--quiet", *PACKAGES, *engines], check=True)
    (packages,) = (folder / "environment" / "lib").glob("python*/site-packages")
    (packages / "mlpdeploy.pth").write_text(str(REPOSITORY))
    shipped, backends = packages / "pytriton" / "tritonserver", folder / "backends"
    shutil.copytree(shipped / "backends", backends)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    shutil.copy(shipped / "python_backend_stubs" / version / "triton_python_backend_stub", backends / "python")
    return Server(python, packages, backends)


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models, the first in two versions, beside their rows; and in a repository that nobody serves, in ONNX."""
    folder = tmp_path_factory.mktemp("repository")
    labels = folder / "labels"
    labels.write_text("".join(f"label {number}\n" for number in range(5)))
    for name, (network, backend, example) in EXAMPLES.items():
        with mlpdeploy.compile(network(), example, precision="fp32", backend=backend, batch="1:4:8") as engine:
            for _ in range(2 if name == "net" else 1):
                wanted = triton.Wanted(name, labels if name == "net" else None, kind="python")
                triton.add(engine._artifact, folder / "served", wanted)
            triton.add(engine._artifact, folder / "parsed", triton.Wanted(name))
            rows = {key: value.numpy() for key, value in example.items()}
            rows = dict(zip([port["name"] for port in engine.inputs], rows.values(), strict=True))
            (folder / name).mkdir()
            np.savez(folder / name / "rows.npz", **rows)
            expected = {}
            for start in range(CLIENTS):
                for size in SIZES:
                    found = engine({key: array[start : start + size] for key, array in rows.items()})
                    outputs = found if isinstance(found, tuple) else (found,)
                    for port, array in zip(engine.manifest["outputs"], outputs, strict=True):
                        expected[f"{start}|{size}|{port['name']}"] = array
            np.savez(folder / name / "expected.npz", **expected)
    return folder


def test_the_real_server_gives_what_the_engine_gives(server: Server, repository: Path, tmp_path: Path) -> None:
    with server.serving(repository / "served", tmp_path / "log") as ports:
        for name in EXAMPLES:
            server.run("ask", name, *ports, repository / name)
            server.run("garbage", name, *ports, repository / name)
        server.run("label", "net", *ports, repository / "net")
        server.run("many", "net", *ports, repository / "net")


def test_the_walkthroughs_engine_is_served(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    names, _ = walk(tmp_path, monkeypatch, cli, timing=False)
    rows, expected = names["pixels"].numpy(), {}
    for start in range(CLIENTS):
        for size in SIZES:
            found = names["served"](rows[start : start + size])
            np.testing.assert_array_equal(found[1][:, 0], names["classes"][start : start + size])  # PyTorch's
            expected |= {
                f"{start}|{size}|{name}": array for name, array in zip(("scores", "classes"), found, strict=True)
            }
    (tmp_path / "asked").mkdir()
    np.savez(tmp_path / "asked" / "rows.npz", input=rows[:ROWS])
    np.savez(tmp_path / "asked" / "expected.npz", **expected)
    with server.serving(tmp_path / "models", tmp_path / "log") as ports:
        server.run("ask", "digits", *ports, tmp_path / "asked")


def test_nvidias_own_reader_takes_the_configurations(
    server: Server, repository: Path, artifact: Artifact, tmp_path: Path
) -> None:
    several = {"batch": [1, 4, 8], "profiles": [[1, 1, 1], [1, 4, 8]]}
    made_up(artifact, tmp_path / "tensorrt@nvidia-h100", gpus=["sm90"], **several)
    plan = made_up(artifact, tmp_path / "tensorrt@nvidia-l4", **several)
    (tmp_path / "labels").write_text("a\nb\nc\nd\ne\n")
    triton.add(plan, repository / "parsed", triton.Wanted("plan", tmp_path / "labels"))
    fixed = made_up(artifact, tmp_path / "fixed", "onnxruntime", batch=[4, 4, 4])
    triton.add(fixed, repository / "parsed", triton.Wanted("fixed"))
    assert len([*repository.rglob("config.pbtxt")]) == 2 * len(EXAMPLES) + 2
    server.run("parse", repository)
