"""What is given to an engine, in whatever form its numbers lie."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from mlpdeploy.calling import _cast
from mlpdeploy.errors import InputError, NetworkError
from mlpdeploy.network.in_hand import named_arrays, source_of_network


@pytest.mark.filterwarnings("ignore")  # of quantised and nested tensors, which PyTorch means to change
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (lambda x: x.to("meta"), "has a shape and no numbers"),
        (lambda x: x.to_sparse(), "is sparse_coo: give tensor.to_dense()"),
        (lambda x: x.to_mkldnn(), "is _mkldnn: give tensor.to_dense()"),
        (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.qint8), "is quantised: give tensor.dequantize()"),
        (lambda x: torch.nested.nested_tensor([x[0], x[1]]), "is nested: give rows of one shape"),
        (lambda x: np.ma.masked_array(x.numpy()), "is a masked array"),
        (lambda x: x.to(torch.float8_e4m3fn), "has no numbers for NumPy"),
    ],
)
def test_tensors_without_plain_numbers_are_one_line(given: Any, said: str) -> None:
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        named_arrays(given(torch.ones(2, 3)), ["image"])
    assert len(str(caught.value).splitlines()) == 1


def test_tensors_that_lie_otherwise_are_taken_as_what_they_are() -> None:
    x = torch.complex(torch.ones(2, 3), torch.full((2, 3), 2.0))
    assert (named_arrays(x.conj().imag, ["image"])["image"] == -2).all()
    read_only = np.ones((2, 3), np.float32)
    read_only.setflags(write=False)
    port = {"name": "image", "dtype": "float32"}
    assert named_arrays(read_only, ["image"])["image"] is read_only and _cast(read_only, port).flags.writeable
    reversed_rows = np.arange(6, dtype=np.float32).reshape(2, 3)[::-1]
    assert (_cast(reversed_rows, port) == reversed_rows).all()


class InDouble(nn.Module):
    """A last layer in double precision, as losses are computed."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 4), nn.Linear(4, 3).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.last(self.first(x).to(self.last.weight.dtype if self.of_weight else torch.float64))
        return result.float()

    of_weight = False


def test_a_part_in_another_dtype_by_its_own_code_is_told() -> None:
    with pytest.raises(NetworkError, match="InDouble converts its numbers to float64 by its own code"):
        source_of_network(InDouble(), torch.zeros(2, 8), "given")
    with pytest.raises(NetworkError, match="does not take the example"):
        source_of_network(InDouble(), torch.zeros(2, 9), "given")


class OfItsWeight(InDouble):
    of_weight = True


def test_a_part_that_asks_its_weights_for_their_dtype_is_taken() -> None:
    source_of_network(OfItsWeight(), torch.zeros(2, 8), "given")
