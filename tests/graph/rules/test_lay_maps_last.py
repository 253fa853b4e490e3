"""lay_maps_last: every convolution of a chain reads a map whose channels are last in memory, and one is copied."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlpdeploy.graph.kinds import CONVOLUTIONS_OF_IMAGES
from mlpdeploy.graph.rewrite import Rewritten
from tests.graph.proof import aten, fired, prove, rewritten, targets
from tests.graph.rules.examples import Example, NearMiss, Net

RULE = "lay_maps_last"
PARTS: dict[str, Callable[[], nn.Module]] = {
    "stem": lambda: nn.Conv2d(3, 4, 3, padding=1),
    "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4),
    "grouped": lambda: nn.Conv2d(4, 4, (1, 3), padding=(0, 1), groups=2),
    "product": lambda: nn.Conv2d(4, 4, 1),
    "same": lambda: nn.Conv2d(4, 4, 3, padding="same", groups=4),
    "larger": lambda: nn.ConvTranspose2d(4, 4, 2, stride=2),
    "norm": lambda: nn.BatchNorm2d(4),
    "linear": lambda: nn.Linear(4, 4),
}


def net(run: Callable[..., Tensor | tuple[Tensor, ...]]) -> Net:
    return Net(run, **{name: make() for name, make in PARTS.items()})


CHAINS: dict[str, Callable[[Net, Tensor], Tensor]] = {
    "one after another": lambda m, x: m.grouped(m.depthwise(m.stem(x)).relu()),
    "with a norm between": lambda m, x: m.depthwise(F.gelu(m.norm(m.stem(x)))),
    "a residual": lambda m, x: (y := m.stem(x)) + m.grouped(m.depthwise(y)),
    "pooled and gated": lambda m, x: m.depthwise(F.avg_pool2d(m.stem(x), 2)) * m.stem(x).mean((2, 3), keepdim=True),
    "padded to its size": lambda m, x: m.same(m.same(m.stem(x)).relu()),
    "transposed": lambda m, x: m.depthwise(m.larger(m.larger(m.stem(x))).relu()),
    "a kernel that is computed": lambda m, x: F.conv2d(
        (y := m.stem(x)), m.depthwise.weight * y.mean((0, 2, 3)).sum(), padding=1, groups=4
    ),
    "two readers of one map": lambda m, x: m.depthwise((y := m.stem(x)).relu()) + m.grouped(y.relu()),
}


class _Convolving(torch.fx.Interpreter):
    """Counts the convolutions of maps whose channels are last in memory, and the others."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__(module)
        self.last: list[bool] = []

    def call_function(self, target: object, args: tuple, kwargs: dict) -> object:  # type: ignore[override, type-arg]
        if target in CONVOLUTIONS_OF_IMAGES:
            self.last.append(args[0].is_contiguous(memory_format=torch.channels_last))
        return super().call_function(target, args, kwargs)  # type: ignore[arg-type]


def convolving(result: Rewritten) -> list[bool]:
    run = _Convolving(result.module)
    run.run(torch.randn(2, 3, 6, 8, dtype=torch.float64))
    return run.last


@pytest.mark.parametrize("name", CHAINS)
def test_every_convolution_reads_its_map_so_and_one_is_copied(name: str) -> None:
    result = prove(net(CHAINS[name]), (3, 6, 8), enabled=[RULE])
    assert fired(result)[RULE] >= 1 and targets(result)[aten.contiguous.default] == 1
    assert all(convolving(result)) and len(convolving(result)) >= 2


EXAMPLE = Example(lambda: net(CHAINS["one after another"]), (3, 6, 8), fires=1)
NEAR_MISSES = {
    "products": NearMiss(lambda: net(lambda m, x: m.product(x).relu()), (4, 6, 8)),
    "a map that something else reads": NearMiss(
        lambda: net(lambda m, x: m.depthwise(x) + x.sin().cumsum(2)), (4, 6, 8), ("not only convolutions read its map",)
    ),
    "a map that lies so": NearMiss(
        lambda: net(lambda m, x: m.depthwise(m.linear(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)), (6, 8, 4)
    ),
}


def test_it_is_off_unless_asked_for() -> None:
    result = rewritten(net(CHAINS["one after another"]), (3, 6, 8))
    assert RULE not in fired(result) and not all(convolving(result))
