"""The results as Markdown: what was measured, against what was hoped for."""

from __future__ import annotations

import math
from typing import Any

from benchmarks.gpu.networks import BATCHES, NAMES
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
        f"Times are medians; a ratio in brackets has an interval that holds 1.{_elsewhere(document['results'])}",
        *_section("Correctness of the kernel", correctness, document),
        *_section("The kernel, FP16", kernels, document),
        *_section("Networks, FP16 unless said, CUDA graphs", networks, document),
        *_section("Networks in max-autotune, FP16, CUDA graphs", tuned, document),
        *_section("Networks with other rules, FP16, CUDA graphs", rules, document),
        *_section("Projections with what follows them, FP16, CUDA graphs", epilogues, document),
        *_section("TensorRT", engines, document),
        *_section("The command line", commands, document),
        *_section("What was aimed at", claims, document),
    ]
    return "\n\n".join(parts) + "\n"


def _commits(results: Document) -> str:
    """Of what code the rows are."""
    known = dict.fromkeys(row["commit"] for row in results.values() if row.get("commit"))
    return f"; at commit {', '.join(known)}" if known else ""


def _elsewhere(results: Document) -> str:
    """Rows of machines that differ."""
    others: dict[str, list[str]] = {}
    for name, row in results.items():
        if one := row.get("machine"):
            versions = ", ".join(f"{package} {one['versions'].get(package)}" for package in ("torch", "triton"))
            others.setdefault(f"driver {one.get('driver')}, CUDA {one['cuda']}, {versions}", []).append(name)
    return "".join(f" {len(names)} rows are of {where}." for where, names in others.items())


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


RIVALS = ("eager", "eager, channels last", "compile")
TUNED = "max-autotune"
WITHOUT = "ours without kernel"


def networks(results: Document) -> list[str]:
    """Milliseconds of ours, the others' times over ours, the best of them, and errors."""
    rows = []
    for name, row in _part(results, "network ").items():
        if name.endswith(TUNED):
            continue
        if "failed" in row:
            rows.append([name, row["failed"], *[""] * (5 + len(RIVALS))])
            continue
        times, found = row["times"], best(results, name)
        others = [_worth(times, other) for other in (*RIVALS, WITHOUT)]
        errors = " / ".join(_error(row["errors"][one]) for one in ("eager", "compile", "ours"))
        speed = f"{row['images_per_second']['ours']:.0f}"
        computed = over_searched(results, name)
        ahead = ["" if one is None else f"{one:.2f}" for one in (found, computed)]
        rows.append([name, f"{times['ours']['ms']:.3f}", speed, *others, *ahead, errors])
    head = ["network", "ours, ms", "images/s", *RIVALS, WITHOUT, "best of the others", "over searched (computed)"]
    return table([*head, "errors: eager/compile/ours"], rows) if rows else []


def tuned(results: Document) -> list[str]:
    """Milliseconds of ours as it is by default, and max-autotune's times over it."""
    rows = []
    for name, row in _part(results, "network ").items():
        if name.endswith(TUNED):
            times = row.get("times")
            cells = [f"{times['ours']['ms']:.3f}", *(_worth(times, f"{one} {TUNED}") for one in ("compile", "ours"))]
            rows.append([name.removesuffix(f" {TUNED}"), *(cells if times else [row["failed"], "", ""])])
    return table(["network", "ours, ms", f"compile {TUNED}", f"ours {TUNED}"], rows) if rows else []


def _worth(times: Document, name: str) -> str:
    return worth(times[name]["ratio"]) if name in times else ""


def best(results: Document, name: str) -> float | None:
    """The least time of the others over ours, max-autotune among them where it was measured."""
    rows = [results.get(f"network {name}", {}), results.get(f"network {name} {TUNED}", {})]
    if "times" not in rows[0]:
        return None
    others = (*RIVALS, f"compile {TUNED}")
    return min(
        float(row["times"][one]["ratio"]["value"]) for row in rows for one in others if one in row.get("times", {})
    )


def over_searched(results: Document, name: str) -> float | None:
    """The same over ours searched: computed from two rows, in each of which ours is beside the one or the other."""
    row, found = results.get(f"rules {name}", {}), best(results, name)
    if found is None or "searched" not in row:
        return None
    return found / float(row["times"]["searched"]["ratio"]["value"]) if row["searched"] else found


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
        rows += [[name, change, f"failed: {why}"] for change, why in row.get("failed_changes", {}).items()]
        if row.get("searched") == []:
            rows.append([name, "searched", "no change is decided better"])
        if row.get("left"):
            rows.append([name, ", ".join(row["left"]), NOT_YET])
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


def commands(results: Document) -> list[str]:
    """A line for each command: how it ended, and what it found."""
    rows = []
    for name, row in _part(results, "commands ").items():
        for command, one in row.get("commands", {}).items():
            code = "" if one.get("exit") is None else str(one["exit"])
            rows.append([name, command, code, f"{one['seconds']}" if "seconds" in one else "", _told(one)])
        if "failed" in row or "ended" in row:
            rows.append([name, "", "", "", str(row.get("failed") or row.get("ended"))])
    return (
        table(["engine", "command", "exit code", "seconds, beside others", "found, or said last"], rows) if rows else []
    )


def _told(row: Document) -> str:
    ratios = (f"{worth(one)} of {name}'s time" for name, one in row.get("ratios", {}).items())
    sizes = (f"{count} bytes of {kind}" for kind, count in row.get("bytes", {}).items())
    engine = [f"engine of {row['engine_bytes']} bytes"] if "engine_bytes" in row else []
    first = [str(one) for one in (row.get("verdict"), row.get("first_failed"), row.get("failed")) if one]
    return ", ".join([*first, *engine, *ratios, *sizes])


def claims(results: Document) -> list[str]:
    """Each aim and what was found; how much of it was measured."""
    found = [
        ("the kernel over the plain GEMM, ViP's projections: at most 1.25", _gemm(results, "vip")),
        ("the kernel over the plain GEMM, RaftMLP's projections: at most 1.5", _gemm(results, "raft")),
        ("compiled permute + linear + permute over the kernel, where memory-bound: at least 1.5", _compiled(results)),
    ]
    aim = "the best of the others over ours, geometric mean at least 1.3, none under 1"
    marks = [("", [f" batch {batch}" for batch in BATCHES])]
    marks += [(f", batch {batch}", [f" batch {batch}"]) for batch in BATCHES] + [
        (", BF16", [f" batch {BATCHES[0]} bf16"])
    ]
    for label, endings in marks:
        asked = [f"{name}{ending}" for ending in endings for name in NAMES]
        found.append((f"{aim}{label}", _mean({name: best(results, name) for name in asked})))
    searched = {name: over_searched(results, name) for name in (f"{one} batch {BATCHES[0]}" for one in NAMES)}
    found.append((f"{aim}, batch {BATCHES[0]}, ours searched (computed)", _mean(searched)))
    return table(["aim", "found"], [list(row) for row in found])


def _gemm(results: Document, family: str) -> str:
    rows = {name: row for name, row in _part(results, f"kernel {family}").items() if "failed" not in row}
    return _worst({f"{family}{name}": 1 / row["times"]["gemm"]["ratio"]["value"] for name, row in rows.items()}, max)


def _compiled(results: Document) -> str:
    ratios = {}
    for name, row in _part(results, "kernel ").items():
        bound = None if "failed" in row else bounds(row, results)
        if bound is not None and bound["by"] == "memory":
            ratios[name] = row["times"]["compile"]["ratio"]["value"]
    return _worst(ratios, min)


def _mean(asked: dict[str, float | None]) -> str:
    ratios = {name: ratio for name, ratio in asked.items() if ratio is not None}
    if not ratios:
        return NOT_YET
    mean = math.exp(sum(map(math.log, ratios.values())) / len(ratios))
    return f"{mean:.2f}; {_worst(ratios, min)} of {len(asked)}"


def _worst(ratios: dict[str, float], pick: Any) -> str:
    if not ratios:
        return NOT_YET
    name = pick(ratios, key=lambda one: ratios[one])
    return f"{ratios[name]:.2f} at worst ({name}), {len(ratios)} measured"
