"""Every recipe through the whole product: built with TensorRT-RTX, and verified up to the engine's own execution.

    python -m benchmarks.zoo [RECIPE ...] [--precision fp16] [--batch 1:1:2]

Each command runs as a user's does, in its own process; artifacts lie in a temporary folder and are gone afterwards.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks import common
from mlpdeploy.network.finding import find

BACKEND = "tensorrt-rtx"


def command(verb: str, name: str, options: list[str]) -> tuple[dict[str, Any] | None, float, str]:
    """What `mlpdeploy verb name ... --json` prints, None where it fails; its wall seconds, and its last words."""
    began = time.perf_counter()
    arguments = [sys.executable, "-m", "mlpdeploy", verb, name, *options, "--json"]
    found = subprocess.run(arguments, capture_output=True, text=True)
    seconds = round(time.perf_counter() - began, 1)
    words = (found.stderr.strip().splitlines() or [f"exit code {found.returncode}"])[-1]
    document = json.loads(found.stdout) if found.stdout.strip() else {"error": words}
    return (None if "error" in document else document), seconds, words


def measure(name: str, options: list[str]) -> dict[str, Any]:
    """One recipe: what the engine is, and the largest relative error of each stage of its verification."""
    row: dict[str, Any] = {"family": find(name).family}
    built, seconds, words = command("build", name, options)
    if built is None:
        return row | {"built": False, "verified": False, "reason": words}
    facts = built["manifest"]["facts"]
    counts = {kind: facts["parsed"]["total"][kind] for kind in ("layers", "transposes")}
    row |= {"built": True, "build_seconds": seconds, "engine_bytes": facts["engine_bytes"], **counts}
    row["kept_fp32"] = len(built["manifest"]["kept_fp32"])
    verified, seconds, words = command("verify", name, options)
    if verified is None:
        return row | {"verified": False, "reason": words}
    stages = {stage["name"]: stage for stage in verified["stages"]}
    errors = {name: stage["max_relative"] for name, stage in stages.items() if stage["status"] == "passed"}
    row |= {"verified": verified["passed"], "verify_seconds": seconds, "errors": errors}
    return row if verified["passed"] else row | {"reason": verified["first_failed"]}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--precision", default="fp16")
    parser.add_argument("--batch", default="1:1:2")
    arguments = parser.parse_args()
    settings = {"precision": arguments.precision, "batch": arguments.batch, "backend": BACKEND, "seed": arguments.seed}
    failed, path = 0, None
    for name in arguments.recipes:
        with tempfile.TemporaryDirectory() as folder:
            options = ["--precision", arguments.precision, "--batch", arguments.batch, "--backend", BACKEND]
            row = measure(name, [*options, "--seed", str(arguments.seed), "--out", str(Path(folder))])
        failed += not row["verified"]
        verdict = "verified" if row["verified"] else f"FAILED: {row['reason']}"
        print(
            f"{name:32s} {row.get('build_seconds', 0):6.1f} s {row.get('layers', 0):6d} layers  {verdict}", flush=True
        )
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        path = common.write("zoo", {name: row}, settings, arguments.out, alone=True)
    print(path)
    sys.exit(int(failed > 0))


if __name__ == "__main__":
    main()
