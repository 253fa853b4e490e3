"""The same questions to every rule, and to the custom operation; a rule without a firing example here fails."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy import progress
from mlpdeploy.engine.backend import backends
from mlpdeploy.errors import InputError
from mlpdeploy.graph import custom_ops, invariants
from mlpdeploy.graph.rewrite import Rewritten, all_rules, rewrite, rewrite_as
from mlpdeploy.graph.rule import PHASES
from mlpdeploy.graph.rules import LAYOUT
from mlpdeploy.graph.tracing.trace import Traced, trace
from mlpdeploy.selection import Selection
from mlpdeploy.stages import rewrite_network
from mlpdeploy.zoo.as_mlp import AxialShift
from mlpdeploy.zoo.hire_mlp import HireBlock
from mlpdeploy.zoo.ms_mlp import MixShiftBlock
from mlpdeploy.zoo.raft_mlp import RaftMLP, Stage
from mlpdeploy.zoo.repmlp_net import RepMLPBlock
from mlpdeploy.zoo.strip_mlp import StripBlock
from mlpdeploy.zoo.swinchex import SwinBlock
from mlpdeploy.zoo.vip import WeightedPermuteMLP
from tests.graph.proof import assert_same, fired, prove, randomised, rewritten, specs, targets

Shape = tuple[int, ...]


class Tokens(nn.Module):
    """Token mixing by einsum, dropout, an affine in front and a LayerScale behind."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.channels = nn.Parameter(torch.empty(6, 6)), nn.Linear(4, 4)
        self.norm, self.scale, self.shift = nn.LayerNorm(4), nn.Parameter(torch.empty(4)), nn.Parameter(torch.empty(4))

    def forward(self, x: Tensor) -> Tensor:
        mixed = torch.einsum("ut,btc->buc", self.tokens, self.norm(x))
        x = x + F.dropout(mixed, 0.1, self.training)
        return x + self.scale * self.channels(self.norm(x) * self.scale + self.shift)


class Gated(nn.Module):
    """A projection whose result is split, as it is (GLU) or activated (gMLP)."""

    def __init__(self, activated: bool = False) -> None:
        super().__init__()
        self.up, self.down, self.activated = nn.Linear(4, 6), nn.Linear(3, 4), activated

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        u, v = (F.gelu(y) if self.activated else y).chunk(2, -1)
        return self.down(u * v)


class Patches(nn.Module):
    """Patch embedding of an image, a token-mixing block, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.tokens, self.head = nn.Conv2d(3, 4, 2, 2), nn.Linear(6, 6), nn.Linear(4, 3)
        self.norm = nn.LayerNorm(4)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image).flatten(2).transpose(1, 2)
        return self.head((x + self.tokens(self.norm(x).transpose(1, 2)).transpose(1, 2)).mean(1))


class Stages(nn.Module):
    """Patch merging on channels-last activations (ViP's Downsample)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.merge, self.last = nn.LayerNorm(3), nn.Conv2d(3, 4, 2, 2), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.merge(self.norm(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1))


class Branches(nn.Module):
    """Two Permute-MLP blocks with split attention."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.first, self.second = nn.LayerNorm(16), WeightedPermuteMLP(16, 4), WeightedPermuteMLP(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.first(self.norm(x))
        return x + self.second(self.norm(x))


class Fields(nn.Module):
    """A table of vectors for each column of ids (DualMLP)."""

    def __init__(self) -> None:
        super().__init__()
        self.tables, self.head = nn.ModuleList(nn.Embedding(3 + i, 4) for i in range(3)), nn.Linear(12, 2)

    def forward(self, x: Tensor) -> Tensor:
        ids = (x.clamp(-1, 1) + 1).to(torch.int64)
        return self.head(torch.cat([table(ids[:, i]) for i, table in enumerate(self.tables)], 1))


class Bags(nn.Module):
    """The mean of the vectors of three ids."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.head = nn.EmbeddingBag(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.bag((x.clamp(-1, 1) + 1).to(torch.int64)))


class Locality(nn.Module):
    """A matrix over the grid of every share-set beside depthwise convolutions, and a gate (RepMLP at train time)."""

    def __init__(self) -> None:
        super().__init__()
        self.block = RepMLPBlock(4, 3, 2, deploy=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x.relu())


def rafts() -> nn.Module:
    """One RaftMLP block behind patches of two sizes."""
    return RaftMLP([Stage(1, 6, 2, 2, (2, 4))], image_size=8, trained=8, num_classes=3)


def windows() -> nn.Module:
    """Attention in displaced windows (Swin)."""
    return SwinBlock(4, grid=4, heads=2, window=2, shift=1, mlp_ratio=2)


class Neighbours(nn.Module):
    """Pooling less its input behind a normalisation, scaled, as a residual (PoolFormer)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.scale = nn.GroupNorm(1, 4), nn.Parameter(torch.empty(4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        z = self.norm(x)
        return x + self.scale * (F.avg_pool2d(z, 3, 1, 1, count_include_pad=False) - z)


class Spectra(nn.Module):
    """Token mixing by a filter in the frequencies (GFNet), of a value that is gated by its own mean."""

    def __init__(self) -> None:
        super().__init__()
        self.filter, self.gate = nn.Parameter(torch.empty(4, 4, 2)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        gated = x * self.gate(x.mean(1, keepdim=True)).expand_as(x)
        return torch.fft.irfft(torch.fft.rfft(gated, dim=1) * torch.view_as_complex(self.filter), 6, dim=1)


class Pyramid(nn.Module):
    """Half the size, twice: by the largest and the mean of windows that are not whole, and smoothed."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.max_pool2d(x, 3, 2, ceil_mode=True) + F.avg_pool2d(x, 3, 2, ceil_mode=True)
        return pooled + F.interpolate(self.mix(x), (3, 4), mode="bilinear", antialias=True)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "neighbours": (Neighbours, (4, 5, 6)),
    "spectra": (Spectra, (6, 4)),
    "pyramid": (Pyramid, (4, 6, 8)),
    "tokens": (Tokens, (6, 4)),
    "gated": (Gated, (6, 4)),
    "gated and activated": (lambda: Gated(activated=True), (6, 4)),
    "patches": (Patches, (3, 4, 6)),
    "stages": (Stages, (4, 6, 3)),
    "branches": (Branches, (4, 4, 16)),
    "regions": (lambda: HireBlock(8, 3, 1), (8, 4, 5)),
    "axial": (lambda: AxialShift(10, 5), (10, 4, 5)),
    "fields": (Fields, (3,)),
    "bags": (Bags, (3,)),
    "locality": (Locality, (4, 3, 3)),
    "rafts": (rafts, (3, 8, 8)),
    "windows": (windows, (4, 4, 4)),
    "strips": (lambda: StripBlock(16, 5), (16, 5, 5)),
    "shifts": (lambda: MixShiftBlock(9, (1, 3, 3, 5, 5), 2), (9, 4, 5)),
}
FIRES = {
    "convolve_lines": ("strips", 2),
    "convolve_patches": ("rafts", 1),
    "convolve_regions": ("regions", 4),
    "convolve_shifts": ("axial", 2),
    "decompose_bags": ("bags", 1),
    "decompose_complex": ("spectra", 3),
    "decompose_pooling": ("pyramid", 2),
    "decompose_resizes": ("pyramid", 1),
    "decompose_rolls": ("windows", 2),
    "fold_affine": ("tokens", 1),
    "fuse_epilogues": ("rafts", 2),
    "gather_shifts": ("regions", 4),
    "hoist_reweighting": ("branches", 2),
    "merge_depthwise": ("shifts", 2),
    "merge_embeddings": ("fields", 1),
    "merge_reshapes": ("branches", 2),
    "normalise_contractions": ("tokens", 1),
    "pick_parts": ("windows", 1),
    "project_patches": ("stages", 1),
    "project_segments": ("branches", 4),
    "project_tokens": ("patches", 1),
    "remove_identities": ("tokens", 1),
    "reparameterise": ("locality", 1),
    "reorder_normalisation": ("rafts", 2),
    "resolve_shapes": ("spectra", 1),
    "split_activation": ("gated and activated", 1),
    "split_projection": ("gated", 1),
}
"""Rule, the network in which it fires, and how often."""
RULES = sorted(all_rules())


def _again(result: Rewritten) -> Rewritten:
    return rewrite(Traced(result.module, result.inputs, result.outputs), enabled=RULES)


def test_every_rule_has_an_example() -> None:
    assert sorted(FIRES) == RULES


@pytest.mark.parametrize("name", RULES)
def test_fires_as_often_as_it_should(name: str) -> None:
    network, count = FIRES[name]
    build, shape = NETWORKS[network]
    assert fired(prove(build(), shape, enabled=[name]))[name] == count


@pytest.mark.parametrize("name", RULES)
def test_can_be_disabled(name: str) -> None:
    build, shape = NETWORKS[FIRES[name][0]]
    result = prove(build(), shape, disabled=(name,), enabled=set(RULES) - {name})
    assert name not in {report.name for report in result.report}


@pytest.mark.parametrize("name", RULES)
def test_says_what_it_does(name: str) -> None:
    """Before, after, and a name that is its file's."""
    rule = all_rules()[name]
    module = sys.modules[f"mlpdeploy.graph.rules.{name}"]
    assert rule.name == name
    assert module.__doc__
    assert "\nbefore: " in module.__doc__
    assert "\nafter:  " in module.__doc__
    assert rule.phase in PHASES


@pytest.mark.parametrize("network", NETWORKS)
def test_nothing_is_left_to_do(network: str) -> None:
    """A second rewrite gives the same operations: `W @ x` is read as a contraction and written again, no more."""
    build, shape = NETWORKS[network]
    reference = build()
    once = prove(reference, shape, enabled=RULES)
    twice = _again(once)
    matmul = torch.ops.aten.matmul.default
    products = sum(node.target is matmul and node.all_input_nodes[0].op == "get_attr" for node in _calls(once))
    again = {LAYOUT: 1, "normalise_contractions": products, "project_tokens": products}
    assert {name: count for name, count in fired(twice).items() if count} == {n: c for n, c in again.items() if c}
    before, after = targets(once), targets(twice)
    reshape = torch.ops.aten.reshape.default
    assert after.pop(reshape, 0) <= before.pop(reshape, 0)  # the layout pass may merge those that later rules made
    assert after == before
    assert_same(reference, twice, [shape])


def _calls(result: Rewritten) -> list[torch.fx.Node]:
    return [node for node in result.module.graph.nodes if node.op == "call_function"]


@pytest.mark.parametrize("network", NETWORKS)
def test_every_node_knows_its_shape_and_where_it_came_from(network: str) -> None:
    build, shape = NETWORKS[network]
    result = rewritten(build(), shape, enabled=RULES)
    for node in result.module.graph.nodes:
        if node.op == "output":
            continue
        assert "val" in node.meta, node
        if node.op == "call_function":
            assert node.meta.get("nn_module_stack"), node
    invariants.check(result.module, PHASES[-1], RULES)


class _Shapes(torch.fx.Interpreter):
    """Compares what each node computes with the shape and dtype that it claims."""

    def run_node(self, n: torch.fx.Node) -> object:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            claimed = n.meta["val"]
            assert claimed.dtype == value.dtype, n
            sizes = [size if isinstance(size, int) else None for size in claimed.shape]
            assert len(sizes) == value.dim(), n
            assert all(size in (None, real) for size, real in zip(sizes, value.shape, strict=True)), n
        return value


@pytest.mark.parametrize("network", NETWORKS)
def test_claimed_shapes_are_the_real_ones(network: str) -> None:
    build, shape = NETWORKS[network]
    result = rewritten(build(), shape, enabled=RULES)
    _Shapes(result.module).run(torch.randn(5, *shape, dtype=torch.float64))


def test_unknown_rule_is_named_with_those_there_are() -> None:
    traced = trace(randomised(Tokens()), specs([(6, 4)]))
    with pytest.raises(InputError, match=r"no rule is named 'fold_affin'.*fold_affine") as caught:
        rewrite(traced, ["fold_affin"])
    assert "\n" not in str(caught.value)


def test_all_rules_off_leaves_the_plain_graph() -> None:
    network = Branches()
    result = prove(network, (4, 4, 16), disabled=[*RULES, LAYOUT])
    assert result.report == ()
    plain = trace(network, specs([(4, 4, 16)]))
    assert len(_calls(result)) == sum(node.op == "call_function" for node in plain.module.graph.nodes)


def test_rewriting_leaves_the_traced_graph_alone() -> None:
    network = randomised(Branches())
    traced = trace(network, specs([(4, 4, 16)]))
    before = str(traced.module.graph), {name: tensor.clone() for name, tensor in traced.module.state_dict().items()}
    first = rewrite(traced)
    assert str(traced.module.graph) == before[0]
    assert traced.module.state_dict().keys() == before[1].keys()
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in traced.module.state_dict().items())
    assert [report.fired for report in rewrite(traced).report] == [report.fired for report in first.report]


# The custom operation.

SIZES = [(2, 3, 5, 4, 3, 4), (1, 2, 1, 3, 6, 1), (3, 1, 4, 2, 1, 5), (2, 4, 4, 4, 4, 4)]
"""B, P, Q, S, K, T."""


def _example(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, int]:
    b, p, q, s, k, t = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    x = torch.randn(b, p, q, s, generator=generator, dtype=dtype)
    return x, torch.randn(k * t, p * s, generator=generator, dtype=dtype), k


def _einsum(x: Tensor, weight: Tensor, k: int) -> Tensor:
    p, s = x.shape[1], x.shape[3]
    return torch.einsum("bpqs,ktps->bkqt", x, weight.reshape(k, -1, p, s))


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_segment_grouped_projection_is_the_contraction_it_says(sizes: tuple[int, ...]) -> None:
    example = _example(sizes)
    result = custom_ops.segment_grouped_projection(*example)
    assert result.is_contiguous()
    torch.testing.assert_close(result, _einsum(*example), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sizes", SIZES[:2], ids=str)
def test_segment_grouped_projection_passes_opcheck(sizes: tuple[int, ...]) -> None:
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(custom_ops.SEGMENT_GROUPED_PROJECTION, _example(sizes), test_utils=tests)


def _epilogue(sizes: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    """All that can follow: the q axis is the width, and its parts and t are the channels of an image."""
    b, _, q, _, k, t = sizes
    generator = torch.Generator().manual_seed(sum(sizes))
    shapes = ((k, 1, t), (b, 1, 1, q * t), (b, k, 1, q * t))
    bias, scale, accumulate = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    return bias, True, scale, accumulate


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_its_epilogue_is_what_it_says(sizes: tuple[int, ...]) -> None:
    example, (bias, _, scale, accumulate) = _example(sizes), _epilogue(sizes)
    projected = _einsum(*example)
    run = torch.ops.mlpdeploy.segment_grouped_projection_epilogue
    shifted = run(*example, bias, False, None, None)
    torch.testing.assert_close(shifted, projected + bias, rtol=1e-12, atol=1e-12)
    wanted = accumulate + scale * F.gelu(projected + bias).reshape(accumulate.shape)
    got = run(*example, bias, True, scale, accumulate)
    torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)
    added = run(*example, None, False, None, accumulate.transpose(1, 3).contiguous().transpose(1, 3))
    torch.testing.assert_close(added, accumulate + projected.reshape(accumulate.shape), rtol=1e-12, atol=1e-12)
    assert shifted.is_contiguous() and got.is_contiguous() and added.is_contiguous()


@pytest.mark.parametrize("parts", [(0,), (0, 1), (0, 1, 2, 3), (3,)], ids=str)
def test_its_epilogue_passes_opcheck(parts: tuple[int, ...]) -> None:
    given = [part if index in parts else default for index, (part, default) in
             enumerate(zip(_epilogue(SIZES[0]), (None, False, None, None), strict=True))]  # fmt: skip
    tests = ("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    torch.library.opcheck(custom_ops.WITH_EPILOGUE, (*_example(SIZES[0]), *given), test_utils=tests)


def having_off(rule: str) -> set[str]:
    return {backend.name for backend in backends().values() if rule in backend.off}


def test_a_rule_that_does_not_pay_on_a_backend_is_off_there_unless_asked_for() -> None:
    traced = trace(randomised(Gated(activated=True)), specs([(6, 4)]))
    assert having_off("split_activation") == {"tensorrt", "tensorrt-rtx", "torch-tensorrt"}
    assert having_off("pick_parts") == having_off("gather_shifts") == {"openvino", "onnxruntime"}
    for backend, enabled, times in (
        ("openvino", (), 1), ("tensorrt-rtx", (), 0), ("tensorrt-rtx", ("split_activation",), 1),
    ):  # fmt: skip
        result = rewrite(traced, enabled=enabled, off=backends()[backend].off)
        assert fired(result)["split_activation"] == times
        assert fired(rewrite_as(traced, result)) == fired(result)


def test_shifts_stay_shifts_in_engines_of_inductor_for_a_gpu() -> None:
    """Grouped convolutions in their place took longer there than the copies that they save."""
    inductor, grouped = backends()["inductor"], {"convolve_shifts", "convolve_regions", "merge_depthwise"}
    for name in grouped:
        build, shape = NETWORKS[FIRES[name][0]]
        traced = trace(randomised(build()), specs([shape]))
        for gpus, times in (((), FIRES[name][1]), (("current",), 0)):
            selection = Selection("nets:Net", "fp32", "inductor", gpus=gpus, disabled_rules=tuple(grouped - {name}))
            result = rewrite_network(traced, selection, progress.Stages(None))
            assert fired(result).get(name, 0) == times
    assert set(inductor.off_for(("current",))) == {*inductor.off, *grouped}


def test_every_rule_that_an_engine_has_off_exists() -> None:
    assert {name for one in backends().values() for name in one.off_for(("current",))} <= set(all_rules())
