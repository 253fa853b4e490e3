"""Random networks keep their function: a network that nobody thought of must not come out wrong."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings

from tests.graph.programs import Program, programs
from tests.graph.proof import prove


def equal(program: Program) -> None:
    prove(program.network(), program.shape, batches=(1, 2, 5))


def tried(examples: int) -> settings:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )


@pytest.mark.slow
@tried(100)
@given(programs())
def test_equal_in_float64(program: Program) -> None:
    equal(program)


@pytest.mark.slow
@tried(30)
@given(programs(longest=24))
def test_long_ones_are_equal_too(program: Program) -> None:
    equal(program)


@pytest.mark.slow
@pytest.mark.large
@tried(2000)
@given(programs(longest=24))
def test_so_are_many(program: Program) -> None:
    equal(program)


# What random networks found, each under the name of what was wrong.
REGRESSIONS = {
    "a network without weights that only rearranges": Program((4,), (), ("v0 = x.permute([0, 1])",), ("v0",)),
    "softmax over an axis that lies inside a merged dimension": Program(
        (4, 4),
        ((4, 4), (4, 4)),
        (
            "v0 = F.linear(x, p0).flatten(0, 1)",
            "v1 = F.linear(v0, p1).permute(1, 0)",
            "v2 = torch.softmax(v1, 0)",
        ),
        ("v2.unflatten(1, (1, -1, 4)).movedim(2, 0)",),
    ),
    "a layout wanted of a dimension that a linear shrinks to 1": Program(
        (1, 4),
        ((4, 4), (1, 4), (4, 1)),
        (
            "v0 = F.linear(x, p0)",
            "v1 = F.linear(v0, p1)",
            "v2 = F.linear(F.gelu(v0).permute(0, 2, 1), p2)",
        ),
        ("v1", "v2"),
    ),
    "a view of what is contiguous in the network and not in the rewritten graph": Program(
        (4, 4, 4),
        ((4, 4), (64, 64)),
        (
            "v0 = torch.einsum('zd,abcd->aczb', p0, x).contiguous()",
            "v1 = F.linear(v0.view(-1, 1, 64), p1)",
        ),
        ("v1",),
    ),
    "the same, made a view by functionalisation": Program(
        (4, 4, 4),
        ((4, 4), (64, 64)),
        (
            "v0 = torch.einsum('zd,abcd->aczb', p0, x).clone().relu_()",
            "v1 = F.linear(v0.reshape(-1, 1, 64), p1)",
        ),
        ("v1",),
    ),
}


@pytest.mark.parametrize("name", REGRESSIONS)
def test_found_before(name: str) -> None:
    program = REGRESSIONS[name]
    prove(program.network(), program.shape)
