"""A projection whose activated result is split becomes one projection and activation for each part.

before: linear(x, W) -> gelu -> chunk -> u, v                      (gMLP, on channels or on tokens)
after:  u = gelu(linear(x, W_u)), v = gelu(linear(x, W_v))

before: conv2d(x, W) -> gelu -> u = y[:, :k], v = y[:, k:]         (Strip-MLP: one half through the strips)
after:  u = gelu(conv2d(x, W[:k])), v = gelu(conv2d(x, W[k:]))

The parts are never copied out of a larger tensor.
"""

from __future__ import annotations

import functools

from mlpdeploy.graph.rule import Rule
from mlpdeploy.graph.rules.split_projection import find, replace

RULE = Rule("split_activation", "algebra", functools.partial(find, activated=True), replace, after=("fold_affine",))
