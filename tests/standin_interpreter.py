"""An interpreter with a mlpdeploy that is none: its engines take the time that is written in their file, on no clock.

An engine's file is JSON: `ns` a call, and what else happens at a call (`die`, `wait`) or when it is loaded (`lacks`).
Each call adds to the file of STANDIN_LOG who called, when by the system's clock, with what, and on which cores.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

ERRORS = "class MlpdeployError(Exception): pass\nclass MachineLacks(MlpdeployError): pass\n"
BACKEND = """
import contextlib, json, os, time
from mlpdeploy.errors import MachineLacks
now = 0
time.perf_counter_ns = lambda: now
class Engines:
    @contextlib.contextmanager
    def load(self, file, facts):
        how = json.loads(file.read_text())
        if "lacks" in how:
            raise MachineLacks(how["lacks"])
        def call(inputs):
            global now
            began = time.monotonic_ns()
            if "die" in how:
                os.kill(os.getpid(), how["die"])
            time.sleep(how.get("wait", 0))
            now += how["ns"]
            print("rubbish")
            cores = sorted(os.sched_getaffinity(0))
            seen = {name: [list(array.shape), str(array.dtype), float(array.sum())] for name, array in inputs.items()}
            row = [file.name, began, time.monotonic_ns(), seen, cores, facts["threads"]]
            with open(os.environ["STANDIN_LOG"], "a") as log:
                log.write(json.dumps(row) + "\\n")
        yield call
def backends():
    return {"standin": Engines()}
"""
PACKAGE = {
    "__init__.py": '__version__ = "0.0.7"\n', "errors.py": ERRORS, "engine/__init__.py": "",
    "engine/backend.py": BACKEND,
}  # fmt: skip


def package(folder: Path, files: Mapping[str, str] = PACKAGE) -> Path:
    """A folder to import such a mlpdeploy from."""
    for name, text in files.items():
        path = folder / "mlpdeploy" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def interpreter(path: Path, imports: Path | str = "", *options: str) -> Path:
    """A program that is this interpreter, which imports from another folder first."""
    return script(path, f'PYTHONPATH={imports} exec {sys.executable} {" ".join(options)} "$@"')


def script(path: Path, text: str) -> Path:
    """A program of a shell."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path
