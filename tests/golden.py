"""What the compiler makes of every recipe: measured, kept in data/golden.json and in the recipes' `rules`.

    python -m tests.golden [RECIPE ...]        measure again, and write both files

`layers` and `transposes` are those of the network that TensorRT parses, in FP16; `plain` is PyTorch's own export of
network.half() with the same weights. A transpose is a SHUFFLE layer that permutes an activation.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlpdeploy import recipe as recipes
from mlpdeploy.engine.backends.tensorrt import parse, parse_emitted
from mlpdeploy.engine.emit import emit
from mlpdeploy.engine.parsed import ParsedNetwork
from mlpdeploy.graph import precision
from mlpdeploy.graph.rewrite import LAYOUT, rewrite
from mlpdeploy.graph.trace import TensorSpec, trace

GOLDEN = Path(__file__).parent / "data" / "golden.json"


def golden() -> dict[str, Any]:
    """The stored measurements, by recipe."""
    found: dict[str, Any] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return found


def measure(network: nn.Module, shape: tuple[int, ...]) -> dict[str, Any]:
    """What the rules did to a network, and what TensorRT's parser makes of the result."""
    rewritten = rewrite(trace(network, [TensorSpec("input", shape, torch.float32)]))
    parsed = parse_emitted(emit(precision.apply(rewritten, precision.plan(rewritten, "fp16"))))
    fired = {report.name: report.fired for report in rewritten.report if report.fired and report.name != LAYOUT}
    bodies = [body.counts.transposes for body in parsed.bodies]
    return {
        "rules": dict(sorted(fired.items())),
        "layers": parsed.total.layers,
        "transposes": {"outside": parsed.outside.transposes, "bodies": len(bodies), "in_each_body": sorted({*bodies})},
    }


def plain(network: nn.Module, shape: tuple[int, ...]) -> ParsedNetwork:
    """What TensorRT's parser makes of PyTorch's own export of the network in half precision; changes the network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.half(), (torch.zeros(2, *shape, dtype=torch.float16),), dynamo=True, opset_version=20,
            verbose=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
        )  # fmt: skip
    assert program is not None
    return parse(program.model_proto)


def with_rules(text: str, name: str, rules: dict[str, int]) -> str:
    """A family's TOML file with the `rules` of one network replaced."""
    table = re.compile(rf"(?ms)^\[networks\.{re.escape(name)}\]\n.*?(?=^\[|^#|\Z)")
    found = table.search(text)
    assert found is not None, name
    lines = [line for line in found[0].rstrip("\n").split("\n") if not line.startswith("rules = ")]
    if rules:
        lines.append(f"rules = {{ {', '.join(f'{rule} = {count}' for rule, count in rules.items())} }}")
    gap = "\n" * (len(found[0]) - len(found[0].rstrip("\n")))
    return text[: found.start()] + "\n".join(lines) + gap + text[found.end() :]


def main(names: list[str]) -> None:
    """Measure these recipes, or all, and write what was found."""
    torch.set_num_threads(1)
    stored = golden() if GOLDEN.exists() else {}
    for name in names or list(recipes.recipes()):
        shape = recipes.find(name).input_shape
        network = recipes.reference(name)
        stored[name] = {**measure(network, shape), "plain": plain(network, shape).total.layers}
        print(name, json.dumps(stored[name]), flush=True)
        ordered = {recipe: stored[recipe] for recipe in recipes.recipes() if recipe in stored}
        lines = ",\n".join(f"  {json.dumps(recipe)}: {json.dumps(facts)}" for recipe, facts in ordered.items())
        GOLDEN.write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    for path in sorted(recipes.folder().glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        for name in (name for name in stored if f"[networks.{name}]" in text):
            text = with_rules(text, name, stored[name]["rules"])
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
