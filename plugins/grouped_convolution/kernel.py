"""A convolution of groups in other operations of PyTorch, which a compiler makes into something else.

Of few channels a group, libraries convolve on the cores that multiply no matrices, or transpose the map around it, and
what follows is a pass of its own. As a sum of shifted maps Inductor generates one kernel of it, with what stands behind
it; of many channels a group it is a product of matrices for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .problem import PRODUCTS, SUMS


def by_sums(
    x: Tensor, kernel: Sequence[int], taps: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """`x`: (B, C, *size). `taps`: (C / groups * K, N), the numbers of each output, channels before places of `kernel`.

    `bias`: (N,). Returns (B, N, *size of the result), summed in FP32 at least.
    """
    wide = torch.promote_types(x.dtype, torch.float32)
    each, outputs, rank = x.shape[1] // groups, taps.shape[1] // groups, len(kernel)
    total: Tensor | None = None
    parts = list(_shifted(_once(x), kernel, stride, padding, dilation))
    for channel, (place, part) in itertools.product(range(each), enumerate(parts)):
        factor = taps[channel * len(parts) + place].reshape(groups, outputs, *[1] * rank).to(wide)
        term = part.unflatten(1, (groups, 1, each)).select(3, channel).to(wide) * factor
        total = term if total is None else total + term
    assert total is not None
    result = total.flatten(1, 2)
    if bias is not None:
        result = result + bias.reshape(-1, *[1] * rank).to(wide)
    return result.to(x.dtype)


def by_products(
    x: Tensor, kernel: Sequence[int], taps: Tensor, bias: Tensor | None,
    stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """See `by_sums`; what each place reads is written once, and multiplied by the taps of its group."""
    parts = torch.stack([*_shifted(x, kernel, stride, padding, dilation)], 2).unflatten(1, (groups, -1))
    batch, size = parts.shape[0], parts.shape[4:]
    columns = parts.movedim(0, 3).flatten(3).flatten(1, 2)
    matrices = taps.unflatten(1, (groups, -1)).permute(1, 2, 0)
    result: Tensor = torch.bmm(matrices, columns).flatten(0, 1).unflatten(1, (batch, *size)).movedim(1, 0)
    return result if bias is None else result + bias.reshape(-1, *[1] * len(kernel))


SPELLED: Mapping[str, Callable[..., Tensor]] = {SUMS: by_sums, PRODUCTS: by_products}


def _once(x: Tensor) -> Tensor:
    """The same map. Inductor writes what a pool reads, where it would compute it again for each tap otherwise."""
    return F.avg_pool2d(x, 1)


def _shifted(
    x: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int], dilation: Sequence[int]
) -> Iterator[Tensor]:
    """What each place of the kernel reads for every place of the result."""
    if any(padding):
        x = F.pad(x, [side for one in reversed(padding) for side in (one, one)])
    reach = [apart * (length - 1) for length, apart in zip(kernel, dilation, strict=True)]
    ends = [size - far for size, far in zip(x.shape[2:], reach, strict=True)]
    for place in itertools.product(*map(range, kernel)):
        at = [one * apart for one, apart in zip(place, dilation, strict=True)]
        spans = (slice(first, first + end, step) for first, end, step in zip(at, ends, stride, strict=True))
        yield x[(slice(None), slice(None), *spans)]
