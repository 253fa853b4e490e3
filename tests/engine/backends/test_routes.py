"""TensorRT's build routes: what the library offers, what the builder is asked for, and what an older one says."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from mlpdeploy.engine.backend import BuildRequest, backends, pick
from mlpdeploy.engine.backends.tensorrt import _features, _routes
from mlpdeploy.engine.batch import Batch
from mlpdeploy.engine.build_route import joined, settings
from mlpdeploy.errors import BuildError, InputError, MachineLacks
from tests.engine.small_networks import emitted

REQUEST = BuildRequest("fp16", Batch(1, 2, 4))
TRT = SimpleNamespace(__name__="tensorrt", __version__="11.4.0")


def setting(option: str, allowed: str, default: str) -> dict[str, str]:
    return {"option": option, "allowed_values": f"{option}={allowed}", "default_value": default, "help": "what it does"}


DATABASE = {
    "tuner_version": "2.19.15",
    "tuner_options": [
        setting("-conv_use_long_w", "[on|off]", "on"),
        setting("-kgen:codegen:cuda_tile", "[0| 1 |2|2]", "1"),
        setting("-seconds", "[0|...]", "0"),
        setting("-anything", "<text>", ""),
        setting("-no default", "[a b|c]", ""),
        setting("-other", "[on|off]", "auto"),
    ],
}
OFFERED = (
    "-conv_use_long_w=off", "-kgen:codegen:cuda_tile=0", "-kgen:codegen:cuda_tile=2", "-other=on", "-other=off",
)  # fmt: skip


class Config:
    """An IBuilderConfig of 11.1 or later, whose setter leaves out what it does not know and says nothing."""

    all_build_routes = json.dumps(DATABASE)

    def __init__(self) -> None:
        self.route = ""

    @property
    def build_route(self) -> str:
        return self.route

    @build_route.setter
    def build_route(self, route: str) -> None:
        if all(word in OFFERED for word in route.split()):
            self.route = route


def test_every_value_of_a_closed_set_but_the_default_is_a_route() -> None:
    assert _routes.read(TRT, json.dumps(DATABASE)) == OFFERED
    assert _routes.read(TRT, "") == _routes.read(TRT, '{"tuner_options": []}') == ()


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", "7", '{"tuner_options": {}}', '{"tuner_options": [1]}', "[" * 10**5, '{"tuner_options": [{}]}'],
)
def test_a_list_that_cannot_be_read_is_one_line(text: str) -> None:
    with pytest.raises(BuildError, match=r"TensorRT 11\.4\.0: its list of build routes") as raised:
        _routes.read(TRT, text)
    assert "\n" not in str(raised.value)


def test_the_builder_is_asked_for_a_route_and_what_it_refuses_is_an_error() -> None:
    config = Config()
    _routes.ask(TRT, config, " ".join(OFFERED[:2]))
    assert config.build_route == "-conv_use_long_w=off -kgen:codegen:cuda_tile=0"
    with pytest.raises(BuildError, match=r"does not take -x=1 of the build route"):
        _routes.ask(TRT, Config(), f"{OFFERED[0]} -x=1".partition(" ")[2])
    old = SimpleNamespace()
    _routes.ask(TRT, old, "")
    assert not vars(old)
    with pytest.raises(BuildError, match=r"no build routes, which 11\.1 brought"):
        _routes.ask(TRT, old, "-x=1")
    assert not vars(old)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (SimpleNamespace(), "TensorRT 11.4.0 has no build routes, which 11.1 brought: pip install -U tensorrt"),
        (SimpleNamespace(all_build_routes=""), "offers no build routes on this platform: drop --tactics"),
    ],
)
def test_a_library_without_them_is_one_line(config: Any, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "polygraphy.backend.trt.util", SimpleNamespace(get_trt_logger=list))
    trt = SimpleNamespace(**vars(TRT), Builder=lambda _: SimpleNamespace(create_builder_config=lambda: config))
    with pytest.raises(MachineLacks, match=said):
        _routes.offered(trt)
    found = SimpleNamespace(**vars(TRT), Builder=lambda _: SimpleNamespace(create_builder_config=Config))
    assert _routes.offered(found) == OFFERED


def test_without_a_gpu_plain_tensorrt_says_so_before_it_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backends()["tensorrt"]
    monkeypatch.setattr(type(backend), "executable", lambda self: "no NVIDIA GPU")
    with pytest.raises(MachineLacks, match="no NVIDIA GPU"):
        backend.routes()


@pytest.mark.parametrize("name", sorted(set(backends()) - {"tensorrt"}))
def test_the_others_have_none(name: str) -> None:
    assert not backends()[name].has_routes and backends()["tensorrt"].has_routes


def test_a_route_that_a_backend_has_not_is_one_line() -> None:
    with pytest.raises(InputError, match=r"backend openvino has no build routes.*: drop --build-route"):
        pick("openvino", "fp32", request=replace(REQUEST, route="-x=1"))


def test_a_stripped_engine_is_that_of_a_route() -> None:
    model, gpu = emitted("fp16").model, ({"tensorrt": "11.4"}, "Stand-in")
    assert _features.structure(model, REQUEST, *gpu) != _features.structure(model, replace(REQUEST, route="-x=1"), *gpu)


def test_words_of_a_route() -> None:
    assert settings(" -a=1\t-b:c=on ") == {"-a": "1", "-b:c": "on"} and settings("") == {}
    assert joined("-a=1 -b=2", "-a=3") == "-a=3 -b=2"
    for odd in ("a=1", "-a", "-a=", "-=1", "-a=1=2", "-a=[1|2]", "-a=\x1b"):
        with pytest.raises(InputError, match="build route"):
            settings(odd)
