"""The kernel compiled ahead of time, for any GPU, without one."""

from __future__ import annotations

from ..common.ahead import Compiled, compile_ahead
from ..common.configurations import Config
from .kernel import project as kernel
from .problem import Problem


def compile_kernel(problem: Problem, config: Config, sm: int, cuda: str | None = None) -> Compiled:
    """See `compile_ahead`. The entry takes x, weight, bias, scale and accumulate, of these the ones that the problem
    has, the batch, and y.
    """
    present = {"bias": problem.bias, "scale": problem.channels > 0, "accumulate": problem.accumulate}
    absent = [name for name, given in present.items() if not given]
    constants = {**problem.constants(config), **dict.fromkeys(absent)}
    return compile_ahead(kernel, problem.precision, constants, config, sm, cuda)
