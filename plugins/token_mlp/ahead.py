"""The kernel compiled ahead of time, for any GPU, without one."""

from __future__ import annotations

from ..common.ahead import Compiled, compile_ahead
from ..common.configurations import Config
from .kernel import mlp as kernel
from .problem import Problem


def compile_kernel(problem: Problem, config: Config, sm: int) -> Compiled:
    """See `compile_ahead`. The entry takes x, up, up_bias, down, down_bias and residual, of these the ones that the
    problem has, the batch, and y.
    """
    absent = [name for name in ("up_bias", "down_bias", "residual") if not getattr(problem, name)]
    return compile_ahead(kernel, problem.precision, {**problem.constants(config), **dict.fromkeys(absent)}, config, sm)
