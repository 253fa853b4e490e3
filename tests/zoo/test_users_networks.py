"""Names of networks of the user's own and of the zoo: what is made of them, and one line where nothing is."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mlpdeploy.errors import InputError
from mlpdeploy.network import factory
from mlpdeploy.network.finding import find
from mlpdeploy.network.source import complete, reference


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
