"""The memory and the time of `mlpdeploy evaluate` over a large folder of classes, which is generated for it.

    python -m benchmarks.evaluate [RECIPE ...] [--images 20000] [--limit-mib 1536]

The images are JPEGs of changing sizes, the weights are random: accuracies mean nothing here. Memory is looked at once a
second: that of the command and of the processes that read images, a page that several of them share counted once (PSS).
Of pages of libraries that other programs use at that time, too, each has its part, so it moves by some tens of MiB with
what else runs. Exits 1 where it is above the limit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks import common

CHOSEN = ("mixer_s32",)
CLASSES = 1000
MIB = 1 << 20


def generate(folder: Path, count: int, seed: int) -> None:
    """So many images, in a sub-folder for each class."""
    rng = np.random.default_rng(seed)
    for place in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        width, height = (int(edge) for edge in rng.integers(180, 400, 2))
        where = folder / f"{place % CLASSES:04}"
        where.mkdir(parents=True, exist_ok=True)
        coarse.resize((width, height), Image.Resampling.BICUBIC).save(where / f"{place:06}.jpg", quality=85)


def family(process: int) -> Iterator[int]:
    """A process and those that it started, and they."""
    yield process
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:  # it has ended
        return
    for child in children:
        yield from family(int(child))


def memory(process: int) -> int:
    """Bytes that a process and those that it started hold together."""
    total = 0
    for one in family(process):
        try:
            lines = Path(f"/proc/{one}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    return total


def run(name: str, data: Path, out: Path, arguments: Any) -> dict[str, Any]:
    """Build and evaluate in processes of their own; memory is watched from the first image to the last."""
    options = [name, "--precision", "fp32", "--backend", arguments.backend, "--batch", "1:8:8", "--out", str(out)]
    options += ["--image-size", str(arguments.image_size), "--seed", str(arguments.seed)]
    ours = [sys.executable, "-m", "mlpdeploy"]
    subprocess.run([*ours, "build", *options], check=True, stdout=subprocess.DEVNULL)
    words = [*ours, "evaluate", *options, "--data", str(data), "--workers", str(arguments.workers), "--json"]
    began, seen = time.monotonic(), list[int]()
    alone = os.environ | {"OMP_NUM_THREADS": "1"}  # PyTorch's threads wait for each other where others work too
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=alone) as process:
        while process.poll() is None:
            seen.append(memory(process.pid))
            time.sleep(1)
        assert process.stdout is not None
        found = json.load(process.stdout)
    if found["images"] != arguments.images:
        raise ValueError(f"{found['images']} of {arguments.images} images were evaluated")
    half = len(seen) // 2
    return {
        "images": found["images"], "contenders": [one["name"] for one in found["contenders"]],
        "seconds": round(time.monotonic() - began, 1), "peak_mib": round(max(seen) / MIB),
        "peak_of_each_half_mib": [round(max(part) / MIB) for part in (seen[:half], seen[half:])],
        "agreement": found["agreement"],
    }  # fmt: skip


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--images", type=int, default=20_000)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--backend", default="openvino")
    parser.add_argument("--limit-mib", type=int, default=1536)
    arguments = parser.parse_args()
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "val"
        generate(data, arguments.images, arguments.seed)
        for name in arguments.recipes:
            row = run(name, data, Path(folder) / "artifacts", arguments)
            failed += row["peak_mib"] > arguments.limit_mib
            print(f"{name:16s} {row['peak_mib']} MiB, {row['seconds']} s", flush=True)
            settings = {
                name: getattr(arguments, name) for name in ("images", "image_size", "workers", "backend", "seed")
            }
            path = common.write("evaluate", {name: row}, settings, arguments.out)
            print(path)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
