"""Random small networks as source text, so that a failure prints a program that can be pasted into a test."""

from __future__ import annotations

from hypothesis import strategies as st

from tests.graph.statements import ALWAYS, KINDS
from tests.graph.writer import Program, Writer, free


@st.composite
def programs(draw: st.DrawFn, longest: int = 12) -> Program:
    """A random network of at most about `longest` operations."""
    writer = Writer(draw)
    for _ in range(draw(st.integers(1, longest))):
        step(writer)
    return writer.finish()


def step(w: Writer) -> None:
    """One more statement, about one of the latest values."""
    recent = list(w.values)[-3:]
    name = w.pick(recent[::-1])
    assert isinstance(name, str)
    shape = w.values[name]
    kind = w.pick(KINDS if free(shape) else ALWAYS)
    kind(w, name, shape)  # type: ignore[operator]
