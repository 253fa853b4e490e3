"""Whether a file in 8 bits computes what the fake-quantised graph computes, as far as that can be told.

Where a value lies between two codes, the last bit of a sum decides which it gets; a network in 8 bits goes on with a
whole step of difference, and a deep one spreads it over every number. So the file is held to what float64 makes of the
same graph: it differs from the graph in float32 by no more than that does, or by less than codes cost anywhere.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from mlpdeploy.engine.onnx.emit import emit
from mlpdeploy.evidence.proof.runs import onnx_run
from mlpdeploy.graph.precision.plan import plan
from mlpdeploy.graph.precision.typed import apply
from mlpdeploy.graph.quantisation.calibrate import outputs, sqnr_db
from mlpdeploy.graph.quantisation.equalise import equalise
from mlpdeploy.graph.quantisation.sites import Quantisation
from mlpdeploy.graph.rewrite import Rewritten

FAINT_DB = 50.0
"""Differences this far below the signal are single codes."""
DRAWS_DB = 6.0
"""By how much two draws of such differences may differ."""


def round_trip(rewritten: Rewritten, quantisation: Quantisation, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Decibels of signal over difference from the graph in float32: of the emitted file, and of float64."""
    balanced = equalise(rewritten, quantisation.equalised)
    typed = apply(balanced, plan(balanced, quantisation.precision, quantisation=quantisation, beside="fp32"))
    expected = outputs(typed.module, rows, balanced.inputs)
    emitted = _flat(onnx_run(emit(typed).model, 1)(dict(rows)).values())
    with torch.inference_mode():
        values = [torch.from_numpy(rows[spec.name]) for spec in balanced.inputs]
        values = [value.double() if value.is_floating_point() else value for value in values]
        leaves = pytree.tree_leaves(copy.deepcopy(typed.module).double()(*values))
    file, wide = sqnr_db(expected, emitted), sqnr_db(expected, _flat(leaf.numpy() for leaf in leaves))
    same = file >= min(FAINT_DB, wide - DRAWS_DB)
    return {"file_db": round(file, 1), "float64_db": round(wide, 1), "same": same}


def _flat(arrays: Any) -> np.ndarray:
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)
