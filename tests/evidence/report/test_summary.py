from __future__ import annotations

import copy
import re
from typing import Any

import pytest

from mlpdeploy.evidence.report.summary import REFUSALS, report
from tests.evidence import examples

MANIFEST: dict[str, Any] = {
    "created": "2030-01-02T03:04:05+00:00",
    "recipe": {"name": "vip_s7", "family": "vip", "source": "Hou et al. 2021", "parameters": 25_114_984},
    "selection": {
        "name": "vip_s7", "precision": "fp16", "backend": "tensorrt-rtx", "batch": "1:8:32", "checkpoint": None,
        "image_size": None, "num_classes": None, "input_shape": None, "gpus": ["sm86", "sm89"], "seed": 3,
        "disabled_rules": ["project_tokens"], "pretrained": False, "io": "fp32", "level": None,
    },
    "weights": {"text": "random weights from seed 3; no checkpoint was given", "random": True},
    "precision": "fp16",
    "batch": {"min": 1, "opt": 8, "max": 32},
    "inputs": [{"name": "input", "shape": ["batch", 3, 224, 224], "dtype": "float32"}],
    "outputs": [{"name": "output", "shape": ["batch", 1000], "dtype": "float32"}],
    "backend": "tensorrt-rtx",
    "versions": {"mlpdeploy": "0.1", "torch": "2.15.0"},
    "gpus": ["sm86", "sm89"],
    "facts": {"parsed": {"dtypes": {"MATRIX_MULTIPLY": {"HALF": 108}}}},
    "rules": [
        {"name": "project_segments", "fired": 36, "refused": [], "seconds": 0.5},
        {"name": "fold_affine", "fired": 0, "refused": [{"where": "head", "reason": "a | b\nc"}], "seconds": 0.0},
    ],
    "transposes": [
        {"where": "stem", "permutation": "batch 8 4 -> batch 4 8", "reason": "conv2d gives | layer_norm wants"},
        {"where": "stem.2", "permutation": "batch 8 4 -> batch 4 8", "reason": "conv2d gives | layer_norm wants"},
    ],
    "kept_fp32": [{"node": "mul_3", "module": "network.0.1", "reason": "reaches 7e4"}],
    "ops": {"before": {"aten::permute": 109, "aten::linear": 50}, "after": {"aten::linear": 50, "aten::permute": 1}},
    "dtypes": {"aten::linear": {"float16": 50}},
    "seconds": {"trace": 2.0, "build": 5.5},
    "files": {"model.onnx": {"bytes": 50_300_000, "sha256": "ab" * 32}},
}  # fmt: skip

BUDGET = {"max_relative_error": 1e-2, "min_top1_agreement": 0.99}


def stage(name: str, status: str, reason: str = "", **more: Any) -> dict[str, Any]:
    empty = {"max_relative": None, "checks": [], "images": None, "seconds": 1.0, "budget": BUDGET}
    return {"name": name, "status": status, "reason": reason, **empty, **more}


VERIFICATION: dict[str, Any] = {
    "passed": True,
    "verdict": "passed (engine not executed)",
    "sizes": [1, 8, 32],
    "rows": 8,
    "inputs": "random",
    "seed": 3,
    "notes": [],
    "stages": [
        stage("typed graph, PyTorch", "passed", max_relative=7.1e-4, checks=[{"agreement": {"top1": 0.75}}]),
        stage("engine", "not executed", "built, not executed: no NVIDIA GPU"),
    ],
}


def test_the_report_says_what_was_built_from_what() -> None:
    text = report(MANIFEST)
    assert text.startswith("# vip_s7, fp16, tensorrt-rtx\n")
    assert "**random weights from seed 3; no checkpoint was given**" in text
    assert "| `aten::permute` | 109 | 1 |" in text and "| all | 159 | 51 |" in text
    assert "| `project_segments` | 36 | 0 | 0.50 |" in text
    assert "| `MATRIX_MULTIPLY` | 108 x HALF |" in text and "- `network.0.1`: reaches 7e4" in text
    assert "| all | 7.50 |" in text and "| `model.onnx` | 50.3 | `abababababababab` |" in text
    same = "--seed 3 --gpu sm86,sm89 --disable-rule project_tokens"
    chosen = f"vip_s7 --precision fp16 --backend tensorrt-rtx --batch 1:8:32 {same}"
    assert f"Not verified yet: run `mlpdeploy verify {chosen}`." in text
    assert f"mlpdeploy build {chosen}\nmlpdeploy verify {chosen}\n" in text
    assert f"Not measured: run `mlpdeploy bench {chosen.replace(' --batch 1:8:32', '')}`." in text


def test_weights_from_a_checkpoint_are_not_shouted() -> None:
    manifest = MANIFEST | {"weights": {"text": "weights from a.pth", "random": False}}
    assert "| weights | weights from a.pth |" in report(manifest)


def test_an_engine_that_did_not_run_is_never_reported_as_passed() -> None:
    text = report(MANIFEST, VERIFICATION)
    assert "**passed (engine not executed)**" in text
    assert "| engine | not executed |  | 1e-02 |  |  | 1.0 |" in text
    assert "- engine: built, not executed: no NVIDIA GPU" in text
    assert "| typed graph, PyTorch | passed | 7.1e-04 | 1e-02 |  | (75%) | 1.0 |" in text
    assert "random, seed 3" in text


def test_real_images_give_agreement_and_accuracy() -> None:
    found = copy.deepcopy(VERIFICATION)
    found["inputs"] = "images"
    found["stages"][0]["images"] = {"agreement": {"top1": 0.995, "images": 200}, "accuracy": 0.8}
    text = report(MANIFEST, found)
    assert "99.50% of 200 images, 80.00% right" in text and "real images" in text


def test_an_evaluation_is_told_with_its_intervals_and_its_test() -> None:
    text = report(MANIFEST, VERIFICATION, None, examples.evaluation(MANIFEST))
    assert "**the engine is right less often than PyTorch (p = 0.0074)**" in text
    assert "| PyTorch | 81.00% | 72.22% to 87.49% | 95.00% | 88.82% to 97.85% |" in text
    assert "- only the engine is right in 2, only PyTorch in 13; McNemar's exact test: p = 0.0074" in text
    assert "&lt;b>.png: is not a readable image" in text
    assert "**Accuracy: The engine is right less often than PyTorch (p = 0.0074).**" in text
    assert "Evaluation" not in report(MANIFEST, VERIFICATION)


def test_every_table_is_well_formed_whatever_the_reasons_hold() -> None:
    text = report(MANIFEST, VERIFICATION)
    assert "- `fold_affine` refused at `head`: a \\| b c" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1, block


def test_transposes_that_are_left_are_counted_by_reason() -> None:
    row = "| 2 | conv2d gives \\| layer_norm wants | `stem` (batch 8 4 -> batch 4 8) |"
    assert row in report(MANIFEST)
    assert "## Transposes that are left\n\nNone." in report(MANIFEST | {"transposes": []})


def test_on_a_gpu_the_copies_stand_beside_the_computing() -> None:
    text = report(MANIFEST, VERIFICATION, examples.on_gpu(examples.bench(MANIFEST)))
    assert "| 1 | engine | 0.0625 | 1.5 | 0.0156 | 1.58 | yes |" in text
    assert "| 1 | eager | 0.0625 | 3.25 | 0.0156 | 3.33 | no: it waits while it computes |" in text
    assert "At batch 8 times are the host's, copies included: PyTorch cannot use the GPU." in text
    on_cpu = report(MANIFEST, VERIFICATION, examples.bench(MANIFEST))
    assert "GPU's clock" not in on_cpu and "Measured on Example 9000, 4 cores." in on_cpu


def test_many_refusals_are_cut_and_counted() -> None:
    refused = [{"where": f"blocks.{i}", "reason": "axes differ"} for i in range(REFUSALS + 5)]
    text = report(MANIFEST | {"rules": [{"name": "r", "fired": 0, "refused": refused, "seconds": 0.0}]})
    assert text.count("axes differ") == REFUSALS and "refused at 5 more places" in text


@pytest.mark.parametrize("checkpoint", [None, "my weights.pth"])
def test_the_command_reproduces_the_selection(checkpoint: str | None) -> None:
    text = report(MANIFEST | {"selection": MANIFEST["selection"] | {"checkpoint": checkpoint}})
    expected = f" --checkpoint '{checkpoint}'" if checkpoint else ""
    engine = f"vip_s7 --precision fp16 --backend tensorrt-rtx --batch 1:8:32{expected}"
    rest = "--seed 3 --gpu sm86,sm89 --disable-rule project_tokens"
    assert text.endswith(f"```sh\nmlpdeploy build {engine} {rest}\nmlpdeploy verify {engine} {rest}\n```\n")


def test_the_plugin_is_said_where_it_was_chosen() -> None:
    text = report(MANIFEST | {"selection": MANIFEST["selection"] | {"plugin": "on"}})
    build, verify = (line for line in text.splitlines() if line.startswith("mlpdeploy "))
    assert build.endswith("--plugin on") and "verify" in verify and verify.endswith("--plugin on")
    assert "--plugin" not in report(MANIFEST | {"selection": MANIFEST["selection"] | {"plugin": "auto"}})


def test_a_network_that_was_in_hand_is_built_again_in_python() -> None:
    given = MANIFEST["selection"] | {"name": "python:Net", "gpus": [], "disabled_rules": [], "enabled_rules": ["a"]}
    inputs = [MANIFEST["inputs"][0] | {"low": 0.0, "high": 255.0}]
    text = report(MANIFEST | {"selection": given, "inputs": inputs})
    assert (
        "```python\nengine = mlpdeploy.compile(network, example, name='Net', precision='fp16', backend='tensorrt-rtx', "
        "batch='1:8:32', seed=3, enabled_rules=['a'], value_range=(0.0, 255.0))\nengine.verify()\n```" in text
    )
