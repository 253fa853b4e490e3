"""`mlpdeploy list` and `mlpdeploy doctor`: what there is, within 80 columns and as JSON."""

from __future__ import annotations

import json

from mlpdeploy.zoo.recipe import recipes
from tests.conftest import Cli


def test_list_shows_every_recipe_within_80_columns(cli: Cli) -> None:
    printed = cli("list").stdout
    assert all(len(line) <= 80 for line in printed.splitlines())
    for name in recipes():
        assert f"  {name} " in printed
    assert "vip_s7 (vip_s)" in printed


def test_list_of_some_says_which_rules_fire(cli: Cli) -> None:
    printed = cli("list", "VIP_S").stdout
    assert "vip_s14" in printed and "vip_l7" not in printed and "project_segments 36" in printed
    assert "TensorRT launches " in printed and "; only copy " in printed and "; transpose " in printed
    assert "that only copy: network.*.proj 1" in printed and "network.*.*.attn.mlp_w " in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert [entry["name"] for entry in json.loads(cli("list", "vip_s", "--json").stdout)] == ["vip_s14", "vip_s7"]
    refused = cli("list", "no such net", code=2)
    assert "no recipe or family has 'no such net' in its name; the families are" in refused.stderr


def test_list_as_json(cli: Cli) -> None:
    document = json.loads(cli("list", "--json").stdout)
    vip = next(entry for entry in document if entry["name"] == "vip_s7")
    assert (vip["family"], vip["parameters"], vip["gmacs"], vip["top1"]) == ("vip", 25114984, 6.902, 81.5)
    assert vip["input_shape"] == [3, 224, 224] and "fp16" in vip["precisions"] and "rules" in vip


def test_doctor_names_every_backend_and_says_why_one_does_not_work(cli: Cli) -> None:
    document = json.loads(cli("doctor", "--json").stdout)
    names = {backend["name"] for backend in document["backends"]}
    assert {"tensorrt", "tensorrt-rtx", "openvino", "onnxruntime", "inductor"} <= names
    printed = cli("doctor").stdout
    assert all(len(line) <= 80 for line in printed.splitlines())
    for backend in document["backends"]:
        assert (f"{backend['name']} cannot build" in printed) == (backend["cannot_build"] is not None)
        assert (f"{backend['name']} cannot use a GPU" in printed) == (backend["cannot_use_gpu"] is not None)
        assert backend["cannot_use_gpu"] is None or backend["name"] == "inductor"
