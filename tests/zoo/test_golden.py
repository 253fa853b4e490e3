"""What the compiler makes of every recipe, held to numbers: of its own last measurement, and of the promise.

The measurement is benchmarks/results/graph.json, of what TensorRT parses in FP16. "before" is PyTorch's own export of
network.half() with the same weights. A transpose is a SHUFFLE layer that permutes an activation.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Collection, Iterable

import pytest
import timm
import torch

from benchmarks import common, graph
from benchmarks.recorded import fired, launched, moved, with_counts
from mlpdeploy.graph.tracing.trace import TensorSpec
from mlpdeploy.network.finding import find
from mlpdeploy.zoo import recipe as recipes
from mlpdeploy.zoo import vip
from tests.conftest import REPOSITORY

GOLDEN, LAUNCHES = (
    json.loads((REPOSITORY / "benchmarks" / "results" / f"{name}.json").read_text(encoding="utf-8"))["results"]
    for name in ("graph", "launches")
)
NAMES = [name for name in recipes.recipes() if name in GOLDEN]
SMALL = "mixer_s32"
# Layers of the plain export of networks with the weights that their constructors give them.
PLAIN = {"mixer_b16": 443, "mixer_s32": 299, "resmlp_24": 732, "gmlp_s16": 1184, "vip_s14": 1476}
FAMILIES_WITH_ONE_TRANSPOSE = ("mixer", "resmlp", "gmlp", "gmixer")
FAMILIES_WITH_FEWER_LAYERS = (*FAMILIES_WITH_ONE_TRANSPOSE, "vip")
TESTED = ("mixer_s32", "resmlp_12", "gmlp_s16", "vip_s14", "vit_small_patch16_224")
"""The smallest of each family that the tool is for."""
FEWER = 0.75
# The plain export takes and gives FP16, ours FP32: two linear layers save nothing that would make up for the casts.
CASTS = {"ff_g2m_student": 3}
AGAIN = "if this is meant: python -m benchmarks.graph "


def each(names: Iterable[str], tested: Collection[str] = TESTED) -> pytest.MarkDecorator:
    """A test of every network, of which only the smallest is fast, and all but those `tested` are large."""
    slow = pytest.mark.slow
    marks = {name: () if name == SMALL else slow if name in tested else pytest.mark.large for name in names}
    return pytest.mark.parametrize("name", [pytest.param(name, marks=mark) for name, mark in marks.items()])


@each(NAMES)
def test_nothing_has_changed(name: str) -> None:
    measured = graph.after(*common.load(name, seed=0))
    assert measured == {key: GOLDEN[name][key] for key in measured}, AGAIN + name


@pytest.mark.parametrize("name", NAMES)
def test_transposes_are_gone(name: str) -> None:
    after, family = GOLDEN[name]["after"], find(name).family
    if family in FAMILIES_WITH_ONE_TRANSPOSE:
        assert after["outside"]["transposes"] <= 1 and not after["bodies"]
    if family == "vip":
        assert after["outside"]["transposes"] <= 1
        assert {body["most_transposes"] for body in after["bodies"].values()} == {2}


@pytest.mark.parametrize("name", NAMES)
def test_every_transpose_that_is_left_has_a_reason(name: str) -> None:
    assert sum(GOLDEN[name]["reasons"].values()) == GOLDEN[name]["after"]["outside"]["transposes"]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_worse_than_in_the_plain_export(name: str) -> None:
    before, after = GOLDEN[name]["before"]["total"], GOLDEN[name]["after"]["total"]
    assert after["layers"] - CASTS.get(name, 0) <= before["layers"]
    assert after["transposes"] <= before["transposes"]


@pytest.mark.parametrize("name", [name for name in NAMES if find(name).family in FAMILIES_WITH_FEWER_LAYERS])
def test_a_quarter_of_the_layers_is_gone(name: str) -> None:
    assert GOLDEN[name]["after"]["total"]["layers"] <= FEWER * GOLDEN[name]["before"]["total"]["layers"]


def test_the_stored_plain_export_is_that_of_the_network() -> None:
    """Of the smallest; `python -m benchmarks.graph` measures all."""
    measured = graph.before(*common.load(SMALL, seed=0))
    assert measured == {key: GOLDEN[SMALL][key] for key in measured}


@each(PLAIN, tested=(SMALL,))
def test_a_quarter_of_the_layers_is_gone_with_the_constructors_weights(name: str) -> None:
    recipe = find(name)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        kind, _, model = recipe.factory.partition(":")
        network = timm.create_model(model) if kind == "timm" else getattr(vip, model)()
    spec = TensorSpec("input", recipe.input_shape, torch.float32)
    found = graph.after(network.eval().requires_grad_(False), [spec])
    assert found["after"]["total"]["layers"] <= FEWER * PLAIN[name]


def test_every_recipe_is_measured_and_lists_what_fires() -> None:
    assert list(recipes.recipes()) == NAMES
    for name in NAMES:
        assert dict(find(name).rules) == fired(GOLDEN[name]), "python -m benchmarks.tables"
        assert dict(find(name).launches) == (launched(LAUNCHES[name]) if name in LAUNCHES else {})
        assert find(name).moves == (moved(LAUNCHES[name]) if name in LAUNCHES else {})


def test_the_recipes_files_take_new_counts_and_keep_the_rest() -> None:
    for path in sorted((REPOSITORY / "recipes").glob("*.toml")):
        text = path.read_text(encoding="utf-8")
        for name in (name for name in NAMES if f"[networks.{name}]" in text):
            recipe = find(name)
            for key, own in (("rules", recipe.rules), ("launches", recipe.launches), ("moves", recipe.moves)):
                other = with_counts(text, name, key, {"one": 3})
                assert other != text and other.count(f"{key} = {{ one = 3 }}") == 1
                assert tomllib.loads(with_counts(other, name, key, own)) == tomllib.loads(text)
