"""What the commands print: tables that fit 80 columns."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Table

from mlpdeploy.engine.batch import Batch
from mlpdeploy.evidence.report.search_words import HEADER, search_rows, search_text
from mlpdeploy.evidence.report.words import coded_facts, launches_text, moving_facts, nearest, quantised_facts
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.system.text import megabytes
from mlpdeploy.terminal.screen import escape

SIMPLE: dict[str, Any] = {"box": None, "padding": (0, 2, 0, 0), "header_style": "bold"}
PASSED, FAILED = "[green]passed[/]", "[red]failed[/]"
TRANSPOSES = ("aten::permute", "aten::transpose")


def print_build(console: Console, folder: str, manifest: Mapping[str, Any], cached: bool) -> None:
    """`mlpdeploy build`: what there is now, and where."""
    done = "already built (cache hit)" if cached else f"built in {sum(manifest['seconds'].values()):.1f} s"
    title = f"{manifest['recipe']['name']} {manifest['precision']} with {manifest['backend']}"
    console.print(f"[bold]{escape(title)}[/]: {done}", highlight=False)
    console.print(_facts(_summary(manifest)))
    table = Table(**SIMPLE)
    for name, justify in (("  file", "left"), ("MB", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    for name, facts in manifest["files"].items():
        table.add_row(f"  {escape(name)}", megabytes(facts["bytes"]))
    console.print(table)
    console.print(f"  in {escape(folder)}", highlight=False, soft_wrap=True)


def print_verification(console: Console, name: str, weights: str, document: Mapping[str, Any]) -> None:
    """`mlpdeploy verify`: the ladder, and the verdict."""
    sizes = ", ".join(map(str, document["sizes"]))
    console.print(f"[bold]{escape(name)}[/] at batch {sizes}, {document['inputs']} inputs", highlight=False)
    style = "yellow" if weights.startswith("random") else None
    console.print(f"  {escape(weights)}", style=style, highlight=False, soft_wrap=True)
    for line in document.get("data") or ():
        console.print(f"  {escape(line)}", highlight=False, soft_wrap=True)
    table = Table(**SIMPLE)
    table.add_column("  stage")
    for column in ("batch", "worst error", "budget"):
        table.add_column(column, justify="right")
    table.add_column("verdict")
    on_images = document["inputs"] == "images"
    if on_images:
        table.add_column("top-1", justify="right")
    for stage in document["stages"]:
        for row in _stage(stage):
            table.add_row(*(row if on_images else row[:-1]))
    console.print(table)
    skipped = {stage["name"]: stage["reason"] for stage in document["stages"] if stage["status"] == "not executed"}
    if skipped:
        console.print(_facts(skipped))
    for note in document["notes"]:
        console.print(f"  note: {escape(note)}", highlight=False)
    colour = "green" if document["passed"] else "red"
    console.print(f"[bold {colour}]{escape(document['verdict'])}[/]", highlight=False)


def _stage(stage: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each batch size of a stage, one for that of the extreme rows which is nearest to its limit, and one for
    the images; where nothing ran, one row with its status.

    The last column is the share of images that keep their class.
    """
    name, budget = f"  {escape(stage['name'])}", stage["budget"]
    allowed = f"{budget['max_relative_error']:.0e}"
    for batch, checks in groupby(stage["checks"], key=lambda check: check["batch"]):
        compared = [found for check in checks for found in (check["reference"], check["permuted"]) if found]
        yield name, str(batch), *_error(compared, budget), "-"
        name = ""
    if (extreme := nearest(stage.get("extremes") or ())) is not None:
        error = "not finite" if extreme["error"] is None else f"{extreme['error']:.1e}"
        limit = "finite" if extreme["allowed"] is None else f"{extreme['allowed']:.0e}"
        yield name, "extreme", error, limit, PASSED if extreme["passed"] else FAILED, "-"
        name = ""
    if stage["images"] is not None:
        agreement = stage["images"]["agreement"]
        row = _error([stage["images"]["reference"]], budget)
        if agreement is not None and agreement["top1"] < budget["min_top1_agreement"]:
            row = (*row[:2], FAILED)
        yield name, "images", *row, "-" if agreement is None else f"{agreement['top1']:.1%}"
        name = ""
    if name:
        yield name, "-", "-", allowed, FAILED if stage["status"] == "failed" else stage["status"], "-"


def _error(compared: Sequence[Mapping[str, Any]], budget: Mapping[str, float]) -> tuple[str, str, str]:
    """The worst relative error of some comparisons, its budget, and the verdict."""
    allowed = budget["max_relative_error"]
    errors = [found["max_relative"] for found in compared]
    worst = math.inf if None in errors else max(errors)
    shown = "not finite" if worst == math.inf else f"{worst:.1e}"
    return shown, f"{allowed:.0e}", PASSED if worst <= allowed else FAILED


def print_artifact(console: Console, found: Mapping[str, Any]) -> None:
    """`mlpdeploy inspect`: what is in an artifact."""
    manifest, verification = found["manifest"], found["verification"]
    title = f"{manifest['recipe']['name']} {manifest['precision']} with {manifest['backend']}"
    console.print(f"[bold]{escape(title)}[/]  {escape(found['folder'])}", highlight=False, soft_wrap=True)
    verdict = "not verified yet" if verification is None else f"{verification['created']}: {verification['verdict']}"
    versions = ", ".join(f"{name} {version}" for name, version in manifest["versions"].items())
    ports = {side: _ports(manifest[side]) for side in ("inputs", "outputs")}
    evidence = {"verified": verdict}
    if (evaluation := found["evaluation"]) is not None:
        top1 = ", ".join(f"{one['name']} {one['top1']['share']:.2%}" for one in evaluation["contenders"])
        evidence["evaluated"] = f"top-1 of {evaluation['images']} images: {top1}; {evaluation['verdict']}"
    console.print(_facts(ports | _summary(manifest) | {"versions": versions} | evidence))

    console.print("\n[bold]Rules[/]")
    rules = [(rule["name"], rule["fired"], len(rule["refused"])) for rule in manifest["rules"]]
    busy = [rule for rule in rules if any(rule[1:])]
    console.print(_counts(("rule", "fired", "refused"), busy))
    console.print(f"  {len(rules) - len(busy)} more rules found nothing that they could rewrite", highlight=False)
    if tried := search_rows(manifest.get("decided")):
        console.print("\n[bold]What a search tried[/]")
        console.print(_table(HEADER, tried))
    if forms := [(form["name"], form["fired"]) for form in manifest.get("forms", ()) if form["fired"]]:
        console.print(f"\n[bold]Forms of the file for {escape(manifest['backend'])}[/]")
        console.print(_counts(("form", "fired"), forms))
    for rule in manifest["rules"]:
        for refusal in rule["refused"]:
            line = f"{rule['name']} refused {refusal['where']}: {refusal['reason']}"
            console.print(f"  {escape(line)}", highlight=False)
    if left := Counter(one["reason"] for one in manifest["transposes"]):
        console.print("\n[bold]Transposes that are left[/]")
        for reason, count in left.most_common():
            console.print(f"  {count} x {escape(reason)}", highlight=False)
    before, after = manifest["ops"]["before"], manifest["ops"]["after"]
    console.print("\n[bold]Operations of the graph[/]")
    rows = [(op, before.get(op, 0), after.get(op, 0)) for op in dict.fromkeys([*before, *after])]
    rows.append(("all", sum(before.values()), sum(after.values())))
    console.print(_counts(("operation", "before", "after"), rows))
    parsed = manifest["facts"].get("parsed", {}).get("dtypes")
    console.print(f"\n[bold]Dtypes of the {'engine' if parsed else 'graph'}, by layer type[/]")
    dtypes = Table(**SIMPLE)
    dtypes.add_column("  layer type")
    dtypes.add_column("dtypes")
    for layer, counts in (parsed or manifest["dtypes"]).items():
        dtypes.add_row(f"  {escape(layer)}", escape(", ".join(f"{dtype} {count}" for dtype, count in counts.items())))
    console.print(dtypes)
    for kept in manifest["kept_fp32"]:
        console.print(f"  kept in FP32: {escape(kept['module'] or kept['node'])}: {escape(kept['reason'])}")


def print_report(console: Console, found: Mapping[str, Any]) -> None:
    """`mlpdeploy report`: the verdicts, and what was written."""
    colours = {"good": "green", "bad": "bold red", "mixed": "yellow", "unknown": "dim"}
    table = Table(**(SIMPLE | {"show_header": False}))
    table.add_column()
    table.add_column()
    for verdict in found["verdicts"]:
        line = f"[{colours[verdict['status']]}]{escape(verdict['line'])}[/]\n{escape(verdict['because'])}"
        table.add_row(f"  {escape(verdict['topic'])}", line)
    console.print(table)
    for path in found["files"]:
        console.print(f"  wrote {escape(path)}", highlight=False, soft_wrap=True)
    for line in found["lacks"]:
        console.print(f"  {escape(line)}", style="yellow", highlight=False, soft_wrap=True)


def print_doctor(console: Console, found: Mapping[str, Any]) -> None:
    """`mlpdeploy doctor`: the machine, then every backend."""
    machine, cpu = found["machine"], found["machine"]["cpu"]
    features = "not known on this system" if cpu["features"] is None else " ".join(cpu["features"]) or "none of note"
    versions = ", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items())
    rows = {
        "system": f"{machine['system']}, Python {machine['python']}",
        "CPU": f"{cpu['model']}, {cpu['cores']} cores",
        "features": features,
        **_gpus(machine["gpus"]),
        "libraries": versions,
    }
    console.print("[bold]This machine[/]")
    console.print(_facts(rows))
    console.print("\n[bold]Backends[/]")
    table = Table(**SIMPLE)
    for column in ("  name", "builds", "runs", "precisions"):
        table.add_column(column)
    for backend in found["backends"]:
        yes, no = "[green]yes[/]", "[yellow]no[/]"
        table.add_row(
            f"  {backend['name']}",
            yes if backend["cannot_build"] is None else no,
            yes if backend["cannot_run"] is None else no,
            " ".join(backend["precisions"]),
        )
    console.print(table)
    reasons = {}
    for backend in found["backends"]:
        whys = {"build": backend["cannot_build"], "run": backend["cannot_run"], "use a GPU": backend["cannot_use_gpu"]}
        for what, reason in whys.items():
            if reason is not None and (what == "build" or reason != backend["cannot_build"]):
                reasons[f"{backend['name']} cannot {what}"] = reason
    if reasons:
        console.print("\n[bold]Why not[/]")
        console.print(_facts(reasons))


def _gpus(found: Sequence[Mapping[str, str]] | str) -> dict[str, str]:
    """A row for each, with the number that `--device` takes where there are several."""
    if isinstance(found, str):
        return {"GPU": found}
    texts = [f"{gpu['name']} ({gpu['capability']}), driver for CUDA {gpu['driver']}" for gpu in found]
    return {"GPU" if len(texts) == 1 else f"GPU {number}": text for number, text in enumerate(texts)}


def _summary(manifest: Mapping[str, Any]) -> dict[str, str]:
    batch, ops = manifest["batch"], manifest["ops"]
    # The layout pass runs once in every build: to say so tells nothing.
    fired = ", ".join(f"{r['name']} {r['fired']}" for r in manifest["rules"] if r["fired"] and r["name"] != LAYOUT)
    before, after = (sum(ops[when].values()) for when in ("before", "after"))
    permuted = [sum(ops[when].get(name, 0) for name in TRANSPOSES) for when in ("before", "after")]
    rows = {
        "weights": manifest["weights"]["text"],
        "batch": Batch(**batch).told,
        "rules": fired or "none fired",
        "operations": f"{before} before the rules, {after} after",
        "transposes": f"{permuted[0]} before the rules, {permuted[1]} after",
        "kept in FP32": f"{len(manifest['kept_fp32'])} operations" if manifest["kept_fp32"] else "nothing",
    }
    if searched := search_text(manifest.get("decided")):
        rows["searched"] = searched
    if manifest.get("notes"):
        rows["notes"] = "\n".join(manifest["notes"])
    if manifest.get("quantised"):
        rows |= quantised_facts(manifest["quantised"])
    if manifest.get("coded_weights"):
        rows |= coded_facts(manifest["coded_weights"])
    if "parsed" in manifest["facts"]:
        rows["in TensorRT"] = _parsed(manifest["facts"]["parsed"])
    if manifest["facts"].get("launches"):
        rows["launches"] = launches_text(manifest["facts"]["launches"])
        rows |= moving_facts(manifest["facts"]["launches"])
    if features := manifest["facts"].get("features"):
        rows["features"] = ", ".join(features)
    if "plugin" in manifest["facts"]:
        rows["plugin"] = _plugin(manifest["facts"]["plugin"])
    return rows


def _plugin(plugin: Mapping[str, Any]) -> str:
    """Whether the engine carries our plugin, how long it takes with and without, and why it does not."""
    times = ", ".join(f"{ms:.3f} ms with the {way}" for way, ms in plugin["milliseconds"].items())
    reason = plugin["reason"] or times
    return ("used" if plugin["used"] else "not used") + (f": {reason}" if reason else "")


def _parsed(parsed: Mapping[str, Any]) -> str:
    """Layers and activation transposes of the network that TensorRT parsed."""
    outside = parsed["outside"]["transposes"]
    text = f"{parsed['total']['layers']} layers, {outside} transpose{'' if outside == 1 else 's'}"
    for function, bodies in groupby(sorted(b["function"] for b in parsed["bodies"])):
        worst = max(b["counts"]["transposes"] for b in parsed["bodies"] if b["function"] == function)
        text += f", at most {worst} more in each of {len(list(bodies))} {function}"
    return text


def _ports(ports: Sequence[Mapping[str, Any]]) -> str:
    """`image float32 batch x 3 x 224 x 224`, one a line; those alike together."""
    lines = []
    for kind, group in groupby(ports, key=lambda port: (port["dtype"], port["shape"])):
        names = [port["name"] for port in group]
        shown = names if len(names) < 4 else [names[0], "...", names[-1]]
        lines.append(f"{', '.join(shown)} {kind[0]} {' x '.join(map(str, kind[1]))}")
    return "\n".join(lines)


def _facts(rows: Mapping[str, str]) -> Table:
    table = Table(**(SIMPLE | {"show_header": False}))
    table.add_column(style="dim")
    table.add_column()
    for name, value in rows.items():
        table.add_row(f"  {escape(name)}", "\n".join(map(escape, value.split("\n"))))
    return table


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]], justify: Any = "left") -> Table:
    table = Table(**SIMPLE)
    table.add_column(f"  {header[0]}")
    for name in header[1:]:
        table.add_column(name, justify=justify)
    for name, *others in rows:
        table.add_row(f"  {escape(name)}", *(escape(str(one)) for one in others))
    return table


def _counts(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    return _table(header, rows, "right")
