"""DeepEraser: deep iterative context mining for generic text eraser, Feng et al. 2024, arXiv 2402.19108.

Notation: `b` batch, `h w` the image's own grid throughout, no stride anywhere. An encoder of image and mask gives the
first state s_0 and a context; a recurrent unit, the same eight times, reads what is restored so far:

    s_0, c   = tanh, relu of the two halves of encoder([image, mask])
    f_i      = [relu(conv relu(conv r_(i-1))), r_(i-1)]                    r_0 = image
    s_i      = gru(s_(i-1), [c, f_i])                                      along the rows, then along the columns
    r_i      = image + leaky(conv leaky(conv s_i))

Norms are over the grid of each channel and image, without scale and shift, so the encoder has no statistics to load.
The results are r_1 ... r_8, as the authors return them; they show r_8, clamped to [0, 1]. The names of the
parameters are those of the authors' checkpoint.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LEAK = 0.2
"""Slope of the head's activations below zero."""

HALF = 64
"""Channels of the state and of the context."""


class ResidualBlock(nn.Module):
    """relu(x + relu(norm(conv relu(norm(conv x))))); (b, c, h, w) to (b, c', h, w)."""

    def __init__(self, dim: int, out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(dim, out, 3, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.downsample = nn.Sequential(nn.Conv2d(dim, out, 1), nn.InstanceNorm2d(out)) if out != dim else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(F.instance_norm(self.conv1(x)))
        return F.relu(self.downsample(x) + F.relu(F.instance_norm(self.conv2(y))))


class Encoder(nn.Module):
    """Image and mask (b, 4, h, w) to features (b, 2 * HALF, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(4, 16, 7, padding=3)
        dims = (16, 16, 32, 32, 64, 64, 128)
        for index, (dim, out) in enumerate(pairwise(dims), 1):
            self.add_module(f"layer{index}", nn.Sequential(ResidualBlock(dim, out), ResidualBlock(out, out)))
        self.conv2 = nn.Conv2d(128, 2 * HALF, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.instance_norm(self.conv1(x)))
        for index in range(1, 7):
            x = self.get_submodule(f"layer{index}")(x)
        return self.conv2(x)


class RestoredEncoder(nn.Module):
    """What is restored so far, (b, 3, h, w), to features (b, HALF, h, w), of which it is itself the last three."""

    def __init__(self) -> None:
        super().__init__()
        self.convf1 = nn.Conv2d(3, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, HALF - 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([F.relu(self.convf2(F.relu(self.convf1(x)))), x], dim=1)


class SeparableGru(nn.Module):
    """A gated recurrent unit with convolutions along the rows, then one along the columns.

    State (b, HALF, h, w) and input (b, 2 * HALF, h, w) to the next state: (1 - z) * state + z * q, with update z,
    candidate q, and a reset of the state that q reads.
    """

    def __init__(self) -> None:
        super().__init__()
        for index, kernel in ((1, (1, 5)), (2, (5, 1))):
            for gate in ("convz", "convr", "convq"):
                padding = (kernel[0] // 2, kernel[1] // 2)
                self.add_module(f"{gate}{index}", nn.Conv2d(3 * HALF, HALF, kernel, padding=padding))

    def forward(self, state: Tensor, x: Tensor) -> Tensor:
        for index in (1, 2):
            update, reset, candidate = (self.get_submodule(f"conv{gate}{index}") for gate in "zrq")
            both = torch.cat([state, x], dim=1)
            z, r = torch.sigmoid(update(both)), torch.sigmoid(reset(both))
            q = torch.tanh(candidate(torch.cat([r * state, x], dim=1)))
            state = (1 - z) * state + z * q
        return state


class Head(nn.Module):
    """The state (b, HALF, h, w) to what is added to the image, (b, 3, h, w)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(HALF, 128, 3, padding=1)
        self.conv2 = nn.Conv2d(128, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), LEAK)), LEAK)


class UpdateBlock(nn.Module):
    """One iteration: the next state, and what is added to the image."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = RestoredEncoder()
        self.gru = SeparableGru()
        self.pre_head = Head()

    def forward(self, state: Tensor, context: Tensor, restored: Tensor) -> tuple[Tensor, Tensor]:
        state = self.gru(state, torch.cat([context, self.encoder(restored)], dim=1))
        return state, self.pre_head(state)


class DeepEraser(nn.Module):
    """Image (b, 3, h, w) in [0, 1] and mask (b, 1, h, w) of what to erase to restored images (b, 3, h, w), not clamped.

    Any height and width; `image_size` only has to be positive, else ValueError. Returns one image for each of
    `iterations`, the last one last.
    """

    def __init__(self, iterations: int = 8, image_size: int = 224) -> None:
        super().__init__()
        if image_size < 1:
            raise ValueError(f"an image cannot be {image_size}x{image_size}")
        self.iterations = iterations
        self.fnet = Encoder()
        self.update_block = UpdateBlock()

    def forward(self, image: Tensor, mask: Tensor) -> list[Tensor]:
        first, context = self.fnet(torch.cat([image, mask], dim=1)).split(HALF, dim=1)
        state, context, restored, images = torch.tanh(first), torch.relu(context), image, []
        for _ in range(self.iterations):
            state, difference = self.update_block(state, context, restored)
            restored = image + difference
            images.append(restored)
        return images


def deeperaser(image_size: int = 224) -> DeepEraser:
    """DeepEraser: 1.4 M parameters, any image size, all eight restored images."""
    return DeepEraser(image_size=image_size)
