"""The logits of every recipe are those of a definition of its own, which reads the tensors of a checkpoint by key.

Activations, epsilons and the order of operations have no key: a checkpoint loads without them and answers wrongly. So a
definition uses nothing of `mlpdeploy.zoo` or timm. All is in float64, parameters and statistics random.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import numpy as np
import pytest
import torch

from mlpdeploy.network import random_weights, source
from mlpdeploy.network.finding import find
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo import recipe as recipes
from tests.graph.proof import tensors
from tests.zoo import definitions
from tests.zoo.definitions.tensors import Keys

ROWS = 2
TOLERANCE = 1e-12
SIZES = {"activator": 16, "cycle_mlp": 64, "deep_eraser": 16, "hire_mlp": 64, "maxim": 64, "wave_mlp": 64}
"""Of images, for families that take any."""


def defined() -> set[str]:
    """The families that have a definition: a file each."""
    return {module.name for module in pkgutil.iter_modules(definitions.__path__)} - {"tensors"}


def test_every_family_has_a_definition() -> None:
    assert {recipe.family for recipe in recipes.recipes().values()} == defined()


def smallest_first() -> list[object]:
    """Every recipe; of a family, all but the one with the fewest operations are large."""
    found = sorted(recipes.recipes().values(), key=lambda recipe: (recipe.family, recipe.gmacs))
    first: set[str] = set()
    params: list[object] = []
    for recipe in found:
        params.append(pytest.param(recipe.name, marks=[pytest.mark.large] if recipe.family in first else []))
        first.add(recipe.family)
    return params


@pytest.mark.parametrize("name", smallest_first())
def test_it_computes_what_it_is_defined_as(name: str) -> None:
    family = find(name).family
    found = source.source_of(NetworkChoice(name, image_size=SIZES.get(family)))
    network = found.network.double()
    random_weights.randomise(network, 1)
    rng = np.random.default_rng(0)
    inputs = [torch.from_numpy(spec.draw(ROWS, rng)) for spec in found.specs()]
    inputs = [one.double() if one.is_floating_point() else one for one in inputs]
    definition: Callable[..., object] = importlib.import_module(f"{definitions.__name__}.{family}").outputs
    with torch.no_grad():
        got, wanted = tensors(network(*inputs)), tensors(definition(name, Keys(network.state_dict()), *inputs))
    assert len(got) == len(wanted)
    for one, other in zip(got, wanted, strict=True):
        assert one.shape == other.shape and bool(torch.isfinite(other).all()) and float(other.std()) > 0
        torch.testing.assert_close(one, other, rtol=TOLERANCE, atol=TOLERANCE * float(other.abs().max()))
