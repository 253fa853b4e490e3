"""RepMLP-Res50: re-parameterizing convolutions into fully-connected layers, Ding et al. 2021, arXiv 2105.01883.

A ResNet-50 whose blocks of stride 1 in its second and third stage mix with a RepMLP. Notation: `b` batch, `c` channels,
a map of `(a p) (e q)` pixels in `a e` partitions of `p q` = 7 7:

    v = fc2(relu(fc1(mean over p,q of x)))                           of all of `c a e` together; at train time of
    x = x + v, the same in the whole of a partition                  batch_norm(mean)
    y[b,o,i,j,a,e] = sum over c,p,q of W[o,i,j,c,p,q] x[b,c,p,q,a,e] + bias[o,i,j]      in groups of channels

In the train-time form W and its bias are spread over a matrix with a BatchNorm and over grouped convolutions of every
partition with one each; a deployed checkpoint has their sum, and no BatchNorm at all. Making the first into the second
is the compiler's work. The names of the parameters are those of the authors' checkpoints.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from torch import Tensor, nn

PARTITION = 7
KERNELS = (1, 3, 5)
"""Of the convolutions beside the matrix, at train time."""

BLOCKS = (3, 4, 6, 3)
CHANNELS = (256, 512, 1024, 2048)
IMAGE_SIZE = 224

Kind = Literal["light", "bottleneck"]


class ConvBN(nn.Module):
    """A convolution padded by half its kernel and its BatchNorm; when deployed, a convolution with a bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, deploy: bool, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=deploy)
        if not deploy:
            self.bn = nn.BatchNorm2d(outputs)
        self.deploy = deploy

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.deploy else self.bn(self.conv(x))


class RepMLP(nn.Module):
    """Global, partition and local perceptron on a map of `grid` x `grid` pixels: (b, c, h, w) to the same."""

    def __init__(self, channels: int, grid: int, groups: int, deploy: bool) -> None:
        super().__init__()
        self.parts = grid // PARTITION
        pooled, neurons = channels * self.parts**2, channels * PARTITION**2
        self.fc1_fc2 = nn.Sequential()
        self.fc1_fc2.add_module("fc1", nn.Linear(pooled, pooled))
        self.fc1_fc2.add_module("relu", nn.ReLU())
        self.fc1_fc2.add_module("fc2", nn.Linear(pooled, pooled))
        self.avg = nn.Sequential()
        self.avg.add_module("avg", nn.AvgPool2d(PARTITION))
        self.fc3 = nn.Conv2d(neurons, neurons, 1, groups=groups, bias=deploy)
        self.fc3_bn = nn.Identity() if deploy else nn.BatchNorm1d(neurons)
        self.local: list[nn.Module] = []
        if deploy:
            return
        self.avg.add_module("bn", nn.BatchNorm2d(channels))
        for kernel in KERNELS:
            branch = ConvBN(channels, channels, kernel, deploy, groups=groups)
            self.add_module(f"repconv{kernel}", branch)
            self.local.append(branch)

    def forward(self, x: Tensor) -> Tensor:
        _, c, h, w = x.shape
        a, p = self.parts, PARTITION
        v = self.fc1_fc2(self.avg(x).reshape(-1, c * a * a))
        x = x.reshape(-1, c, a, p, a, p) + v.reshape(-1, c, a, 1, a, 1)
        partitions = x.permute(0, 2, 4, 1, 3, 5).reshape(-1, c, p, p)
        y = self.fc3(partitions.reshape(-1, c * p * p, 1, 1)).reshape(-1, c * p * p)
        y = self.fc3_bn(y).reshape(-1, c, p, p)
        for branch in self.local:
            y = y + branch(partitions)
        return y.reshape(-1, a, a, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(-1, c, h, w)


class BaseBlock(nn.Module):
    """ResNet-50's bottleneck, its stride in the 3x3 convolution: (b, c, h, w) to (b, c', h/stride, w/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int, deploy: bool) -> None:
        super().__init__()
        mid = outputs // 4
        alike = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if alike else ConvBN(inputs, outputs, 1, deploy, stride)
        self.conv1 = ConvBN(inputs, mid, 1, deploy)
        self.conv2 = ConvBN(mid, mid, 3, deploy, stride)
        self.conv3 = ConvBN(mid, outputs, 1, deploy)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x).relu()).relu()
        return (self.conv3(y) + self.shortcut(x)).relu()


class RepMLPLightBlock(nn.Module):
    """A RepMLP between two 1x1 convolutions; (b, c, h, w) to the same."""

    def __init__(self, channels: int, grid: int, deploy: bool) -> None:
        super().__init__()
        mid = channels // 8
        self.light_conv1 = ConvBN(channels, mid, 1, deploy)
        self.light_repmlp = RepMLP(mid, grid, 4, deploy)
        self.light_conv3 = ConvBN(mid, channels, 1, deploy)

    def forward(self, x: Tensor) -> Tensor:
        y = self.light_repmlp(self.light_conv1(x).relu()).relu()
        return (self.light_conv3(y) + x).relu()


class RepMLPBottleneckBlock(nn.Module):
    """A RepMLP of 64 channels between two 3x3 convolutions, in a bottleneck; (b, c, h, w) to the same."""

    def __init__(self, channels: int, grid: int, deploy: bool) -> None:
        super().__init__()
        mid, few = channels // 4, 64
        self.btnk_conv1 = ConvBN(channels, mid, 1, deploy)
        self.btnk_conv2 = ConvBN(mid, few, 3, deploy)
        self.btnk_repmlp = RepMLP(few, grid, 8, deploy)
        self.btnk_conv4 = ConvBN(few, mid, 3, deploy)
        self.btnk_conv5 = ConvBN(mid, channels, 1, deploy)

    def forward(self, x: Tensor) -> Tensor:
        y = self.btnk_conv2(self.btnk_conv1(x).relu()).relu()
        y = self.btnk_conv4(self.btnk_repmlp(y).relu()).relu()
        return (self.btnk_conv5(y) + x).relu()


class RepMLPResNet(nn.Module):
    """The classifier: images (b, 3, 224, 224) to logits (b, num_classes). `deploy`: a deployed checkpoint's form.

    Raises ValueError for another image size: the number of partitions is in the shapes of the weights.
    """

    def __init__(self, kind: Kind, num_classes: int, image_size: int, deploy: bool) -> None:
        super().__init__()
        if image_size != IMAGE_SIZE:
            raise ValueError(
                f"RepMLP's matrices fix the image size: {image_size} was asked for, only {IMAGE_SIZE} fits"
            )
        self.stage0 = nn.Sequential(ConvBN(3, 64, 7, deploy, 2), nn.MaxPool2d(3, 2, 1))
        inputs = 64
        for stage, (depth, channels) in enumerate(zip(BLOCKS, CHANNELS, strict=True), 1):
            grid = IMAGE_SIZE >> (stage + 1)
            blocks: list[nn.Module] = [BaseBlock(inputs, channels, 1 if stage == 1 else 2, deploy)]
            for _ in range(depth - 1):
                blocks.append(_block(kind, stage, channels, grid, deploy))
            self.add_module(f"stage{stage}", nn.Sequential(*blocks))
            inputs = channels
        self.linear = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2] != IMAGE_SIZE or x.shape[3] != IMAGE_SIZE:
            raise ValueError(f"this RepMLP-Res50 takes {IMAGE_SIZE}x{IMAGE_SIZE} images, got {x.shape[2]}x{x.shape[3]}")
        embed, pool = self.stage0
        x = pool(embed(x).relu())
        for stage in range(1, len(BLOCKS) + 1):
            x = self.get_submodule(f"stage{stage}")(x)
        return self.linear(x.mean((2, 3)))


def _block(kind: Kind, stage: int, channels: int, grid: int, deploy: bool) -> nn.Module:
    if stage not in (2, 3):
        return BaseBlock(channels, channels, 1, deploy)
    made = RepMLPLightBlock if kind == "light" else RepMLPBottleneckBlock
    return made(channels, grid, deploy)


def read(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A checkpoint of either form: the deployed one has no BatchNorm after the matrices."""
    return dict(state), {"deploy": not any(".fc3_bn." in key for key in state)}


def repmlp_res50_light_224(num_classes: int = 1000, image_size: int = 224, deploy: bool = False) -> RepMLPResNet:
    """RepMLP-Res50 with light blocks: 87.0 M parameters, 86.1 M when deployed."""
    return RepMLPResNet("light", num_classes, image_size, deploy)


def repmlp_res50_bottleneck_224(num_classes: int = 1000, image_size: int = 224, deploy: bool = False) -> RepMLPResNet:
    """RepMLP-Res50 with bottleneck blocks: 41.1 M parameters, 40.9 M when deployed."""
    return RepMLPResNet("bottleneck", num_classes, image_size, deploy)
