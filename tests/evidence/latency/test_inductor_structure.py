"""What Inductor generates for a GPU that is not here, of a small network in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import REPOSITORY

pytest.importorskip("triton", reason="Triton, which Inductor generates kernels in, is not installed")

CODE = """
import json
from unittest.mock import patch

import torch
from torch import nn

from benchmarks.inductor_structure import generated, ours, packaged
from mlpdeploy.engine import programs
from mlpdeploy.graph.tracing.trace import TensorSpec, trace


class Shifted(nn.Module):
    def __init__(self):
        super().__init__()
        self.mixed, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x):
        y = self.mixed(torch.cat([x.roll(1, 2), x.roll(1, 2)[:, :, :2]], 2))
        return self.head(y.mean((2, 3)))


class Filled(nn.Module):
    def forward(self, x):
        taps = torch.arange(4.0, dtype=x.dtype)
        return nn.functional.conv1d(x.new_ones(1, 1, 8), taps[None, None], stride=2) * x[:, :, :3]


shape = (16, 8, 8)
traced = trace(Shifted().eval(), [TensorSpec("x", shape, torch.float32)])
typed = {"ours": ours(traced)[0], "tables": ours(traced, (), ["gather_shifts"])[0]}
modules = {"plain": Shifted().eval().half(), **{name: programs.for_gpu(one).module for name, one in typed.items()}}
found = {name: generated(module, [(4, *shape)]) for name, module in modules.items()}
found["package"] = packaged(typed["ours"], 4)
with patch.object(programs, "channels_last", lambda given: given):
    found["as traced"] = packaged(typed["ours"], 4)
found["filled"] = packaged(ours(trace(Filled(), [TensorSpec("x", (4, 8), torch.float32)]))[0], 4)
print(json.dumps(found))
print(torch.cuda.is_available(), torch.cuda.device_count())
"""


@pytest.mark.slow
def test_code_for_a_gpu_is_counted_without_one_and_shifts_are_read_through_no_table() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = subprocess.run([sys.executable, "-c", CODE], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first, last = done.stdout.splitlines()
    found: dict[str, Any] = json.loads(first)
    assert last == "False 0"
    # Constants are computed on no GPU either: here what is filled with ones.
    assert found.pop("filled")["calls"] == {"convolution": 1}
    assert {name: one["tables"] for name, one in found.items()} == {
        "plain": 0,
        "ours": 0,
        "tables": 1,
        "package": 0,
        "as traced": 0,
    }
    assert found["package"]["convolutions"] == {"channels last": 1}
    assert found["as traced"]["convolutions"] == {"channels first": 1}
    for one in found.values():
        assert one["calls"] == {"addmm": 1, "convolution": 1} and one["kernels"] >= 2
    # The convolution's images and weights in FP16, and the head's rows, weights and bias.
    convolution, head = 2 * (2 * 4 * 16 * 10 * 8 + 16 * 16), 2 * (4 * 16 + 4 * 16 + 4 + 4 * 4)
    assert found["ours"]["bytes"]["calls"] == convolution + head
