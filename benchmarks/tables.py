"""The tables of README and docs, and the recipes' `rules`, written from the results: no number is typed by hand.

python -m benchmarks.tables            # rewrite the tables between `<!-- table:NAME -->` and `<!-- /table:NAME -->`
python -m benchmarks.tables --check    # exit 1 where a page does not show the results
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.recorded import recorded
from mlpdeploy.recipe import folder, recipes

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "support.md")
FILLED = (*PAGES, *sorted(folder().glob("*.toml")))
Document = dict[str, Any]


def graph(document: Document) -> list[str]:
    """Layers, transposes and reshapes of each recipe before and after."""
    rows = []
    for name, row in document["results"].items():
        before, after, outside = row["before"]["total"], row["after"]["total"], row["after"]["outside"]
        inside = after["transposes"] - outside["transposes"]
        rows.append(
            [
                f"`{name}`",
                f"{before['layers']} → {after['layers']}",
                f"{before['transposes']} → {outside['transposes']}" + (f" (+ {inside} in bodies)" if inside else ""),
                f"{before['reshapes']} → {after['reshapes']}",
            ]
        )
    head = ["network", "layers", "transposes", "reshapes"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"])]


def rules(document: Document) -> list[str]:
    """Time without each rule over the time with it, by network, engine and batch; a dash where an engine refused."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    columns: dict[str, None] = {}
    for name, engines in document["results"].items():
        for engine, row in ((key, value) for key, value in engines.items() if key != "fired"):
            for batch, times in ((key, value) for key, value in row.items() if key.startswith("batch")):
                column = f"{engine}, {batch}"
                columns[column] = None
                for label, ratio in ((label, one["ratio"]) for label, one in times.items()):
                    found = worth(ratio, inverse=label.startswith("with "))
                    rows.setdefault((name, _rule(label)), {})[column] = found
    body = [
        [f"`{name}`", rule, *(cells.get(column, "-") for column in columns)] for (name, rule), cells in rows.items()
    ]
    return [*table(["network", "rule", *columns], body), "", *source(document, ["onnxruntime", "openvino"])]


def cpu(document: Document) -> list[str]:
    """Milliseconds of ours, and the times of the others over ours."""
    rows = []
    for name, batches in document["results"].items():
        for batch, row in batches.items():
            for engine, ratios in row["ours"].items():
                worths = {rival: worth(ratio, inverse=True) for rival, ratio in ratios.items()}
                cells = {rival.removeprefix(f"{engine} "): text for rival, text in worths.items()}
                latency = row["latency"][f"{engine} ours"]["median_ms"]
                others = [cells.get(rival, "") for rival in ("plain", "eager", "torch.compile")]
                rows.append([f"`{name}`", batch.removeprefix("batch "), engine, f"{latency:.1f}", *others])
    head = ["network", "batch", "engine", "ours, ms", "plain export", "eager", "`torch.compile`"]
    return [*table(head, rows), "", *source(document, ["onnxruntime", "openvino", "torch"])]


def build(document: Document) -> list[str]:
    """Seconds and memory of the commands, and the seconds of the rules by size of the network."""
    results = document["results"]
    rows = [
        [f"`{name}`", f"{row['best_seconds']:.2f} s", f"{row['peak_mib']:.0f} MiB"]
        for name, row in (
            ("mlpdeploy --help", results["help"]),
            ("mlpdeploy list", results["list"]),
            ("mlpdeploy build vip_s --precision fp16", results["build"]),
            *([("mlpdeploy build maxim_3s --precision fp16", results["largest"])] if "largest" in results else []),
        )
    ]
    rewriting = [
        [f"`{name}`", str(row["blocks"]), str(row["nodes"]), f"{row['best_seconds']:.2f} s"]
        for name, row in results["rewriting"].items()
    ]
    return [
        *table(["command", "wall time", "peak memory"], rows), "",
        *table(["rewriting", "blocks", "operations", "time"], rewriting), "",
        *source(document, ["torch", "tensorrt-rtx"]),
    ]  # fmt: skip


def zoo(document: Document) -> list[str]:
    """Every recipe: its engine, and how far each stage of its verification is from the network."""
    rows = []
    for name, row in document["results"].items():
        errors = [f"{error:.0e}" for error in row.get("errors", {}).values()]
        size = f"{row['engine_bytes'] / 1e6:.0f} MB" if row["built"] else "-"
        seconds = f"{row['build_seconds']:.0f} s" if row["built"] else "-"
        verdict = "passed" if row["verified"] else row["reason"]
        rows.append([row["family"], f"`{name}`", size, seconds, *(errors + ["-"] * 3)[:3], verdict])
    rows.sort(key=lambda cells: cells[0])
    head = ["family", "network", "engine", "build", "rewritten, float64", "typed", "emitted", "verified"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch", "onnxruntime"])]


def int8(document: Document) -> list[str]:
    """INT8 on a CPU against each rival, the accuracy that is left, and what calibration takes."""
    parts = _parts(document)
    lines = []
    if "speed" in parts:
        head = ["network", "batch", "INT8, ms", "eager", "`torch.compile`", "OpenVINO FP32", "onnxruntime's quantiser"]
        lines += [*table(head, _int8_speed(parts["speed"])), ""]
    if "accuracy" in parts:
        head = ["network", "FP32", "INT8, auto", "hard, FP32", "hard, max alone", "hard, auto"]
        lines += [*table(head, [_int8_accuracy(name, row) for name, row in parts["accuracy"].items()]), ""]
    if "calibration" in parts:
        rows = [[f"`{n}`", str(row["rows"]), f"{row['seconds']:.0f} s", f"{row['peak_mib']} MiB"]
                for n, row in parts["calibration"].items()]  # fmt: skip
        lines += [*table(["calibrated, all calibrators", "images", "time", "peak memory"], rows), ""]
    return [*lines, *source(document, ["openvino", "onnxruntime", "torch"])]


def engines(document: Document) -> list[str]:
    """INT8 engines of TensorRT-RTX beside FP32's: size with and without the source of kernels, launches."""
    rows = [
        [
            f"`{name}`",
            f"{row['int8']['engine_bytes'] / 1e6:.1f} MB",
            f"{row['size']:.3f}",
            f"{row['size_without_source']:.3f}",
            f"{row['fp32']['launches']['total']} → {row['int8']['launches']['total']}",
            row["int8"]["executed"].removeprefix("HALF, ").removesuffix(" products in INT8"),
        ]
        for name, row in _parts(document)["engines"].items()
    ]
    head = ["network", "INT8 engine", "of FP32's", "without the source of kernels", "launches, FP32 → INT8", "products"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"])]


def _parts(document: Document) -> dict[str, dict[str, Any]]:
    """The rows by part and network."""
    parts: dict[str, dict[str, Any]] = {}
    for key, row in document["results"].items():
        part, name = key.split(" ", 1)
        parts.setdefault(part, {})[name] = row
    return parts


def launches(document: Document) -> list[str]:
    """Launches of the plain export's engine, of ours, and of ours without each rule that changes their number."""
    rows = []
    for name, row in document["results"].items():
        plain, ours = row["plain export"]["total"], row["default rules"]["total"]
        others = {_rule(label): one["total"] for label, one in row.items() if label not in ("plain export", "bare")}
        changed = [f"{rule} {count}" for rule, count in others.items() if count != ours]
        cells = [str(plain), str(ours), ", ".join(changed) if len(others) > 1 else "not measured"]
        rows.append([f"`{name}`", *cells])
    head = ["network", "plain export", "ours", "ours without a rule, or with one that is off, where it differs"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"])]


def _int8_speed(speeds: dict[str, Any]) -> list[list[str]]:
    """The rivals' times over INT8's."""
    rows = []
    for name, batches in speeds.items():
        for batch, row in batches.items():
            others = [worth(ratio, inverse=True) for ratio in row["ours"].values()]
            latency = row["latency"]["openvino int8"]["median_ms"]
            rows.append([f"`{name}`", batch.removeprefix("batch "), f"{latency:.1f}", *others])
    return rows


def _int8_accuracy(name: str, row: Document) -> list[str]:
    hard = row["hard"]
    values = [row["fp32"], row["compiled"]["top1"], hard["fp32"], hard["max"]["top1"], hard["compiled"]["top1"]]
    return [f"`{name}`", *(f"{value:.2%}" for value in values)]


def gate(document: Document) -> list[str]:
    """How often runs of the gate said `regressed`: without a slowdown, at the limit, and with a slowdown beyond it."""
    rows = []
    for name, row in document["results"].items():
        same, real, drawn = row["recorded"]["same"], row["real"], row["simulated"]
        spread = f"{same['deviation_of_loads']:.1%} → {same['deviation_of_pairs']:.1%}"
        shares = [
            f"{drawn[kind]['regressed'] / drawn[kind]['runs']:.1%}" for kind in ("same", "at_the_limit", "slowed")
        ]
        counts = [f"{real[kind]['regressed']} of {real[kind]['runs']}" for kind in ("same", "slowed")]
        load = " to ".join(f"{value:.0f}" for value in sorted(row["load_average"].values()))
        rows.append(
            [name, f"{same['median_ms']:.2f}", load, spread, *counts, *shares, f"{real['same']['median_pairs']:.0f}"]
        )
    limit, slowdown = (f"{document['settings'][key]:.0%}" for key in ("limit", "slowdown"))
    head = [
        "network, engine", "ms", "load", "spread of loads → pairs", "same engine, real", f"{slowdown} slower, real",
        "same, simulated", f"{limit} slower, simulated", f"{slowdown} slower, simulated", "pairs",
    ]  # fmt: skip
    return [*table(head, rows), "", *source(document, ["onnxruntime", "openvino"])]


def families(built: Document, parsed: Document) -> list[str]:
    """Each family: how many of its networks were verified, what the rules do to the smallest, the largest errors."""
    rows = []
    known = recipes().values()
    for family in sorted({recipe.family for recipe in known}):
        names = [recipe.name for recipe in known if recipe.family == family]
        found = [built["results"][name] for name in names if name in built["results"]]
        errors = zip(*(row["errors"].values() for row in found if row.get("verified")), strict=False)
        counted = [name for name in names if name in parsed["results"]]
        row = parsed["results"][min(counted, key=lambda name: parsed["results"][name]["before"]["total"]["layers"])]
        before, after = row["before"]["total"], row["after"]["total"]
        rows.append(
            [
                f"`{family}`",
                f"{sum(row['verified'] for row in found)} of {len(names)}",
                f"{before['layers']} → {after['layers']}",
                f"{before['transposes']} → {after['transposes']}",
                *([f"{max(stage):.0e}" for stage in errors] + ["-"] * 3)[:3],
            ]
        )
    head = ["family", "verified", "layers", "transposes", "rewritten, float64", "typed", "emitted"]
    return [*table(head, rows), "", *source(built, ["tensorrt-rtx", "torch", "onnxruntime"])]


def remaining(document: Document) -> list[str]:
    """The transposes that are left in each network, by reason."""
    rows = [
        [f"`{name}`", str(count), reason]
        for name, row in document["results"].items()
        for reason, count in row["reasons"].items()
    ]
    return [*table(["network", "transposes", "why"], rows), "", *source(document, ["torch"])]


TABLES: dict[str, tuple[Callable[..., list[str]], tuple[str, ...]]] = {
    "graph": (graph, ("graph",)),
    "rules": (rules, ("rules",)),
    "cpu": (cpu, ("cpu",)),
    "build": (build, ("build",)),
    "zoo": (zoo, ("zoo",)),
    "int8": (int8, ("int8",)),
    "engines": (engines, ("int8",)),
    "launches": (launches, ("launches",)),
    "gate": (gate, ("gate",)),
    "families": (families, ("zoo", "graph")),
    "remaining": (remaining, ("graph",)),
}
"""What makes a table, and from which results."""


def _rule(label: str) -> str:
    if label == "default rules":
        return "(none: two loads of one file)"
    return f"`{label.split(' ', 1)[1]}`" if label.startswith(("with ", "without ")) else "all of them"


def worth(ratio: dict[str, Any], inverse: bool = False) -> str:
    """A ratio with two digits, or its inverse; in brackets where its interval holds 1."""
    text = f"{1 / ratio['value'] if inverse else ratio['value']:.2f}"
    return f"({text})" if ratio["verdict"] == "undecided" else text


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(line)} |" for line in lines]


def source(document: Document, packages: list[str]) -> list[str]:
    """What the numbers were taken on."""
    machine, threads = document["machine"], document["settings"].get("threads")
    versions = ", ".join(f"{name} {machine['versions'][name]}" for name in packages if name in machine["versions"])
    cores = f"{threads} of {machine['cores']} cores" if threads else f"{machine['cores']} cores"
    return [f"{machine['cpu']}, {cores}, Python {machine['python']}, {versions}; {document['date']}."]


def rewritten(text: str, results: Path = RESULTS) -> str:
    """A page with its tables filled. Raises ValueError where markers are unknown or not closed."""
    opened, closed = (re.findall(rf"<!-- {slash}table:(\w+) -->", text) for slash in ("", "/"))
    if opened != closed or not set(opened) <= set(TABLES):
        raise ValueError(f"markers of tables do not match: opened {opened}, closed {closed}, known {[*TABLES]}")
    for name in opened:
        make, files = TABLES[name]
        documents = (json.loads((results / f"{file}.json").read_text(encoding="utf-8")) for file in files)
        lines = "\n".join(make(*documents))
        pattern = re.compile(rf"(<!-- table:{name} -->\n).*?(<!-- /table:{name} -->)", re.DOTALL)
        text = pattern.sub(lambda match, lines=lines: f"{match[1]}{lines}\n{match[2]}", text)  # type: ignore[misc]
    return text


def filled(path: Path) -> str:
    """What a page, or a family's recipes, should read."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return rewritten(text)
    return recorded(text, json.loads((RESULTS / "graph.json").read_text(encoding="utf-8"))["results"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing, exit 1 where the tables are stale")
    arguments = parser.parse_args()
    stale = {path: text for path in FILLED if (text := filled(path)) != path.read_text(encoding="utf-8")}
    for path, text in () if arguments.check else stale.items():
        path.write_text(text, encoding="utf-8")
    if arguments.check and stale:
        names = ", ".join(path.name for path in stale)
        print(f"{names}: other numbers than benchmarks/results, run `python -m benchmarks.tables`")
    return int(arguments.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
