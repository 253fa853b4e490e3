"""Every custom operation that has a kernel, by its target. A new one is a file of its own, and a name here."""

from __future__ import annotations

from mlpdeploy.graph.custom_ops import PROJECTIONS
from mlpdeploy.graph.token_mlp import MLPS

OPERATIONS = {one.target: one for one in (*PROJECTIONS, *MLPS)}
