"""What the compiler makes of every recipe: measured, kept in data/golden/ and in the recipes' `rules`.

    python -m tests.golden [RECIPE ...]        measure again, and write both (one file for each recipes/*.toml)

The plain export depends on PyTorch alone: it is measured where data/golden/ has no number of it.

`layers` and `transposes` are those of the network that TensorRT parses, in FP16; `plain` is PyTorch's own export of
network.half() with the same weights. A transpose is a SHUFFLE layer that permutes an activation.
"""

from __future__ import annotations

import json
import re
import sys
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mlpdeploy import pipeline
from mlpdeploy import recipe as recipes
from mlpdeploy.engine.backends.tensorrt import parse, parse_emitted
from mlpdeploy.engine.emit import emit
from mlpdeploy.engine.parsed import ParsedNetwork
from mlpdeploy.graph import precision
from mlpdeploy.graph.rewrite import LAYOUT, rewrite
from mlpdeploy.graph.trace import TensorSpec, trace
from mlpdeploy.progress import Stages
from mlpdeploy.selection import Selection

GOLDEN = Path(__file__).parent / "data" / "golden"


def golden() -> dict[str, Any]:
    """The stored measurements, by recipe, in the recipes' order."""
    files = (json.loads(path.read_text(encoding="utf-8")) for path in GOLDEN.glob("*.json"))
    found = {name: facts for file in files for name, facts in file.items()}
    return {name: found[name] for name in recipes.recipes() if name in found}


def load(name: str) -> tuple[nn.Module, list[TensorSpec]]:
    """A recipe's network with random weights, and what it takes."""
    source = pipeline.load(Selection(name), Stages())
    return source.network, source.specs()


def measure(network: nn.Module, specs: Sequence[TensorSpec]) -> dict[str, Any]:
    """What the rules did to a network, and what TensorRT's parser makes of the result."""
    rewritten = rewrite(trace(network, specs))
    parsed = parse_emitted(emit(precision.apply(rewritten, precision.plan(rewritten, "fp16"))))
    fired = {report.name: report.fired for report in rewritten.report if report.fired and report.name != LAYOUT}
    bodies = [body.counts.transposes for body in parsed.bodies]
    return {
        "rules": dict(sorted(fired.items())),
        "layers": parsed.total.layers,
        "transposes": {"outside": parsed.outside.transposes, "bodies": len(bodies), "in_each_body": sorted({*bodies})},
    }


def plain(network: nn.Module, specs: Sequence[TensorSpec]) -> ParsedNetwork:
    """What TensorRT's parser makes of PyTorch's own export of the network in half precision; changes the network."""
    half = [replace(s, dtype=torch.float16) if s.dtype.is_floating_point else s for s in specs]
    examples = tuple(spec.example(2) for spec in half)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.half(), examples, dynamo=True, opset_version=20,
            verbose=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},) * len(half),
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
    for path in sorted(recipes.folder().glob("*.toml")):
        family = [name for name in recipes.recipes() if f"[networks.{name}]" in path.read_text(encoding="utf-8")]
        for name in (name for name in family if not names or name in names):
            network, specs = load(name)
            found = {**measure(network, specs), "plain": golden().get(name, {}).get("plain")}
            if found["plain"] is None:
                theirs = plain(network, specs).total
                found["plain"] = {"layers": theirs.layers, "transposes": theirs.transposes}
            print(name, json.dumps(found), flush=True)
            _write(path, family, {**golden(), name: found})


def _write(recipe_file: Path, family: list[str], stored: dict[str, Any]) -> None:
    lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(stored[name])}" for name in family if name in stored)
    (GOLDEN / f"{recipe_file.stem}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    text = recipe_file.read_text(encoding="utf-8")
    for name in (name for name in family if name in stored):
        text = with_rules(text, name, stored[name]["rules"])
    recipe_file.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
