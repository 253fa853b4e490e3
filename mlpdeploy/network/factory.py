"""Building a recipe's network: from `zoo/`, from timm, or from the user's own code."""

from __future__ import annotations

import difflib
import importlib
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import nn

from mlpdeploy.errors import InputError
from mlpdeploy.network import hub
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.system.guest import bare, guest, one_line, settings_kept
from mlpdeploy.zoo.recipe import HUB, Recipe, kind


def check_timm(name: str) -> None:
    """Raises InputError, with the nearest names, where timm has no model of this name (`timm:` may lead)."""
    import timm

    model, _, tag = name.removeprefix("timm:").partition(".")
    if not timm.is_model(model):
        near = difflib.get_close_matches(model, timm.list_models(), n=3)
        hint = f"did you mean {' or '.join(f'timm:{n}' for n in near)}?" if near else "see timm.list_models()"
        raise InputError(f"timm {timm.__version__} has no model {model!r}: {hint}")
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{model}.*")]
    if tag and tag not in tags:
        raise InputError(f"timm's {model} has no weights {tag!r}: it has {', '.join(tags) or 'none'}")


def imported(name: str) -> Any:
    """The object that `package.module:attribute` names, the current folder first on the path. Raises InputError."""
    module_name, _, path = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))

    def refused(error: BaseException) -> InputError:
        if not isinstance(error, ModuleNotFoundError):
            return InputError(f"importing {module_name!r} failed: {one_line(error)}")
        missing = error.name or module_name
        where = "" if module_name == missing or module_name.startswith(f"{missing}.") else f", which {module_name} uses"
        return InputError(f"there is no module {missing!r}{where}: install it, or run where it lies")

    with guest(refused):
        found: Any = importlib.import_module(module_name)
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            near = difflib.get_close_matches(attribute, [key for key in vars(found) if not key.startswith("_")], n=3)
            hint = f": did you mean {' or '.join(near)}?" if near else ""
            raise InputError(f"{module_name!r} has no {path!r}{hint}")
        found = getattr(found, attribute)
    if not isinstance(found, nn.Module) and not callable(found):
        raise InputError(f"{name} is a {type(found).__name__}: it must be an nn.Module, or make one when called")
    return found


def make(recipe: Recipe, choice: NetworkChoice, options: Mapping[str, Any] = MappingProxyType({})) -> nn.Module:
    """The network with the weights of its constructor (torch seeded by the choice's seed) or timm's pretrained ones.

    `options` are what a checkpoint asks for (see `checkpoint.translate`): arguments of the factory, or the form of
    GELU in `gelu`.
    """
    gelu = options.get("gelu", recipe.gelu)
    options = {key: value for key, value in options.items() if key != "gelu"}
    with _seeded(choice.seed), settings_kept():
        made = _make_timm(recipe, choice) if kind(recipe.factory) == "timm" else _make_object(recipe, choice, options)
    network = bare(made)
    if gelu is not None:
        set_gelu(network, "tanh" if gelu == "tanh" else "none")
    return network


def set_gelu(network: nn.Module, approximate: str) -> None:
    """Use the exact ("none") or the tanh form of GELU throughout; JAX networks were trained with the latter."""
    for module in network.modules():
        if isinstance(module, nn.GELU):
            module.approximate = approximate


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _make_timm(recipe: Recipe, choice: NetworkChoice) -> nn.Module:
    import timm

    image_size, num_classes, pretrained = choice.image_size, choice.num_classes, choice.pretrained

    name = recipe.factory.removeprefix("timm:")
    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    with ExitStack() as stack:
        if name.startswith(HUB):
            weights = [hub.WEIGHTS] if pretrained else []
            stack.enter_context(hub.reached(name.removeprefix(HUB), (hub.CONFIG,), *weights))
        elif pretrained and (config := _pretrained(recipe, name, num_classes)).hf_hub_id:
            names = tuple(filter(None, (config.hf_hub_filename, *hub.WEIGHTS)))
            stack.enter_context(hub.reached(config.hf_hub_id, names))
        sized = options if image_size is None else options | {"img_size": image_size}
        try:
            try:
                network: Any = timm.create_model(name, pretrained=pretrained, **sized)
            except TypeError as error:
                if "img_size" not in str(error):
                    raise
                # Convolutional networks take any size, so their constructors have no such argument.
                network = timm.create_model(name, pretrained=pretrained, **options)
        except Exception as error:
            if pretrained and not isinstance(error, LookupError | RuntimeError | TypeError | ValueError):
                raise hub.unreachable(name, one_line(error)) from error
            raise _refused(recipe, choice, error) from error
    if pretrained:  # of a model on the Hub, only the configuration that was fetched says it
        _require_classes(recipe, num_classes, network.pretrained_cfg["num_classes"])
    return cast(nn.Module, network)


def _pretrained(recipe: Recipe, name: str, num_classes: int | None) -> Any:
    """timm's PretrainedCfg of a network that has pretrained weights."""
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name)
    if config is None or not (config.hf_hub_id or config.url or config.file):
        raise InputError(f"timm has no pretrained weights for {name}: pass --checkpoint FILE, or neither")
    _require_classes(recipe, num_classes, config.num_classes)
    return config


def _require_classes(recipe: Recipe, asked: int | None, theirs: int) -> None:
    """Raises InputError where pretrained weights have another number of classes: timm would make a random head."""
    if asked not in (None, theirs):
        raise InputError(
            f"the pretrained weights of {recipe.name} have {theirs} classes, not {asked}: "
            "drop --num-classes, or pass --checkpoint FILE with your own head"
        )


def _make_object(recipe: Recipe, choice: NetworkChoice, options: Mapping[str, Any]) -> nn.Module:
    found = imported(recipe.factory)
    asked = {"image_size": choice.image_size, "num_classes": choice.num_classes}
    options = dict(options) | {key: value for key, value in asked.items() if value is not None}
    if isinstance(found, nn.Module):
        if options:
            raise InputError(f"{recipe.name} is a network already: {', '.join(options)} cannot be chosen any more")
        return found
    _check_accepts(recipe.name, found, options)
    with guest(lambda error: _refused(recipe, choice, error)):
        network = found(**options)
    if not isinstance(network, nn.Module):
        raise InputError(f"{recipe.name} made a {type(network).__name__}: it must make an nn.Module")
    return network


def _check_accepts(name: str, found: Callable[..., Any], options: dict[str, Any]) -> None:
    try:
        parameters = inspect.signature(found).parameters.values()
    except ValueError as error:  # of something that is not written in Python
        raise InputError(
            f"{name} is no factory of networks: name a function or class that makes an nn.Module"
        ) from error
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return
    refused = sorted(options.keys() - {parameter.name for parameter in parameters})
    if refused:
        raise InputError(f"{name} takes no argument {' or '.join(refused)}: add it there, or drop the option here")


def _refused(recipe: Recipe, choice: NetworkChoice, error: BaseException) -> InputError:
    parts = [] if choice.image_size is None else [f"image size {choice.image_size}"]
    parts += [] if choice.num_classes is None else [f"{choice.num_classes} classes"]
    asked = f" with {' and '.join(parts)}" if parts else ""
    reason = next(iter(str(error).splitlines()), "") if isinstance(error, ValueError) else ""
    return InputError(f"{recipe.name} cannot be built{asked}: {reason or one_line(error)}")
