"""Stands for `python -m mlpdeploy` in the tests of jobs: ends at once, as `behaviour.json` of the current folder says.

    {"cam_1d_pe build": ["killed", "passed"]}    what a command does with a network the first time, the second, ...

Its artifacts have a manifest and nothing else; calls.txt tells when each command began and ended, and how.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

CALLS = Path("calls.txt")
DOCUMENTS = {
    "verify": {
        "passed": True, "verdict": "passed", "inputs": "random", "sizes": [1], "stages": [
            {"max_relative": None, "budget": {"max_relative_error": 1e-4}},
            {"max_relative": 2e-5, "budget": {"max_relative_error": 1e-4}},
        ],
    },
    "evaluate": {
        "passed": True, "verdict": "passed", "images": 4,
        "contenders": [{"name": "engine", "top1": {"share": 0.75}}, {"name": "PyTorch", "top1": {"share": 0.5}}],
    },
    "bench": {
        "settings": {"threads": 1}, "left_out": {},
        "measurements": [{"batch": 8, "contenders": [{"name": "engine", "median_ms": 1.5}]}],
    },
    "regress": {
        "passed": True, "verdict": "passed", "settings": {"threads": 1},
        "gates": [{"label": "latency, batch 8", "verdict": "passed"}],
        "measurements": [{"batch": 8, "medians_ms": [1.0, 3.0, 2.0]}],
    },
}  # fmt: skip


def main(command: str, target: str, *words: str) -> None:
    network = target if command in ("build", "regress") else Path(target).parts[-3]
    what = f"{command} {network}"
    earlier = CALLS.read_text().splitlines() if CALLS.exists() else []
    place = sum(line.startswith(f"begin {what} ") for line in earlier)
    tell(f"begin {what} {os.environ.get('OMP_NUM_THREADS')} {' '.join([target, *words])}")
    print(f"progress of {what}", file=sys.stderr)
    planned = json.loads(Path("behaviour.json").read_text()).get(f"{network} {command}", ["passed"])
    behave(planned[min(place, len(planned) - 1)], command, network)
    document = built(network, words) if command == "build" else DOCUMENTS[command]
    tell(f"end {what}")
    print(json.dumps(document))


def tell(line: str) -> None:
    with CALLS.open("a") as file:
        file.write(f"{line}\n")


def behave(how: str, command: str, network: str) -> None:
    errors = {
        "refused": (2, "no such thing\nand more"), "memory": (3, "this machine lacks memory"), "lacks": (3, "no GPU"),
        "crashed": (70, "unexpected MemoryError: "),
    }  # fmt: skip
    if how in errors:
        code, message = errors[how]
        print(json.dumps({"error": {"type": "InputError", "message": message, "exit_code": code}}))
        sys.exit(code)
    if how == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "asked to end":
        sys.exit(143)
    if how == "missed":
        print(json.dumps(DOCUMENTS[command] | {"passed": False, "verdict": "the engine missed\nits budget"}))
        sys.exit(1)
    if how == "silent":
        print("[1, 2]")
        sys.exit(0)
    if how == "meets":  # ends only where another command begins meanwhile
        while sum(line.startswith("begin") for line in CALLS.read_text().splitlines()) < 2:
            time.sleep(0.01)
    if how == "replaced":
        (manifest,) = Path("artifacts").rglob("manifest.json")
        manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"key": "another"}))
    if how == "waits":
        signal.signal(signal.SIGTERM, lambda *_: (tell(f"cleared {network}"), sys.exit(143)))
        tell(f"waiting {os.getpid()}")
        time.sleep(60)


def built(network: str, words: tuple[str, ...]) -> dict[str, object]:
    given = dict(itertools.pairwise(words))
    folder = Path(given.get("--out", "artifacts")) / network / given["--precision"] / given["--backend"]
    key = hashlib.sha256(" ".join([network, *words]).encode()).hexdigest()
    path = folder / "manifest.json"
    if path.exists() and (manifest := json.loads(path.read_text()))["key"] == key:
        return {"cached": True, "folder": str(folder), "manifest": manifest}
    manifest = json.loads(Path("manifest.json").read_text()) | {"key": key}
    manifest["files"]["model.onnx"]["sha256"] = key
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest))
    return {"cached": False, "folder": str(folder), "manifest": manifest}


main(*sys.argv[1:])
