"""A small network as source text, and what writes it, statement by statement."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor, nn

Dim = tuple[int, bool, int]
"""A dimension of size before * (the batch, where the flag says so) * after."""

BATCH: Dim = (1, True, 1)


def dim(size: int) -> Dim:
    """A dimension without the batch."""
    return (size, False, 1)


def size(one: Dim) -> int | None:
    """Size of a dimension; None where the batch is in it."""
    return None if one[1] else one[0] * one[2]


def free(shape: list[Dim]) -> list[int]:
    """The dimensions without the batch."""
    return [index for index, one in enumerate(shape) if not one[1]]


@dataclass(frozen=True)
class Program:
    """Statements over `x` and the parameters `p0`, `p1`, ..., and the expressions returned."""

    shape: tuple[int, ...]
    parameters: tuple[tuple[int, ...], ...]
    lines: tuple[str, ...]
    results: tuple[str, ...]

    def network(self) -> nn.Module:
        """The module that runs it."""
        return _Network(self)

    def __repr__(self) -> str:
        parameters = [f"    # p{index}: {shape}" for index, shape in enumerate(self.parameters)]
        return "\n".join([f"x: (b, {self.shape})", *parameters, *self.lines, f"return {', '.join(self.results)}"])


class _Network(nn.Module):
    def __init__(self, program: Program) -> None:
        super().__init__()
        self.p = nn.ParameterList(torch.empty(shape, dtype=torch.float64) for shape in program.parameters)
        names = "".join(f"p{index}, " for index in range(len(program.parameters)))
        source = f"def forward(x, p):\n    {names or '_'} = p\n" if names else "def forward(x, p):\n"
        source += "".join(f"    {line}\n" for line in program.lines) + f"    return ({', '.join(program.results)},)\n"
        scope: dict[str, Callable[..., tuple[Tensor, ...]]] = {"torch": torch, "F": F}  # type: ignore[dict-item]
        exec(source, scope)
        self.run = scope["forward"]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.run(x, list(self.p))


class Writer:
    """Writes one program, statement by statement; `draw` chooses what is left open."""

    def __init__(self, draw: st.DrawFn) -> None:
        self.draw = draw
        self.parameters: list[tuple[int, ...]] = []
        self.lines: list[str] = []
        rank = draw(st.integers(1, 3))
        sizes = draw(st.lists(st.sampled_from([4, 3, 2, 6, 1]), min_size=rank, max_size=rank))
        self.shape = tuple(sizes)
        self.values: dict[str, list[Dim]] = {"x": [BATCH, *map(dim, sizes)]}
        self.unused = {"x"}

    def pick(self, options: list) -> object:  # type: ignore[type-arg]
        return self.draw(st.sampled_from(options))

    def parameter(self, *shape: int) -> str:
        self.parameters.append(shape)
        return f"p{len(self.parameters) - 1}"

    def emit(self, expression: str, shape: list[Dim], *used: str) -> None:
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        self.values[name] = shape
        self.unused -= set(used)
        self.unused.add(name)

    def finish(self) -> Program:
        """Return all that nothing used, the batch axis first."""
        results = []
        for name in sorted(self.unused):
            shape = self.values[name]
            at = next(index for index, one in enumerate(shape) if one[1])
            before, _, after = shape[at]
            text = name if (before, after) == (1, 1) else f"{name}.unflatten({at}, ({before}, -1, {after}))"
            at += (before, after) != (1, 1)
            results.append(text if at == 0 else f"{text}.movedim({at}, 0)")
        return Program(self.shape, tuple(self.parameters), tuple(self.lines), tuple(results))
