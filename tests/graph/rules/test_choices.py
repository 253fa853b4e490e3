"""Which rules run: those that are asked for, and those that an engine has on."""

from __future__ import annotations

import pytest

from mlpdeploy import progress
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import InputError
from mlpdeploy.graph.rewrite import all_rules, for_kernel, on_by_default, rewrite, rewrite_as
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import Traced, trace
from mlpdeploy.selection import Selection
from mlpdeploy.stages import rewrite_network
from tests.graph.proof import fired, prove, specs, targets
from tests.graph.rules import contract
from tests.graph.rules.examples import Branches


def traced(rule: str) -> tuple[Traced, int]:
    """The example of a rule, and how often it fires there."""
    example = contract.EXAMPLES[rule]
    return contract.traced(example.build, example.shape)[1], example.fires


def test_unknown_rule_is_named_with_those_there_are() -> None:
    before, _ = traced("fold_affine")
    with pytest.raises(InputError, match=r"no rule is named 'fold_affin'.*fold_affine") as caught:
        rewrite(before, ["fold_affin"])
    assert "\n" not in str(caught.value)


def test_all_rules_off_leaves_the_plain_graph() -> None:
    network = Branches()
    result = prove(network, (4, 4, 16), disabled=[*all_rules(), LAYOUT])
    assert result.report == ()
    plain = trace(network, specs([(4, 4, 16)]))
    assert targets(result).total() == sum(node.op == "call_function" for node in plain.module.graph.nodes)


def having_off(rule: str) -> set[str]:
    return {backend.name for backend in backends().values() if rule in backend.off}


def test_a_rule_that_does_not_pay_on_a_backend_is_off_there_unless_asked_for() -> None:
    before, _ = traced("split_activation")
    assert having_off("split_activation") == having_off("convolve_shifts") == {
        "tensorrt", "tensorrt-rtx", "torch-tensorrt",
    }  # fmt: skip
    assert having_off("pick_parts") == having_off("gather_shifts") == {"openvino", "onnxruntime"}
    for backend, enabled, times in (
        ("openvino", (), 1), ("tensorrt-rtx", (), 0), ("tensorrt-rtx", ("split_activation",), 1),
    ):  # fmt: skip
        result = rewrite(before, enabled=enabled, off=backends()[backend].off)
        assert fired(result)["split_activation"] == times
        assert fired(rewrite_as(before, result)) == fired(result)


def test_shifts_and_parts_stay_what_they_are_in_engines_of_inductor_for_a_gpu() -> None:
    """Grouped convolutions in their place took longer there than the copies that they save; Inductor cannot know where
    gathers read, copies selections by themselves, and has halves of a product as views.
    """
    inductor = backends()["inductor"]
    grouped = ("convolve_shifts", "convolve_regions", "merge_depthwise")
    parted = ("gather_shifts", "pick_parts", "split_projection")
    replaced = {*grouped, *parted}
    for name in replaced:
        before, fires = traced(name)
        for gpus, times in (((), fires), (("current",), 0)):
            selection = Selection("nets:Net", "fp32", "inductor", gpus=gpus, disabled_rules=tuple(replaced - {name}))
            result = rewrite_network(before, selection, progress.Stages(None))
            assert fired(result).get(name, 0) == times
    assert set(inductor.off_for(("current",))) == {*inductor.off, *replaced}


def test_epilogues_are_on_where_a_build_measures_each_and_off_elsewhere() -> None:
    for name in ("activate_projections", "fuse_epilogues"):
        before, fires = traced(name)
        for backend, gpus, times in (("inductor", ("current",), fires), ("inductor", (), 0), ("tensorrt-rtx", (), 0)):
            result = rewrite_network(before, Selection("nets:Net", "fp32", backend, gpus=gpus), progress.Stages(None))
            assert fired(result).get(name, 0) == times
    assert "fuse_token_mlps" not in on_by_default(kernel=True) and "fuse_token_mlps" in for_kernel()


def test_every_rule_that_an_engine_has_off_exists() -> None:
    assert {name for one in backends().values() for name in one.off_for(("current",))} <= set(all_rules())
