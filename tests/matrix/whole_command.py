"""Stands for `python -m mlpdeploy` where jobs run elsewhere: as `fake_command`, but its artifacts are whole.

    {"cam_1d_pe build": ["killed", "passed"]}    what a command does with a network the first time, the second, ...

`told.txt` in the current folder has a line for each command that begins.
"""

import hashlib
import itertools
import json
import os
import signal
import sys
import time
from pathlib import Path

TOLD = Path("told.txt")


def main(command: str, target: str, *words: str) -> None:
    given = dict(itertools.pairwise(words))
    network = target if command == "build" else Path(target).parts[-3]
    what = f"{command} {network}"
    place = sum(line.startswith(f"{what} ") for line in TOLD.read_text().splitlines()) if TOLD.exists() else 0
    print(f"progress of {what}", file=sys.stderr)
    planned = json.loads(Path("behaviour.json").read_text()).get(what, ["passed"])
    how = planned[min(place, len(planned) - 1)]
    if how == "waits":
        signal.signal(signal.SIGTERM, lambda *_: (Path("cleared").touch(), sys.exit(143)))
    with TOLD.open("a") as file:
        file.write(f"{what} {os.environ.get('OMP_NUM_THREADS')} {os.environ.get('PYTHONPATH')} {os.getpid()}\n")
    if how == "refused":
        print(json.dumps({"error": {"type": "InputError", "message": "no such thing", "exit_code": 2}}))
        sys.exit(2)
    if how == "waits":
        time.sleep(60)
    if command == "build":
        document = built(Path(given["--out"]) / network / given["--precision"] / given["--backend"], target, given)
    else:
        artifact(Path(target))
        (Path(target) / "bench.json").write_text("{}")
        document = {
            "settings": {"threads": 1}, "left_out": {},
            "measurements": [{"batch": 8, "contenders": [{"name": "engine", "median_ms": 1.5}]}],
        }  # fmt: skip
    print(json.dumps(document))


def built(folder: Path, target: str, given: dict[str, str]) -> dict[str, object]:
    key = hashlib.sha256(f"{target} {given['--precision']} {given['--backend']}".encode()).hexdigest()
    manifest = artifact(folder) if folder.exists() else {}
    cached = manifest.get("key") == key
    if not cached:
        folder.mkdir(parents=True)
        files = {"model.onnx": b"model", "engine.onnx": key.encode()}
        for name, content in files.items():
            (folder / name).write_bytes(content)
        facts = {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in files.items()
        }
        manifest = json.loads(Path("manifest.json").read_text()) | {"key": key, "files": facts}
        (folder / "manifest.json").write_text(json.dumps(manifest))
    return {"cached": cached, "folder": str(folder), "manifest": manifest}


def artifact(folder: Path) -> dict[str, object]:
    """Its manifest; it must be whole."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, facts in manifest["files"].items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == facts["sha256"]
    return manifest


main(*sys.argv[1:])
