"""The recipe of a name: one of this project's, a timm model, or a factory of the user's."""

from __future__ import annotations

from mlpdeploy.errors import InputError
from mlpdeploy.zoo.recipe import HUB, Recipe, canonical, kind, made, recipes


def find(name: str) -> Recipe:
    """The recipe of a name. Raises InputError where the name is unknown or what it names cannot be imported."""
    name = canonical(name)
    if kind(name) == "recipe":
        return recipes()[name]
    if kind(name) == "given":
        raise InputError(f"{name} was a network in hand in Python, no name finds it: pass it to mlpdeploy.compile")
    if name.startswith(HUB):
        return made(name, {"family": "timm", "factory": name, "source": "Hugging Face Hub"})
    from mlpdeploy.network import factory

    if kind(name) == "timm":
        factory.check_timm(name)
        return made(name, {"family": "timm", "factory": name, "source": "timm"})
    factory.imported(name)
    return made(name, {"family": "user", "factory": name, "source": name, "prepared": False})
