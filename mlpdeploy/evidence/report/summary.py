"""report.md: what one artifact is and what was proved about it, for people to read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from mlpdeploy.engine.batch import Batch
from mlpdeploy.evidence.report.markdown import Markdown, block, code, items, strong, table, text
from mlpdeploy.evidence.report.search_words import HEADER, search_rows, search_text
from mlpdeploy.evidence.report.summary_codes import in_8_bits, in_blocks, left_out, where
from mlpdeploy.evidence.report.verdicts import Verdict, command, engine_of, speedup, verdicts
from mlpdeploy.evidence.report.words import (
    EVALUATED,
    EXTREME,
    PHASES,
    clock_notes,
    device_rows,
    evaluated_lines,
    evaluated_rows,
    extreme_rows,
    extreme_text,
    launches_text,
    moving_facts,
    nearest,
)
from mlpdeploy.system.text import megabytes
from mlpdeploy.zoo.recipe import GIVEN, kind

REFUSALS = 10
"""Refusals that are listed for each rule; the manifest has all."""


def report(
    manifest: Mapping[str, Any],
    verification: Mapping[str, Any] | None = None,
    bench: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
) -> str:
    """Markdown about an artifact, from its manifest and, where they are there, its other documents."""
    parts = [
        _built(manifest),
        _verdicts(verdicts(manifest, verification, bench, evaluation)),
        _stages(manifest["seconds"]),
        _operations(manifest["ops"]["before"], manifest["ops"]["after"]),
        _rules(manifest["rules"], manifest.get("forms", ())),
        _searched(manifest.get("decided")),
        _transposes(manifest["transposes"]),
        _precision(manifest),
        in_8_bits(manifest.get("quantised")),
        in_blocks(manifest.get("coded_weights")),
        _verified(manifest, verification),
        _evaluated(evaluation),
        _measured(manifest, bench),
        _files(manifest.get("files", {})),
        _reproduce(manifest),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _built(manifest: Mapping[str, Any]) -> str:
    recipe, batch, weights = manifest["recipe"], manifest["batch"], manifest["weights"]
    source = f" ({recipe['source']})" if recipe["source"] else ""
    rows = {
        "network": f"{recipe['name']}{source}",
        "parameters": f"{recipe['parameters'] / 1e6:.1f} M",
        "weights": strong(weights["text"]) if weights["random"] else weights["text"],
        "precision": manifest["precision"],
        "inputs": _ports(manifest["inputs"]),
        "outputs": _ports(manifest["outputs"]),
        "batch": Batch(**batch).told,
        "backend": manifest["backend"],
        "GPUs": ", ".join(manifest["gpus"]),
        "launches": launches_text(launches) if (launches := manifest["facts"].get("launches")) else "",
        **moving_facts(launches or {}),
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "built": manifest["created"],
        "notes": "; ".join(manifest.get("notes") or ()),
    }
    title = text(f"{recipe['name']}, {manifest['precision']}, {manifest['backend']}")
    return f"# {title}\n\n{table(['', ''], [[name, value] for name, value in rows.items() if value])}"


def _stages(seconds: Mapping[str, float]) -> str:
    rows = [[name, f"{value:.2f}"] for name, value in seconds.items()]
    return "## Stages\n\n" + table(["stage", "seconds:"], [*rows, ["all", f"{sum(seconds.values()):.2f}"]])


def _operations(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    names = sorted({*before, *after}, key=lambda name: (-before.get(name, 0), name))
    rows = [[code(name), before.get(name, 0), after.get(name, 0)] for name in names]
    rows.append(["all", sum(before.values()), sum(after.values())])
    return "## Operations\n\n" + table(["operation", "before:", "after:"], rows)


def _rules(rules: Sequence[Mapping[str, Any]], forms: Sequence[Mapping[str, Any]]) -> str:
    counts = table(
        ["rule", "fired:", "refused:", "seconds:"],
        [[code(rule["name"]), rule["fired"], len(rule["refused"]), f"{rule['seconds']:.2f}"] for rule in rules],
    )
    lines = []
    for rule in rules:
        refused = rule["refused"]
        places: list[str] = [left_out(one["where"], one["reason"]) for one in refused[:REFUSALS]]
        places += [f"{len(refused) - REFUSALS} more places, see manifest.json"] if len(refused) > REFUSALS else []
        lines += [Markdown(f"{code(rule['name'])} refused at {place}") for place in places]
    rows = [[code(form["name"]), form["fired"], f"{form['seconds']:.2f}"] for form in forms]
    written = [table(["form of the file", "fired:", "seconds:"], rows)] if rows else []
    return "\n\n".join(["## Rules", counts, *([items(lines)] if lines else []), *written])


def _searched(decided: Mapping[str, Any] | None) -> str:
    if not (line := search_text(decided)):
        return ""
    rows = [[code(name), *others] for name, *others in search_rows(decided)]
    return "\n\n".join(["## Search", text(f"{line}."), *([table([*HEADER], rows)] if rows else [])])


def _transposes(left: Sequence[Mapping[str, Any]]) -> str:
    """What is left outside of the custom operations, by reason."""
    title = "## Transposes that are left"
    if not left:
        return f"{title}\n\nNone."
    places: dict[str, list[Markdown]] = {}
    for one in left:
        places.setdefault(one["reason"], []).append(Markdown(f"{where(one['where'])} ({text(one['permutation'])})"))
    rows = [[len(found), why, found[0]] for why, found in places.items()]
    return f"{title}\n\n" + table(["count:", "why", "first at"], rows)


def _precision(manifest: Mapping[str, Any]) -> str:
    """Dtypes by operation in our graph; by layer in the network that TensorRT parsed, where it did; what was kept."""
    parts = ["## Precision"]
    parsed = manifest["facts"].get("parsed")
    if parsed is not None:
        parts += ["Layers of the network that TensorRT parsed:", _dtypes("layer", parsed["dtypes"])]
    parts += ["Operations of the typed graph:", _dtypes("operation", manifest["dtypes"])]
    if kept := [left_out(one["module"] or one["node"], one["reason"]) for one in manifest["kept_fp32"]]:
        parts += ["Kept in FP32:", items(kept)]
    return "\n\n".join(parts)


def _dtypes(what: str, dtypes: Mapping[str, Mapping[str, int]]) -> str:
    rows = [[code(kind), ", ".join(f"{n} x {dtype}" for dtype, n in count.items())] for kind, count in dtypes.items()]
    return table([what, "dtype"], rows)


def _verified(manifest: Mapping[str, Any], verification: Mapping[str, Any] | None) -> str:
    if verification is None:
        return f"## Verification\n\nNot verified yet: run {code(command(manifest, 'verify'))}."
    stages = verification["stages"]
    rows = table(
        ["stage", "result", "largest error:", "budget:", "extreme rows:", "top-1 kept", "seconds:"],
        [
            [
                stage["name"],
                stage["status"],
                "" if stage["max_relative"] is None else f"{stage['max_relative']:.1e}",
                f"{stage['budget']['max_relative_error']:.0e}",
                extreme_text(nearest(stage.get("extremes") or ()), stage["budget"]["max_relative_error"]),
                _top1(stage),
                f"{stage['seconds']:.1f}",
            ]
            for stage in stages
        ],
    )
    sizes = ", ".join(map(str, verification["sizes"]))
    how = (
        f"Errors are max |y - reference| / max |reference| of the worst row (a small row counts as usual), at batch "
        f"{sizes}, in order and with the rows permuted, on {verification['rows']} distinct rows "
        f"({_rows_of(verification)})."
    )
    told = [f"{stage['name']}: {stage['reason']}" for stage in stages if stage["reason"]]
    told += [*(verification.get("data") or ()), *verification["notes"]]
    parts = ["## Verification", strong(verification["verdict"]), rows, how]
    header, extremes = extreme_rows(stages)
    parts += [EXTREME, table(header, extremes)] if extremes else []
    return "\n\n".join([*parts, *([items(told)] if told else [])])


def _evaluated(evaluation: Mapping[str, Any] | None) -> str:
    if evaluation is None:
        return ""
    header = [name if not place else f"{name}:" for place, name in enumerate(EVALUATED)]
    counts = table(header, evaluated_rows(evaluation))
    return "\n\n".join(["## Evaluation", strong(evaluation["verdict"]), counts, items(evaluated_lines(evaluation))])


def _verdicts(found: Iterable[Verdict]) -> str:
    return items(Markdown(f"{strong(f'{one.topic}: {one.line}.')} {text(f'{one.because}.')}") for one in found)


def _measured(manifest: Mapping[str, Any], bench: Mapping[str, Any] | None) -> str:
    """Latency beside the baselines; the interval is that of the ratio."""
    if bench is None:
        return f"## Latency\n\nNot measured: run {code(command(manifest, 'bench'))}."
    rows = []
    for measurement in bench["measurements"]:
        ratios = {ratio["baseline"]: ratio for ratio in engine_of(measurement)["ratios"]}
        for one in measurement["contenders"]:
            ratio = ratios.get(one["name"])
            times = [] if ratio is None else [f"{value:.2f}" for value in speedup(ratio)]
            beside = "" if ratio is None else f"{times[0]} ({times[1]} to {times[2]}), {ratio['verdict']}"
            numbers = [f"{one[key]:.3g}" for key in ("median_ms", "p90_ms", "p99_ms", "images_per_second")]
            rows.append([measurement["batch"], one["name"], *numbers, beside])
    header = ["batch:", "contender", "median ms:", "p90:", "p99:", "images/s:", "times as long as the engine"]
    return "\n\n".join(["## Latency", _machine(bench["machine"]), table(header, rows), *_on_device(bench)])


def _machine(machine: Mapping[str, Any]) -> Markdown:
    """What the times belong to."""
    gpu = f", {machine['gpu']['name']}" if machine.get("gpu") else ""
    return text(f"Measured on {machine['cpu']}, {machine['cores']} cores{gpu}.")


def _on_device(bench: Mapping[str, Any]) -> list[str]:
    """What a GPU's clock says of the copies and the computing; nothing of times that the host's clock took."""
    parts: list[str] = [text(f"{note}.") for note in clock_notes(bench["measurements"])]
    if rows := device_rows(bench["measurements"]):
        header = ["batch:", "contender", *(f"{name}:" for name in PHASES.values()), "CUDA graph"]
        cells = [[row.batch, row.name, *(f"{value:.3g}" for value in row.milliseconds), row.graph] for row in rows]
        parts += ["The times above are those of the computing. With the copies, on the GPU's clock, in milliseconds:"]
        parts += [table(header, cells)]
    return parts


def _rows_of(verification: Mapping[str, Any]) -> str:
    known = {"images": "real images", "calibration": "of the calibration"}
    return known.get(verification["inputs"], f"random, seed {verification['seed']}")


def _top1(stage: Mapping[str, Any]) -> str:
    """The share of images that keep their class; of random rows, which gate nothing, in brackets."""
    images = stage["images"]
    if images is not None and images["agreement"] is not None:
        accuracy = "" if images["accuracy"] is None else f", {images['accuracy']:.2%} right"
        return f"{images['agreement']['top1']:.2%} of {images['agreement']['images']} images{accuracy}"
    ranked = [check["agreement"] for check in stage["checks"] if check["agreement"] is not None]
    return f"({ranked[-1]['top1']:.0%})" if ranked else ""


def _files(files: Mapping[str, Mapping[str, Any]]) -> str:
    if not files:
        return ""
    rows = [[code(name), megabytes(facts["bytes"]), code(facts["sha256"][:16])] for name, facts in files.items()]
    return "## Files\n\n" + table(["file", "MB:", "SHA-256 begins"], rows)


def _reproduce(manifest: Mapping[str, Any]) -> str:
    language, lines = reproduction(manifest)
    return f"## Reproduce\n\n{block(language, lines)}"


def reproduction(manifest: Mapping[str, Any]) -> tuple[str, list[str]]:
    """How to make an artifact again: the language (sh or python) and its lines."""
    selection = manifest["selection"]
    if kind(str(selection["name"])) == "given":
        return "python", [f"engine = {_build_call(manifest)}", "engine.verify()"]
    return "sh", [command(manifest, verb) for verb in ("build", "verify")]


def _build_call(manifest: Mapping[str, Any]) -> str:
    """The call that builds a network in hand again, with the options that differ from the defaults."""
    selection, ours = manifest["selection"], ("name", "precision", "backend", "batch")
    defaults = {"io": "fp32", "seed": 0, "level": None, "gpus": [], "disabled_rules": [], "enabled_rules": []}
    given = {name: selection[name] for name in ours} | {"name": str(selection["name"]).removeprefix(GIVEN)}
    given |= {"build_route": selection["route"]} if selection.get("route") else {}
    given |= {name: selection[name] for name, usual in defaults.items() if selection.get(name, usual) != usual}
    bounded = [(port["low"], port["high"]) for port in manifest["inputs"] if "low" in port and port["dtype"] != "int64"]
    if bounded:
        given["value_range"] = bounded[0]
    return f"mlpdeploy.compile(network, example, {', '.join(f'{name}={value!r}' for name, value in given.items())})"


CALIBRATION = ("calibration", "calibrator", "max_drop", "min_sqnr", "mean", "std", "crop", "resize", "limit")
"""Options of a selection that say how 8 bits are calibrated, and on what."""


def _ports(ports: Iterable[Mapping[str, Any]]) -> Markdown:
    rows = ((code(port["name"]), text(port["dtype"]), text(", ".join(map(str, port["shape"])))) for port in ports)
    return Markdown("; ".join(f"{name} {dtype} [{shape}]" for name, dtype, shape in rows))
