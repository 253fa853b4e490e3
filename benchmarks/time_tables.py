"""Tables of times: each rule, ours against the others, INT8, the commands, the gate."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.markdown import Document, by_part, measured, rule_name, source, table, worth
from benchmarks.recorded import ALL, PLAIN
from mlpdeploy.artifact.decisions import KEPT, UNDECIDED, UNTRIED, Decision
from mlpdeploy.precisions import EIGHT_BIT


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
                    rows.setdefault((name, rule_name(label)), {})[column] = found
    body = [
        [f"`{name}`", rule, *(cells.get(column, "-") for column in columns)] for (name, rule), cells in rows.items()
    ]
    return [*table(["network", "rule", *columns], body), "", *source(document, ["onnxruntime", "openvino"])]


def searched(document: Document) -> list[str]:
    """What a search kept, by network, engine and where it began; and how many changes it tried, and how many it had to
    leave."""
    rows = []
    for name, engines in document["results"].items():
        for engine, starts in engines.items():
            for start, row in starts.items():
                decision = Decision.from_json(row["decision"])
                kept = [
                    f"`{one.name}` {one.change}, {one.ratio.said}"
                    for one in decision.trials
                    if one.verdict == KEPT and one.ratio
                ]
                left = sum(one.verdict in (UNTRIED, UNDECIDED) for one in decision.trials)
                tried = f"{len(decision.trials) - left} of {len(decision.trials)}"
                rows.append(
                    [f"`{name}`", engine, start, f"{decision.seconds:.0f}", tried, "; ".join(kept) or "nothing"]
                )
    head = [
        "network",
        "engine",
        "begun with",
        "seconds",
        "changes decided",
        "kept, and the time with it over that without",
    ]
    return [*table(head, rows), "", *source(document, ["onnxruntime", "openvino"])]


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


def call(document: Document) -> list[str]:
    """Microseconds of the bare engine, and what a call costs more, by what is given; with the least and most of loads.

    A dash where an engine was not called so.
    """
    rows = []
    for name, engines in document["results"].items():
        for engine, sizes in measured(engines).items():
            for size, row in sizes.items():
                over = (row.get(given) for given in ("arrays", "tensors"))
                cells = (
                    "-" if one is None else f"{one['microseconds']:+.0f} ({one['low']:+.0f} to {one['high']:+.0f})"
                    for one in over
                )
                rows.append([f"`{name}`", engine, size.removeprefix("batch "), f"{row['bare']:.0f}", *cells])
    head = ["network", "engine", "batch", "bare engine, µs", "`engine(array)`, µs more", "`engine(tensor)`, µs more"]
    return [*table(head, rows), "", *source(document, ["onnxruntime", "openvino", "torch"])]


def matrix(document: Document) -> list[str]:
    """Seconds of a plan's jobs on one worker of a cluster and on several, and how many times as fast these were."""
    jobs, workers = document["settings"]["jobs"], document["settings"]["workers"]
    rows = []
    for name, row in document["results"].items():
        taken = [f"{median(run['seconds'] for run in row[side]):.0f}" for side in ("one", "several")]
        value, low, high = row["ratio"].values()
        rows.append([f"`{name}`", str(jobs), *taken, f"{value:.2f} ({low:.2f} to {high:.2f})"])
    head = ["network", "equal builds", "one worker, s", f"{workers} workers, s", "times as fast"]
    return [*table(head, rows), "", *source(document, ["onnxruntime", "torch"])]


SUMMED_UP = ("mixer_b16", "resmlp_24", "gmlp_s16", "gmixer_24", "vip_s7")


def summary(parsed: Document, launched: Document, timed: Document) -> list[str]:
    """A few networks: layers and transposes that TensorRT parses, launches of its engines, and times in OpenVINO."""
    rows = []
    for name in SUMMED_UP:
        before, after = (parsed["results"][name][when] for when in ("before", "after"))
        row = timed["results"][name]["batch 1"]
        ratios = row["ours"]["openvino"]
        counts = [f"{before['total'][what]} → {after['total'][what]}" for what in ("layers", "transposes")]
        counts += [" → ".join(str(launched["results"][name][label]["total"]) for label in (PLAIN, ALL))]
        times = [f"{row['latency']['openvino ours']['median_ms']:.1f}"]
        times += [worth(ratios[rival], inverse=True) for rival in ("openvino plain", "eager", "torch.compile")]
        rows.append([f"`{name}`", *counts, *times])
    head = ["network", "layers", "transposes", "launches", "OpenVINO, ms", "plain export", "eager", "`torch.compile`"]
    where = source({**parsed, "results": {}}, ["tensorrt-rtx"]) + source(
        {**timed, "results": {}}, ["openvino", "torch"]
    )
    return [*table(head, rows), "", " Times: ".join(where)]


def install(document: Document) -> list[str]:
    """Gigabytes of an installation, and what is left of it without what only a GPU needs."""
    bytes_ = document["results"]
    whole, cuda = bytes_["whole"] / 1e9, (bytes_["cuda"] + bytes_["torch_cuda"]) / 1e9
    return [
        f"It takes {whole:.1f} GB on disk, {cuda:.1f} GB of them for CUDA. Where PyTorch's CPU build is there",
        f"before, that one is kept: then {whole - cuda:.1f} GB and its own size do.",
        f"({_one_line(document, ['torch', 'tensorrt-rtx'])})",
    ]


def bundle(document: Document, whole: Document) -> list[str]:
    """What a bundle's environment takes, by backend, beside the whole installation."""
    names = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
    sizes = [f"{row['environment'] / 1e6:.0f} MB for {names[name]}" for name, row in document["results"].items()]
    own = max(row["package"] for row in document["results"].values())
    return [
        f"All packages of a bundle's environment take {' and '.join(sizes)}, where `pip install .` takes",
        f"{whole['results']['whole'] / 1e9:.1f} GB; the part of mlpdeploy is {own / 1e3:.0f} kB.",
        f"({_one_line(document, [*names])})",
    ]


def _one_line(document: Document, packages: list[str]) -> str:
    return " ".join(source(document, packages)).rstrip(".")


def coverage(document: Document) -> list[str]:
    """The share of the package's statements that the tests run, and the folders where it is least."""
    found = {name: 100 * row["run"] / row["statements"] for name, row in document["results"].items()}
    whole = found.pop("all")
    least = sorted(found, key=found.__getitem__)[:2]
    named = " and ".join(f"{found[name]:.0f} % of `{name}/`" for name in least)
    return [
        f"They run {whole:.0f} % of the package's statements, least {named}; what runs in other processes is not",
        f"counted. ({_one_line(document, ['torch'])})",
    ]


def evaluate(document: Document) -> list[str]:
    """How much memory an evaluation holds at most, in its first half and in its second."""
    settings, found = document["settings"], document["results"]
    head = ["network", "images", "contenders", "first half, MiB at most", "second half", "seconds"]
    rows = [
        [
            f"`{name}` at {settings['image_size']} pixels", f"{row['images']:,}", ", ".join(row["contenders"]),
            *map(str, row["peak_of_each_half_mib"]), f"{row['seconds']:.0f}",
        ]
        for name, row in found.items()
    ]  # fmt: skip
    workers = (
        f"{settings['workers']} workers; memory is theirs and the command's (PSS, which moves with what else runs)."
    )
    return [*table(head, rows), "", f"{workers} {_one_line(document, ['torch', settings['backend']])}."]


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


def quantisation(document: Document) -> list[str]:
    """INT8 on a CPU against each rival, the accuracy that 8 bits leave, and what calibration takes."""
    parts = by_part(document)
    lines = []
    if "speed" in parts:
        head = ["network", "batch", "INT8, ms", "eager", "`torch.compile`", "OpenVINO FP32", "onnxruntime's quantiser"]
        lines += [*table(head, _speed(parts["speed"])), ""]
    if "accuracy" in parts:
        head = ["network", "precision", "FP32", "as built", "hard, FP32", "hard, max alone", "hard, as built"]
        rows = [_accuracy(name, row, precision) for name, row in parts["accuracy"].items() for precision in EIGHT_BIT]
        lines += [*table(head, rows), ""]
    if "calibration" in parts:
        rows = [[f"`{n}`", str(row["rows"]), f"{row['seconds']:.0f} s", f"{row['peak_mib']} MiB"]
                for n, row in parts["calibration"].items()]  # fmt: skip
        lines += [*table(["calibrated, all calibrators", "images", "time", "peak memory"], rows), ""]
    packages = ["openvino", "onnxruntime", "torch"]
    found = {
        part: source(document, packages, f"{part} ")[0]
        for part in ("speed", "accuracy", "calibration")
        if part in parts
    }
    told = (
        found.values()
        if len({*found.values()}) == 1
        else (f"{part.capitalize()}: {one}" for part, one in found.items())
    )
    return [*lines, " ".join(dict.fromkeys(told))]


def _speed(speeds: dict[str, Any]) -> list[list[str]]:
    """The rivals' times over INT8's."""
    rows = []
    for name, batches in speeds.items():
        for batch, row in measured(batches).items():
            others = [worth(ratio, inverse=True) for ratio in row["ours"].values()]
            latency = row["latency"]["openvino int8"]["median_ms"]
            rows.append([f"`{name}`", batch.removeprefix("batch "), f"{latency:.1f}", *others])
    return rows


def _accuracy(name: str, row: Document, precision: str) -> list[str]:
    found, hard = row[precision], row[precision]["hard"]
    values = [row["fp32"], found["compiled"]["top1"], row["hard fp32"], hard["max"]["top1"], hard["compiled"]["top1"]]
    return [f"`{name}`", precision.upper(), *(f"{value:.2%}" for value in values)]


def gate(document: Document) -> list[str]:
    """How often runs of the gate said what: the command itself, and runs on recorded pairs and on their noise."""
    runs, recorded = ({n: r for n, r in document["results"].items() if key in r} for key in ("counts", "recorded"))
    head = ["`regress`", "candidate", "threads", "ms", "load", "passed", "regressed", "undecided", "pairs", "seconds"]
    lines = [*table(head, [row for name, one in runs.items() for row in _runs(name, one)]), ""] if runs else []
    lines += [*_recorded(recorded, document["settings"]), ""] if recorded else []
    return [*lines, *source(document, ["onnxruntime", "openvino"])]


def _runs(name: str, row: Document) -> list[list[str]]:
    """What the runs of one command said, against itself and against a slower one; pairs and seconds are medians."""
    rows = []
    load = " to ".join(f"{value:.0f}" for value in sorted(row["load_average"].values()))
    for what, words in (("same", "the same"), ("slowed", "5% slower")):
        counts, times = row["counts"][what], [one["median_ms"] for one in row["runs"][what]]
        said = [f"{counts[verdict]} of {counts['runs']}" for verdict in ("passed", "regressed", "undecided")]
        spent = f"{counts['median_seconds']:.0f}, at most {counts['most_seconds']:.0f}"
        ms = f"{median(times):.2f}" if times else "-"
        rows.append([name, words, str(row["threads"]), ms, load, *said, f"{counts['median_pairs']:.0f}", spent])
    return rows


def _recorded(results: Document, settings: Document) -> list[str]:
    """How often runs made of recorded pairs said `regressed`: without a slowdown, at the limit, and beyond it."""
    rows = []
    for name, row in results.items():
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
    limit, slowdown = (f"{settings[key]:.0%}" for key in ("limit", "slowdown"))
    head = [
        "network, engine", "ms", "load", "spread of loads → pairs", "same engine, real", f"{slowdown} slower, real",
        "same, simulated", f"{limit} slower, simulated", f"{slowdown} slower, simulated", "pairs",
    ]  # fmt: skip
    return table(head, rows)
