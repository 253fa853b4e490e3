"""What the evidence about an engine amounts to, in plain words: the lines that a report starts with.

Every line comes from the documents beside the engine, and says so where one of them is missing.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mlpdeploy.evidence.proof.ladder import ENGINE, NOT_EXECUTED
from mlpdeploy.selection.arguments import arguments
from mlpdeploy.system.documents import Document
from mlpdeploy.zoo.recipe import GIVEN, kind

GOOD, BAD, MIXED, UNKNOWN = "good", "bad", "mixed", "unknown"

TRANSPOSES = ("aten::permute", "aten::transpose")
CONTRACTIONS = (
    "linear",
    "matmul",
    "bmm",
    "addmm",
    "conv1d",
    "conv2d",
    "conv3d",
    "segment_grouped_projection",
    "token_mlp",
)


@dataclass(frozen=True)
class Verdict:
    """One line: what it is about, how it is (good, bad, mixed, unknown), the line, and what it rests on."""

    topic: str
    status: str
    line: str
    because: str


def verdicts(
    manifest: Document, verification: Document | None, bench: Document | None, evaluation: Document | None = None
) -> tuple[Verdict, ...]:
    """The verdicts on an artifact, the most important one first."""
    found = [
        _correctness(manifest, verification),
        *_evaluated(evaluation),
        _speed(manifest, bench),
        _rules(manifest),
        _quantised(manifest["quantised"]) if manifest.get("quantised") else _precision(manifest),
    ]
    return (*found, *_weights(manifest), *_calibration(manifest.get("quantised")))


def title(manifest: Document) -> str:
    """The name of the network, for people."""
    return str(manifest["recipe"]["name"]).removeprefix(GIVEN)


def command(manifest: Document, verb: str) -> str:
    """What to run for evidence that is missing: a command, or a method where the network was in hand in Python."""
    selection = dict(manifest["selection"])
    if kind(str(selection["name"])) == "given":
        return f"engine.{verb}()"
    if verb == "bench":  # which times sizes that the engine takes, and knows them
        selection.pop("batch", None)
    return shlex.join(["mlpdeploy", verb, *arguments(verb, selection)])


def is_contraction(op: str) -> bool:
    """Whether an operation (`aten::linear`) is a matrix product or a convolution."""
    return op.rpartition("::")[2] in CONTRACTIONS


def speedup(ratio: Mapping[str, float]) -> tuple[float, float, float]:
    """How many times faster than its baseline, and the 95 % interval, of a ratio of latencies."""
    return 1 / ratio["value"], 1 / ratio["high"], 1 / ratio["low"]


def engine_of(measurement: Document) -> Mapping[str, Any]:
    """The engine's own row of a measurement. Raises KeyError where it has none."""
    found: Mapping[str, Any]
    for found in measurement["contenders"]:
        if found["kind"] == "engine":
            return found
    raise KeyError("engine")


def _correctness(manifest: Document, verification: Document | None) -> Verdict:
    topic = "Correctness"
    if verification is None:
        how = f"Run {command(manifest, 'verify')}"
        return Verdict(topic, UNKNOWN, "Not verified yet", how)
    sizes = ", ".join(map(str, verification["sizes"]))
    rows = "real images" if verification["inputs"] == "images" else "random inputs"
    where = f"at batch {sizes}, in order and with the rows permuted, on {rows}"
    if not verification["passed"]:
        return Verdict(topic, BAD, "It does not compute what the network computes", _sentence(verification["verdict"]))
    ran = [stage for stage in verification["stages"] if stage["status"] != NOT_EXECUTED]
    last = ran[-1]
    allowed = last["budget"]["max_relative_error"]
    because = f"Largest error {last['max_relative']:.1e}, allowed {allowed:.0e}, {where}{_top1(last)}"
    if last["name"] == ENGINE:
        return Verdict(topic, GOOD, "The engine computes what the network computes", because)
    skipped = "; ".join(stage["reason"] for stage in verification["stages"] if stage["status"] == NOT_EXECUTED)
    return Verdict(
        topic,
        MIXED,
        "Proved up to the ONNX file; the engine was not run",
        f"{_sentence(skipped)}. The last stage that ran, {last['name']}: {because[0].lower()}{because[1:]}",
    )


def _top1(stage: Document) -> str:
    images = stage["images"]
    if images is None or images["agreement"] is None:
        return ""
    return f"; {images['agreement']['top1']:.2%} of {images['agreement']['images']} images keep their class"


def _evaluated(evaluation: Document | None) -> Iterator[Verdict]:
    if evaluation is not None:
        top1 = ", ".join(f"{one['name']} {one['top1']['share']:.2%}" for one in evaluation["contenders"])
        because = f"Top-1 of {evaluation['images']} images: {top1}"
        status = UNKNOWN if evaluation["paired"] is None else GOOD if evaluation["passed"] else BAD
        yield Verdict("Accuracy", status, _sentence(evaluation["verdict"].removeprefix("passed: ")), because)


def _speed(manifest: Document, bench: Document | None) -> Verdict:
    topic = "Speed"
    if bench is None:
        return Verdict(topic, UNKNOWN, "Not measured", f"Run {command(manifest, 'bench')}")
    times = ", ".join(f"{engine_of(one)['median_ms']:.3g} ms at batch {one['batch']}" for one in bench["measurements"])
    ratios: dict[str, dict[int, Mapping[str, Any]]] = {}
    for measurement in bench["measurements"]:
        for ratio in engine_of(measurement)["ratios"]:
            ratios.setdefault(ratio["baseline"], {})[measurement["batch"]] = ratio
    if not ratios:
        return Verdict(topic, MIXED, "Measured, against no baseline", times)
    beside = (
        f"{name} takes {_listed([f'{speedup(r)[0]:.2f}' for r in found.values()])}" for name, found in ratios.items()
    )
    because = f"{times}. With the engine's time as 1, {', '.join(beside)}"
    found = {verdict: _where(ratios, verdict) for verdict in ("slower", "faster", "undecided")}
    words = {"slower": "slower than", "faster": "faster than", "undecided": "undecided against"}
    line = "; ".join(f"{words[verdict]} {_listed(where)}" for verdict, where in found.items() if where)
    status = BAD if found["slower"] else MIXED if found["undecided"] else GOOD
    return Verdict(topic, status, _sentence(line), because)


def _where(ratios: Mapping[str, Mapping[int, Mapping[str, Any]]], verdict: str) -> list[str]:
    """The baselines with that verdict; with the batch sizes where it does not hold at all of them."""
    where = []
    for name, found in ratios.items():
        sizes = [size for size, ratio in found.items() if ratio["verdict"] == verdict]
        if sizes:
            where.append(name if len(sizes) == len(found) else f"{name} (batch {', '.join(map(str, sizes))})")
    return where


def _rules(manifest: Document) -> Verdict:
    before, after = manifest["ops"]["before"], manifest["ops"]["after"]
    moved = [sum(ops.get(name, 0) for name in TRANSPOSES) for ops in (before, after)]
    total = [sum(ops.values()) for ops in (before, after)]
    line = f"{moved[0]} transposes became {moved[1]}" if moved[0] else "There was no transpose to remove"
    status = GOOD if moved[1] < moved[0] or not moved[0] else UNKNOWN
    refused = sum(len(rule["refused"]) for rule in manifest["rules"])
    because = f"{total[0]} operations became {total[1]}"
    return Verdict("Graph", status, line, because + (f"; rules refused {refused} places" if refused else ""))


def _precision(manifest: Document) -> Verdict:
    counts: dict[str, int] = {}
    for op, dtypes in manifest["dtypes"].items():
        if is_contraction(op):
            for dtype, count in dtypes.items():
                counts[dtype] = counts.get(dtype, 0) + count
    shown = [f"{count} in {dtype}" for dtype, count in sorted(counts.items(), key=lambda item: -item[1])]
    kept = len(manifest["kept_fp32"])
    line = f"Matrix products: {_listed(shown)}" if shown else "There is no matrix product"
    because = f"{kept} operations were kept in FP32" if kept else "Nothing was kept in FP32"
    if manifest["facts"].get("parsed"):
        because += "; the dtypes were read back from the network that TensorRT parsed"
    if coded := manifest.get("coded_weights"):
        line = f"{coded['sites']} of {coded['of_products']} products read weights in {coded['precision'].upper()}"
        beside = f"Activations are {coded['beside'].upper()}, weights {coded['share_of_weights']:.0%} codes"
        because = f"{beside}; {because[0].lower()}{because[1:]}"
    return Verdict("Precision", MIXED if kept else GOOD, line, because)


def _quantised(quantised: Document) -> Verdict:
    share = f"{quantised['share_of_macs']:.0%} of their multiply-accumulates"
    line = f"{quantised['sites']} of {quantised['of_sites']} products take {quantised['precision'].upper()}, {share}"
    because = f"All else is {quantised['beside'].upper()}"
    because += f"; {len(quantised['kept'])} stayed out by what they would cost" if quantised["kept"] else ""
    told = (quantised.get("worth") or {}).get("verdicts", ())
    because += f"; {'; '.join(told)}" if told else ""
    return Verdict("Precision", MIXED if quantised["kept"] else GOOD, line, because)


def _calibration(quantised: Document | None) -> Iterator[Verdict]:
    if quantised and quantised["warning"]:
        status = BAD if quantised["random"] else MIXED
        yield Verdict("Calibration", status, _sentence(quantised["warning"]), f"On {quantised['data']}")


def _weights(manifest: Document) -> Iterator[Verdict]:
    if manifest["weights"]["random"]:
        because = f"{_sentence(manifest['weights']['text'])}. Errors and times hold; what it predicts means nothing"
        yield Verdict("Weights", MIXED, "The weights are random", because)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _listed(parts: Iterable[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    *most, last = parts
    return f"{', '.join(most)} and {last}" if most else last
