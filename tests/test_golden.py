"""What the compiler makes of every recipe, held to numbers: of its own last measurement, and of the promise."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import pytest
import timm
import torch

from mlpdeploy import recipe as recipes
from mlpdeploy.graph.trace import TensorSpec
from mlpdeploy.zoo import vip
from tests import golden
from tests.conftest import REPOSITORY

NAMES = list(golden.golden())
SMALL = "mixer_s32"
# Layers of the plain export of networks with the weights that their constructors give them.
PLAIN = {"mixer_b16": 443, "mixer_s32": 299, "resmlp_24": 732, "gmlp_s16": 1184, "vip_s14": 1476}
FAMILIES_WITH_ONE_TRANSPOSE = ("mixer", "resmlp", "gmlp", "gmixer")
FAMILIES_WITH_FEWER_LAYERS = (*FAMILIES_WITH_ONE_TRANSPOSE, "vip")
FAMILIES = (*FAMILIES_WITH_FEWER_LAYERS, "vit")
FEWER = 0.75
# The plain export takes and gives FP16, ours FP32: two linear layers save nothing that would make up for the casts.
CASTS = {"ff_g2m_student": 3}


@functools.cache
def measured(name: str) -> dict[str, Any]:
    return golden.measure(*golden.load(name))


def each(names: Iterable[str]) -> pytest.MarkDecorator:
    """A test of every network, of which only the smallest is fast, and only FAMILIES are not large."""
    large = [name for name in names if recipes.find(name).family not in FAMILIES]
    slow = [name for name in names if name not in large and name != SMALL]
    marks = {name: pytest.mark.large for name in large} | {name: pytest.mark.slow for name in slow}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=marks.get(name, ())) for name in names])


@each(NAMES)
def test_nothing_has_changed(name: str) -> None:
    stored = {key: value for key, value in golden.golden()[name].items() if key != "plain"}
    assert measured(name) == stored, "if this is meant: python -m tests.golden " + name


@pytest.mark.parametrize("name", NAMES)
def test_transposes_are_gone(name: str) -> None:
    found, family = golden.golden()[name]["transposes"], recipes.find(name).family
    if family in FAMILIES_WITH_ONE_TRANSPOSE:
        assert found["outside"] <= 1 and found["bodies"] == 0
    if family == "vip":
        assert found["outside"] <= 1
        assert found["bodies"] > 0 and max(found["in_each_body"]) <= 2


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_worse_than_in_the_plain_export(name: str) -> None:
    found, plain = golden.golden()[name], golden.golden()[name]["plain"]
    bodies = found["transposes"]["bodies"] * max(found["transposes"]["in_each_body"], default=0)
    assert found["layers"] - CASTS.get(name, 0) <= plain["layers"]
    assert found["transposes"]["outside"] + bodies <= plain["transposes"]


@pytest.mark.parametrize("name", [name for name in NAMES if recipes.find(name).family in FAMILIES_WITH_FEWER_LAYERS])
def test_a_quarter_of_the_layers_is_gone(name: str) -> None:
    assert golden.golden()[name]["layers"] <= FEWER * golden.golden()[name]["plain"]["layers"]


def test_the_stored_plain_export_is_that_of_the_network() -> None:
    """Of the smallest; `python -m tests.golden` measures all."""
    plain = golden.plain(*golden.load(SMALL))
    stored = golden.golden()[SMALL]["plain"]
    assert (plain.total.layers, plain.total.transposes) == (stored["layers"], stored["transposes"])


@each(PLAIN)
def test_a_quarter_of_the_layers_is_gone_with_the_constructors_weights(name: str) -> None:
    recipe = recipes.find(name)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        kind, _, model = recipe.factory.partition(":")
        network = timm.create_model(model) if kind == "timm" else getattr(vip, model)()
    spec = TensorSpec("input", recipe.input_shape, torch.float32)
    found = golden.measure(network.eval().requires_grad_(False), [spec])
    assert found["layers"] <= FEWER * PLAIN[name]


def test_every_family_is_measured_and_its_recipes_list_what_fires() -> None:
    assert {recipes.find(name).family for name in NAMES} == {recipe.family for recipe in recipes.recipes().values()}
    for name in NAMES:
        assert dict(recipes.find(name).rules) == golden.golden()[name]["rules"], f"python -m tests.golden {name}"


def test_the_recipes_files_take_new_counts_and_keep_the_rest() -> None:
    for path in sorted((REPOSITORY / "recipes").glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        for name in (name for name in NAMES if f"[networks.{name}]" in text):
            other = golden.with_rules(text, name, {"a_rule": 3})
            assert other != text and other.count("rules = { a_rule = 3 }") == 1
            assert golden.with_rules(other, name, dict(recipes.find(name).rules)) == text
