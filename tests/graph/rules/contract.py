"""What the tests of the rules bring, found by the rules' names, and their networks after the rules."""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Collection
from contextlib import suppress
from types import ModuleType

from torch import nn

from mlpdeploy.graph.rewrite import Rewritten, all_rules, on_by_default, rewrite
from mlpdeploy.graph.tracing.trace import Traced, trace
from tests.graph.proof import assert_same, randomised, specs
from tests.graph.rules.examples import Build, Example, NearMiss, Neighbours, Shape

RULES = sorted(all_rules())


def brought(rule: str) -> ModuleType:
    """The test of a rule, which brings its EXAMPLE and its NEAR_MISSES. Raises LookupError where one is missing."""
    path, name = f"tests/graph/rules/test_{rule}.py", f"tests.graph.rules.test_{rule}"
    if importlib.util.find_spec(name) is None:
        raise LookupError(f"{rule} has no test of its name: write {path}, with its EXAMPLE and its NEAR_MISSES")
    module = importlib.import_module(name)
    if not isinstance(getattr(module, "EXAMPLE", None), Example):
        raise LookupError(f"{path} has to define EXAMPLE: a network in which {rule} fires")
    misses = getattr(module, "NEAR_MISSES", None)
    if not isinstance(misses, dict) or not misses or not all(isinstance(one, NearMiss) for one in misses.values()):
        raise LookupError(f"{path} has to define NEAR_MISSES: by name, networks in which {rule} must not fire")
    return module


def _all_brought() -> dict[str, ModuleType]:
    found = {}
    for rule in RULES:
        with suppress(LookupError):  # a test of its own says so
            found[rule] = brought(rule)
    return found


_BROUGHT = _all_brought()
EXAMPLES: dict[str, Example] = {rule: module.EXAMPLE for rule, module in _BROUGHT.items()}
NEAR_MISSES: dict[str, NearMiss] = {
    f"{rule}: {name}": miss for rule, module in _BROUGHT.items() for name, miss in module.NEAR_MISSES.items()
}


def _networks() -> dict[str, tuple[Build, Shape]]:
    rules: dict[tuple[Build, Shape], list[str]] = {}
    for rule, example in EXAMPLES.items():
        rules.setdefault((example.build, example.shape), []).append(rule)
    return {", ".join(names): network for network, names in rules.items()}


NETWORKS = _networks() | {"neighbours": (Neighbours, (4, 5, 6))}
"""The networks of the examples, each once, by the rules whose example it is; and one that is no rule's."""


@functools.cache
def traced(build: Build, shape: Shape) -> tuple[nn.Module, Traced]:
    """A network with random parameters, and its graph before the rules."""
    network = randomised(build())
    return network, trace(network, specs([shape]))


def proved(build: Build, shape: Shape, enabled: Collection[str] = ()) -> Rewritten:
    """A network after the rules, having given the same results as before them; each is proved once."""
    return _proved(build, shape, frozenset(enabled) - on_by_default())


@functools.cache
def _proved(build: Build, shape: Shape, enabled: Collection[str]) -> Rewritten:
    network, before = traced(build, shape)
    result = rewrite(before, enabled=enabled)
    assert_same(network, result, [shape])
    return result
