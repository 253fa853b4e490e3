"""What `build --search` finds on this machine's CPU: from the defaults, and from every rule on.

    python -m benchmarks.search [RECIPE ...] [--backends openvino,onnxruntime] [--batch 1] [--seconds 120]

From the defaults, what is kept comes with mlpdeploy for machines like this one (`artifact/decided.json`). From every
rule on, with nothing that a backend has off, the search is held against `benchmarks.rules`: it must find again what the
defaults know.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any
from unittest import mock

from benchmarks import common
from benchmarks.tables import RESULTS
from mlpdeploy import stages
from mlpdeploy.artifact import decisions
from mlpdeploy.engine.backend import Backend, backends
from mlpdeploy.progress import Stages
from mlpdeploy.search import SECONDS, search
from mlpdeploy.selection import Selection

CHOSEN = ("hire_mlp_tiny", "swin_t", "transtee_dosage")
"""Where some rule was decided to cost time in a CPU engine."""
DEFAULTS, EVERY = "defaults", "every rule on"


@contextlib.contextmanager
def started(backend: Backend, start: str) -> Iterator[None]:
    """A backend with its rules off, or with none."""
    with mock.patch.object(type(backend), "off", () if start == EVERY else backend.off):
        yield


def measure(selection: Selection, backend: Backend, start: str, seconds: float) -> dict[str, Any]:
    """The case of a network in a backend, and what a search decided."""
    quiet = Stages()
    source = stages.load(selection, quiet).with_images(selection)
    traced = stages.trace_network(source, quiet, selection.profile)
    with started(backend, start):
        found = search(traced, source, selection, backend, seconds, quiet)
    return decisions.described(decisions.case_of(selection, backend, decisions.structure(traced)), found)


def shipped(results: dict[str, Any], before: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What comes with mlpdeploy: cases in which something is kept that the defaults do not know.

    Of other cases, such as those of another machine, what came `before` stays.
    """
    rows = [row[DEFAULTS] for engines in results.values() for row in engines.values() if DEFAULTS in row]
    others = [entry for entry in before if entry["case"] not in [row["case"] for row in rows]]
    return others + [row for row in rows if any(one["verdict"] == decisions.KEPT for one in row["decision"]["trials"])]


def main() -> None:
    parser = common.parser(__doc__, CHOSEN)
    parser.add_argument("--backends", default="openvino,onnxruntime")
    parser.add_argument("--batch", default="1")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each search (default: %(default)s)")
    parser.add_argument("--starts", default=f"{DEFAULTS},{EVERY}")
    arguments = parser.parse_args()
    settings = {"precision": "fp32", "batch": arguments.batch, "seconds": arguments.seconds}
    results: dict[str, Any] = {}
    for name in arguments.recipes:
        # Of other engines and starts of a network, what was found before stays.
        results[name] = common.kept("search", settings, arguments.out).get(name, {})
        for engine in arguments.backends.split(","):
            selection = Selection(name, "fp32", engine, arguments.batch, seed=arguments.seed)
            row = results[name].setdefault(engine, {})
            for start in arguments.starts.split(","):
                row[start] = measure(selection, backends()[engine], start, arguments.seconds)
                for trial in decisions.Decision.from_json(row[start]["decision"]).trials:
                    print(f"{name:16s} {engine:12s} {start:14s} {trial.name} {trial.change}: {trial.said}", flush=True)
        # Written after each recipe, so that a long run that is stopped keeps what it has.
        path = common.write("search", results, settings, arguments.out)
    if arguments.out == RESULTS:
        everything = json.loads(path.read_text(encoding="utf-8"))["results"]
        decisions.write(decisions.SHIPPED, shipped(everything, decisions.read(decisions.SHIPPED)))
    print(path)


if __name__ == "__main__":
    main()
