"""Reading a parsed network back: TensorRT-RTX needs no GPU for it; the stand-ins show the corners of its interface."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from mlpdeploy.engine.backend import backends
from mlpdeploy.engine.backends.tensorrt import _follows_plan, parse
from mlpdeploy.engine.backends.tensorrt.parsed import Counts, read
from mlpdeploy.errors import BuildError
from tests.engine.small_networks import emitted, graph_model, projections

HALF = TensorProto.FLOAT16


@pytest.fixture(autouse=True)
def _needs_rtx() -> None:
    reason = backends()["tensorrt-rtx"].available()
    if reason is not None:
        pytest.skip(reason)


def test_layers_of_local_functions_are_counted_apart() -> None:
    parsed = parse(projections())
    assert [(body.node, body.function) for body in parsed.bodies] == [
        ("blocks.0/height", "project"),
        ("blocks.1/height", "project"),
    ]
    assert all(body.counts == Counts(layers=7, transposes=2, reshapes=4) for body in parsed.bodies)
    assert parsed.total.transposes == 5 and parsed.total.reshapes == 8
    assert parsed.outside.transposes == 1 and parsed.outside.reshapes == 0
    assert parsed.total.layers == parsed.outside.layers + 14 == sum(parsed.by_type.values())
    assert [layer.nodes[-1] for layer in parsed.computing] == ["blocks.0/height", "blocks.1/height"]


def test_functions_of_other_domains_are_no_bodies_of_ours() -> None:
    model = projections()
    for part in (*model.functions, *(node for node in model.graph.node if node.domain), *model.opset_import):
        if part.domain == "mlpdeploy":
            part.domain = "other"
    parsed = parse(model)
    assert parsed.bodies == () and parsed.outside == parsed.total and parsed.total.transposes == 5


def test_unnamed_calls_stay_apart() -> None:
    model = projections()
    for node in model.graph.node:
        node.name = ""
    assert [body.counts.transposes for body in parse(model).bodies] == [2, 2]


def permuted(*nodes: onnx.NodeProto, weight: bool = False) -> Counts:
    ports = {"x": (HALF, ["batch", 4, 4])}, {"y": (HALF, ["batch", 4, 4])}
    weights = {"w": np.arange(16, dtype=np.float16).reshape(4, 4)} if weight else {}
    return parse(graph_model(list(nodes), *ports, weights)).total


def test_a_permuted_weight_is_not_an_activation_transpose() -> None:
    cast = helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT)
    there = helper.make_node("Transpose", ["wide"], ["turned"], perm=[1, 0])
    back = helper.make_node("Cast", ["turned"], ["v"], to=HALF)
    counts = permuted(cast, there, back, helper.make_node("MatMul", ["x", "v"], ["y"]), weight=True)
    assert counts.transposes == 0 and counts.reshapes == 0
    assert permuted(helper.make_node("Transpose", ["x"], ["y"], perm=[0, 2, 1])).transposes == 1


def test_an_identity_permutation_is_neither() -> None:
    counts = permuted(helper.make_node("Transpose", ["x"], ["y"], perm=[0, 1, 2]))
    assert (counts.transposes, counts.reshapes) == (0, 0)


def test_a_shape_computed_at_run_time_is_a_reshape_and_its_arithmetic_is_not() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["t"], axis=0),
        helper.make_node("Reshape", ["x", "t"], ["y"]),
    ]
    weights = {"zero": np.array([0], np.int64), "rest": np.array([2, 8], np.int64)}
    ports = {"x": (HALF, ["batch", 4, 4])}, {"y": (HALF, ["batch", 2, 8])}
    counts = parse(graph_model(nodes, *ports, weights)).total
    assert (counts.transposes, counts.reshapes) == (0, 1)


class Shuffle(SimpleNamespace):
    """A stand-in of one IShuffleLayer."""

    def get_input(self, index: int) -> object:
        return self.tensors[index]

    def get_output(self, index: int) -> object:
        return self.result


def shuffle(rank: int | None, first: list[int], second: list[int], shape: list[int] | None = None) -> Shuffle:
    class Unknown:
        name, dtype = "x", SimpleNamespace(name="HALF")

        @property
        def shape(self) -> tuple[int, ...]:
            if rank is None:
                raise ValueError("__len__() should return >= 0")
            return (-1,) * rank

    return Shuffle(
        type=SimpleNamespace(name="SHUFFLE"), name="s", metadata="", num_inputs=1, num_outputs=1,
        tensors=[Unknown()], result=Unknown(), first_transpose=first, second_transpose=second, reshape_dims=shape,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (shuffle(3, [0, 2, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]), (1, 0)),
        (shuffle(3, [0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 2, 3, 4, 5, 6, 7]), (1, 0)),
        (shuffle(2, [0, 1, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 0]), (0, 0)),
        (shuffle(2, [0, 1], [0, 1], [-1, 4]), (0, 1)),
        (shuffle(None, [0, 2, 1, 3, 4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]), (1, 0)),
        (shuffle(2, [1, 0], [0, 1], [-1, 4]), (1, 0)),
    ],
    ids=["first", "second", "unset-axes", "reshape", "unknown-rank", "both"],
)
def test_permutations_count_up_to_the_rank(layer: Shuffle, expected: tuple[int, int]) -> None:
    network = SimpleNamespace(num_layers=1, get_layer=lambda index: layer)
    counts = read(network).total
    assert (counts.transposes, counts.reshapes) == expected


@pytest.mark.slow
def test_dtypes_are_those_of_the_arithmetic() -> None:
    for precision, dtype in (("fp32", "FLOAT"), ("fp16", "HALF"), ("bf16", "BF16")):
        parsed = parse(emitted(precision).model)
        for kind in ("MATRIX_MULTIPLY", "CONVOLUTION", "NORMALIZATION"):
            assert set(parsed.dtypes[kind]) == {dtype}
        _follows_plan.check(parsed, precision)


def test_a_layer_of_another_precision_is_named() -> None:
    parsed = parse(emitted("fp32").model)
    with pytest.raises(BuildError) as raised:
        _follows_plan.check(parsed, "fp16")
    message = str(raised.value)
    count = len(parsed.computing)
    assert f"{count} of {count} layers would not compute in fp16 (HALF)" in message and "\n" not in message
    assert f"{parsed.computing[0].layer} (CONVOLUTION) in FLOAT" in message and f"and {count - 4} more" in message


def test_a_plugin_computes_in_the_precision_that_was_asked_for_too() -> None:
    """It takes the place of products, and what it computes in is as much of the plan as theirs."""
    for dtype, refused in (("HALF", False), ("FLOAT", True)):
        tensor = SimpleNamespace(dtype=SimpleNamespace(name=dtype), shape=(1, 2), name="y")
        layer = SimpleNamespace(
            type=SimpleNamespace(name="PLUGIN_V3"), name="mlp_w/segment_grouped_projection", metadata="",
            num_inputs=1, num_outputs=1, get_input=lambda _, it=tensor: it, get_output=lambda _, it=tensor: it,
        )  # fmt: skip
        parsed = read(SimpleNamespace(num_layers=1, get_layer=lambda _, it=layer: it))
        assert parsed.dtypes == {"PLUGIN_V3": {dtype: 1}}
        if refused:
            with pytest.raises(BuildError, match="mlp_w/segment_grouped_projection \\(PLUGIN_V3\\) in FLOAT"):
                _follows_plan.check(parsed, "fp16")
        else:
            _follows_plan.check(parsed, "fp16")


def test_nodes_that_the_plan_kept_in_fp32_may_stay_there_and_nowhere_else() -> None:
    parsed = parse(emitted("fp32").model)
    names = frozenset(node for layer in parsed.computing for node in layer.nodes)
    _follows_plan.check(parsed, "fp16", names)
    last = parsed.computing[-1].layer
    with pytest.raises(BuildError, match="1 of") as raised:
        _follows_plan.check(parsed, "fp16", names - {last})
    assert last in str(raised.value)
    with pytest.raises(BuildError):  # kept in FP32 is no leave to be BF16
        _follows_plan.check(parse(emitted("bf16").model), "fp16", names)
