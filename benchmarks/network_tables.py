"""Tables of networks: what was built and proved, what is in the graph, what an engine launches."""

from __future__ import annotations

from benchmarks.markdown import Document, by_part, measured, rule_name, source, table
from benchmarks.recorded import ALL, PACKAGE, PLAIN, TRACED
from mlpdeploy.evidence.proof.ladder import EMITTED, REWRITTEN, TYPED
from mlpdeploy.precisions import EIGHT_BIT
from mlpdeploy.zoo.recipe import recipes

STAGES = (REWRITTEN, TYPED, EMITTED)


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


def zoo(document: Document) -> list[str]:
    """Every recipe: its engine, and how far each stage of its verification is from the network."""
    rows = []
    for name, row in document["results"].items():
        found = row.get("errors", {})
        errors = [f"{found[stage]:.0e}" if stage in found else "-" for stage in STAGES]
        size = f"{row['engine_bytes'] / 1e6:.0f} MB" if row["built"] else "-"
        seconds = f"{row['build_seconds']:.0f} s" if row["built"] else "-"
        verdict = "passed" if row["verified"] else row["reason"]
        rows.append([row["family"], f"`{name}`", size, seconds, *errors, verdict])
    rows.sort(key=lambda cells: cells[0])
    head = ["family", "network", "engine", "build", "rewritten, float64", "typed", "emitted", "verified"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch", "onnxruntime"])]


def executed(document: Document) -> list[str]:
    """Every recipe in the engines of a CPU: the largest relative error of FP32, or why there is no engine."""
    rows = []
    engines = document["settings"]["backends"]
    for name, row in document["results"].items():
        found = [row[engine] for engine in engines]
        shown = [f"{one['error']:.0e}" if "error" in one else one["reason"] for one in found]
        rows.append([row["family"], f"`{name}`", *shown, "passed" if all(one["passed"] for one in found) else "failed"])
    rows.sort(key=lambda cells: cells[0])
    return [*table(["family", "network", *engines, "executed"], rows), "", *source(document, [*engines, "torch"])]


def families(built: Document, parsed: Document, ran: Document) -> list[str]:
    """Each family: how many networks were verified and executed, what the rules do to the smallest, the errors."""
    engines = ran["settings"]["backends"]
    rows = []
    known = recipes().values()
    for family in sorted({recipe.family for recipe in known}):
        names = [recipe.name for recipe in known if recipe.family == family]
        found = [built["results"][name] for name in names if name in built["results"]]
        run = [ran["results"][name] for name in names if name in ran["results"]]
        right = sum(all(one[engine]["passed"] for engine in engines) for one in run)
        verified = [row["errors"] for row in found if row.get("verified")]
        counted = [name for name in names if name in parsed["results"]]
        row = parsed["results"][min(counted, key=lambda name: parsed["results"][name]["before"]["total"]["layers"])]
        before, after = row["before"]["total"], row["after"]["total"]
        rows.append(
            [
                f"`{family}`",
                f"{sum(row['verified'] for row in found)} of {len(names)}",
                f"{right} of {len(names)}",
                f"{before['layers']} → {after['layers']}",
                f"{before['transposes']} → {after['transposes']}",
                *(f"{max(row[stage] for row in verified):.0e}" if verified else "-" for stage in STAGES),
            ]
        )
    head = ["family", "verified", "executed", "layers", "transposes", "rewritten, float64", "typed", "emitted"]
    return [*table(head, rows), "", *source(built, ["tensorrt-rtx", "torch", "onnxruntime"])]


def remaining(document: Document) -> list[str]:
    """The transposes that are left in each network, by reason."""
    rows = [
        [f"`{name}`", str(count), reason]
        for name, row in document["results"].items()
        for reason, count in row["reasons"].items()
    ]
    return [*table(["network", "transposes", "why"], rows), "", *source(document, ["torch"])]


def fp4(document: Document) -> list[str]:
    """TensorRT-RTX engines in NVFP4 and FP8 beside FP16's: size with and without source of kernels, launches."""
    rows = []
    for name, row in by_part(document).get("fp4", {}).items():
        if row["nvfp4"] is None:
            continue
        sizes = [_size(row[p]) for p in ("fp8", "nvfp4")]
        launched = " → ".join(str(row[p]["launches"]["total"]) for p in ("fp16", "fp8", "nvfp4"))
        found = row["nvfp4"]
        products = found["executed"].removeprefix("HALF, ").removesuffix(" products in NVFP4")
        told = [products, str(found["products_of_fp4"]), f"{found['share_of_macs']:.0%}"]
        rows.append([f"`{name}`", f"{row['fp16']['engine_bytes'] / 1e6:.1f} MB", *sizes, launched, *told])
    head = ["network", "FP16 engine", "FP8, of it", "NVFP4, of it", "launches, FP16 → FP8 → NVFP4", "products in NVFP4"]
    head += ["launches that read two operands of FP4", "of the multiply-accumulates"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"], "fp4 ")]


def accuracy4(document: Document) -> list[str]:
    """Top-1 of trained networks in NVFP4, and of those that were made hard."""
    rows = [
        [
            f"`{name}`",
            *(f"{share:.2%}" for share in (row["fp32"], row["nvfp4"]["top1"], row["hard fp32"], row["hard"]["top1"])),
            f"{row['nvfp4']['sites']}",
        ]
        for name, row in by_part(document).get("accuracy4", {}).items()
    ]
    head = ["network", "FP32", "NVFP4", "hard, FP32", "hard, NVFP4", "products in NVFP4"]
    return [*table(head, rows), "", *source(document, ["onnxruntime", "torch"], "accuracy4 ")]


def launches(document: Document) -> list[str]:
    """Launches of the plain export's engine, of ours, and of ours without each rule that changes their number."""
    rows = []
    for name, row in document["results"].items():
        plain, ours = row[PLAIN]["total"], row[ALL]["total"]
        others = {
            rule_name(label): one["total"] for label, one in measured(row).items() if label not in (PLAIN, "bare")
        }
        changed = [f"{rule} {count}" for rule, count in others.items() if count != ours]
        moves = [_beside(row, what) for what in ("copies", "transposes")]
        rows.append(
            [f"`{name}`", str(plain), str(ours), *moves, ", ".join(changed) if len(others) > 1 else "not measured"]
        )
    without = "ours without a rule or form, or with one that is off, where it differs"
    head = ["network", "plain export", "ours", "copies", "that transpose", without]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"])]


def generated(document: Document) -> list[str]:
    """What Inductor generates of the plain network and of ours, and of ours with each rule that is off, where known."""
    rows = []
    for name, batches in document["results"].items():
        for batch, row in measured(batches).items():
            plain, ours = row[PLAIN], row[ALL]
            counts = [f"{one(plain)} → {one(ours)}" for one in (lambda of: of["kernels"], _calls)]
            sizes = [f"{_size_of(plain, side)} → {_size_of(ours, side)}" for side in ("kernels", "calls")]
            others = [f"{rule_name(label)} {_tabled(one)}" for label, one in row.items() if label.startswith("with ")]
            rows.append([f"`{name}`", batch.removeprefix("batch "), *counts, *sizes, ", ".join(others)])
    head = ["network", "batch", "kernels", "calls", "MB by kernels", "MB by calls", "kernels with a rule that is off"]
    return [*table(head, rows), "", *source(document, ["torch"])]


def packages(document: Document) -> list[str]:
    """What Inductor generates of the backend's packages, with kernels as traced and with their channels last."""
    rows = []
    for name, batches in document["results"].items():
        for row in measured(batches).values():
            pair = [row[TRACED], row[PACKAGE]]
            counts = [[str(of(one)) for one in pair] for of in (_channels_last, lambda of: of["kernels"])]
            sizes = [[_size_of(one, side) for one in pair] for side in ("kernels", "calls")]
            rows.append([f"`{name}`", str(sum(pair[1]["convolutions"].values())), *map(" → ".join, counts + sizes)])
    head = ["network", "convolutions", "of maps with channels last", "kernels", "MB by kernels", "MB by calls"]
    return [*table(head, rows), "", *source(document, ["torch"])]


def _channels_last(found: Document) -> int:
    return int(found["convolutions"].get("channels last", 0))


def _calls(found: Document) -> int:
    return sum(found["calls"].values())


def _size_of(found: Document, side: str) -> str:
    """Megabytes, to three digits where these are fewer than a hundred."""
    size = found["bytes"][side] / 1e6
    return f"{size:.0f}" if size >= 100 else f"{size:.3g}"


def _tabled(found: Document) -> str:
    """How many kernels, and how many of them read through a table."""
    return f"{found['kernels']}" + (f" ({found['tables']} through a table)" if found["tables"] else "")


def _beside(row: Document, what: str) -> str:
    """How many launches of the plain export's engine only copy, or transpose, and of ours."""
    found = [row[label].get(what) for label in (PLAIN, ALL)]
    return "not measured" if None in found else f"{found[0]} → {found[1]}"


def _size(engine: Document) -> str:
    """An engine's size over that of the one in FP16, and in brackets without the source of kernels in both."""
    return f"{engine['size']:.2f} ({engine['size_without_source']:.2f})"


def engines(document: Document) -> list[str]:
    """TensorRT-RTX engines in 8 bits beside FP16's: size with and without the source of kernels, launches."""
    rows = []
    for name, row in by_part(document)["engines"].items():
        sizes = [_size(row[p]) for p in EIGHT_BIT]
        launches = [str(row[p]["launches"]["total"]) for p in ("fp16", *EIGHT_BIT)]
        coded = [row[p]["executed"].removeprefix("HALF, ").partition(" products")[0] for p in EIGHT_BIT]
        rows.append([f"`{name}`", f"{row['fp16']['engine_bytes'] / 1e6:.1f} MB", *sizes, *launches, *coded])
    head = ["network", "FP16 engine", "INT8, of it", "FP8, of it", "launches, FP16", "INT8", "FP8"]
    head += ["products in INT8", "in FP8"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"], "engines ")]


def moved(document: Document) -> list[str]:
    """What one inference of a batch reads and writes, and in brackets its launches, by precision; where it differs,
    what it would be without a form, or with codes for every product."""
    rows = []
    for name, row in document["results"].items():
        found = {label: _moved(one) for label, one in measured(row).items()}
        others = (label for label in found if label not in ("fp16", *EIGHT_BIT))
        changed = [f"{_named(one)} {found[one]}" for one in others if found[one] != found[one.partition(",")[0]]]
        rows.append([f"`{name}`", *(found[one] for one in ("fp16", *EIGHT_BIT)), "; ".join(changed)])
    head = ["network", "FP16", "INT8", "FP8", "otherwise, where it differs"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"])]


def _moved(one: Document) -> str:
    return f"{one['megabytes']:.0f} ({one['launches']})"


def _named(label: str) -> str:
    """`fp8, without a_form` as a page has it."""
    precision, _, what = label.partition(", ")
    without, _, form = what.partition("without ")
    return f"{precision.upper()} without `{form}`" if form else f"{precision.upper()}, {without}"


def weights(document: Document) -> list[str]:
    """TensorRT-RTX engines with weights of INT4 beside FP16's: size with and without source of kernels, launches."""
    rows = [
        [
            f"`{name}`",
            f"{row['fp16']['engine_bytes'] / 1e6:.1f} MB",
            _size(row["int4"]),
            f"{row['fp16']['launches']['total']} → {row['int4']['launches']['total']}",
            row["int4"]["executed"].removeprefix("HALF, ").removesuffix(" products in INT4"),
        ]
        for name, row in by_part(document).get("weights", {}).items()
        if row["int4"] is not None
    ]
    head = ["network", "FP16 engine", "INT4, of it", "launches, FP16 → INT4", "products"]
    return [*table(head, rows), "", *source(document, ["tensorrt-rtx", "torch"], "weights ")]
