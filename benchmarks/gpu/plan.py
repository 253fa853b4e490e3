"""All rows in the order of their worth."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from benchmarks.gpu import commands, engines, fused, kernels, networks, rules
from benchmarks.gpu.crew import SHORT, Task, once

QUICK = "mixer_s32"
"""The network whose engines say whether TensorRT accepts this GPU, and on which every command is tried."""
FIRST = rules.EARLY + 1
"""Changes of each network's rules, and what they make together, that are measured before its other batches are."""
ALL = 100
LATE = SHORT + 5
"""Seconds of what is short, but waits for its turn in the order of worth."""


def tasks(device: str, dry: bool, seconds: float) -> list[Task]:
    """Every row: `seconds` of measuring for each network."""
    return [*(_dry(device, seconds) if dry else _tasks(device, seconds))]


def _tasks(device: str, seconds: float) -> Iterator[Task]:
    names, (most, *fewer), cases = networks.NAMES, networks.BATCHES, kernels.CASES
    given = device, False, seconds
    yield from _correctness((*cases[:4], cases[10]), device)
    yield Task("kernel", "roofline", 15, once, (kernels.roofline, device))
    yield from _engines(seconds, quick=True)
    yield _commands(f"inductor {QUICK}", _on_gpu(QUICK, "inductor"))
    yield from _networks(names, most, *given)
    yield from _kernels(cases, most, *given)
    yield from _rules(names, most, *given, most=FIRST)
    for batch in fewer:
        yield from _networks(names, batch, *given)
    yield from _rules(names, most, *given, most=ALL)
    yield from _networks(names, most, *given, tuned=True)
    yield from _networks(names, most, *given, precision="bf16")
    for batch in fewer:
        yield from _kernels(cases, batch, *given)
    yield _commands("inductor vip_s7", _on_gpu("vip_s7", "inductor"))
    for batch in networks.BATCHES:
        yield from _fused((*fused.MLPS, *(fused.EPILOGUES if batch == most else ())), batch, *given)
    yield from _engines(seconds, quick=False)
    yield from _correctness(cases, device, LATE)
    for batch in networks.BATCHES:
        yield from _kernels(kernels.OTHERS, batch, *given, room=LATE)


def _dry(device: str, seconds: float) -> Iterator[Task]:
    """A row of each kind."""
    names, given = (networks.TINY,), (2, device, True, seconds)
    yield _commands("onnxruntime tiny", commands.Case(networks.TINY, _ON_CPU, 2, "eager", seconds))
    yield from _correctness(kernels.TINY, device)
    yield Task("kernel", "roofline", 0, once, (kernels.roofline, device))
    yield from _networks(names, *given)
    yield from _kernels(kernels.TINY, *given)
    yield from _rules(names, *given, most=1)
    yield from _rules(names, *given, most=ALL)
    yield from _networks(names, *given, tuned=True)
    yield from _fused((*names, fused.TINY_MIXER), *given)


_ON_CPU = ("--precision", "fp32", "--backend", "onnxruntime", "--input-shape", "3,16,16")


def _correctness(cases: Iterable[kernels.Case], device: str, room: float = 15) -> Iterator[Task]:
    for case in cases:
        yield Task("correctness", f"correctness {case.name}", room, once, (kernels.correctness, case, device))


def _kernels(
    cases: Iterable[kernels.Case], batch: int, device: str, dry: bool, seconds: float, room: float = SHORT
) -> Iterator[Task]:
    for case in cases:
        given = (kernels.speed, case, batch, device, dry, seconds / 10)
        yield Task("kernel", f"kernel {case.name} batch {batch}", room, once, given)


def _networks(
    names: Sequence[str],
    batch: int,
    device: str,
    dry: bool,
    seconds: float,
    precision: str = "fp16",
    tuned: bool = False,
) -> Iterator[Task]:
    """Each network with all contenders, or in one mode of torch.compile that takes minutes."""
    marks = ("" if precision == "fp16" else f" {precision}") + f" {networks.AUTOTUNE}" * tuned
    work = networks.measure_tuned if tuned else networks.measure
    for name in names:
        given = (name, batch, device, dry, seconds, precision)
        yield Task("network", f"network {_short(name)} batch {batch}{marks}", 240 if tuned else 90, work, given)


def _rules(names: Sequence[str], batch: int, device: str, dry: bool, seconds: float, most: int) -> Iterator[Task]:
    """Each network without each rule that fired, and with each that is off."""
    for name in names:
        given = (name, batch, device, dry, seconds / 3, most)
        yield Task("rules", f"rules {_short(name)} batch {batch}", 75, rules.measure, given, most)


def _fused(names: Sequence[str], batch: int, device: str, dry: bool, seconds: float) -> Iterator[Task]:
    """Each network with and without what follows its products in them."""
    for name in names:
        given = (name, batch, device, dry, seconds)
        yield Task("rules", f"epilogues {_short(name)} batch {batch}", 90, fused.measure, given)


def _short(name: str) -> str:
    return name.rpartition(":")[2]


def _on_gpu(name: str, backend: str) -> commands.Case:
    options = ("--precision", "fp16", "--backend", backend, "--gpu", "current")
    return commands.Case(name, options, 8, "eager,compile", 5)


def _commands(label: str, case: commands.Case) -> Task:
    return Task("commands", f"commands {label}", 90, commands.measure, (case,))


def _engines(seconds: float, quick: bool) -> Iterator[Task]:
    """TensorRT's engines, where a flavour runs here: one network first, which says whether this GPU is accepted."""
    from mlpdeploy.engine.backend import backends

    for flavour in ("tensorrt", "tensorrt-rtx"):
        backend = backends()[flavour]
        if (reason := backend.available() or backend.executable()) is not None:
            if quick:
                yield Task("engine", f"engine {flavour}", 0, once, (_failed, reason))
            continue
        # TensorRT-RTX builds for RTX GPUs unless it is told to build for the one that is here.
        targets: dict[str, Any] = {"": ()} if flavour == "tensorrt" else {" for this GPU": ("current",)}
        targets |= {" for RTX GPUs": ()} if quick and flavour != "tensorrt" else {}
        for target, gpus in targets.items():
            for name, batch in [(QUICK, 8)] if quick else [(n, b) for b in networks.BATCHES for n in networks.NAMES]:
                given = (engines.engines, name, batch, flavour, gpus, seconds)
                yield Task("engine", f"engine {flavour}{target} {name} batch {batch}", 60, once, given)
        if not quick:
            yield _commands(f"{flavour} vip_s7", _on_gpu("vip_s7", flavour))


def _failed(reason: str) -> dict[str, str]:
    return {"failed": reason}
