"""Recipes, names, and the networks they stand for."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import mlpdeploy
from mlpdeploy.errors import InputError, MachineLacks
from mlpdeploy.network import factory
from mlpdeploy.network.finding import find
from mlpdeploy.network.source import complete, reference
from mlpdeploy.selection.choice import NetworkChoice
from mlpdeploy.zoo.recipe import canonical, recipes

PROMISED = (
    "vip_s14", "vip_s7", "vip_m7", "vip_l7", "mixer_s32", "mixer_s16", "mixer_b16", "resmlp_12", "resmlp_24",
    "resmlp_36", "gmlp_s16", "gmixer_24", "vit_small_patch16_224",
)  # fmt: skip


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is the current one, with a module of the user's in it."""
    (tmp_path / "user_nets.py").write_text(
        """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, num_classes=4):
        super().__init__()
        self.fc = nn.Linear(3, num_classes)
    def forward(self, x):
        return self.fc(x.mean((2, 3)))

def make_net():
    net = Net()
    net.default_cfg = {"input_size": (3, 8, 8), "mean": (0.5, 0.5, 0.5)}
    return net

def sized(image_size=8, **others):
    return Net()

instance = make_net()
number = 3

def no_network():
    return 3

def raises():
    raise RuntimeError("no weights\\nhere")
"""
    )
    (tmp_path / "rude_nets.py").write_text(
        """
import sys
import torch
from torch import nn
from mlpdeploy.errors import GateFailed

def raising(error):
    def make():
        raise error
    return make

exits, exits_silently, stops = raising(SystemExit(0)), raising(SystemExit()), raising(GeneratorExit())
raises_the_root, fools, interrupts = map(raising, (BaseException("root"), GateFailed("fooled"), KeyboardInterrupt))
script = lambda: torch.jit.script(nn.Linear(2, 2))
empty = lambda: nn.Linear(2, 2, device="meta")
compiled = lambda: torch.compile(nn.Linear(2, 2))
parallel = lambda: nn.DataParallel(nn.Linear(2, 2))
both = lambda: torch.compile(nn.DataParallel(nn.Linear(2, 2)))

def in_double():
    torch.set_default_dtype(torch.float64)
    return nn.Linear(2, 2)

def on_meta():
    torch.set_default_device("meta")
    return nn.Linear(2, 2)
"""
    )
    (tmp_path / "broken_nets.py").write_text("1 / 0\n")
    (tmp_path / "lacking_nets.py").write_text("import no_such_library_anywhere\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for module in ("user_nets", "rude_nets", "broken_nets", "lacking_nets"):
        sys.modules.pop(module, None)
    return tmp_path


def test_every_promised_recipe_is_there() -> None:
    assert set(PROMISED) <= recipes().keys()
    assert canonical("vip_s") == "vip_s7"


def test_names_and_aliases_are_unique() -> None:
    names = [*recipes(), *(alias for recipe in recipes().values() for alias in recipe.aliases)]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", PROMISED)
def test_stored_facts_are_those_of_the_network(name: str) -> None:
    recipe = recipes()[name]
    with torch.device("meta"):
        network = factory.make(recipe, NetworkChoice(recipe.name)).eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == recipe.parameters
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = network(torch.zeros(1, *recipe.input_shape, device="meta"))
    assert logits.shape == (1, recipe.num_classes)
    assert recipe.gmacs == pytest.approx(counter.get_total_flops() / 2e9, abs=5e-4)
    config = getattr(network, "pretrained_cfg", None)
    if config is not None:
        assert (recipe.mean, recipe.std, recipe.crop) == (config["mean"], config["std"], config["crop_pct"])
        assert recipe.interpolation == config["interpolation"]


@pytest.mark.parametrize("name", PROMISED)
def test_every_precision_has_a_budget_and_lower_ones_allow_more(name: str) -> None:
    budgets = recipes()[name].budgets
    allowed = [budgets[precision].max_relative_error for precision in ("fp32", "fp16", "bf16")]
    assert allowed == sorted(allowed)
    assert set(recipes()[name].precisions) <= budgets.keys()
    assert all(budget.min_top1_agreement >= 0.9 for budget in budgets.values())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("vip_s8", "did you mean .*vip_s7"),
        ("mixer", "did you mean mixer_"),
        ("", "no network"),
        ("zzzzzz", "mlpdeploy list"),
        ("timm:", "is not a network"),
        (":make", "is not a network"),
        ("timm:mixer_b16", "did you mean timm:mixer_"),
        ("timm:mixer_b16_224.no_such_tag", "no weights 'no_such_tag': it has .*goog_in21k"),
        ("no_such_package.nets:make", "no module 'no_such_package'"),
        ("lacking_nets:make", "no module 'no_such_library_anywhere', which lacking_nets uses"),
        ("broken_nets:make", "importing 'broken_nets' failed: ZeroDivisionError"),
        ("user_nets:make_nett", "has no 'make_nett': did you mean make_net"),
        ("user_nets:number", "is a int"),
    ],
)
def test_names_that_name_nothing(nets: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        find(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("user_nets:no_network", {}, "made a int"),
        ("user_nets:raises", {}, "RuntimeError: no weights$"),
        ("user_nets:make_net", {"num_classes": 3}, "takes no argument num_classes"),
        ("user_nets:instance", {"num_classes": 3}, "is a network already"),
        ("vip_s7", {"image_size": 256}, "image size 256.*only 224 fits"),
        ("vip_s7", {"pretrained": True}, "no pretrained weights"),
        ("mixer_b16", {"pretrained": True, "num_classes": 10}, "have 1000 classes, not 10"),
        ("mixer_s32", {"pretrained": True}, "no pretrained weights"),
        ("resmlp_12", {"image_size": 7}, "cannot be built with image size 7|takes no"),
        ("vip_s7", {"checkpoint": "x", "pretrained": True}, "exclude each other"),
        ("vip_s7", {"input_shape": (3, 8, 8)}, "--image-size"),
    ],
)
def test_networks_that_cannot_be_made(nets: Path, name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        reference(name, **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["user_nets:Net", "user_nets:make_net", "user_nets:instance", "user_nets:sized"])
def test_users_networks_may_be_classes_functions_or_instances(nets: Path, name: str) -> None:
    first, second = reference(name, seed=3), reference(name, seed=3)
    assert not first.training
    for key, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[key])


def test_users_networks_keep_the_weights_that_they_come_with(nets: Path) -> None:
    kept = factory.imported("user_nets:instance").fc.weight.clone()
    assert torch.equal(reference("user_nets:instance").state_dict()["fc.weight"], kept)


def test_options_reach_a_users_factory(nets: Path) -> None:
    assert reference("user_nets:Net", num_classes=9)(torch.randn(2, 3, 8, 8)).shape == (2, 9)
    assert isinstance(reference("user_nets:sized", image_size=16, num_classes=3), nn.Module)


def test_input_shape_comes_from_the_user_or_from_the_network(nets: Path) -> None:
    with_config, without = find("user_nets:make_net"), find("user_nets:Net")
    known = complete(with_config, reference("user_nets:make_net"))
    assert (known.input_shape, known.mean) == ((3, 8, 8), (0.5, 0.5, 0.5))
    assert complete(with_config, reference("user_nets:make_net"), image_size=16).input_shape == (3, 16, 16)
    assert complete(without, reference("user_nets:Net"), input_shape=(3, 4, 6)).input_shape == (3, 4, 6)
    with pytest.raises(InputError, match="--input-shape"):
        complete(without, reference("user_nets:Net"))


def test_any_timm_model_is_a_network() -> None:
    recipe = find("timm:resnet18")
    network = reference("timm:resnet18", num_classes=7, image_size=64)
    recipe = complete(recipe, network, image_size=64, num_classes=7)
    assert (recipe.input_shape, recipe.num_classes) == ((3, 64, 64), 7)
    logits = network(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7) and bool(logits.isfinite().all()) and bool(logits.std() > 0)


def test_pretrained_weights_without_network_access(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> nn.Module:
        raise OSError("cannot reach the hub\nretried 3 times")

    monkeypatch.setattr(huggingface_hub, "get_session", lambda: SimpleNamespace(head=lambda *_, **__: None))
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(MachineLacks, match=r"could not fetch .*cannot reach the hub\).*--checkpoint") as caught:
        reference("mixer_b16", pretrained=True)
    assert "\n" not in str(caught.value)


class Unreachable:
    """A client of HTTP on a machine that reaches nothing; it counts how often it was asked."""

    asked = 0

    def head(self, url: str, timeout: float) -> None:
        self.asked += 1
        raise OSError(f"nothing answers at {url}")


def test_a_hub_that_does_not_answer_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Unreachable()
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: client)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_, **__: None)
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("the hub was asked for the weights"))
    with pytest.raises(MachineLacks, match=r"mixer_b16_224.*nothing answers at .*--checkpoint FILE"):
        reference("mixer_b16", pretrained=True)
    assert client.asked == 1


def test_weights_in_the_hubs_cache_need_no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    trained = reference("timm:test_vit", seed=3)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    cached = {"model.safetensors": str(tmp_path / "model.safetensors")}
    monkeypatch.setattr(huggingface_hub, "get_session", Unreachable)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda _, file, **__: cached.get(file))
    found = reference("timm:test_vit", pretrained=True, seed=4).state_dict()
    assert all(torch.equal(tensor, found[key]) for key, tensor in trained.state_dict().items())


def test_random_weights_depend_on_the_seed_only() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = reference("mixer_s32", seed=1).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = reference("mixer_s32", seed=1).state_dict(), reference("mixer_s32", seed=2).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert all(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize("name", ["mixer_s32", "resmlp_36", "gmlp_s16", "gmixer_24", "vip_s14"])
def test_random_weights_leave_no_branch_dead_and_nothing_explodes(name: str) -> None:
    network = reference(name, seed=0)
    constant = [key for key, value in network.state_dict().items() if value.numel() > 1 and value.min() == value.max()]
    assert not constant
    largest: list[float] = []
    for module in network.modules():
        module.register_forward_hook(lambda _, __, out: largest.append(float(out.abs().max())))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        logits = network(torch.randn(2, 3, 224, 224, generator=generator))
    assert max(largest) < 100  # FP16 ends at 65504
    assert logits.std() > 0.02
    assert (logits[0] - logits[1]).std() > 0.05 * logits.std()  # the image matters, not only the biases


def test_batchnorm_statistics_are_drawn_too() -> None:
    network = reference("timm:resnet18")
    norm = next(module for module in network.modules() if isinstance(module, nn.BatchNorm2d))
    assert norm.running_mean is not None and norm.running_var is not None
    assert norm.running_mean.std() > 0 and norm.running_var.std() > 0.1


@pytest.mark.parametrize(("gelu", "approximate"), [("erf", "none"), ("tanh", "tanh")])
def test_recipe_chooses_the_gelu(gelu: str, approximate: str) -> None:
    recipe = replace(recipes()["mixer_s32"], gelu=gelu)  # type: ignore[arg-type]
    network = factory.make(recipe, NetworkChoice(recipe.name))
    found = {module.approximate for module in network.modules() if isinstance(module, nn.GELU)}
    assert found == {approximate}


def test_reference_is_the_packages_own() -> None:
    assert mlpdeploy.reference is reference
    network = mlpdeploy.reference("mixer_s32", num_classes=10, image_size=64)
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 10)
    assert not any(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.filterwarnings("ignore:.torch.jit.script.* is deprecated")
@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("exits", r"SystemExit: 0"),
        ("exits_silently", r"SystemExit$"),
        ("stops", r"GeneratorExit$"),
        ("raises_the_root", r"BaseException: root"),
        ("fools", r"GateFailed: fooled"),
        ("script", r"TorchScript.*give the nn.Module it was made of"),
        ("empty", r"weight is on the meta device"),
    ],
)
def test_what_a_factory_does_to_the_process_is_one_line(nets: Path, factory: str, message: str) -> None:
    """An exit would else end a command with the code 0 and no engine."""
    with pytest.raises(InputError, match=message) as caught:
        reference(f"rude_nets:{factory}")
    assert "\n" not in str(caught.value)


def test_an_interruption_in_a_factory_interrupts(nets: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        reference("rude_nets:interrupts")


@pytest.mark.parametrize("factory", ["compiled", "parallel", "both"])
def test_a_wrapped_network_is_the_network(nets: Path, factory: str) -> None:
    assert type(reference(f"rude_nets:{factory}")) is torch.nn.Linear


@pytest.mark.parametrize("factory", ["in_double", "on_meta"])
def test_what_a_factory_sets_for_torch_is_not_set_for_others(nets: Path, factory: str) -> None:
    with contextlib.suppress(InputError):
        reference(f"rude_nets:{factory}")
    made = torch.zeros(2)
    assert made.dtype == torch.float32 and made.device.type == "cpu"
