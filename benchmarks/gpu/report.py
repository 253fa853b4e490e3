"""The results as Markdown: what was measured, against what was hoped for."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.markdown import table, worth

NOT_YET = "not measured yet"
Document = dict[str, Any]


def markdown(document: Document) -> str:
    """All tables of a document; a part without rows says so."""
    machine = document["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    parts = [
        f"# {machine['gpu']}",
        f"Driver {machine.get('driver')}, CUDA {machine['cuda']}, Python {machine['python']}, {versions}; "
        f"{document['date']}{_commits(document['results'])}. "
        "Times are medians; a ratio in brackets has an interval that holds 1.",
        *_section("Correctness of the kernel", correctness, document),
        *_section("The kernel, FP16", kernels, document),
        *_section("Networks, FP16 unless said, CUDA graphs", networks, document),
        *_section("Networks with other rules, FP16, CUDA graphs", rules, document),
        *_section("Projections with what follows them, FP16, CUDA graphs", epilogues, document),
        *_section("TensorRT", engines, document),
        *_section("Build and verify with the engine executed", pipelines, document),
        *_section("What was aimed at", claims, document),
    ]
    return "\n\n".join(parts) + "\n"


def _commits(results: Document) -> str:
    """Of what code the rows are."""
    known = dict.fromkeys(row["commit"] for row in results.values() if row.get("commit"))
    return f"; at commit {', '.join(known)}" if known else ""


def _section(title: str, write: Any, document: Document) -> list[str]:
    lines = write(document["results"])
    return [f"## {title}", "\n".join(lines) if lines else NOT_YET]


def _part(results: Document, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): row for name, row in results.items() if name.startswith(prefix)}


def correctness(results: Document) -> list[str]:
    """Errors by precision."""
    rows = []
    for name, row in _part(results, "correctness ").items():
        if "failed" in row:
            rows.append([name, row["failed"], "failed"])
            continue
        errors = ", ".join(f"{precision} {one['error']:.1e}" for precision, one in row["errors"].items())
        rows.append([name, errors, "passed" if row["passed"] else "failed"])
    return table(["projection", "largest error against float64", ""], rows) if rows else []


def kernels(results: Document) -> list[str]:
    """Times of the others over the kernel's, the kernel's over the GEMM's, and the roofline."""
    rows = []
    for name, row in _part(results, "kernel ").items():
        if "failed" in row:
            rows.append([name, row["failed"], *[""] * 6])
            continue
        times, bound = row["times"], bounds(row, results)
        ratios = {other: worth(times[other]["ratio"]) for other in ("eager", "compile")}
        over_gemm = worth(times["gemm"]["ratio"], inverse=True)
        limit = f"{1e6 * bound['seconds']:.0f} ({bound['by']})" if bound else NOT_YET
        cells = [f"{1e3 * times['kernel']['ms']:.0f}", over_gemm, ratios["eager"], ratios["compile"], limit]
        rows.append([name, *cells, row["operation_uses"]])
    head = ["projection", "kernel, µs", "over GEMM", "eager over it", "compiled over it", "roofline, µs", "used"]
    return table(head, rows) if rows else []


def bounds(row: Document, results: Document) -> Document | None:
    """The least time that memory and arithmetic allow, and which of the two it is."""
    limits = results.get("roofline")
    if limits is None or "failed" in limits:
        return None
    memory = row["bytes"] / limits["bytes_per_second"]
    arithmetic = row["operations"] / limits["operations_per_second"]
    return {"seconds": max(memory, arithmetic), "by": "memory" if memory > arithmetic else "arithmetic"}


OTHERS = ("eager", "eager, channels last", "compile", "ours without kernel")


def networks(results: Document) -> list[str]:
    """Milliseconds of ours, the others' times over ours, and errors."""
    rows = []
    for name, row in _part(results, "network ").items():
        if "failed" in row:
            rows.append([name, row["failed"], *[""] * (2 + len(OTHERS))])
            continue
        times = row["times"]
        others = [worth(times[other]["ratio"]) for other in OTHERS]
        errors = " / ".join(_error(row["errors"][one]) for one in ("eager", "compile", "ours"))
        speed = f"{row['images_per_second']['ours']:.0f}"
        rows.append([name, f"{times['ours']['ms']:.3f}", speed, *others, errors])
    head = ["network", "ours, ms", "images/s", *OTHERS, "errors: eager/compile/ours"]
    return table(head, rows) if rows else []


def rules(results: Document) -> list[str]:
    """By network and change of its rules, the time over that of the default ones; what is searched has all that pay."""
    rows = []
    for name, row in _part(results, "rules ").items():
        if "failed" in row:
            rows.append([name, "", row["failed"]])
            continue
        for change, times in row["times"].items():
            if change != "ours":
                label = f"searched ({', '.join(row['searched'])})" if change == "searched" else change
                rows.append([name, label, worth(times["ratio"])])
    return table(["network", "rules", "over the default rules"], rows) if rows else []


def epilogues(results: Document) -> list[str]:
    """Milliseconds of ours, and by what its products take in, the time over that."""
    rows = []
    for name, row in _part(results, "epilogues ").items():
        if "times" not in row:
            rows.append([name, "", row.get("failed") or row["nothing"], "", ""])
            continue
        times, errors = row["times"], row["errors"]
        for label in (one for one in times if one != "ours"):
            deviations = f"{_error(errors['ours'])} / {_error(errors[label])}"
            rows.append([name, f"{times['ours']['ms']:.3f}", label, worth(times[label]["ratio"]), deviations])
    return table(["network", "ours, ms", "with", "over ours", "errors: ours/with"], rows) if rows else []


def engines(results: Document) -> list[str]:
    """Times of the plain export's engine over ours."""
    rows = []
    for name, row in _part(results, "engine ").items():
        if "failed" in row:
            rows.append([name, row["failed"], "", ""])
            continue
        times, errors = row["times"], row["errors"]
        worths = f"{times['ours']['ms']:.3f}", worth(times["plain"]["ratio"])
        rows.append([name, *worths, f"{_error(errors['plain'])} / {_error(errors['ours'])}"])
    return table(["engine", "ours, ms", "plain export over it", "errors: plain/ours"], rows) if rows else []


def _error(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.0e}"


def pipelines(results: Document) -> list[str]:
    """The verdict of each run of the pipeline."""
    rows = []
    for name, row in _part(results, "pipeline ").items():
        verdict = row["failed"] if "failed" in row else row["verification"].get("verdict", "?")
        rows.append([name, str(verdict)])
    return table(["network", "verdict"], rows) if rows else []


def claims(results: Document) -> list[str]:
    """Each aim and what was found; a row that was not measured is named as such."""
    found = [
        ("the kernel over the plain GEMM at batch 32 and 128: at most 1.25", _gemm(results)),
        ("compiled permute + linear + permute over it, where memory-bound: at least 1.5", _compiled(results)),
    ]
    aims = {"vip_s7": 1.3, "vip_s14": 1.3, "mixer_b16": 1.05, "resmlp_24": 1.05, "gmlp_s16": 1.05}
    for name, aim in aims.items():
        ratio = _against_compile(results, f"network {name} batch 128")
        found.append((f"{name} at batch 128, torch.compile over ours: at least {aim}", ratio))
    for name in ("vip_s7", "vip_s14"):
        ratio = _against_compile(results, f"network {name} batch 1")
        found.append((f"{name} at batch 1, torch.compile over ours: at least 1", ratio))
    found.append(("the best of the others over ours: geometric mean at least 1.3, none under 1", _best(results)))
    return table(["aim", "found"], [list(row) for row in found])


def _gemm(results: Document) -> str:
    rows = _part(results, "kernel ")
    ratios = {
        name: 1 / row["times"]["gemm"]["ratio"]["value"]
        for name, row in rows.items()
        if "failed" not in row and name.endswith((" batch 32", " batch 128"))
    }
    return _worst(ratios, max)


def _compiled(results: Document) -> str:
    ratios = {}
    for name, row in _part(results, "kernel ").items():
        bound = None if "failed" in row else bounds(row, results)
        if bound is not None and bound["by"] == "memory" and name.endswith((" batch 32", " batch 128")):
            ratios[name] = row["times"]["compile"]["ratio"]["value"]
    return _worst(ratios, min)


def _best(results: Document) -> str:
    """The best of the others over ours, over all networks and batches."""
    ratios = {
        name: min(row["times"][other]["ratio"]["value"] for other in OTHERS if other != "ours without kernel")
        for name, row in _part(results, "network ").items()
        if "failed" not in row
    }
    if not ratios:
        return NOT_YET
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    return f"{mean:.2f}; {_worst(ratios, min)}"


def _worst(ratios: dict[str, float], pick: Any) -> str:
    if not ratios:
        return NOT_YET
    name = pick(ratios, key=lambda one: ratios[one])
    return f"{ratios[name]:.2f} at worst ({name}), {len(ratios)} measured"


def _against_compile(results: Document, name: str) -> str:
    row = results.get(name)
    if row is None:
        return NOT_YET
    return row["failed"] if "failed" in row else worth(row["times"]["compile"]["ratio"])
