"""Networks that cannot be walked, hold no numbers, cannot be copied, or touch the streams of the process."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from mlpdeploy.errors import InputError
from mlpdeploy.system.guest import LONGEST, copied, guest, one_line, require_usable
from tests.conftest import Cli

NETWORKS = """
import atexit, os, sys
import torch
from torch import nn

class Net(nn.Linear):
    def __init__(self): super().__init__(8, 4)

class ClosesStdout(Net):
    def forward(self, x): sys.stdout.close(); return super().forward(x)

class ClosesDescriptor(Net):
    def __init__(self): super().__init__(); os.close(1)

class ClosesBoth(Net):
    def __init__(self): super().__init__(); sys.stdout.close(); sys.stderr.close()

class LeavesLittle(Net):
    def __init__(self):
        super().__init__()
        os.close(1), os.close(2), os.chdir("/")
        atexit.register(lambda: (print("goodbye from the network"), os.write(1, b"raw goodbye")))

class Mute(Exception):
    def __str__(self): raise RuntimeError("no text")

class Raises(Net):
    def __init__(self): raise Mute

class NoStdout(Net):
    def __init__(self): super().__init__(); sys.stdout = None

class Prints(Net):
    def __init__(self): super().__init__(); print("hello from the network"); os.write(1, b"raw from the network\\n")
    def forward(self, x): print("forward of the network"); return super().forward(x)

class WithNone(Net):
    def forward(self, x): return {"loss": None, "logits": super().forward(x)}

class NoCopy(Net):
    def __deepcopy__(self, memo): raise RuntimeError("no copies")
"""
OPTIONS = ("--input-shape", "8", "--precision", "fp32", "--backend", "onnxruntime", "--batch", "1:2:4")


def parented() -> nn.Module:
    network = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    network[1].parent = network
    return network


def nested(depth: int) -> nn.Module:
    network: nn.Module = nn.Linear(2, 2)
    for _ in range(depth):
        network = nn.Sequential(network)
    return network


def test_a_module_inside_itself_is_named() -> None:
    with pytest.raises(InputError, match=r"Sequential: 1\.parent is a module inside of which it lies"):
        require_usable(parented())


def test_modules_too_deep_to_follow_are_one_line() -> None:
    with pytest.raises(InputError, match="nests modules deeper"):
        require_usable(nested(5000))


def test_a_lazy_weight_is_named() -> None:
    with pytest.raises(InputError, match=r"0\.weight is lazy and has no shape yet"):
        require_usable(nn.Sequential(nn.LazyLinear(3)))


def test_what_can_be_walked_may_share_modules() -> None:
    shared = nn.Linear(2, 2)
    require_usable(nn.Sequential(shared, nn.Sequential(shared, shared), nested(20)))


def test_a_copy_that_is_refused_is_one_line() -> None:
    class NoCopy(nn.Linear):
        def __deepcopy__(self, memo: object) -> nn.Module:
            raise RuntimeError("no copies")

    with pytest.raises(InputError, match="NoCopy cannot be copied: RuntimeError: no copies"):
        copied(NoCopy(2, 2))
    network = nn.Linear(2, 2)
    assert torch.equal(copied(network).weight, network.weight) and copied(network) is not network


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
def test_a_weight_that_was_computed_is_copied_with_its_numbers() -> None:
    network = nn.Sequential(nn.utils.weight_norm(nn.Linear(3, 2)))
    x = torch.ones(1, 3)
    expected = network(x)  # keeps the weight that it computed, with its history
    other = copied(network)
    assert torch.equal(other(x), expected) and other[0].weight is not network[0].weight
    assert torch.allclose(other.double()(x.double()), expected.double())


@pytest.fixture
def run(cli: Cli, tmp_path: Path) -> Cli:
    """`mlpdeploy VERB nets:NAME`, those networks lying where it runs."""
    (tmp_path / "nets.py").write_text(NETWORKS)
    return lambda verb, name, *more, code=0: cli(verb, f"nets:{name}", *OPTIONS, "--out", "out", *more, code=code)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["Prints", "ClosesDescriptor", "ClosesBoth", "LeavesLittle", "NoStdout"])
def test_stdout_holds_one_document_whatever_a_network_does_to_it(name: str, run: Cli) -> None:
    found = run("build", name, "--json")
    assert json.loads(found.stdout)["manifest"]["selection"]["name"] == f"nets:{name}"
    if name == "LeavesLittle":
        assert "goodbye from the network" in found.stderr and "raw goodbye" in found.stderr
    if name == "Prints":
        assert "hello from the network" in found.stderr and "raw from the network" in found.stderr


@pytest.mark.slow
def test_a_stream_that_a_network_closes_is_not_the_one_of_results(run: Cli) -> None:
    found = run("build", "ClosesStdout", "--json", code=2)
    assert "ClosesStdout: ValueError: I/O operation on closed file" in json.loads(found.stdout)["error"]["message"]


@pytest.mark.slow
def test_an_error_that_has_no_text_is_its_name(run: Cli) -> None:
    assert run("build", "Raises", code=2).stderr.splitlines()[-1].endswith("cannot be built: Mute")


def test_an_error_of_pages_is_cut() -> None:
    assert one_line(ValueError("x" * 5000)) == f"ValueError: {'x' * (LONGEST - 13)}…"


@pytest.mark.slow
def test_outputs_that_are_none_are_left_out(run: Cli) -> None:
    run("build", "WithNone")
    run("verify", "WithNone")
    found = json.loads(run("bench", "WithNone", "--batch", "1", "--against", "eager", "--time", "0.1", "--json").stdout)
    assert [one["name"] for one in found["measurements"][0]["contenders"]] == ["engine", "eager"]


@pytest.mark.slow
def test_a_network_that_refuses_to_be_copied_is_built_and_its_verification_says_why_not(run: Cli) -> None:
    run("build", "NoCopy")
    found = run("verify", "NoCopy", code=2)
    assert "error: NoCopy cannot be copied: RuntimeError: no copies" in found.stderr


def test_the_depth_of_calls_may_grow_and_not_shrink() -> None:
    before = sys.getrecursionlimit()
    try:
        for given, kept in ((before - 100, before), (before + 100, before + 100)):
            with guest(lambda error: InputError(str(error))):
                sys.setrecursionlimit(given)
            assert sys.getrecursionlimit() == kept
    finally:
        sys.setrecursionlimit(before)
