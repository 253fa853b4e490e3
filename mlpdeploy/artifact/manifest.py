"""What an artifact says about itself to programs: the manifest, and the document of a verification."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mlpdeploy.artifact import cache
from mlpdeploy.engine.backend import Backend, Built
from mlpdeploy.network import hub
from mlpdeploy.selection import Selection
from mlpdeploy.zoo.recipe import Recipe, changes, kind

if TYPE_CHECKING:
    from torch import fx

    from mlpdeploy.evidence.documents.evaluation import Evaluation
    from mlpdeploy.evidence.proof.ladder import Verification
    from mlpdeploy.graph.rule import RuleReport
    from mlpdeploy.graph.tracing.trace import TensorSpec
    from mlpdeploy.network.source import Source
    from mlpdeploy.stages import Compiled


def describe(
    selection: Selection,
    backend: Backend,
    source: Source,
    compiled: Compiled,
    built: Built,
    key: str | None,
    seconds: Mapping[str, float],
    notes: Sequence[str] = (),
    paid_off: Mapping[str, Any] | None = None,
    labels: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The manifest of a build, as JSON values; the store adds schema and files."""
    from mlpdeploy.graph.layout.remaining import transposes

    before, after = compiled.traced.module, compiled.served.module
    return {
        "key": key,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": {
            "name": source.recipe.name,
            "family": source.recipe.family,
            "source": source.recipe.source,
            "parameters": sum(parameter.numel() for parameter in source.network.parameters()),
            "images": _images(source.recipe),
            "inputs": [{**asdict(one), "shape": ["batch", *one.shape]} for one in source.bare.recipe.inputs],
            "classes": _classes(compiled.typed.outputs),
            "labels": None if labels is None else list(labels),
        },
        "selection": selection.to_json(),
        "network": cache.fingerprint(compiled.traced) if changes(selection.name) else None,
        "weights": _weights(selection, source.bare.network),
        "precision": selection.precision,
        "batch": selection.profile.to_json(),
        "inputs": [_spec(spec) for spec in compiled.served.inputs],
        "outputs": [_spec(spec) for spec in compiled.served.outputs],
        "mapping": compiled.traced.mapping,
        "backend": backend.name,
        "engine": built.engine.name,
        "versions": cache.versions() | backend.versions() | {"python": platform.python_version()},
        "gpus": list(selection.gpus),
        "facts": built.facts,
        "rules": [*map(_rule, compiled.balanced.report)],
        "forms": [
            {"name": form.name, "fired": form.fired, "seconds": round(form.seconds, 4)} for form in built.prepared.forms
        ],
        "transposes": [asdict(left) for left in transposes(compiled.balanced.module.graph)],
        "kept_fp32": [{"node": kept.node, "module": kept.module, "reason": kept.reason} for kept in compiled.plan.kept],
        "quantised": None if compiled.calibration is None else _quantised(compiled) | {"worth": paid_off},
        "coded_weights": _coded_weights(compiled) if compiled.plan.weights else None,
        "ops": {"before": _operations(before), "after": _operations(compiled.balanced.module)},
        "dtypes": _dtypes(after),
        "seconds": dict(seconds),
        "notes": [*source.notes, *notes],
    }


def outlines(compiled: Compiled) -> dict[str, list[dict[str, Any]]]:
    """The document of graph.json: every operation of the traced graph, and of the one that was emitted."""
    from mlpdeploy.graph.outline import outline

    graphs = {"before": compiled.traced.module, "after": compiled.served.module}
    return {when: [asdict(operation) for operation in outline(module)] for when, module in graphs.items()}


def evidence(manifest: Mapping[str, Any], found: Verification | Evaluation) -> dict[str, Any]:
    """The document of verification.json or evaluation.json: the findings, and which files they are about."""
    files = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": manifest["recipe"]["name"],
        "backend": manifest["backend"],
        "weights": manifest["weights"]["text"],
        "files": files,
        "versions": cache.versions(),
        **found.to_json(),
    }


def _classes(outputs: Sequence[TensorSpec]) -> int | None:
    """How many classes a network tells apart whose one output is a row of scores; None where it has no such output."""
    rows = [spec.shape[0] for spec in outputs if len(spec.shape) == 1 and spec.dtype.is_floating_point]
    return rows[0] if len(outputs) == 1 and rows and rows[0] > 1 else None


def _images(recipe: Recipe) -> dict[str, Any] | None:
    """How images become inputs; None where that is not known, or where what it takes are no images."""
    shapes = [one.shape for one in recipe.inputs] or [recipe.input_shape]
    channels = -1 if recipe.pixels.startswith("hwc") else 0
    if not recipe.prepared or len(shapes) != 1 or len(shapes[0]) != 3 or shapes[0][channels] != len(recipe.mean):
        return None
    mean, std = list(recipe.mean), list(recipe.std)
    how = {"crop": recipe.crop, "crop_mode": recipe.crop_mode, "interpolation": recipe.interpolation}
    return how | {"mean": mean, "std": std, "pixels": recipe.pixels}


def _weights(selection: Selection, network: Any) -> dict[str, Any]:
    found: dict[str, Any] = {"text": selection.weights(), "random": False}
    if selection.checkpoint is not None:
        sha256 = cache.checkpoint_sha256(selection.checkpoint)
        return found | {"kind": "checkpoint", "file": str(selection.checkpoint), "sha256": sha256}
    if kind(selection.name) == "given":
        return found | {"kind": "given", "sha256": cache.weights_sha256(network)}
    if selection.pretrained:
        config = network.pretrained_cfg
        repository = config.get("hf_hub_id")
        known = {} if repository is None else {"repository": repository, "commit": hub.commit(repository)}
        return found | {"kind": "pretrained", "tag": config.get("tag"), **known}
    if kind(selection.name) == "user":
        return found | {"kind": "factory", "seed": selection.seed}
    return found | {"kind": "random", "random": True, "seed": selection.seed}


def _quantised(compiled: Compiled) -> dict[str, Any]:
    """How 8 bits were calibrated, what takes them, and what each product that does not is kept from them by."""
    from mlpdeploy.graph.quantisation.sites import sites

    assert compiled.calibration is not None
    plan, found = compiled.plan, sites(compiled.balanced.module, compiled.plan.codes)
    quantised = [plan.quantised[name].site for name in plan.quantised]
    macs = sum(site.macs for site in found.found.values())
    return compiled.calibration.summary() | {
        "beside": plan.beside,
        "sites": len(quantised),
        "of_sites": len(found.found),
        "residuals": len(plan.residuals),
        "share_of_macs": sum(site.macs for site in quantised) / max(macs, 1),
        "kept": [
            {"node": name, "module": found.found[name].module, "reason": reason}
            for name, reason in compiled.calibration.quantisation.kept.items()
        ],
        "refused": [
            {"node": name, "module": found.modules[name], "reason": reason} for name, reason in found.refused.items()
        ],
    }


def _coded_weights(compiled: Compiled) -> dict[str, Any]:
    """What reads weights of INT4 codes, what share of all weights these are, and why other products do not."""
    from mlpdeploy.graph.quantisation.codes import INT4, block_of
    from mlpdeploy.graph.quantisation.sites import products, sites

    module = compiled.balanced.module
    every, others = products(module), sites(module, INT4)
    numbers = {name: site.inputs * site.outputs for name, site in every.items()}
    return {
        "precision": compiled.plan.precision,
        "beside": compiled.plan.beside,
        "blocks": sorted({block_of(site.inputs) or 0 for site in compiled.plan.weights.values()}),
        "sites": len(compiled.plan.weights),
        "of_products": len(every),
        "share_of_weights": sum(numbers[name] for name in compiled.plan.weights) / max(sum(numbers.values()), 1),
        "refused": [
            {"node": name, "module": others.modules[name], "reason": why} for name, why in others.refused.items()
        ],
    }


def _rule(report: RuleReport) -> dict[str, Any]:
    return {
        "name": report.name,
        "fired": report.fired,
        "refused": [asdict(refusal) for refusal in report.refused],
        "seconds": round(report.seconds, 4),
    }


def _spec(spec: TensorSpec) -> dict[str, Any]:
    """A port; with the bounds of its values where it has any."""
    bounds = {} if spec.low is None else {"low": spec.low, "high": spec.high}
    dtype = str(spec.dtype).removeprefix("torch.")
    return {"name": spec.name, "shape": ["batch", *spec.shape], "dtype": dtype, **bounds}


def _calls(module: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    from mlpdeploy.graph.outline import name_of

    for node in module.graph.nodes:
        if node.op == "call_function":
            yield name_of(node), node


def _operations(module: fx.GraphModule) -> dict[str, int]:
    return dict(Counter(name for name, _ in _calls(module)).most_common())


def _dtypes(module: fx.GraphModule) -> dict[str, dict[str, int]]:
    """How many operations of each type produce which dtype."""
    counts: dict[str, Counter[str]] = {}
    for name, node in _calls(module):
        dtype = getattr(node.meta.get("val"), "dtype", None)
        if dtype is not None:
            counts.setdefault(name, Counter())[str(dtype).removeprefix("torch.")] += 1
    return {name: dict(found.most_common()) for name, found in sorted(counts.items())}
