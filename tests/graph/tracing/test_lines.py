"""The line that an error names is the innermost one of the user's, wherever that stands."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn

from mlpdeploy.graph.tracing.place import line_of
from mlpdeploy.graph.tracing.trace import TensorSpec, Traced, trace

SPEC = TensorSpec("x", (4,), torch.float32)


def doubled(x: Tensor) -> Tensor:
    return x * 2  # line of the free function


class Helped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layer(self.helped(x))  # line of forward
        return result

    def helped(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return doubled(x) + 1  # line of the helper


def line(marked: str) -> int:
    with open(__file__, encoding="utf-8") as file:
        return next(number for number, text in enumerate(file, 1) if text.rstrip().endswith(f"# {marked}"))


def lines(traced: Traced) -> dict[str, int | None]:
    found = {}
    for node in traced.module.graph.nodes:
        if node.op == "call_function":
            file, number = line_of(node)
            assert file == __file__
            found[node.target.__name__] = number
    return found


WANTED = {
    "mul.Tensor": line("line of the free function"),
    "add.Tensor": line("line of the helper"),
    "linear.default": line("line of forward"),
}


def test_of_functions_and_methods_that_forward_calls() -> None:
    traced = trace(Helped(), [SPEC])
    assert lines(traced) == WANTED
    assert not any("custom" in node.meta for node in traced.module.graph.nodes)


def test_by_several_threads_at_once() -> None:
    found: list[dict[str, int | None]] = []
    threads = [threading.Thread(target=lambda: found.append(lines(trace(Helped(), [SPEC])))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [WANTED] * 4
