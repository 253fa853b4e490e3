"""How much of the package the tests run, folder by folder, in the test processes themselves.

    python -m benchmarks.coverage [ARGUMENT ...]     arguments are pytest's; none: the whole of the test command

What commands run in processes of their own is not counted, nor what only a GPU runs.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks import common

PACKAGE = "mlpdeploy"


def shares(files: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Statements, and those that ran, by the package's folders (`.`: what lies beside them) and of `all`."""
    found: dict[str, dict[str, int]] = defaultdict(lambda: {"statements": 0, "run": 0})
    for name, file in sorted(files.items()):
        inside = Path(name).relative_to(PACKAGE).parts
        for row in (inside[0] if len(inside) > 1 else ".", "all"):
            found[row]["statements"] += file["summary"]["num_statements"]
            found[row]["run"] += file["summary"]["covered_lines"]
    return dict(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    chosen = parser.parse_known_args()[1]
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "coverage.json"
        options = [f"--cov={PACKAGE}", f"--cov-report=json:{report}"]
        subprocess.run([sys.executable, "-m", "pytest", *options, *chosen], check=False)
        files = json.loads(report.read_text(encoding="utf-8"))["files"]
    settings = {"command": " ".join(["python -m pytest", *chosen])}
    print(common.write("coverage", shares(files), settings))


if __name__ == "__main__":
    main()
