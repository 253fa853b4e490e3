"""Where an engine's time goes: its layers' times, grouped by the module of the user's network that they came from."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from mlpdeploy.engine.backend import ITSELF, LayerTime, module_of
from mlpdeploy.evidence.documents.bench import Module, Profile


def by_module(layers: Sequence[LayerTime], nodes: Collection[str], batch: int, profiler: str) -> Profile:
    """Group `layers`, in the order of execution, by module; `nodes` are the ONNX file's, `<module path>/<operation>`.

    A layer belongs to the node whose name one of its own names holds; where several do, to the longest such name. One
    that the engine named after nothing of ours belongs with the layer before it (the first one with the next).
    """
    owners = [_owner(layer, nodes) for layer in layers]
    known = next((owner for owner in owners if owner is not None), ITSELF)
    total = sum(layer.seconds for layer in layers) or 1.0
    modules: dict[str, dict[str, float]] = {}
    for layer, owner in zip(layers, owners, strict=True):
        known = owner or known
        times = modules.setdefault(known, {})
        times[layer.type] = times.get(layer.type, 0.0) + 1e3 * layer.seconds
    grouped = tuple(Module(p, sum(t.values()), sum(t.values()) / (1e3 * total), t) for p, t in modules.items())
    return Profile(batch, profiler, sum(module.milliseconds for module in grouped), grouped)


def _owner(layer: LayerTime, nodes: Collection[str]) -> str | None:
    """The path of the module whose node the layer names; None where it names none."""
    names = (layer.name, *layer.origins)
    for name in names:
        if name in nodes:
            return module_of(name)
    held = [node for node in nodes if "/" in node and any(node in name for name in names)]
    return module_of(max(held, key=len)) if held else None
