"""FF-G2M: the MLP that graph networks teach (Wu et al. 2023, arXiv 2305.10758).

The teachers need the graph, the student does not: h_0 = x, h_i = relu(W_i h_{i-1} + b_i), logits = W_n h_{n-1} + b_n.
The names of the parameters are those of the authors' checkpoints.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mlpdeploy.zoo.recipe import Input

CORA = (1433, 128)
"""Widths of the features and of the hidden layer."""


class Student(nn.Module):
    """Features of nodes (b, widths[0]) to what every layer gives, of which the last are the logits, and to the logits.

    Both are results because the authors' module returns both; training compares the hidden ones with the teacher's.
    """

    def __init__(self, widths: Sequence[int]) -> None:
        super().__init__()
        self.inputs = (Input("features", (widths[0],), low=0, high=1),)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in itertools.pairwise(widths))

    def forward(self, features: Tensor) -> tuple[list[Tensor], Tensor]:
        results = []
        for index, layer in enumerate(self.layers, 1):
            features = layer(features)
            if index < len(self.layers):
                features = torch.relu(features)
            results.append(features)
        return results, features


def ff_g2m_student(num_classes: int = 7, widths: Sequence[int] = CORA) -> Student:
    """The student with these widths before the classes; for Cora two layers, 0.18 M parameters."""
    return Student((*widths, num_classes))


def read(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict without the prefix of the module that the authors train the student in, and its widths."""
    state = {key.removeprefix("encoder."): value for key, value in state.items()}
    pattern = re.compile(r"layers\.(\d+)\.weight")
    found = {int(match[1]): value for key, value in state.items() if (match := pattern.fullmatch(key))}
    return state, {"widths": tuple(found[index].shape[1] for index in sorted(found))} if found else {}
