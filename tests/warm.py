"""A process with everything imported, which forks one that runs a Python program each time it is asked.

To the program it is what `python` would be, less the seconds of imports: a process of its own, in another folder, with
an environment and streams of its own.

    python -m tests.warm [bare]

It reads a line {"words", "cwd", "environment", "stdout", "stderr"} for each, and answers with a line: its exit code.

A `bare` one has not imported mlpdeploy, so that a program can import another copy of it.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HEAVY = (
    "jinja2",
    "matplotlib.backends.backend_svg",
    "matplotlib.figure",
    "numpy",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "onnxscript.function_libs.torch_lib.ops",
    "openvino",
    "pydantic",
    "pygraphviz",
    "tensorrt_rtx",
    "timm",
    "torch._functorch.aot_autograd",
    "torch._inductor",
    "torch.export._trace",
    "torch.onnx",
)


class Warm:
    """The process, asked from another one."""

    def __init__(self, process: subprocess.Popen[str], repository: Path) -> None:
        self.process, self.repository = process, repository

    def run(self, words: Sequence[str], cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
        """As `subprocess.run` of `python words...`: a file, or `-m module`, or `-c code`, and arguments."""
        assert self.process.stdin is not None and self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder) / "out", Path(folder) / "err"
            given = os.environ | {"PYTHONPATH": str(self.repository)} | environment
            asked = {"words": [*words], "cwd": str(cwd), "environment": given}
            print(json.dumps(asked | {"stdout": str(out), "stderr": str(err)}), file=self.process.stdin, flush=True)
            code = int(self.process.stdout.readline())
            return subprocess.CompletedProcess(
                [*words], code, out.read_text(encoding="utf-8"), err.read_text(encoding="utf-8")
            )


@contextmanager
def warmed(repository: Path, *, bare: bool = False) -> Iterator[Warm]:
    """The process, until the body ends."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    command = [sys.executable, "-m", "tests.warm", *(["bare"] if bare else [])]
    with subprocess.Popen(
        command, cwd=repository, env=os.environ | {"PYTHONPATH": str(repository)}, **pipes
    ) as process:
        yield Warm(process, repository)
        process.stdin.close()


def main() -> None:
    """Import, then fork for each line."""
    for name in HEAVY:
        try:
            importlib.import_module(name)
        except ImportError:  # an engine that this machine does not have
            continue
    if "bare" not in sys.argv:
        _import_ours()
        _first()
    gc.collect()
    gc.freeze()
    answers = os.dup(1)
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.close(answers)
            _become(**json.loads(line))
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


def _import_ours() -> None:
    import mlpdeploy

    for module in pkgutil.walk_packages(mlpdeploy.__path__, "mlpdeploy."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    importlib.import_module("mlpdeploy.evidence.latency.worth").ROUNDS = 5  # type: ignore[attr-defined]


def _first() -> None:
    """What the first network of a process costs more than those after it: tables that PyTorch and its exporter make."""
    import torch

    from mlpdeploy.engine.onnx.emit import emit
    from mlpdeploy.graph.precision.plan import plan
    from mlpdeploy.graph.precision.typed import apply
    from mlpdeploy.graph.rewrite import rewrite
    from mlpdeploy.graph.tracing.trace import TensorSpec, trace

    torch.set_num_threads(1)  # with more, the pool of threads that a fork does not have would be waited for
    network = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.LayerNorm(4), torch.nn.GELU()).eval()
    rewritten = rewrite(trace(network, [TensorSpec("x", (4,), torch.float32)]))
    emit(apply(rewritten, plan(rewritten, "fp16")))


def _become(words: list[str], cwd: str, environment: dict[str, str], stdout: str, stderr: str) -> None:
    """Be the program's process, to its end."""
    signal.alarm(600)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    paths = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:] = list(dict.fromkeys([cwd, *filter(None, paths), *sys.path[1:]]))
    for number, path in ((0, os.devnull), (1, stdout), (2, stderr)):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_APPEND
        os.dup2(os.open(path, flags, 0o600), number)
    code = 1
    try:
        _run(words)
        code = 0
    except SystemExit as left:
        code = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # the network closed it, or took it away
            continue
    os._exit(code)


def _run(words: list[str]) -> None:
    """What `python words...` runs."""
    first, *rest = words
    sys.argv = {"-m": rest, "-c": [first, *rest[1:]]}.get(first, words)
    if first == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif first == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    main()
