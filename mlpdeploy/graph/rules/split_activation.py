"""A projection whose activated result is split becomes one projection and activation for each part.

before: linear(x, W) -> gelu -> chunk -> u, v                      (gMLP, on channels or on tokens)
after:  u = gelu(linear(x, W_u)), v = gelu(linear(x, W_v))

The parts are never copied out of a larger tensor.
"""

from __future__ import annotations

import functools

from mlpdeploy.graph.rule import Rule
from mlpdeploy.graph.rules.split_projection import find, replace

RULE = Rule("split_activation", "algebra", functools.partial(find, activated=True), replace, after=("fold_affine",))
